# SPDX-License-Identifier: MIT
"""gevent's WSGI server on connections that a worker accepts: what it logs, counts and keeps open."""

from __future__ import annotations

import contextlib
import ssl
import sys
from datetime import timedelta
from typing import Any

import gevent
from gevent import pywsgi


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
        self.headers = [
            (name[5:].replace("_", "-"), value) for name, value in environ.items() if name.startswith("HTTP_")
        ]
        self.remote_addr = self.peer_addr = handler.client_address


class PyWSGIHandler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Serves the requests of one connection."""

    _head_timer: Any = None
    _served = 0

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
        return super().read_requestline()

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
