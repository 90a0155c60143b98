# SPDX-License-Identifier: MIT
"""The asgi worker: uvicorn's HTTP and WebSocket in a life like that of the other workers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import ssl
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

from gunicorn import sock as listening
from gunicorn.http.errors import ParseException
from gunicorn.http.head import current_date
from gunicorn.workers.base import TICK
from gunicorn.workers.connection import LINGER_SECONDS, State
from gunicorn.workers.cycle import Stopped, shown
from gunicorn.workers.loopworker import HANDSHAKE_SECONDS, SWEEP, LoopWorker
from gunicorn.workers.retiring import close_silent, retire

try:
    import httptools  # noqa: F401
    from uvicorn import Config
    from uvicorn.server import ServerState

    from gunicorn.workers.asgicompanion import CompanionLife, config_of, make
    from gunicorn.workers.asgiconnection import Conn, read_proxy_header
    from gunicorn.workers.asgiforwarded import Forwarded
    from gunicorn.workers.asgilifespan import Lifespan
    from gunicorn.workers.asgiloop import CANCEL_SECONDS, close_loop, exit_within, loop_factory
    from gunicorn.workers.asgiprotocol import HTTP, RARE, log_library
    from gunicorn.workers.asgirequest import Request
    from gunicorn.workers.asgiwatch import LoopWatch, frames_of, stack_of
except ImportError as error:
    raise RuntimeError(
        f"the asgi worker class needs the libraries of gunicorn[asgi]: uvicorn and httptools ({error})"
    ) from error

# The part of `timeout` after which the stack of a blocked loop is logged.
HUNG = 0.75

# How long a worker that ends at once waits for threads of the application.
QUICK_SECONDS = 1.0


class ASGIWorker(LoopWorker):
    """Serves an ASGI application."""

    handshake_seconds = HANDSHAKE_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cfg = self.cfg
        self.conns: set[Conn] = set()
        self.keepalive = float(cfg.keepalive)
        self.patience = float(cfg.timeout)
        self.grace = float(cfg.asgi_disconnect_grace_period)
        #: Valid values of Host that were seen.
        self.hosts: set[bytes] = set()
        self._tls: Any = None
        self._stopped: Stopped | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called in the master. Raises RuntimeError for a loop that is not installed."""
        loop_factory(cfg.asgi_loop)

    def init_process(self) -> None:
        self.make_loop()
        super().init_process()

    def make_loop(self) -> None:
        # The application may use it while it loads. Workers must not share a loop of the master's.
        self.loop = loop_factory(self.cfg.asgi_loop)()
        asyncio.set_event_loop(self.loop)

    def make_fail_app(self, text: bytes) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                headers = [
                    (b"content-type", b"text/plain; charset=utf-8"),
                    (b"content-length", b"%d" % len(text)),
                ]
                await send({"type": "http.response.start", "status": 500, "headers": headers})
                await send({"type": "http.response.body", "body": text})

        return app

    # -- the loop ------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._run_loop()
        except Stopped as stopped:
            exit_within(QUICK_SECONDS, stopped.code)
            raise
        exit_within(self._seconds_left(), 0)

    def _run_loop(self) -> None:
        try:
            self.loop.run_until_complete(self._main())
        except RuntimeError:
            if self._stopped is None:
                raise
            raise self._stopped from None
        close_loop(self.loop)

    def _seconds_left(self) -> float:
        """How long the master waits, up to a little before it kills this worker."""
        margin = min(0.5, float(self.cfg.graceful_timeout) / 8)
        return max(self.graceful_deadline() - margin - time.monotonic(), 0.1)

    async def _main(self) -> None:
        self.context = contextvars.copy_context()
        self._changed_conns = asyncio.Event()
        self._ending = asyncio.Event()
        self.lifespan = Lifespan(self.wsgi, self.cfg.asgi_lifespan, self.log)
        self._prepare()
        self.loop.set_exception_handler(self._loop_failed)
        # Until it serves, a signal ends it at once.
        self._running = False
        self._tick()
        # Before SIGABRT, which does not reach code in C that blocks the loop.
        debug = self.log.error_log.isEnabledFor(logging.DEBUG)
        watch = LoopWatch(self.loop, self.log, hung=self.patience * HUNG, slow=debug)
        # The master ends a worker that does not serve after `timeout`.
        await self.lifespan.startup(self.patience * HUNG)
        self._running = True
        self._listen()
        # A predecessor waits for the first heartbeat.
        self.notify()
        self.watchdog()
        await self._ending.wait()
        await self._end()
        watch.stop()

    def _prepare(self) -> None:
        cfg, policy = self.cfg, self.cycle.policy
        if cfg.is_ssl:
            self._tls = listening.ssl_context(cfg)
        self.forwarded = Forwarded(policy)
        #: Fields that need a look: by the exact rules, or because they tell of a proxy's client.
        self.unusual = self.forwarded.names | RARE
        self.max_fields = policy.limit_request_fields
        #: A head within so many bytes exceeds no limit but that of their number.
        self.small_head = min(policy.max_line, policy.max_field)
        self.uvicorn = Config(
            app=_no_app,
            http=HTTP,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            root_path=cfg.root_path,
            ws_max_size=cfg.websocket_max_message_size,
        )
        self.uvicorn.load()
        self.server_state = ServerState()
        log_library(self.log.error_log)
        if self.slot is not None:
            self.slot.write_later = partial(self.loop.call_later, self.slot.WRITE_INTERVAL, self.slot.write)

    def _listen(self) -> None:
        self.loop.add_reader(self.PIPE[0], self._on_signal)
        super()._listen()

    def _tick(self) -> None:
        """Send a heartbeat, and look after what has waited for long."""
        # The master waits for twice `timeout`.
        self.loop.call_later(min(SWEEP, TICK, self.timeout / 2 or TICK), self._tick)
        date = current_date().encode("ascii")
        self.default_lines = b"date: %b\r\n" % date, b"server: gunicorn\r\n"
        # Of the handshake of a WebSocket.
        self.server_state.default_headers = [(b"date", date), (b"server", b"gunicorn")]
        if self._running:
            # The first heartbeat says that it serves.
            self.notify()
            self._sweep()
            self.watchdog()

    def watchdog(self) -> None:
        """Begin to end when told to, or when the master is gone."""
        if self.alive and not self.is_parent_alive():
            self.alive = False
        if not self.alive:
            self._ending.set()

    def _on_signal(self) -> None:
        self.drain_pipe()
        self.watchdog()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # uvloop has put its own wake-up descriptor in the place of ours.
        self.wake()

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error that nobody has caught; called by the loop."""
        error = context.get("exception")
        if isinstance(error, Stopped):
            # Raised by a signal handler in the middle of code of the loop's.
            self.stop_loop(error)
            return
        exc_info = (type(error), error, error.__traceback__) if error is not None else None
        self.log.error("The event loop: %s", context.get("message"), exc_info=exc_info)

    def stop_loop(self, stopped: Stopped) -> None:
        """End at once, by *stopped*: a signal handler has raised it within a task."""
        self._stopped = stopped
        self.loop.stop()

    # -- the graceful end, as retire() wants it --------------------------------------------

    async def _end(self) -> None:
        for seconds in retire(self):
            self._changed_conns.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed_conns.wait(), seconds)
        for conn in list(self.conns):
            conn.abort()
        await self._end_tasks()
        await self.lifespan.shutdown(max(self._seconds_left(), CANCEL_SECONDS))

    async def _end_tasks(self) -> None:
        """Wait for what applications do after their responses, as long as the master waits."""
        tasks = {task for task in self.server_state.tasks if not task.done()}
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=self._seconds_left())
        if left:
            self.log.warning("Worker %s cancels %d tasks of the application", self.pid, len(left))
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=CANCEL_SECONDS)

    def at_work(self) -> Sequence[Any]:
        return [conn for conn in self.conns if conn.state == State.BUSY and not conn.is_websocket]

    def close_silent(self, retired_at: float) -> None:
        conns = list(self.conns)
        close_silent(conns, retired_at)
        if not self._listeners:
            # A client that connects again finds another worker.
            for conn in conns:
                if conn.is_websocket and not conn.closing and conn.protocol.handshake_complete:
                    conn.protocol.shutdown()

    # -- connections ---------------------------------------------------------------------

    def current_conns(self) -> Iterable[Conn]:
        return self.conns

    def serve(self, client: Any, peer: Any) -> None:
        conn = Conn(self, client, peer)
        if self._tls is not None or self.cycle.policy.proxy_protocol:
            conn.enter(State.HANDSHAKE)
        self.conns.add(conn)
        self.count_connections()
        conn.opening = self._begin(self._open(conn))

    async def _open(self, conn: Conn) -> None:
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls, "ssl_handshake_timeout": self.patience or HANDSHAKE_SECONDS}
            if sys.version_info >= (3, 11):
                options["ssl_shutdown_timeout"] = LINGER_SECONDS
        try:
            mode = self.cycle.policy.proxy_protocol
            if mode:
                await read_proxy_header(conn, mode)
            await self.loop.connect_accepted_socket(partial(HTTP, self, conn), conn.sock, **options)
        except (OSError, ParseException) as error:
            if not isinstance(error, ParseException):
                log = self.log.warning if isinstance(error, ssl.SSLError) else self.log.debug
                log("The connection of %s failed: %s", shown(conn.peer), error)
            elif self._tls is not None:
                self.log.warning("Bad request from %s: %s", shown(conn.peer), error)
            else:
                self.handle_error(None, conn.sock, conn.peer, error)
                await conn.linger()
            self._drop(conn)
        except asyncio.CancelledError:
            self._drop(conn)
        else:
            conn.opening = None

    def _drop(self, conn: Conn) -> None:
        conn.sock.close()
        self.forget(conn)

    def forget(self, conn: Conn) -> None:
        """*conn* is closed."""
        self.conns.discard(conn)
        self.count_connections()
        self._changed_conns.set()
        self._resume_accepting()

    def _sweep(self) -> None:
        now = time.monotonic()
        limit = float(self.cfg.request_timeout)
        for conn in list(self.conns):
            conn.sweep(now)
            if limit and conn.state == State.BUSY and not conn.is_websocket:
                self._check_duration(conn, now, limit)
        # If clients wait, accept again: that closes an idle connection to make room.
        self._resume_accepting(anyway=True)

    def _check_duration(self, conn: Conn, now: float, limit: float) -> None:
        """Cancel the current request of *conn* if it takes longer than *limit* seconds."""
        request = conn.protocol.requests[0]
        if now - request.since <= limit or request.timed_out or request.task is None:
            return
        request.timed_out = True
        where = ascii(f"{request.method} {request.uri}")
        stack = "".join(traceback.format_list(stack_of(request.task)))
        self.log.error("%s takes longer than %g s and is cancelled:\n%s", where, limit, stack)
        request.task.cancel()

    def suspended_frames(self) -> list[Any]:
        """The stacks of all tasks that wait, for a dump."""
        loop = getattr(self, "loop", None)
        return [frames_of(task) for task in asyncio.all_tasks(loop)] if loop is not None else []

    # -- requests ------------------------------------------------------------------------

    def begin_request(self, request: Request) -> None:
        """Count *request*, and call the hook before it."""
        self.nr += 1
        if self.nr >= self.max_requests:
            self.retire()
        if self.slot is not None:
            self.slot.begin(request, request.since)
        if self.cycle.pre_request is not None:
            try:
                self.cycle.pre_request(self, request)
            except Exception:
                self.log.exception("The hook pre_request failed")

    def end_request(self, request: Request) -> None:
        """*request* is answered, or its client has gone: log it, and call the hook after it."""
        if request.counted:
            return
        request.counted = True
        cycle = self.cycle
        wants_access = cycle.wants_access and request.status_code is not None
        if wants_access or cycle.post_request is not None:
            try:
                response, environ = request.response(), request.environ()
                if wants_access:
                    took = timedelta(seconds=time.monotonic() - request.since)
                    self.log.access(response, request, environ, took)
                if cycle.post_request is not None:
                    cycle.post_request(self, request, environ, response)
            except Exception:
                self.log.exception("The code after a request failed")
        if self.slot is not None:
            self.slot.end(request, request.since, request.status_code, request.sent)

    def forget_request(self, request: Request) -> None:
        """The server answers *request* itself, and counts it there."""
        request.counted = True
        if self.slot is not None:
            self.slot.forget(request)


class CompanionWorker(CompanionLife, ASGIWorker):
    """Serves an ASGI application in a companion."""


def companion(application: str, **settings: Any) -> partial[None]:
    """Return a companion's ``target`` that serves *application* on the addresses of its ``bind``.

    *settings* are those of a web worker, such as ``accesslog`` and ``graceful_timeout``.
    """
    # A mistake is one of the configuration file, then, and no failure of the companion.
    config_of(settings)
    # Its arguments tell whether `reread` has to restart it.
    return partial(serve, application, **settings)


def serve(application: str, **settings: Any) -> None:
    """Serve *application*, in a companion, until the stop signal."""
    worker = make(CompanionWorker, settings)
    worker.make_loop()
    worker.start(application)


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    """In the place of the application, which each request gets from the worker."""
