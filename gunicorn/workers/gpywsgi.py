# SPDX-License-Identifier: MIT
"""gevent's WSGI server on connections that a worker accepts: what it logs, counts and keeps open."""

from __future__ import annotations

import contextlib
import ssl
import sys
from datetime import timedelta
from functools import cached_property
from typing import Any

import gevent
from gevent import pywsgi

from gunicorn.http.errors import ForbiddenProxyRequest, InvalidProxyLine, ParseException
from gunicorn.http.proxyproto import (
    V1_MAX_LENGTH,
    V1_PREFIX,
    V2_HEADER_LENGTH,
    V2_SIGNATURE,
    ProxyInfo,
    split_proxy_header,
    starts_proxy_header,
)
from gunicorn.http.wsgi import proxy_environ


class GeventResponse:
    """What the access log wants to know of a response."""

    def __init__(self, status: Any, headers: Any, clength: int) -> None:
        self.status = status
        self.headers = headers
        self.sent = self.response_length = clength


class PyWSGIRequest:
    """What hooks want to know of a request."""

    def __init__(self, handler: Any, environ: dict[str, Any]) -> None:
        path, _, query = str(handler.path or "-").partition("?")
        self.method: str = handler.command or "-"
        self.uri: str = handler.path or "-"
        self.path, self.query = path, query
        self._environ = environ
        self.remote_addr = self.peer_addr = handler.peer_address or handler.client_address

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        # Hardly anybody asks.
        return [
            (name[5:].replace("_", "-"), value)
            for name, value in self._environ.items()
            if name.startswith("HTTP_")
        ]


class PyWSGIHandler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Serves the requests of one connection."""

    _head_timer: Any = None
    _served = 0
    # Whom a proxy speaks for, and then who is connected.
    client_address: Any
    peer_address: Any = None
    proxy_protocol_info: dict[str, Any] | None = None

    def handle(self) -> None:
        try:
            super().handle()
        finally:
            self._end_of_head()

    def read_requestline(self) -> Any:
        worker = self.server.worker
        if not self._has_buffered() and not worker.await_request(self.socket, first=not self._served):
            return ""
        # The socket's own timeout is for each of many reads.
        self._head_timer = gevent.Timeout.start_new(worker.cfg.timeout or None, TimeoutError("slow head"))
        if self._served or not worker.cfg.proxy_protocol:
            return super().read_requestline()
        try:
            return self._read_behind_proxy_header()
        except ParseException as error:
            worker.handle_error(None, self.socket, self.client_address, error)
            return ""

    def _read_behind_proxy_header(self) -> Any:
        """The request line of the first request, which a PROXY header may precede."""
        if getattr(self.socket, "proxy_seen", False):
            # It came before the TLS handshake; a second one, behind that, would be the client's.
            self._speak_for(self.socket.proxy_info)
            return super().read_requestline()
        # By lines nothing is received that the request would lack, if there is no header.
        is_v1 = self.rfile.peek(1).startswith(V1_PREFIX)
        line = self.rfile.readline(V1_MAX_LENGTH if is_v1 else pywsgi.MAX_REQUEST_LINE)
        while line and starts_proxy_header(line) is None and line.endswith(b"\n"):
            line += self.rfile.readline(pywsgi.MAX_REQUEST_LINE)
        if not starts_proxy_header(line):
            return line.decode("latin-1").lstrip("\r\n")
        if not self.server.worker.cycle.policy.proxy_allow.allows(self.client_address):
            raise ForbiddenProxyRequest(str(self.client_address[0]))
        if line.startswith(V2_SIGNATURE):
            line += self.rfile.read(V2_HEADER_LENGTH - len(V2_SIGNATURE))
            line += self.rfile.read(int.from_bytes(line[-2:], "big"))
        found = split_proxy_header(line)
        if found is None:
            raise InvalidProxyLine(line[:V1_MAX_LENGTH])
        self._speak_for(found[1])
        return super().read_requestline()

    def _speak_for(self, info: ProxyInfo | None) -> None:
        if info is not None:
            self.proxy_protocol_info = info.as_dict()
            self.peer_address = self.client_address
            self.client_address = (info.client_addr, info.client_port)

    def _has_buffered(self) -> bool:
        """Whether a part of the next request came along with the last one."""
        if not self._served:
            return False
        before = self.socket.gettimeout()
        self.socket.settimeout(0)
        try:
            return bool(self.rfile.peek(1))
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except (OSError, ValueError):
            return True  # the reading will tell
        finally:
            self.socket.settimeout(before)

    def _end_of_head(self) -> None:
        timer, self._head_timer = self._head_timer, None
        if timer is not None:
            timer.close()

    def get_environ(self) -> Any:
        """Called once the head of a request was read."""
        self._end_of_head()
        environ = super().get_environ()
        environ["gunicorn.socket"] = environ["gunicorn.sock"] = self.socket
        environ["RAW_URI"] = self.path
        environ.update(proxy_environ(self))
        self._served += 1
        worker = self.server.worker
        worker.begin_request(self.socket, PyWSGIRequest(self, environ))
        worker.nr += 1
        if worker.nr >= worker.max_requests:
            worker.retire()
        if "HTTP_UPGRADE" in environ:
            # What is spoken next, such as WebSocket, has long silences.
            self.socket.settimeout(None)
        return environ

    def handle_one_response(self) -> None:
        worker = self.server.worker
        cycle = worker.cycle
        req = None
        if cycle.pre_request is not None or cycle.post_request is not None:
            req = PyWSGIRequest(self, self.environ)
        if cycle.pre_request is not None:
            with _logged(worker, "pre_request"):
                cycle.pre_request(worker, req)
        super().handle_one_response()
        if cycle.post_request is not None:
            with _logged(worker, "post_request"):
                cycle.post_request(worker, req, self.environ, self._response())

    def finalize_headers(self) -> None:
        super().finalize_headers()
        worker = self.server.worker
        if not (worker.alive and worker.keeps_alive()):
            self.close_connection = True
        named = any(name.lower() == b"connection" for name, _ in self.response_headers)
        if self.close_connection and self.code != 101 and not named:
            self.response_headers.append((b"Connection", b"close"))

    def log_request(self) -> None:
        worker = self.server.worker
        if not worker.cycle.wants_access:
            return
        environ = self.environ or {
            "REMOTE_ADDR": self.client_address[0] if isinstance(self.client_address, tuple) else "",
            "REQUEST_METHOD": self.command or "-",
            "RAW_URI": self.path or "-",
            "SERVER_PROTOCOL": self.request_version or "-",
        }
        took = timedelta(seconds=max(0.0, (self.time_finish or self.time_start) - self.time_start))
        with _logged(worker, "the access log"):
            worker.log.access(self._response(), PyWSGIRequest(self, environ), environ, took)

    def _response(self) -> GeventResponse:
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self.response_headers or ()
        ]
        return GeventResponse(self._orig_status or self.status or "-", headers, self.response_length)


class PyWSGIServer(pywsgi.WSGIServer):  # type: ignore[misc]
    """Is handed connections by ``worker``, which accepts them."""

    worker: Any = None


class _logged(contextlib.AbstractContextManager[None]):
    """Log what goes wrong in its block, which is called *name*."""

    def __init__(self, worker: Any, name: str) -> None:
        self.worker = worker
        self.name = name

    def __exit__(self, *exc: Any) -> bool:
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            self.worker.log.exception("%s failed", self.name)
            return True
        return False
