# SPDX-License-Identifier: MIT
"""The request cycle of every worker: from a parsed request to the next state of its connection."""

from __future__ import annotations

import errno
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from gunicorn.http import wsgi
from gunicorn.http.errors import (
    ClientAnswer,
    ConfigurationProblem,
    NoMoreData,
    RequestTimeout,
    is_of_connection,
)
from gunicorn.http.head import error_response
from gunicorn.http.policy import policy_for
from gunicorn.settings.hooks import own_hook

if TYPE_CHECKING:
    import ssl
else:
    from gunicorn.unix import maybessl as ssl


class Stopped(SystemExit):
    """Raised by the handlers of SIGINT, SIGQUIT and SIGABRT in whatever the main thread is doing.

    It says that the worker ends, where a plain SystemExit may be an application's that called ``sys.exit()``.
    """


class HandledElsewhere(BaseException):
    """Raised where the result of an application that has answered on its own should be sent."""


#: What becomes of a connection after a request.
Outcome = Literal["keep", "close", "linger", "reset"]
KEEP: Final = "keep"  # another request may follow, or has arrived
CLOSE: Final = "close"
LINGER: Final = "linger"  # close once the client has stopped sending
RESET: Final = "reset"  # close so that the client sees that the content was cut short


class Cycle:
    """Runs the requests of one worker, with the configuration looked up once."""

    def __init__(self, worker: Any) -> None:
        cfg = worker.cfg
        self.worker = worker
        self.cfg = cfg
        self.log = worker.log
        self.policy = policy_for(cfg)
        self.pre_request = own_hook(cfg, "pre_request")
        self.post_request = own_hook(cfg, "post_request")
        # Loggers that are not ours may want to see every request.
        self.wants_access: bool = getattr(worker.log, "wants_access", True)
        greenlet = sys.modules.get("greenlet")
        self.passing: tuple[type[BaseException], ...] = (
            (Stopped, HandledElsewhere, greenlet.GreenletExit) if greenlet else (Stopped, HandledElsewhere)
        )

    def serve(
        self, req: Any, sock: Any, addr: Any, server: Any, *, keep: bool, multithread: bool = False
    ) -> Outcome:
        """Have the application answer *req*, which came over *sock* from *addr* to *server*.

        *keep*: the worker would take another request on the connection. Application errors are logged and
        answered here; nothing is raised but what ends the process or the greenlet.
        """
        worker = self.worker
        started = time.monotonic() if self.wants_access else 0.0
        resp: Any = None
        outcome: Outcome
        environ: dict[str, Any] = {}
        try:
            if self.pre_request is not None:
                self.pre_request(worker, req)
            resp, environ = wsgi.create(req, sock, addr, server, self.cfg)
            if multithread:
                environ["wsgi.multithread"] = True
            worker.nr += 1
            if worker.nr >= worker.max_requests:
                worker.retire()
            if not (keep and worker.alive):
                resp.force_close()
            self._respond(environ, resp)
            closes = resp.announced_close
            if closes is None:
                closes = resp.should_close()
            if closes or resp.must_close or req.must_close:
                outcome = CLOSE if req.body.finished else LINGER
            # Only bytes that have arrived: do not wait for a client that sends unwanted bytes.
            elif req.body.finished or req.drain(timeout=0):
                outcome = KEEP
            else:
                outcome = LINGER
        except self.passing:
            raise
        except BaseException as error:
            # An application may let anything through: CancelledError, what sys.exit() raises.
            outcome = self._failed(error, req, resp, sock, addr)
        if resp is not None:
            # None: the application took over the connection, and only it knows what was sent.
            if self.wants_access and resp.status is not None:
                self.log.access(resp, req, environ, timedelta(0, time.monotonic() - started))
            if self.post_request is not None:
                self._call_post_request(req, environ, resp)
        return outcome

    def _respond(self, environ: dict[str, Any], resp: Any) -> None:
        worker = self.worker
        result = worker.wsgi(environ, resp.start_response)
        try:
            if not worker.alive:
                # The worker was told to stop while the application ran; tell the client.
                resp.force_close()
            if isinstance(result, wsgi.FileWrapper):
                resp.write_file(result)
            else:
                for item in result:
                    # PEP 3333: an iterable may be endless, or slow. The code after the last yield still
                    # runs.
                    if resp.sent == resp.response_length or not resp.has_body:
                        break
                    resp.write(item)
            resp.close()
        finally:
            # PEP 3333: whatever happened.
            if hasattr(result, "close"):
                result.close()

    def _failed(self, error: BaseException, req: Any, resp: Any, sock: Any, addr: Any) -> Outcome:
        """Log why a request failed, answer it if its response has not begun, return the outcome."""
        where = f"{getattr(req, 'method', '-')} {getattr(req, 'uri', '-')}"
        from_client = is_of_connection(error)
        # The latter: its path lies outside of SCRIPT_NAME.
        if resp is None and (from_client or isinstance(error, ConfigurationProblem)):
            return self.answer_error(req, sock, addr, error)
        if isinstance(error, StopIteration) and resp is not None and not resp.headers_sent:
            self.log_taken_over(error, where, may_leave_http(req))
            return CLOSE
        # Without a response, the application may have taken the connection over: no page belongs there.
        taken = resp is not None and resp.status is None and may_leave_http(req)
        from_client = from_client or (taken and is_end_of(sock, error))
        if from_client and _has_closed(sock, error):
            self.log.debug("The application has closed the connection of %s itself", ascii(where))
            return CLOSE
        self.log_failure(error, from_client, where, addr)
        if from_client and is_disconnect(error):
            return CLOSE
        if resp is not None and resp.headers_sent:
            delimited = resp.chunked or resp.response_length is not None
            return CLOSE if delimited else RESET
        status, reason, text = answer_for(error if from_client else None)
        sent = 0 if taken else _send_error(sock, status, reason, text, _is_head(req))
        if resp is not None:
            resp.status, resp.status_code, resp.headers = f"{status} {reason}", status, []
            resp.sent = sent
        elif self.wants_access:
            self._log_unparsed(Unparsed(f"{status} {reason}", sent), req, addr)
        return CLOSE if taken else LINGER

    def log_failure(self, error: BaseException, from_client: bool, where: str, addr: Any) -> None:
        """Log why the request *where*, a method and a target, was not answered as it should be."""
        if not from_client:
            self.log.error("The application failed on %s", ascii(where), exc_info=_exc_info(error))
        elif is_disconnect(error):
            self.log.debug("The client %s went away during %s: %s", shown(addr), ascii(where), error)
        else:
            self.log.warning("%s from %s failed: %s", ascii(where), shown(addr), _reason(error))

    def log_taken_over(self, error: StopIteration, where: str, expected: bool) -> None:
        """The application has answered on its own, as StopIteration says.

        Libraries such as flask-sock, which speak WebSocket on ``gunicorn.socket``, end so. Where the client
        has not asked for another protocol, it may as well be a ``next()`` that found nothing.
        """
        if not expected:
            text = "The application ended %s by StopIteration; nothing more is sent"
            self.log.warning(text, ascii(where), exc_info=_exc_info(error))

    def answer_error(self, req: Any, sock: Any, addr: Any, error: BaseException) -> Outcome:
        """Answer a request that could not be read, log it, and return the outcome."""
        if is_disconnect(error):
            self.log.debug("The client %s went away: %s", shown(addr), error)
            return CLOSE
        if isinstance(error, ssl.SSLError):
            self.log.warning("TLS with %s failed: %s", shown(addr), error)
            return CLOSE
        if isinstance(error, ClientAnswer | TimeoutError | BlockingIOError):
            log = self.log.debug if isinstance(error, NoMoreData | OSError) else self.log.warning
            log("Bad request from %s: %s", shown(addr), _reason(error))
            status, reason, text = answer_for(error)
        else:
            self.log.error("A request from %s failed", shown(addr), exc_info=_exc_info(error))
            status, reason, text = answer_for(None)
        sent = _send_error(sock, status, reason, text, _is_head(req))
        if self.wants_access:
            self._log_unparsed(Unparsed(f"{status} {reason}", sent), req, addr)
        return LINGER

    def _log_unparsed(self, resp: Unparsed, req: Any, addr: Any) -> None:
        """The line in the access log of a request without environ."""
        environ = {
            "REMOTE_ADDR": addr[0] if isinstance(addr, tuple) else "",
            "REQUEST_METHOD": getattr(req, "method", "-"),
            "RAW_URI": getattr(req, "uri", "-"),
            "SERVER_PROTOCOL": "-",
        }
        self.log.access(resp, req, environ, timedelta(0))

    def _call_post_request(self, req: Any, environ: dict[str, Any], resp: Any) -> None:
        assert self.post_request is not None
        try:
            self.post_request(self.worker, req, environ, resp)
        except Exception:
            self.log.exception("The hook post_request failed")


class Unparsed:
    """The response to a malformed request, for the access log."""

    def __init__(self, status: str, sent: int) -> None:
        self.status = status
        self.headers: list[tuple[str, str]] = []
        self.sent = self.response_length = sent


def _send_error(sock: Any, status: int, reason: str, text: str, head_only: bool = False) -> int:
    """Send an error page, if the client still takes it; returns how many bytes of content it has."""
    data = error_response(status, reason, text)
    end = data.index(b"\r\n\r\n") + 4
    with suppress(OSError, ValueError):
        sock.sendall(data[:end] if head_only else data)
    return 0 if head_only else len(data) - end


def may_leave_http(req: Any) -> bool:
    """Whether the client has asked for something else than HTTP to follow on its connection."""
    head = req.head
    if head is not None and head.fields is not None:
        # Nearly always. Asked of the request, it takes several calls, which each request would pay for.
        return "HTTP_UPGRADE" in head.fields or head.method == "CONNECT"
    return req.method == "CONNECT" or bool(req.wants_upgrade)


def _is_head(req: Any) -> bool:
    return getattr(req, "method", "") == "HEAD"


def answer_for(error: BaseException | None) -> tuple[int, str, str]:
    """Status, reason and text of the answer to *error*; none is the application's."""
    if isinstance(error, TimeoutError | BlockingIOError):
        error = RequestTimeout()
    if isinstance(error, ClientAnswer):
        return error.status, error.reason, error.text
    return 500, "Internal Server Error", "The server could not complete the request."


def is_disconnect(error: BaseException) -> bool:
    """Whether *error*, of a connection, says no more than that the client has left."""
    if isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return True
    return isinstance(error, OSError) and error.errno in _GONE


def is_end_of(sock: Any, error: BaseException) -> bool:
    """Whether an application that speaks on *sock* itself has met, by *error*, the end of that connection."""
    if not is_disconnect(error) and not _has_closed(sock, error):
        return False
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def _has_closed(sock: Any, error: BaseException) -> bool:
    """Whether *error* says that *sock* was closed here, by whoever had it.

    While it is open, a descriptor that is none would be a mistake of ours, and no client that has left.
    """
    return isinstance(error, OSError) and error.errno == errno.EBADF and sock.fileno() < 0


# The latter come from the network, or from the kernel that has had no answer for too long.
_GONE = frozenset(
    (
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    )
)


def shown(addr: Any) -> str:
    """An address for the log."""
    return str(addr[0]) if isinstance(addr, tuple) and addr else "a Unix socket"


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _exc_info(error: BaseException) -> Any:
    return type(error), error, error.__traceback__
