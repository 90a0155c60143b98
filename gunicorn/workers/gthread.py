# SPDX-License-Identifier: MIT
"""The threaded worker: its threads (``threads.team``) serve what the poller reports.

They are woken for bytes, not for requests: the head of a request is gathered without waiting, so that a
client that sends it slowly occupies no thread, only a place in the poller. The main thread serves nothing. It
sends heartbeats, handles signals, closes overdue connections, and checks on the threads.
"""

from __future__ import annotations

import math
import select
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gunicorn import sock as listening
from gunicorn.http.errors import NoMoreData, ParseException, RequestTimeout
from gunicorn.unix.unpatched import threads_are_greenlets
from gunicorn.workers import connection
from gunicorn.workers.base import TICK, Worker
from gunicorn.workers.bodies import BodyIntake
from gunicorn.workers.connection import IDLE_AT_LEAST, PUNCTUALITY, State, is_readable
from gunicorn.workers.cycle import CLOSE, KEEP, LINGER, RESET, Outcome, may_leave_http, shown
from gunicorn.workers.retiring import LAST_WAIT, RETIRE_TICK, retire
from gunicorn.workers.threads.tconn import DaemonThreads, TConn, Waiting
from gunicorn.workers.threads.team import Team
from gunicorn.workers.threads.turns import CHECK

if TYPE_CHECKING:
    import ssl
else:
    from gunicorn.unix import maybessl as ssl

__all__ = ["DaemonThreads", "TConn", "ThreadWorker"]

# Also for a client that has its last answer.
_LAST_WAIT = {**LAST_WAIT, State.LINGER: 1.0, State.SENDING: math.inf}
_AWAITS_REQUEST = (State.NEW, State.HEAD, State.IDLE)


def state_of_gil() -> str | None:
    """Tell whether the global interpreter lock is off; None if this Python cannot do without it."""
    if "t" not in sys.abiflags:
        return None
    if sys._is_gil_enabled():  # type: ignore[attr-defined]
        return "The GIL is on: an extension module that needs it has turned it on, or PYTHON_GIL or -X gil"
    return "The GIL is off: threads run in parallel"


def _set_patience(sock: Any, seconds: float) -> None:
    """Let *sock*, one of gevent's, wait at most *seconds* for its client; 0: for ever."""
    sock.patience = seconds or None


class ThreadWorker(Worker):
    """Serves requests in `threads` threads and keeps up to `worker_connections` connections."""

    @classmethod
    def speaks(cls, protocol: str) -> bool:
        return True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cfg = self.cfg
        self.worker_connections: int = cfg.worker_connections
        self.tpool: Any = None
        self.poller: Any = None
        self.waiting = Waiting(self._put_back)
        self.conns: dict[int, TConn] = {}
        self._listeners: dict[int, Any] = {}
        self._names: dict[int, Any] = {}
        self._paused: set[int] = set()
        self._accepting = False
        self._accept_errors = connection.AcceptErrors(self.log)
        # Of several workers each takes one at a time, so that a burst is spread over them.
        self._accepts_bursts: bool = cfg.workers == 1
        self._warned_of_gevent = False
        self._tls: ssl.SSLContext | None = None
        self._keepalive = float(cfg.keepalive)
        self._patience = float(cfg.timeout) or math.inf
        self._is_tls: bool = cfg.is_ssl
        self._request_timeout = float(cfg.request_timeout)
        # The master waits for twice `timeout`.
        self._beat = min(TICK, self.timeout / 2 or TICK)

    @classmethod
    def places(cls, cfg: Any) -> int:
        threads: int = cfg.threads
        return threads

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Warn of settings that leave no room for connections that are kept alive."""
        if cfg.worker_connections <= cfg.threads and cfg.keepalive:
            log.warning(
                "worker_connections (%s) leaves no place beside the %s threads to keep a connection alive",
                cfg.worker_connections,
                cfg.threads,
            )

    def init_process(self) -> None:
        self.tpool = self.get_thread_pool()
        super().init_process()

    def get_thread_pool(self) -> Any:
        """Return the executor of the threads: any object with ``submit(function)`` and room for `threads` of
        them.
        """
        return DaemonThreads()

    # -- the main thread -----------------------------------------------------------------

    def run(self) -> None:
        # Now that the application is loaded, which may turn it on.
        if (gil := state_of_gil()) is not None:
            self.log.info("%s", gil)
        if self._is_tls:
            self._tls = listening.ssl_context(self.cfg)
        self._prepare_threads()
        self._alarm = select.poll()
        self._alarm.register(self.PIPE[0], select.POLLIN)
        self._accepting = True
        if self.slot is not None:
            self.slot.watched = True
        if self.slot is not None or not self._is_timed:
            # Where a single thread is blocked, the main thread sends the answers that are held.
            self.team.watch()
        for listener in self.sockets:
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._names[listener.fileno()] = listener.getsockname()
            self.poller.watch_listener(listener.fileno())
        for _ in range(max(1, self.cfg.threads)):
            self.tpool.submit(self.team.follow)
        while self.alive and self.is_parent_alive():
            self._tick(math.inf)
            if self._paused and (self.has_room() or self._make_room()):
                self._resume_accepting()
        self.alive = False
        for seconds in retire(self):
            self._tick(time.monotonic() + seconds)
        for conn in self.waiting.claim_expired(math.inf):
            self._drop(conn)
        self.team.stop()
        self.tpool.shutdown(False)

    def _prepare_threads(self) -> None:
        """Make what threads share; not before the application is loaded, which may have gevent patch them."""
        self._greenlets = threads_are_greenlets()
        if self._greenlets:
            self._warn_of_gevent("its threads are greenlets, and a view that computes holds up all of them")
        # The kernel keeps no timeouts for TLS, nor for gevent's sockets.
        self._is_timed = self._is_tls or self._greenlets
        flags = 0 if self._is_timed else socket.MSG_DONTWAIT
        patience = 0.0 if self._is_timed else self._patience
        self._receive_body = BodyIntake(self._left_for_body, patience, flags).receive
        self._accept_lock = threading.Lock()
        has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        threads = max(1, self.cfg.threads)
        # A greenlet cannot be checked as a thread can. Without the GIL views that compute gain, too.
        parallel = self._greenlets or (threads > 1 and not has_gil)
        self.team = Team(self, threads, batches=not self._is_timed, parallel=parallel)
        self.poller = self.team.poller

    def _warn_of_gevent(self, consequence: str) -> None:
        self._warned_of_gevent = True
        self.log.warning(
            "gevent's monkey.patch_all() was called under the worker class gthread: %s. Remove the call, or"
            " use the class gevent",
            consequence,
        )

    def _tick(self, until: float) -> None:
        """Send a heartbeat, close overdue connections, and wait for a wake-up, a deadline or *until*."""
        self.notify()
        self.murder_keepalived()
        if self._request_timeout:
            self._look_for_slow_requests()
        if not self._warned_of_gevent and threads_are_greenlets():
            self._warn_of_gevent(
                "it came after the worker's threads had begun, and those of the application may hang"
            )
        now = time.monotonic()
        due = self.waiting.nearest()
        if self.alive:
            due = max(due, now + PUNCTUALITY)
        self._wait_and_check(min(until, due, now + self._beat))

    def _wait_and_check(self, until: float) -> None:
        """Wait for a wake-up or *until*, and check the turns as long as there is work."""
        checking = self.team.turns.checked
        while True:
            left = until - time.monotonic()
            if checking and left > CHECK:
                left = CHECK
            if self._alarm.poll(max(0, math.ceil(left * 1000))):
                self.drain_pipe()
                # The leader also wakes it, to be checked.
                if not self.alive or self._paused:
                    return
            now = time.monotonic()
            if now >= until:
                return
            checking = self.team.check(now)
            if self.slot is not None:
                self.slot.look(idle=not checking)

    def murder_keepalived(self) -> None:
        """End the connections that have waited for too long."""
        for conn in self.waiting.claim_expired(time.monotonic()):
            try:
                if conn.state not in (State.LINGER, State.SENDING) and is_readable(conn.sock):
                    # It came at the last moment, or while the process stood still; threads are busy, or
                    # just about to see it.
                    conn.deadline = time.monotonic() + self._beat
                    self._put_back(conn)
                elif conn.state == State.HEAD:
                    self._refuse(conn, RequestTimeout())
                else:
                    self._drop(conn)
            except Exception:
                self._drop(conn)

    def _look_for_slow_requests(self) -> None:
        """Log where requests hang that take longer than `request_timeout`, and retire."""
        before = time.monotonic() - self._request_timeout
        for conn in list(self.conns.values()):
            if conn.since < before:
                conn.since = math.inf
                frame = sys._current_frames().get(conn.thread)
                self.log_slow_request(conn.request, self._request_timeout, frame)
                self.leave("timeout")

    # -- the graceful end, as retire() wants it --------------------------------------------

    def at_work(self) -> list[Any]:
        # The clients that wait are left to the successor: here they might wait for a thread for as long.
        return []

    def close_silent(self, retired_at: float) -> None:
        now = time.monotonic()
        for state, seconds in _LAST_WAIT.items():
            self.waiting.cap(state, now + seconds)

    def stop_accepting(self) -> None:
        with self._accept_lock:
            # From here on no thread has accepted a connection that is not in `conns` yet.
            self._accepting = False
        for fd in self._listeners:
            self.poller.forget(fd)
        # Before they are closed: the next connection may get the number of one.
        self._listeners.clear()

    def has_room(self) -> bool:
        return len(self.conns) < self.worker_connections

    def take(self, listener: Any) -> bool:
        fd = listener.fileno()
        conn = self._take(listener, fd)
        if conn is not None:
            self._park(conn)
            return True
        if fd in self._paused:
            # Out of descriptors, say; a connection that ends frees one.
            self._paused.discard(fd)
            self._tick(time.monotonic() + RETIRE_TICK)
        return is_readable(listener)

    # -- the threads ---------------------------------------------------------------------

    def attend(self, fd: int) -> None:
        """Handle a report of *fd*, a listener or a connection that waits, and serve what has arrived."""
        conn = self._claim(fd)
        if conn is not None:
            self.on_client_socket_readable(conn, conn.sock)
        elif (listener := self._listeners.get(fd)) is not None:
            self.accept(self._names[fd], listener)

    def _claim(self, fd: int) -> TConn | None:
        """Take over the connection of *fd*. None: a listener, or another thread has it, or it was closed."""
        conn = self.waiting.claim(fd)
        if conn is None and fd not in self._listeners:
            # It is being served, and more has come; or it was only just put back.
            self.poller.recheck(fd)
            conn = self.waiting.claim(fd)
        # None: the thread that has it will check.
        return conn

    def receive(self, fd: int) -> TConn | None:
        """As ``attend()``, but only parse the next request of a connection: return that for ``serve()``."""
        conn = self._claim(fd)
        if conn is None and (listener := self._listeners.get(fd)) is not None:
            conn = self._accept(listener, fd)
        if conn is None:
            return None
        if conn.state not in _AWAITS_REQUEST:
            self.on_client_socket_readable(conn, conn.sock)
            return None
        try:
            if self._gather(conn) and (req := self._parse(conn)) is not None:
                conn.parsed = req
                return conn
        except BaseException:
            self.log.exception("Closing a connection after an error")
            self._drop(conn)
        return None

    def serve(self, conn: TConn) -> None:
        """Serve the request of *conn* that was parsed, and those that have arrived after it."""
        try:
            if self._serve(conn):
                self._gather_and_serve(conn)
        except BaseException:
            self.log.exception("Closing a connection after an error")
            self._drop(conn)

    def accept(self, server: Any, listener: Any) -> None:
        """Accept one connection, and serve it if its request is there."""
        conn = self._accept(listener, listener.fileno())
        if conn is not None:
            self.on_client_socket_readable(conn, conn.sock)

    def _accept(self, listener: Any, fd: int) -> TConn | None:
        """A connection that was accepted just now, if there is one and room for it."""
        with self._accept_lock:
            if not self._accepting:
                return None
            if not self.has_room() and not self._make_room():
                self._pause(fd)
                return None
            try:
                conn = self._take(listener, fd)
                if conn is not None and self._accepts_bursts and self.poller.has_more():
                    # Their requests are not to wait for another round each.
                    while self.has_room() and (more := self._take(listener, fd)):
                        self._park(more)
            finally:
                if fd not in self._paused:
                    self.poller.watch_listener(fd)
        return conn

    def _take(self, listener: Any, fd: int) -> TConn | None:
        """A connection from the accept queue, or None."""
        try:
            sock, addr = connection.accept(listener)
        except BlockingIOError:
            # Another worker was faster.
            return None
        except OSError as error:
            if not self._accept_errors.is_transient(error):
                self.poller.forget(fd)
                self._paused.add(fd)
            return None
        if self._greenlets:
            sock = self._make_cooperative(sock)
        conn = TConn(self.cfg, sock, addr, self._names[fd], self.team.batch)
        if self._greenlets:
            conn.set_timed()
        self.poller.renew(conn.fd)
        self.conns[id(conn)] = conn
        self.count_connections()
        conn.state = State.HANDSHAKE if self._is_tls else State.NEW
        conn.deadline = time.monotonic() + self._patience
        try:
            if self._patience < math.inf:
                # For sending alone: receiving waits by other means, and an application that takes the
                # connection over may wait for as long as it likes.
                connection.set_send_timeout(sock, self._patience)
            conn.init(self._tls, self.cycle.policy, self.cycle.parser_class)
            conn.parser.unreader.receive = self._receive_body
        except (OSError, ValueError):
            # The client has left already.
            self._drop(conn)
            return None
        return conn

    def _make_cooperative(self, sock: Any) -> Any:
        """Return *sock* as one of gevent's: while a greenlet waits for the client, the others run."""
        from gunicorn.workers.gsocket import ClientSocket

        client = ClientSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        _set_patience(client, self._patience if self._patience < math.inf else 0)
        return client

    def _make_room(self) -> bool:
        """Close the connection that has idled the longest, for a new one; False if none idles.

        Spare one that was answered just now: its next request may be on the way.
        """
        now = time.monotonic()
        while conn := self.waiting.claim_longest_idle(now + self._keepalive - IDLE_AT_LEAST):
            if not is_readable(conn.sock):
                self._drop(conn)
                return True
            # Its next request has come, which no thread has seen yet.
            conn.deadline = now + self._keepalive
            self._put_back(conn)
        return False

    def _pause(self, fd: int) -> None:
        """Accept nothing until a connection ends."""
        self.poller.forget(fd)
        self._paused.add(fd)
        if self.has_room():
            # A connection has ended since the check: it did not see this listener paused.
            self._resume_accepting()

    def _resume_accepting(self) -> None:
        while self._paused and self._accepting and self.has_room():
            with suppress(KeyError, OSError, ValueError):
                self.poller.watch_listener(self._paused.pop())

    def on_client_socket_readable(self, conn: TConn, client: Any) -> None:
        """Go on with a connection that this thread owns, as far as it can without waiting for the client."""
        try:
            conn.may_wait = False
            if conn.state == State.LINGER:
                self._discard(conn)
            elif conn.state == State.SENDING:
                self.send_held(conn)
            elif conn.state != State.HANDSHAKE or self._shake_hands(conn):
                self._gather_and_serve(conn)
        except BaseException:
            self.log.exception("Closing a connection after an error")
            self._drop(conn)

    def _shake_hands(self, conn: TConn) -> bool:
        """Go on with the TLS handshake; True when it is complete."""
        try:
            conn.sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            self._park(conn, write=isinstance(error, ssl.SSLWantWriteError))
        except OSError as error:
            self.handle_error(None, conn.sock, conn.client, error)
            self._drop(conn)
        else:
            conn.state = State.NEW
            conn.parser.after_handshake(conn.sock)
            return True
        return False

    def _gather_and_serve(self, conn: TConn) -> None:
        """Receive, and serve each request whose head is complete."""
        while self._gather(conn) and self._serve(conn):
            pass

    def _gather(self, conn: TConn) -> bool:
        """Receive; whether the head of the next request is complete. If not, *conn* waits, or ends."""
        try:
            return conn.gather()
        except (BlockingIOError, ssl.SSLWantReadError):
            self._wait_for_more(conn)
        except ssl.SSLWantWriteError:
            conn.state = State.HEAD
            self._park(conn, write=True)
        except NoMoreData as end:
            if end.buf and end.buf.strip(b"\r\n"):
                self._refuse(conn, end)
            else:
                self._drop(conn)
        except (ParseException, OSError) as error:
            self._refuse(conn, error)
        return False

    def _serve(self, conn: TConn) -> bool:
        """Serve a request whose head is complete; whether *conn* has more, and is still this thread's."""
        answer = self.enqueue_req(conn)
        # A subclass may return the first value alone.
        if not (answer[0] if isinstance(answer, tuple) else answer):
            return False
        if conn.parser.unreader.pending or conn.is_timed:
            conn.state = State.IDLE
            return True
        self._let_idle(conn)
        return False

    def _let_idle(self, conn: TConn) -> None:
        unreader = conn.parser.unreader
        if not conn.received_all or unreader.asked or unreader.pending:
            # There may be bytes that the poller has already reported.
            self.poller.recheck(conn.fd)
        conn.state = State.IDLE
        conn.deadline = time.monotonic() + self._keepalive
        # For what has been received nothing is reported; that the client can be sent to is, at once.
        self._park(conn, write=bool(unreader.pending))

    def send_held(self, conn: TConn) -> None:
        """Send what is left of a complete answer, as far as that is possible without waiting."""
        data, conn.answer = conn.answer, b""
        try:
            sent = conn.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.log.debug("The client %s went away before its answer: %s", shown(conn.client), error)
            conn.outcome = CLOSE
            sent = len(data)
        if sent < len(data):
            conn.answer = data[sent:]
            conn.state = State.SENDING
            # Reported once the client has made room.
            self.poller.recheck(conn.fd)
            conn.deadline = time.monotonic() + self._patience
            self._park(conn, write=True)
        elif conn.step():
            self._go_on(conn)

    def _go_on(self, conn: TConn) -> None:
        """Go on with *conn*, whose answer was held, is sent, and whose request has ended."""
        if conn.outcome == KEEP:
            self._let_idle(conn)
        else:
            self._end(conn, conn.outcome)

    def _wait_for_more(self, conn: TConn) -> None:
        now = time.monotonic()
        if not conn.has_begun:
            if conn.state != State.NEW:
                conn.state, conn.deadline = State.IDLE, now + self._keepalive
        else:
            if conn.state == State.IDLE:
                # The time for a head begins with its first byte; for a first request, with the connection.
                conn.deadline = now + self._patience
            conn.state = State.HEAD
        self._park(conn)

    def enqueue_req(self, conn: TConn) -> Any:
        """Serve the request that has arrived on *conn*, in this thread."""
        if not conn.is_timed:
            return self.handle(conn)
        # gevent's has its patience; a timeout would limit the time of a whole answer.
        conn.sock.settimeout(self._patience if self._is_tls and self._patience < math.inf else None)
        answer = self.handle(conn)
        if conn.sock.fileno() >= 0:
            conn.sock.settimeout(0)
        return answer

    def handle(self, conn: TConn) -> tuple[bool, TConn]:
        """Parse and serve the next request of *conn*; whether the connection goes on, and *conn*."""
        req, conn.parsed = conn.parsed or self._parse(conn), None
        if req is None:
            return False, conn
        try:
            if self._request_timeout:
                conn.request, conn.thread, conn.since = req, self.team.get_ident(), time.monotonic()
            answer = self.handle_request(req, conn)
            outcome = answer if isinstance(answer, str) else KEEP if answer else CLOSE
        except Exception as error:
            conn.since = math.inf
            self._refuse(conn, error, req)
            return False, conn
        conn.since = math.inf
        if conn.is_held:
            conn.outcome = outcome
            if outcome != KEEP:
                self.team.batch.send()
            if not conn.step():
                # Whoever sends the answer goes on.
                return False, conn
        if outcome == KEEP:
            return True, conn
        self._end(conn, outcome)
        return False, conn

    def _parse(self, conn: TConn) -> Any:
        """The next request of *conn*, whose head has been received. None: there is none, and *conn* ends."""
        try:
            return conn.parser.__next__()
        except StopIteration:
            self._end(conn, CLOSE)
        except Exception as error:
            self._refuse(conn, error)
        return None

    def handle_request(self, req: Any, conn: TConn) -> Outcome | bool:
        """Have the application answer *req*; returns what becomes of the connection."""
        # A connection stays open only if there is room for another one.
        keep = self._keepalive > 0 and self.has_room()
        if may_leave_http(req):
            return self._serve_without_limits(req, conn, keep)
        # The hook may use the socket, and finds there what it expects: the answer was sent.
        hold = conn.hold if not conn.is_timed and self.cycle.post_request is None else None
        return self.cycle.serve(
            req, conn.sock, conn.client, conn.server, keep=keep, multithread=True, hold=hold
        )

    def _serve_without_limits(self, req: Any, conn: TConn, keep: bool) -> Outcome:
        """Serve *req*, which another protocol may follow: WebSocket has long silences."""
        limit_sends = _set_patience if self._greenlets else connection.set_send_timeout
        if self._is_tls:
            conn.sock.settimeout(None)
        elif self._patience < math.inf:
            limit_sends(conn.sock, 0)
        outcome = self.cycle.serve(req, conn.sock, conn.client, conn.server, keep=keep, multithread=True)
        if outcome == KEEP and not self._is_tls and self._patience < math.inf:
            limit_sends(conn.sock, self._patience)
        return outcome

    def _left_for_body(self) -> float:
        """Return how much longer a thread may wait for a body that has paused for `timeout`.

        It may wait as long as no client needs a thread. Waiting threads check at different times, so that
        the first one to give up frees a thread before the others check again.
        """
        if not self.alive:
            return 0
        if self.team.has_free_thread:
            return TICK
        if self.team.batch.received:
            return 0
        parked = [conn.sock for conn in self.waiting.snapshot() if conn.state != State.LINGER]
        return 0 if any(map(is_readable, [*self._listeners.values(), *parked])) else TICK

    # -- ends ----------------------------------------------------------------------------

    def _park(self, conn: TConn, write: bool = False) -> None:
        """Let *conn* wait; from here on it is no longer this thread's."""
        if not self.alive:
            conn.deadline = min(conn.deadline, time.monotonic() + _LAST_WAIT[conn.state])
        self.waiting.park(conn)
        try:
            self.poller.watch(conn.fd, write=write)
        except (OSError, ValueError):
            found = self.waiting.claim(conn.fd)
            if found is conn:
                self._drop(conn)
            elif found is not None:
                self._put_back(found)
        if not self.alive:
            self.wake()

    def _put_back(self, conn: TConn) -> None:
        """Let *conn* wait on, which was claimed by mistake."""
        # Bytes that arrived meanwhile were reported while no thread could take them. TLS may have waited to
        # write: the socket is reported at once, and a thread finds out what TLS waits for.
        self.poller.recheck(conn.fd)
        self._park(conn, write=conn.is_timed or conn.state == State.SENDING)

    def _refuse(self, conn: TConn, error: BaseException, req: Any = None) -> None:
        """Answer a malformed request as far as the client reads the answer, and close *conn*."""
        # A client that does not read would hold up a thread, or the main thread with its heartbeat.
        with suppress(OSError):
            conn.sock.settimeout(0)
        self.handle_error(req, conn.sock, conn.client, error)
        self._end(conn, LINGER)

    def _end(self, conn: TConn, outcome: Outcome) -> None:
        """Close *conn* as *outcome* says, in the poller where the client is still sending."""
        if outcome == RESET:
            self.poller.forget(conn.fd)
            connection.reset(conn.sock)
            self._forget(conn)
            return
        conn.gatherer = None
        if connection.begin_close(conn.sock, more_expected=outcome == LINGER):
            conn.state = State.LINGER
            conn.deadline = time.monotonic() + connection.LINGER_SECONDS
            self._discard(conn)
        else:
            self._forget(conn)

    def _discard(self, conn: TConn) -> None:
        if connection.discard_input(conn.sock):
            self._drop(conn)
        else:
            self.poller.recheck(conn.fd)
            self._park(conn)

    def _drop(self, conn: TConn) -> None:
        """Close *conn*, from which nothing is expected, whatever state it is in."""
        if self.conns.get(id(conn)) is conn:
            self.poller.forget(conn.fd)
            connection.send_close_notify(conn.sock)
            with suppress(Exception):
                conn.close()
            self._forget(conn)

    def _forget(self, conn: TConn) -> None:
        self.conns.pop(id(conn), None)
        self.count_connections()
        if self._paused:
            self._resume_accepting()
        if not self.alive:
            self.wake()
