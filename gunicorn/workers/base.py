# SPDX-License-Identifier: MIT
"""The base of all workers: a forked child that loads the application and sends heartbeats."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn.errors import AppImportError
from gunicorn.glogging import reopen_logs
from gunicorn.http.policy import policy_for
from gunicorn.loading import asked_to_exit, getcwd
from gunicorn.unix.process import set_owner_process
from gunicorn.unix.signals import Handler, handlers_of, reset_to_default, signal_name
from gunicorn.workers.cycle import Cycle, Stopped
from gunicorn.workers.workertmp import WorkerTmp

if TYPE_CHECKING:
    from gunicorn.scoreboard import Slot

# How soon a worker notices that the master is gone, and how often it sends a heartbeat at least.
TICK = 1.0

# How long a worker may take to obey a signal to end at once, before the next such signal counts.
SETTLED = 1.0


# Those that end a worker.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT)


class Worker:
    """The base of all worker classes.

    A subclass has ``run()``, which serves while ``alive`` is true, calls ``notify()`` more often
    than every *timeout* seconds (half of the setting), and returns when it is done.

    Signal handlers log nothing: they may interrupt a log call that holds the lock. They set ``alive``
    and, by the wake-up descriptor, make ``PIPE[0]`` readable.
    """

    SIGNALS = [
        getattr(signal, f"SIG{name}")
        for name in ("ABRT", "HUP", "QUIT", "INT", "TERM", "USR1", "USR2", "WINCH", "CHLD")
    ]
    PIPE: list[int] = []

    @classmethod
    def speaks(cls, protocol: str) -> bool:
        """Whether the class can speak *protocol*, a value of the setting, on the listeners."""
        return protocol == "http"

    def __init__(
        self, age: int, ppid: int, sockets: list[Any], app: Any, timeout: float, cfg: Any, log: Any
    ) -> None:
        """Called in the master, before the fork."""
        self.age = age
        self.pid: int | str = "[booting]"
        self.ppid = ppid
        self.sockets = sockets
        self.app = app
        self.timeout = timeout
        self.cfg = cfg
        self.log = log
        # Whether it serves; an end before that is a failed start.
        self.booted = False
        self._running = False
        self._loading = False
        self._due = False
        self.aborted = False
        # Where the master has companions, and places left for what its workers do.
        self.slot: Slot | None = None
        self._told_to_end = -math.inf
        # When the master stops waiting, once it has told this worker to end.
        self._graceful_deadline = math.inf
        self.alive = True
        self.reloader: Any = None
        self.wsgi: Any = None
        self.nr = 0
        self.max_requests: int = sys.maxsize
        if cfg.max_requests > 0:
            import random

            # So that not all workers retire in the same second.
            self.max_requests = cfg.max_requests + random.randint(0, cfg.max_requests_jitter)
        self.tmp = WorkerTmp(cfg)
        # Before the fork, so that all workers share what it imports.
        policy_for(cfg)

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"

    def notify(self) -> None:
        """Send a heartbeat: the master kills a worker without one for ``timeout`` seconds.

        The first one in ``run()`` says that the worker serves; the master keeps its predecessor until then.
        """
        self.booted = self._running
        self.tmp.notify()
        if self.slot is not None:
            self.slot.set("booted", self.booted)
            self.slot.look(idle=True)
            self.count_connections()

    def count_connections(self) -> None:
        """Have the scoreboard show how many connections are open."""
        if self.slot is not None:
            self.slot.set("connections", len(getattr(self, "conns", ())))

    def run(self) -> None:
        """Serve until ``alive`` is false."""
        raise NotImplementedError

    # -- the start -----------------------------------------------------------------------

    def init_process(self) -> None:
        """Do all that the worker does in its process, from the fork to the end of ``run()``.

        A subclass that overrides it calls this last: it does not return before the worker is done.
        """
        for name, value in self.cfg.env.items():
            os.environ[name] = value
        set_owner_process(self.cfg.uid, self.cfg.gid, initgroups=self.cfg.initgroups)
        self._open_pipe()
        for listener in self.sockets:
            os.set_inheritable(listener.fileno(), False)
        os.set_inheritable(self.tmp.fileno(), False)
        self.log.close_on_exec()
        self.init_signals()
        self._handle_forks()
        if self.cfg.reload:
            self._make_reloader()
        handlers = handlers_of(_ENDING)
        self.load_wsgi()
        self._warn_of_handlers(handlers)
        if self.reloader is not None:
            self.reloader.start()
        self.cfg.post_worker_init(self)
        self.cycle  # noqa: B018 - the first client need not wait for what it looks up
        self._running = True
        self.run()

    def _open_pipe(self) -> None:
        # The instance's own: the class attribute would be shared.
        self.PIPE = list(os.pipe())
        for fd in self.PIPE:
            os.set_blocking(fd, False)

    def load_wsgi(self) -> None:
        """Set ``wsgi``: to the application or, with `reload`, to a page that says why it does not load."""
        self._loading = True
        try:
            self.wsgi = self.app.wsgi()
        except (Exception, SystemExit) as error:
            # With `reload`, a module that calls sys.exit() waits for its fix like any other.
            if not self.cfg.reload or isinstance(error, Stopped):
                if type(error) is SystemExit:
                    raise AppImportError(asked_to_exit(error)) from error
                raise
            self.log.exception("The application does not load; waiting for a change to its files")
            if self.reloader is not None:
                for path in _awaited(error):
                    self.reloader.add_extra_file(path)
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self.wsgi = self.make_fail_app(text.encode("utf-8", "backslashreplace"))
        finally:
            self._loading = False

    def make_fail_app(self, text: bytes) -> Any:
        """Return an application that answers each request with *text*."""
        from gunicorn.loading import make_fail_app

        return make_fail_app(text)

    # -- reloading -----------------------------------------------------------------------

    def _make_reloader(self) -> None:
        from gunicorn.reloader import reloader_engines

        engine: Callable[..., Any] = reloader_engines[self.cfg.reload_engine]
        self.reloader = engine(extra_files=self.cfg.reload_extra_files, callback=self._changed)

    def _changed(self, path: str) -> None:
        """Called in the reloader's thread when a file has changed: retire as if the master had said so."""
        if self.reloader.is_inherited(path):
            # A new worker would have the old code too.
            self.log.warning("%s has changed, but is in the master's memory: restart the server", path)
            return
        # One change is enough: the rest of a checkout changes nothing more for this process.
        self.reloader.stop()
        self.log.info("Worker %s reloads: %s has changed", self.pid, path)
        self.cfg.worker_int(self)
        if self.slot is not None:
            self.slot.retire("reload")
        # By the signal, because the loops of some classes watch nothing else.
        os.kill(os.getpid(), signal.SIGTERM)

    # -- signals -------------------------------------------------------------------------

    def init_signals(self) -> None:
        """Install the handlers; ``PIPE[0]`` becomes readable whenever one of them has run."""
        # Never leave a default action in between: it would kill a worker on a log rotation.
        handlers: dict[int, Any] = {
            signal.SIGQUIT: self.handle_quit,
            signal.SIGINT: self.handle_quit,
            signal.SIGTERM: self.handle_exit,
            signal.SIGUSR1: self.handle_usr1,
            signal.SIGABRT: self.handle_abort,
        }
        # These are for the master, and one sent to the whole process group must not end a worker. Handle
        # them, because programs that the application starts would inherit "ignored".
        for signum in (signal.SIGWINCH, signal.SIGHUP, signal.SIGUSR2):
            handlers[signum] = self.handle_winch
        reset_to_default(self.SIGNALS, handlers)
        # Spare C libraries an EINTR that they may not expect, where the signal does not end the process.
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGWINCH, signal.SIGHUP, signal.SIGUSR2):
            signal.siginterrupt(signum, False)
        if self.PIPE:
            signal.set_wakeup_fd(self.PIPE[1], warn_on_full_buffer=False)

    def _handle_forks(self) -> None:
        """Have a signal to end just end a process that the application forks, because it is no worker.

        Our handlers would have it ignore SIGTERM, and `multiprocessing` wait for it for ever. Until they are
        gone signals are blocked.
        """
        masks = threading.local()

        def block() -> None:
            masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

        def unblock() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

        def part() -> None:
            self.alive = False
            handlers = handlers_of(_ENDING).items()
            reset_to_default(
                [signum for signum, handler in handlers if getattr(handler, "__self__", 0) is self]
            )
            unblock()

        os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=part)

    def _warn_of_handlers(self, before: dict[int, Handler]) -> None:
        """Warn of handlers that the application has replaced while it was loaded."""
        replaced = [signum for signum, handler in handlers_of(_ENDING).items() if handler != before[signum]]
        if replaced:
            self.log.warning(
                "The application handles %s itself: if it does not call the handler that was there before,"
                " worker %s ends only when it is killed",
                ", ".join(map(signal_name, replaced)),
                self.pid,
            )

    def wake(self) -> None:
        """End the current or the next wait of ``run()``; for other threads than the main one."""
        with suppress(BlockingIOError, IndexError):
            os.write(self.PIPE[1], b"\0")

    def drain_pipe(self) -> None:
        """Read the wake-ups away."""
        with suppress(BlockingIOError, IndexError):
            while len(os.read(self.PIPE[0], 4096)) == 4096:
                pass

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """Reopen the log files; that swaps descriptors, which is safe in the middle of a log call."""
        reopen_logs(self.log)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: finish the current requests, then exit."""
        if sig == signal.SIGQUIT:
            # The loops of foreign worker classes may call this for both signals.
            self.handle_quit(sig, frame)
        self.alive = False
        if self.slot is not None:
            self.slot.retire()
        self._graceful_deadline = self.graceful_deadline()
        if not self._running and not self._ends_at_once():
            # It serves no request yet, and an application may take long to load.
            self._told_to_end = time.monotonic()
            self._insist(sig, frame)
            raise Stopped(0)

    def _insist(self, sig: int, frame: FrameType | None) -> None:
        """End a load by an exception, again and again: Python ignores one that is raised in a finalizer."""
        if self._loading:
            signal.signal(signal.SIGALRM, self._insist)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise Stopped(0)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT and SIGQUIT: end now."""
        self.alive = False
        if self._ends_at_once():
            return
        self._told_to_end = math.inf
        try:
            self.cfg.worker_int(self)
        finally:
            self._told_to_end = time.monotonic()
        raise Stopped(0)

    def _ends_at_once(self) -> bool:
        """Whether the last signal is about to end the worker, so that another one must change nothing.

        Ctrl-C sends SIGINT to all processes of a terminal, and the master adds SIGQUIT. A second exception
        would interrupt the cleanup that the first one has begun. Later signals count, because an application
        or a finalizer may have swallowed the exception.
        """
        return time.monotonic() - self._told_to_end < SETTLED

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """SIGABRT: the master has waited too long for a heartbeat.

        The hook is called here, where it can still see where the worker hangs.
        """
        self.alive = False
        self.cfg.worker_abort(self)
        raise Stopped(1)

    def handle_winch(self, sig: int, fname: FrameType | None) -> None:
        """Nothing: the signal is for the master."""

    # -- for the loops of subclasses -----------------------------------------------------

    def is_parent_alive(self) -> bool:
        """Whether the master is still there.

        Compare with the former parent, not with 1: the master may be process 1.
        """
        if self.ppid == os.getppid():
            return True
        self.log.info("The master is gone; worker %s exits", self.pid)
        return False

    @cached_property
    def cycle(self) -> Cycle:
        """The request cycle for this worker; made when it is first needed, after the fork."""
        return Cycle(self)

    def retire(self) -> None:
        """Called from `max_requests` on: ask for a replacement, and serve until that has booted."""
        if self.alive and not self._due:
            self._due = True
            self.log.info("Worker %s has served %s requests and is to be replaced", self.pid, self.nr)
            self.tmp.ask_for_replacement()

    @classmethod
    def places(cls, cfg: Any) -> int:
        """How many requests a worker serves at the same time, at most."""
        return 1

    def leave(self, cause: str | None = None) -> None:
        """Finish and exit; let the master know, which starts a successor at once, and why."""
        self.alive = False
        if self.slot is not None:
            self.slot.retire(cause)
        self.tmp.leave()
        self.wake()

    def log_slow_request(self, req: Any, limit: float, frame: FrameType | None) -> None:
        """Log that *req* takes longer than *limit* seconds, and where: in *frame*."""
        what = f"{getattr(req, 'method', 'a')} {getattr(req, 'uri', 'request')}"
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "it has just ended"
        self.log.error(
            "%s takes longer than %g s; worker %s retires:\n%s", ascii(what), limit, self.pid, stack
        )

    def graceful_deadline(self) -> float:
        """The moment at which the master stops waiting for this worker, if it ends from now on."""
        return min(self._graceful_deadline, time.monotonic() + float(self.cfg.graceful_timeout))

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that could not be read, or that failed before its response began, and log why."""
        self.cycle.answer_error(req, client, addr, exc)


def _awaited(error: BaseException) -> list[str]:
    """The files that a failed import went through, and all modules beside them: one may be missing."""
    import glob

    paths = []
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SyntaxError) and seen.filename:
            paths.append(seen.filename)
        paths += [frame.filename for frame in traceback.extract_tb(seen.__traceback__)]
        seen = seen.__cause__ or seen.__context__
    files = [path for path in dict.fromkeys(paths) if os.path.exists(path)]
    own = [path for path in files if not path.startswith(_OUR_PACKAGE)]
    directories = dict.fromkeys([getcwd(), *map(os.path.dirname, own)])
    return files + [os.path.join(glob.escape(directory), "*.py") for directory in directories]


_OUR_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
