# SPDX-License-Identifier: MIT
"""A store on a server: a time limit for each call, and a look now and then whether a lease has become free.

Time-outs of libraries count from byte to byte, and looking up a host name has none. So the client works in
a thread of its own, and a call that takes too long is given up together with the connection.
"""

from __future__ import annotations

import contextlib
import queue
import select
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from gunicorn.companion.leasing.store import Answer, LeaseError, StoreError, split_url
from gunicorn.unix import boottime


def addresses(url: str, port: int) -> list[tuple[str, int]]:
    """Return the hosts of a URL that may name several; *port* is that of those without one.

    Raises ValueError.
    """
    hosts = urlsplit(url).netloc.rpartition("@")[2]
    found = [split_url("//" + host) for host in hosts.split(",")]
    if not all(each.hostname for each in found):
        raise ValueError("names no host, or an empty one")
    return [(str(each.hostname), each.port or port) for each in found]


class Client(Protocol):
    """What speaks with the server. Its methods may hang; they raise StoreError. See `Store`."""

    def acquire(self, name: str, owner: str, ttl: float) -> Answer: ...
    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool: ...
    def release(self, name: str, owner: str, token: int, note: str | None) -> None: ...

    def any_free(self, names: Sequence[str]) -> bool:
        """Tell whether it is worth trying to acquire one of *names*."""

    def close(self) -> None: ...

    def cut(self) -> None:
        """End the connection from another thread, for what waits for it to fail, and make no other.

        Never blocks.
        """


class RemoteStore:
    """The store of the client that *make* returns, with *timeout* seconds for each call.

    A call that was given up may still reach the server, like one that the network delays. That does no harm:
    it names a token, and acquiring the lease anew makes a new one, for the same owner too.
    """

    def __init__(self, make: Callable[[], Client], timeout: float, look_every: float = 0.5) -> None:
        self._make = make
        self._timeout = timeout
        self._look_every = look_every
        self._thread: _ClientThread | None = None

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        answer: Answer = self._call(lambda client: client.acquire(name, owner, ttl))
        return answer

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        return bool(self._call(lambda client: client.renew(name, owner, token, ttl, note)))

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        self._call(lambda client: client.release(name, owner, token, note))

    def wait(self, names: Sequence[str], seconds: float, wake: int) -> None:
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        end = boottime.now() + seconds
        while (rest := end - boottime.now()) > 0:
            pause = min(rest, self._look_every) if names else rest
            if poller.poll(pause * 1000):
                return
            try:
                if names and self._call(lambda client: client.any_free(names)):
                    return
            except StoreError:
                # The next call tells it.
                return

    def close(self) -> None:
        if self._thread is not None:
            self._thread.finish()
            self._thread = None

    def _call(self, function: Callable[[Client], Any]) -> Any:
        if self._thread is None:
            try:
                self._thread = _ClientThread(self._make())
            except (OSError, ValueError, RuntimeError) as exc:
                # A file of its URL was removed, for instance.
                raise StoreError(f"{type(exc).__name__}: {exc}") from exc
        try:
            return self._thread.call(function, self._timeout)
        except StoreError:
            raise
        except queue.Empty:
            self._thread.cut()
            self.close()
            raise StoreError(f"no answer within {self._timeout:g}s") from None
        except Exception as exc:
            # Whatever answers there, a client stumbles over it.
            self.close()
            raise LeaseError(f"its answer makes no sense: {type(exc).__name__}: {exc}") from exc


class _ClientThread:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._calls: queue.SimpleQueue[Callable[[Client], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        # One that hangs must not hold up the end of the process.
        threading.Thread(target=self._run, name="lease store", daemon=True).start()

    def call(self, function: Callable[[Client], Any], seconds: float) -> Any:
        """Raises queue.Empty when it takes longer than *seconds*; the thread is of no use then."""
        self._calls.put(function)
        result, error = self._results.get(timeout=seconds)
        if error is not None:
            raise error
        return result

    def finish(self) -> None:
        self._calls.put(None)

    def cut(self) -> None:
        self._client.cut()

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                self._results.put((function(self._client), None))
            except BaseException as error:
                self._results.put((None, error))
        with contextlib.suppress(Exception):
            self._client.close()
