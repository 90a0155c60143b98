# SPDX-License-Identifier: MIT
"""Run the request cycle of every worker: from a parsed request to what follows on its connection."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic
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
from gunicorn.http.parser import RequestParser
from gunicorn.http.policy import RequestPolicy, policy_for
from gunicorn.settings.hooks import own_hook
from gunicorn.unix.process import leave

if TYPE_CHECKING:
    import ssl

    from gunicorn.scoreboard import Slot
else:
    from gunicorn.unix import maybessl as ssl


class Stopped(SystemExit):
    """Raised in the main thread by the handlers of SIGINT, SIGQUIT and SIGABRT: the worker ends.

    A plain SystemExit may come from an application that called ``sys.exit()``.
    """


class HandledElsewhere(BaseException):
    """Raised by the result of an application that has answered on its own."""


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
        self.slot: Slot | None = getattr(worker, "slot", None)
        self._pid = os.getpid()
        self.policy = policy_for(cfg)
        self.parser_class = parser_class_for(self.policy)
        self.pre_request = own_hook(cfg, "pre_request")
        self.post_request = own_hook(cfg, "post_request")
        # A logger class of the user's may want every request.
        self.wants_access: bool = getattr(worker.log, "wants_access", True)
        self._is_timed = self.wants_access or self.slot is not None
        greenlet = sys.modules.get("greenlet")
        self.passing: tuple[type[BaseException], ...] = (
            (Stopped, HandledElsewhere, greenlet.GreenletExit) if greenlet else (Stopped, HandledElsewhere)
        )

    def serve(
        self,
        req: Any,
        sock: Any,
        addr: Any,
        server: Any,
        *,
        keep: bool,
        multithread: bool = False,
        hold: Callable[[bytes], object] | None = None,
    ) -> Outcome:
        """Have the application answer *req*, which came over *sock* from *addr* to *server*.

        *keep*: the worker would take another request on the connection. Errors of the application are logged
        and answered; raised is only what ends the process or the greenlet.
        """
        worker, slot = self.worker, self.slot
        started = monotonic() if self._is_timed else 0.0
        if slot is not None:
            # As slot.begin(), without calls in the usual case.
            if slot.watched:
                slot.running[req] = started
            elif slot.running:
                slot.begin(req, started)
            else:
                if req.method != slot.method:
                    slot.set_method(req.method)
                try:
                    slot.path.value = req.path.encode()
                except ValueError:
                    slot.show(req, started)
                slot.since[0] = started
                if not slot.single:
                    slot.running[req] = started
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
            else:
                resp.hold = hold
            self._respond(environ, resp)
            closes = resp.announced_close
            if closes is None:
                closes = resp.should_close()
            if closes or resp.must_close or req.must_close:
                outcome = CLOSE if req.body.finished else LINGER
            # Do not wait for a client that sends unwanted bytes.
            elif req.body.finished or req.drain(timeout=0):
                outcome = KEEP
            else:
                outcome = LINGER
        except self.passing:
            if slot is not None:
                slot.end(req, started, None, 0)
            raise
        except BaseException as error:
            # An application may raise anything, such as CancelledError or SystemExit.
            outcome = self._failed(error, req, resp, sock, addr)
        if resp is not None:
            # Without a status, the application has taken over, and only it knows what was sent.
            if self.wants_access and resp.status is not None:
                self.log.access(resp, req, environ, timedelta(0, monotonic() - started))
            if self.post_request is not None:
                try:
                    self.post_request(worker, req, environ, resp)
                except Exception:
                    self.log.exception("The hook post_request failed")
        if slot is not None:
            # After the log and the hook: they may hold the worker too.
            took = monotonic() - started
            if resp is None:
                slot.forget(req)
            elif took <= slot.limit and resp.status_code == 200:
                slot.quick += 1
                slot.sent += resp.sent
                slot.spent += took
                if slot.watched:
                    del slot.running[req]
                elif not slot.single:
                    del slot.running[req]
                    if slot.is_due and not slot.running:
                        slot.since[0] = 0.0
                    else:
                        slot.settle()
            else:
                slot.end(req, started, resp.status_code, resp.sent)
        return outcome

    def _respond(self, environ: dict[str, Any], resp: Any) -> None:
        worker = self.worker
        result = worker.wsgi(environ, resp.start_response)
        try:
            if not worker.alive:
                self.end_fork(None)
                # The worker was told to stop while the application ran.
                resp.force_close()
            if isinstance(result, wsgi.FileWrapper):
                resp.write_file(result)
            else:
                for item in result:
                    # Not sooner, so that the code after the last yield runs; not later: it may be endless.
                    if resp.sent == resp.response_length or not resp.has_body:
                        break
                    resp.write(item)
            resp.close()
        finally:
            # In any case (PEP 3333).
            if hasattr(result, "close"):
                result.close()

    def _failed(self, error: BaseException, req: Any, resp: Any, sock: Any, addr: Any) -> Outcome:
        """Log why a request failed, answer it if its response has not begun, and return the outcome."""
        where = f"{getattr(req, 'method', '-')} {getattr(req, 'uri', '-')}"
        from_client = is_of_connection(error)
        # ConfigurationProblem: the path lies outside of SCRIPT_NAME.
        if resp is None and (from_client or isinstance(error, ConfigurationProblem)):
            return self.answer_error(req, sock, addr, error)
        if isinstance(error, StopIteration) and resp is not None and not resp.headers_sent:
            self.log_taken_over(error, where, may_leave_http(req))
            return CLOSE
        # Without a response, the application may have taken the connection over: send no page there.
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
        else:
            self._account_unparsed(status, reason, sent, req, addr)
        return CLOSE if taken else LINGER

    def log_failure(self, error: BaseException, from_client: bool, where: str, addr: Any) -> None:
        """Log why the request *where* (method and target) failed."""
        self.end_fork(error)
        if not from_client:
            self.log.error("The application failed on %s", ascii(where), exc_info=_exc_info(error))
        elif is_disconnect(error):
            self.log.debug("The client %s went away during %s: %s", shown(addr), ascii(where), error)
        else:
            self.log.warning("%s from %s failed: %s", ascii(where), shown(addr), _reason(error))

    def end_fork(self, error: BaseException | None) -> None:
        """End this process if the application has forked it, and it is back from there, maybe by *error*.

        As a second worker it would answer the same clients, and take connections of the first one.
        """
        if os.getpid() == self._pid:
            return
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            self.log.error(
                "The application has forked this process, and has not ended it: it exits",
                exc_info=None if error is None else _exc_info(error),
            )
        leave(code if isinstance(code, int) else int(code is not None))

    def log_taken_over(self, error: StopIteration, where: str, expected: bool) -> None:
        """Log that the application answered on its own and raised StopIteration, unless *expected*.

        Libraries that speak WebSocket on ``gunicorn.socket``, such as flask-sock, raise it at their end. If
        the client has not asked for another protocol, it may come from a ``next()`` that found nothing.
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
        self._account_unparsed(status, reason, sent, req, addr)
        return LINGER

    def _account_unparsed(self, status: int, reason: str, sent: int, req: Any, addr: Any) -> None:
        """Count a request without environ, and write its line if there is an access log."""
        if self.slot is not None:
            self.slot.refuse(req, status, sent)
        if not self.wants_access:
            return
        environ = {
            "REMOTE_ADDR": addr[0] if isinstance(addr, tuple) else "",
            "REQUEST_METHOD": getattr(req, "method", "-"),
            "RAW_URI": getattr(req, "uri", "-"),
            "SERVER_PROTOCOL": "-",
        }
        self.log.access(Unparsed(f"{status} {reason}", sent), req, environ, timedelta(0))


def parser_class_for(policy: RequestPolicy) -> type[RequestParser]:
    """Return the class that reads the protocol of the listeners."""
    if policy.protocol == "http":
        return RequestParser
    from gunicorn.http.uwsgi import UwsgiParser

    return UwsgiParser


class Unparsed:
    """The response to a malformed request, for the access log."""

    def __init__(self, status: str, sent: int) -> None:
        self.status = status
        self.headers: list[tuple[str, str]] = []
        self.sent = self.response_length = sent


def _send_error(sock: Any, status: int, reason: str, text: str, head_only: bool = False) -> int:
    """Send an error page, if the client still accepts it; return the size of its content."""
    data = error_response(status, reason, text)
    end = data.index(b"\r\n\r\n") + 4
    with suppress(OSError, ValueError):
        sock.sendall(data[:end] if head_only else data)
    return 0 if head_only else len(data) - end


def may_leave_http(req: Any) -> bool:
    """Whether the client has asked for another protocol to follow on its connection.

    Not with content: the limits for a body hold, which a client could evade by the header alone.
    """
    head = req.head
    if head is not None and head.fields is not None:
        # Nearly always, and cheaper than the properties of the request.
        asks = "HTTP_UPGRADE" in head.fields or head.method == "CONNECT"
    else:
        asks = req.method == "CONNECT" or bool(req.wants_upgrade)
    return asks and (head is None or not (head.content_length or head.chunked))


def _is_head(req: Any) -> bool:
    return getattr(req, "method", "") == "HEAD"


def answer_for(error: BaseException | None) -> tuple[int, str, str]:
    """Return status, reason and text of the answer to *error*; None stands for one of the application."""
    if isinstance(error, TimeoutError | BlockingIOError):
        error = RequestTimeout()
    if isinstance(error, ClientAnswer):
        return error.status, error.reason, error.text
    return 500, "Internal Server Error", "The server could not complete the request."


def is_disconnect(error: BaseException) -> bool:
    """Whether *error* says only that the client has left."""
    if isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return True
    return isinstance(error, OSError) and error.errno in _GONE


def is_end_of(sock: Any, error: BaseException) -> bool:
    """Whether *error* means that *sock*, on which the application speaks itself, is at its end."""
    if not is_disconnect(error) and not _has_closed(sock, error):
        return False
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def _has_closed(sock: Any, error: BaseException) -> bool:
    """Whether *error* came because *sock* was closed in this process.

    If the socket is open, EBADF is a mistake of ours.
    """
    return isinstance(error, OSError) and error.errno == errno.EBADF and sock.fileno() < 0


# From ETIMEDOUT on, they come from the network, or from the kernel after too long without an answer.
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
    """Format an address for the log."""
    return str(addr[0]) if isinstance(addr, tuple) and addr else "a Unix socket"


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _exc_info(error: BaseException) -> Any:
    return type(error), error, error.__traceback__
