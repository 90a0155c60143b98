# SPDX-License-Identifier: MIT
"""Send log records to a syslog daemon over UDP, TCP or a Unix socket."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import socket
import sys
from typing import Any

from gunicorn.logs.files import Throttle


class SyslogHandler(logging.handlers.SysLogHandler):
    """A SysLogHandler that starts without its daemon, reconnects, and shares no stream after a fork.

    A datagram is one message, with no NUL behind it. On a stream a message ends with LF (RFC 6587
    section 3.4.2), so a line end inside is written as rsyslog does it: ``#012``.
    """

    address: Any
    _gunicorn = False

    def __init__(self, address: str | tuple[str, int], facility: int, socktype: Any = None) -> None:
        # Not super(), which connects at once and fails if the daemon is not up yet.
        logging.Handler.__init__(self)
        self.address = address
        self.facility = facility
        self.socktype = socktype
        self.socket: socket.socket | None = None
        self._target: Any = None
        self._pid = os.getpid()
        self._throttle = Throttle()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self._message(record))
        except OSError as error:
            self._report(error)
        except Exception:
            self.handleError(record)

    def _report(self, error: OSError) -> None:
        """Report once a minute that messages are lost; a traceback for each would hide all else."""
        lost = self._throttle.failed()
        if lost and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                where = self.address if isinstance(self.address, str) else "%s:%s" % self.address  # noqa: UP031
                sys.stderr.write(f"syslog at {where} does not accept messages: {error} (lost: {lost})\n")

    def _message(self, record: logging.LogRecord) -> bytes:
        text = self.ident + self.format(record)
        priority = self.encodePriority(self.facility, self.mapPriority(record.levelname))
        return f"<{priority}>{text}".encode("utf-8", "backslashreplace")

    def _send(self, message: bytes) -> None:
        if self._pid != os.getpid():
            # It is the parent's: two writers on one stream would mix their messages.
            self._pid = os.getpid()
            self._drop()
        if self.socket is not None:
            try:
                return self._write(message)
            except OSError:
                # The daemon was restarted.
                self._drop()
        self._connect()
        try:
            self._write(message)
        except OSError:
            self._drop()
            raise

    def _write(self, message: bytes) -> None:
        sock = self.socket
        assert sock is not None
        if sock.type == socket.SOCK_STREAM:
            sock.sendall(message.replace(b"\n", b"#012") + b"\n")
        elif self._target is None:
            sock.send(message)
        else:
            # Without connecting: a host without a daemon would refuse every other message.
            sock.sendto(message, self._target)

    def _connect(self) -> None:
        if isinstance(self.address, str):
            kinds = [self.socktype] if self.socktype else [socket.SOCK_DGRAM, socket.SOCK_STREAM]
            targets: list[Any] = [(socket.AF_UNIX, kind, 0, "", self.address) for kind in kinds]
        else:
            kind = self.socktype or socket.SOCK_DGRAM
            targets = socket.getaddrinfo(self.address[0], self.address[1], type=kind)
        failure = OSError("the host has no address")
        for family, kind, proto, _, address in targets:
            sock = socket.socket(family, kind, proto)
            try:
                if kind == socket.SOCK_STREAM or family == socket.AF_UNIX:
                    # A log must not block the server for minutes.
                    sock.settimeout(5)
                    sock.connect(address)
                    self._target = None
                else:
                    self._target = address
            except OSError as error:
                sock.close()
                failure = error
            else:
                self.socket = sock
                return
        raise failure

    def _drop(self) -> None:
        sock, self.socket = self.socket, None
        if sock is not None:
            sock.close()

    def close(self) -> None:
        self._drop()
        logging.Handler.close(self)
