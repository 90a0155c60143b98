# SPDX-License-Identifier: MIT
"""The monitor's process: accept connections, gather heads, and answer each request in a thread.

One loop waits for all that is slow or silent; a thread is made when a whole head is there. So nothing runs
where nobody asks, and silent clients take no thread. A connection carries one request.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.head import error_response
from gunicorn.http.parse import HeadGatherer
from gunicorn.http.parser import RequestParser
from gunicorn.monitor import inherited
from gunicorn.monitor.app import PROBES, Monitor, Options
from gunicorn.monitor.stream import Stream
from gunicorn.settings.monitor import MONITOR_VARIABLE
from gunicorn.unix.poller import Poller
from gunicorn.workers import connection
from gunicorn.workers.cycle import LINGER, RESET, Cycle, Outcome

# Connections whose head is not complete; the oldest one makes room for a new one.
MOST_WAITING = 256
# Requests that are answered at once; beyond that, some places are kept for probes.
MOST_SERVED = 64
MOST_WITH_PROBES = 80
# Seconds for a head, for a request with its answer, and for one send of a stream.
HEAD_SECONDS = 5.0
ANSWER_SECONDS = 10.0
SEND_SECONDS = 5.0

_ACCEPT_BATCH = 32
_CHUNK = 16384


class _Client:
    """A connection, from its accept to its end."""

    def __init__(self, sock: socket.socket, addr: Any, policy: Any) -> None:
        self.sock = sock
        self.addr = addr
        self.head = HeadGatherer(policy)
        self.deadline = time.monotonic() + HEAD_SECONDS


class Server:
    """Serves *application* on *listener*. For `Cycle` it is the worker."""

    alive = True
    nr = 0
    max_requests = math.inf
    slot = None

    def __init__(self, listener: socket.socket, application: Callable[..., Iterable[bytes]]) -> None:
        self.listener = listener
        self.address = listener.getsockname()
        self.application = application
        # The defaults: neither hooks nor an access log.
        self.cfg = Config()
        self.log = _Log("gunicorn.monitor")
        self.cycle = Cycle(self)
        self.poller = Poller()
        self._errors = connection.AcceptErrors(self.log)
        self._waiting: dict[int, _Client] = {}
        self._served: dict[Any, _Client] = {}
        self._lock = threading.Lock()

    # -- the loop --------------------------------------------------------------------------

    def run(self) -> None:
        """Serve for ever."""
        self.listener.setblocking(False)
        self.poller.add(self.listener.fileno(), self._accept)
        while True:
            self.step(self._timeout())

    def step(self, timeout: float | None) -> None:
        """Wait for clients, at most *timeout* seconds, and do what has become possible or due."""
        self.poller.wait(timeout)
        self._end_overdue(time.monotonic())

    def _timeout(self) -> float | None:
        with self._lock:
            deadlines = [client.deadline for client in (*self._waiting.values(), *self._served.values())]
        nearest = min(deadlines, default=math.inf)
        return None if nearest == math.inf else max(0.0, nearest - time.monotonic())

    def _end_overdue(self, now: float) -> None:
        for client in [client for client in self._waiting.values() if client.deadline <= now]:
            self._forget(client)
            client.sock.close()
        with self._lock:
            for client in self._served.values():
                if client.deadline <= now:
                    client.deadline = math.inf
                    # Its thread finds the connection at its end.
                    with contextlib.suppress(OSError):
                        client.sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, events: int) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, addr = self.listener.accept()
            except OSError as error:
                if not self._errors.is_transient(error):
                    time.sleep(0.1)
                return
            if len(self._waiting) >= MOST_WAITING:
                oldest = next(iter(self._waiting.values()))
                self._forget(oldest)
                oldest.sock.close()
            sock.setblocking(False)
            client = _Client(sock, addr, self.cycle.policy)
            self._waiting[sock.fileno()] = client
            self.poller.add(sock.fileno(), lambda events, client=client: self._receive(client))  # type: ignore[misc]
            self._receive(client)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(client)
            client.sock.close()
            return
        try:
            if not client.head.feed(data):
                return
        except ParseException:
            pass  # the parser finds it again, and it is answered there
        self._forget(client)
        self._begin(client)

    def _forget(self, client: _Client) -> None:
        fd = client.sock.fileno()
        self.poller.remove(fd)
        self._waiting.pop(fd, None)

    # -- a request -------------------------------------------------------------------------

    def _begin(self, client: _Client) -> None:
        client.deadline = time.monotonic() + ANSWER_SECONDS
        with self._lock:
            full = len(self._served) >= (MOST_WITH_PROBES if _is_probe(client.head.buffer) else MOST_SERVED)
            if not full:
                self._served[client.sock] = client
        if full:
            text = f"The monitor answers {MOST_SERVED} requests already."
            with contextlib.suppress(OSError):
                client.sock.send(error_response(503, "Service Unavailable", text))
            client.sock.close()
            return
        threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: _Client) -> None:
        sock = client.sock
        outcome: Outcome = RESET
        try:
            sock.setblocking(True)
            connection.set_blocking_timeout(sock, SEND_SECONDS)
            parser = RequestParser(self.cfg, sock, client.addr, self.cycle.policy)
            parser.unreader.pending = bytes(client.head.buffer)
            try:
                request = next(parser)
            except StopIteration:
                return
            except Exception as error:
                outcome = self.cycle.answer_error(None, sock, client.addr, error)
                return
            outcome = self.cycle.serve(request, sock, client.addr, self.address, keep=False, multithread=True)
        finally:
            if outcome == RESET:
                connection.reset(sock)
            else:
                connection.close_gracefully(sock, more_expected=outcome == LINGER)
            with self._lock:
                self._served.pop(sock, None)

    # -- what `Cycle` needs of a worker ----------------------------------------------------

    def wsgi(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The application; a stream may last."""
        result = self.application(environ, start_response)
        if isinstance(result, Stream):
            with self._lock:
                self._served[environ["gunicorn.socket"]].deadline = math.inf
        return result

    def retire(self) -> None:
        """Never called: there is no limit of requests."""


def _is_probe(head: bytes | bytearray) -> bool:
    """Whether *head* asks for what must be answered however busy the monitor is."""
    words = bytes(head[:32]).decode("latin-1").split(" ", 2)
    return len(words) == 3 and words[1] in PROBES


class _Log(logging.Logger):
    """A logger apart from those that the application has configured; `Cycle` writes no access log to it."""

    wants_access = False

    def __init__(self, name: str) -> None:
        super().__init__(name, logging.WARNING)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        self.addHandler(handler)


def run() -> None:
    """Serve the monitor: the target of its companion."""
    # Collections leave alone what is shared with the manager.
    gc.freeze()
    _undo_gevent()
    options = Options(**json.loads(os.environ.pop(MONITOR_VARIABLE)))
    threading.stack_size(256 * 1024)
    # gevent's sockets have ways of their own.
    listener = socket.socket(fileno=inherited.listener.detach())
    Server(listener, Monitor(options)).run()


def _undo_gevent() -> None:
    """Use threads and the system's calls where a configuration file has had gevent replace them."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        for module, names in monkey.saved.items():
            # It keeps settings of its own there too.
            for name in names if module in sys.modules else ():
                setattr(sys.modules[module], name, monkey.get_original(module, name))
