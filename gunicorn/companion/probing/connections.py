# SPDX-License-Identifier: MIT
"""The checks ``tcp`` and ``http``: connect, and perhaps ask, without ever blocking."""

from __future__ import annotations

import _socket
import errno
import os
import re
from typing import NamedTuple

from gunicorn.companion.probe import Address, Url
from gunicorn.unix.poller import READABLE, WRITABLE, Poller


class Outcome(NamedTuple):
    """Whether a check was good, if not why, and the end of what was said."""

    good: bool
    reason: str = ""
    output: str = ""


# What is read of an answer, in bytes.
_MOST = 16 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: |$)")


class Connection:
    """One connection: it is a success when it is there (``tcp``). ``outcome``: none yet."""

    def __init__(self, address: Address, poller: Poller) -> None:
        self.poller = poller
        self.outcome: Outcome | None = None
        if isinstance(address, str):
            family = _socket.AF_UNIX
        else:
            family = _socket.AF_INET6 if ":" in address[0] else _socket.AF_INET
        # Not that of `socket`, which gevent may have replaced.
        self.sock = _socket.socket(family, _socket.SOCK_STREAM)
        self.sock.setblocking(False)
        # Raises OSError for an address that cannot be one.
        code = self.sock.connect_ex(address)
        self.poller.add(self.sock.fileno(), self._on_event, WRITABLE)
        if code not in (0, errno.EINPROGRESS):
            self._fail(code)

    def _on_event(self, events: int) -> None:
        code = self.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            self._fail(code)
        elif self.sock.family != _socket.AF_UNIX and self.sock.getsockname() == self.sock.getpeername():
            # Where nobody listens, the kernel may choose the very port that is asked for as our own.
            self._fail(errno.ECONNREFUSED)
        else:
            self.connected()

    def _fail(self, code: int) -> None:
        what = "its queue of connections is full" if code == errno.EAGAIN else os.strerror(code).lower()
        self.outcome = Outcome(False, what)

    def connected(self) -> None:
        self.outcome = Outcome(True)

    def expire(self, reason: str) -> None:
        """End it with *reason*: its time is over."""
        self.outcome = Outcome(False, reason)

    def close(self) -> None:
        """End it, at any time; a second call does nothing."""
        fd = self.sock.fileno()
        if fd >= 0:
            self.poller.remove(fd)
            self.sock.close()


class Request(Connection):
    """One ``GET``: it is a success when the status is one of *wanted*. Redirects are not followed."""

    def __init__(self, url: Url, wanted: tuple[int, ...], poller: Poller) -> None:
        self.url = url
        self.wanted = wanted
        self.received = b""
        # Why it has failed, while the rest of the answer may still tell more.
        self.verdict: str | None = None
        super().__init__(url.address, poller)

    def connected(self) -> None:
        head = (
            f"GET {self.url.path} HTTP/1.1\r\nHost: {self.url.host}\r\n"
            "User-Agent: gunicorn-companion\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )
        try:
            self.sock.send(head.encode())
        except OSError as exc:
            self._fail(exc.errno or 0)
            return
        self.poller.add(self.sock.fileno(), self._on_answer, READABLE)

    def _on_answer(self, events: int) -> None:
        try:
            data = self.sock.recv(_MOST)
        except BlockingIOError:
            return
        except OSError as exc:
            self.expire(os.strerror(exc.errno or 0).lower())
            return
        self.received += data
        line, end, _ = self.received.partition(b"\r\n")
        if self.verdict is None and (end or len(self.received) >= _MOST):
            found = _STATUS_LINE.match(line)
            if found and int(found[1]) in self.wanted:
                self.outcome = Outcome(True, output=self._body())
                return
            shown = ", ".join(map(str, self.wanted))
            self.verdict = "answered something else than HTTP"
            if found:
                self.verdict = f"answered {found[1].decode()}, wanted {shown}"
        if data and len(self.received) < _MOST:
            return
        self.expire("closed the connection without an answer")

    def expire(self, reason: str) -> None:
        self.outcome = Outcome(False, self.verdict or reason, self._body())

    def _body(self) -> str:
        return self.received.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")
