# SPDX-License-Identifier: MIT
"""The control socket: newline-delimited JSON over a Unix socket.

A dispatch function answers the requests, in order. An answer with ``"subscribe": true`` (which is not sent)
subscribes its client to every later `broadcast`, or to those that its ``"wants"`` is true of. One with
``"hand_over"`` is not sent at all: that function has another process answer the client. Neither is one with
``"later"``: that function is given another one, to call with the answer when there is one. A slow, silent or
dead client does not delay the others.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn.companion.client import default_paths
from gunicorn.unix import trust
from gunicorn.unix.poller import READABLE, WRITABLE, Poller
from gunicorn.unix.spare import EXHAUSTED, Reserve

MAX_LINE = 64 * 1024
MAX_CONNECTIONS = 256
# The server reads nothing from a client with this much unread.
OUTPUT_HIGH_WATER = 256 * 1024
# A subscriber with more unread than this is dropped: room for a few changes of a thousand companions.
SUBSCRIBER_LIMIT = 1024 * 1024
# Requests of one client to answer before other clients and the companions have their turn.
REQUESTS_AT_ONCE = 8
RETRY_INTERVAL = 10.0
# Seconds without accepting when the process, or the system, has no descriptor left.
PAUSE = 1.0
BACKLOG = 256
ACCEPT_BATCH = 16
# Descriptors in reserve for clients: people ask for the status when companions have used up all others.
RESERVE = 4

Dispatch = Callable[[dict[str, Any]], dict[str, Any]]


class LineReader:
    """Cuts a byte stream into lines of at most *limit* bytes.

    A longer line is skipped and comes out as None, once, so that memory is bounded.
    """

    def __init__(self, limit: int = MAX_LINE) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def end(self) -> None:
        """End of input: the rest may be a request without its newline."""
        try:
            whole = isinstance(json.loads(self._buffer), dict)
        except (ValueError, RecursionError):
            return
        if whole and len(self._buffer) <= self.limit:
            self._buffer += b"\n"

    def lines(self) -> Iterator[bytes | None]:
        """The complete lines so far, without their newline."""
        while True:
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) > self.limit:
                    self._buffer.clear()
                    if not self._skipping:
                        self._skipping = True
                        yield None
                elif self._skipping:
                    self._buffer.clear()
                return
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if self._skipping:
                self._skipping = False
            elif len(line) > self.limit:
                yield None
            else:
                yield line


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def error(text: str) -> dict[str, Any]:
    return {"ok": False, "error": text}


def remove_abandoned(path: str) -> None:
    """Remove the sockets beside *path* that killed servers of this user have left.

    These are sockets with the pid of a dead master in their name. Does nothing if *path* has no pid in it.
    """
    if default_paths.master_of(path) is None:
        return
    for other in glob.glob(os.path.join(glob.escape(os.path.dirname(path)), default_paths.SOCKET_PATTERN)):
        master = default_paths.master_of(other)
        # The pid of a server in another container may not exist here: probe whether it listens.
        if master is not None and _is_gone(master):
            with contextlib.suppress(OSError):
                if os.stat(other, follow_symlinks=False).st_uid == os.geteuid():
                    trust.remove_stale_socket(other)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


class Client:
    """One connection, with its unread input and its unsent answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = LineReader()
        self.pending: Iterator[bytes | None] = iter(())
        self.output = bytearray()
        self.ended = False
        self.subscribed = False
        # Which messages it gets as a subscriber; None: all.
        self.wants: Callable[[dict[str, Any]], bool] | None = None
        # Whether it waits for an answer that comes later; its other requests wait too.
        self.waits = False

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def full(self) -> bool:
        return len(self.output) >= OUTPUT_HIGH_WATER

    @property
    def stays(self) -> bool:
        """Whether it may get something without another request."""
        return self.subscribed or self.waits


class ControlServer:
    """Listens on *path* with file mode *mode* and answers through *dispatch*.

    ``open`` never raises: if it fails it logs one warning and tries again at `next_attempt`.
    """

    def __init__(self, path: str, mode: int, dispatch: Dispatch, poller: Poller, log: Any) -> None:
        self.path = path
        self.mode = mode
        self.dispatch = dispatch
        self.poller = poller
        self.log = log
        self.listener: socket.socket | None = None
        self.clients: dict[int, Client] = {}
        self.next_attempt: float | None = None
        self._owned: tuple[int, int] | None = None
        self._complaint: str | None = None
        # Whether another server is expected to have the path still.
        self.patient = False
        self.reserve = Reserve(RESERVE)

    # -- the socket file ---------------------------------------------------

    def open(self, now: float) -> bool:
        """Listen, if that is possible; return whether it is."""
        self.next_attempt = None
        # It needs two descriptors: the probe of an existing socket, and the new socket.
        self.reserve.release_all()
        try:
            listener = self._listen()
        except OSError as exc:
            self._complain(exc.strerror or str(exc))
            self.next_attempt = now + RETRY_INTERVAL
            return False
        finally:
            self.reserve.fill()
        self._complaint = None
        self.listener = listener
        self.poller.add(listener.fileno(), self._on_connection)
        self.log.info("The control socket of companions is %s", self.path)
        return True

    def _complain(self, reason: str) -> None:
        # Once, not at every attempt.
        if reason != self._complaint:
            self._complaint = reason
            log = self.log.info if self.patient else self.log.warning
            log("No control socket for companions at %s: %s", self.path, reason)

    def _listen(self) -> socket.socket:
        trust.remove_stale_socket(self.path)
        # Its directory may be gone too: tools clean up /run.
        with contextlib.suppress(OSError):
            os.mkdir(os.path.dirname(self.path), 0o700)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # bind() applies the umask, so the mode is right from the beginning. There are no other threads.
        umask = os.umask(0o777 & ~self.mode)
        try:
            listener.bind(self.path)
            info = os.stat(self.path, follow_symlinks=False)
            self._owned = (info.st_dev, info.st_ino)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except BaseException as exc:
            listener.close()
            if isinstance(exc, OSError) and "too long" in str(exc):
                raise OSError(errno.ENAMETOOLONG, "the path is too long for a Unix socket") from None
            raise
        finally:
            os.umask(umask)
        return listener

    @property
    def file_is_ours(self) -> bool:
        try:
            info = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._owned

    def check(self, now: float) -> None:
        """Listen again if the socket file is gone or another server's."""
        if self.patient:
            self.patient, self._complaint = False, None
        if self.listener is None or not self.file_is_ours:
            self._close_listener()
            self.open(now)

    def tick(self, now: float) -> None:
        """Try again to listen or to accept, when it is time."""
        if self.next_attempt is None or now < self.next_attempt:
            return
        self.next_attempt = None
        if self.listener is None:
            self.open(now)
        else:
            self._accept_again()

    def _accept_again(self) -> None:
        """Accept again after a pause."""
        if self.listener is not None and self.listener.fileno() not in self.poller:
            self.next_attempt = None
            self.poller.add(self.listener.fileno(), self._on_connection)

    def _close_listener(self) -> None:
        if self.listener is not None:
            self.poller.remove(self.listener.fileno())
            self.listener.close()
            self.listener = None

    def close_listener(self) -> None:
        """Stop listening and remove the file, if it is ours; open connections go on."""
        if self.listener is not None and self.file_is_ours:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._close_listener()
        self.next_attempt = None

    def close(self) -> None:
        """Close everything; send to clients what they take at once."""
        self.close_listener()
        for client in list(self.clients.values()):
            self._send(client)
            self._drop(client)
        self.reserve.release_all()

    def descriptors(self) -> list[int]:
        """All open descriptors, for a forked child to close."""
        fds = [*self.clients, *self.reserve.fds]
        if self.listener is not None:
            fds.append(self.listener.fileno())
        return fds

    # -- connections -------------------------------------------------------

    def _on_connection(self, events: int) -> None:
        # A few at a time: requests and hang-ups of clients are handled in between.
        for _ in range(ACCEPT_BATCH):
            if self.listener is None:
                return
            try:
                sock, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno in EXHAUSTED and self.reserve.release():
                    continue
                # The listener stays readable: pause for a moment, or until a client leaves.
                self.poller.remove(self.listener.fileno())
                self.next_attempt = time.monotonic() + PAUSE
                return
            sock.setblocking(False)
            if len(self.clients) >= MAX_CONNECTIONS and not self._drop_ended():
                self._refuse(sock)
                continue
            client = Client(sock)
            self.clients[client.fileno()] = client
            self.poller.add(client.fileno(), lambda events, client=client: self._on_client(client, events))  # type: ignore[misc]
            # Usually its request is here already and need not wait for the next round of the loop.
            self._on_client(client, READABLE)

    def _drop_ended(self) -> bool:
        """Drop clients that have hung up unnoticed; return whether there was one."""
        before = len(self.clients)
        for client in list(self.clients.values()):
            try:
                gone = not client.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                self._drop(client)
        return len(self.clients) < before

    def _refuse(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.send(encode(error(f"too many connections (the limit is {MAX_CONNECTIONS})")))
            # With unread bytes the close would be a reset at the other end.
            sock.recv(MAX_LINE)
        sock.close()
        self.reserve.fill()

    def _on_client(self, client: Client, events: int) -> None:
        if events & WRITABLE and not self._send(client):
            return
        if client.ended and client.stays and events & (select.POLLHUP | select.POLLERR):
            # It was half-closed, to receive events or an answer. Now it is gone.
            self._drop(client)
            return
        if events & (READABLE | select.POLLHUP | select.POLLERR) and not client.full and not client.ended:
            self._receive(client)
        self._serve(client)

    def _receive(self, client: Client) -> None:
        try:
            data = client.sock.recv(MAX_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
            client.output.clear()
        if not data:
            client.ended = True
            client.reader.end()
        client.reader.feed(data)
        client.pending = client.reader.lines()

    def _serve(self, client: Client) -> None:
        """Answer complete requests, a few at a time, as long as the client takes the answers."""
        more = True
        for _ in range(REQUESTS_AT_ONCE):
            if client.full or client.waits:
                break
            try:
                line = next(client.pending)
            except StopIteration:
                more = False
                break
            reply = self._answer(line)
            hand_over = reply.pop("hand_over", None)
            if hand_over is not None:
                self._hand_over(client, hand_over)
                return
            later = reply.pop("later", None)
            if later is not None:
                client.waits = True
                later(functools.partial(self._answer_late, client))
                continue
            subscribes = reply.pop("subscribe", False)
            if subscribes:
                client.wants = reply.pop("wants", None)
            client.output += encode(reply)
            client.subscribed = client.subscribed or subscribes
        if not self._send(client):
            return
        if client.ended and not more and not client.output and not client.stays:
            self._drop(client)
            return
        self._watch(client, more)

    def _hand_over(self, client: Client, hand_over: Callable[[socket.socket], object]) -> None:
        """Another process answers this client from here on."""
        if self._send(client):
            if client.output:
                # It has not read its earlier answers, which would come after those of the other process.
                client.output += encode(error("ask for this on a connection of its own"))
                self._watch(client, more=True)
            else:
                hand_over(client.sock)
                self._drop(client)

    def _answer_late(self, client: Client, reply: dict[str, Any]) -> None:
        client.waits = False
        if self.clients.get(client.fileno()) is client:
            client.output += encode(reply)
            self._serve(client)

    def _watch(self, client: Client, more: bool) -> None:
        """Watch the client's socket for input or room; *more*: it has unanswered requests."""
        more = more and not client.waits
        wanted = 0 if client.full or client.ended or client.waits or more else READABLE
        # If there are more requests, its turn comes again as soon as it is writable.
        self.poller.modify(client.fileno(), wanted | (WRITABLE if client.output or more else 0))

    def _answer(self, line: bytes | None) -> dict[str, Any]:
        if line is None:
            return error(f"a request is at most {MAX_LINE} bytes long")
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return error("a request is one JSON object on a line")
        if not isinstance(request, dict):
            return error("a request is one JSON object on a line")
        return self.dispatch(request)

    @property
    def has_subscribers(self) -> bool:
        """Whether a `broadcast` reaches anybody."""
        return any(client.subscribed for client in self.clients.values())

    def broadcast(self, message: dict[str, Any]) -> None:
        """Send *message* to the subscribers; drop those with too much unread."""
        line: bytes | None = None
        for client in list(self.clients.values()):
            if not client.subscribed or (client.wants is not None and not client.wants(message)):
                continue
            line = line or encode(message)
            if len(client.output) + len(line) > SUBSCRIBER_LIMIT:
                self.log.info("Dropping a client that does not read its events")
                self._drop(client)
                continue
            waits = bool(client.output)
            client.output += line
            # The rest is sent when it is writable.
            if not waits and self._send(client) and client.output:
                self._watch(client, more=True)

    def _send(self, client: Client) -> bool:
        """Send what fits; False if the client is gone (and dropped)."""
        while client.output:
            try:
                sent = client.sock.send(client.output)
            except BlockingIOError:
                return True
            except OSError:
                self._drop(client)
                return False
            del client.output[:sent]
        return True

    def _drop(self, client: Client) -> None:
        fd = client.fileno()
        if self.clients.pop(fd, None) is None:
            return
        self.poller.remove(fd)
        client.sock.close()
        # Take the descriptor before a companion does.
        self.reserve.fill()
        self._accept_again()
