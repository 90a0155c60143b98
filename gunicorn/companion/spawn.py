# SPDX-License-Identifier: MIT
"""The child's side of a companion's start, from the fork to the end of its target."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import io
import logging
import os
import resource
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from gunicorn.companion import session
from gunicorn.companion.checks import Target, describe_target
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.runfile import Record, RunFile
from gunicorn.companion.watch import SourceWatch
from gunicorn.reloader import loaded_sources
from gunicorn.unix.process import seed, set_process_title
from gunicorn.unix.signals import blocked_signals, reset_to_default, unblock_all

# prctl(2), <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

# What a service manager or an older master said to the server is not for a companion.
SERVER_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "GUNICORN_PID",
    "GUNICORN_FD",
)


class StartFailed(Exception):
    """The start itself failed; the text is for ``status``."""


@dataclass(frozen=True)
class Birth:
    """What the manager gives a child along."""

    config: CompanionConfig
    run: RunFile
    # Descriptors of the manager that are no business of the child.
    close: Iterable[int]
    # Called in the child just before the target: the companion_post_fork hook.
    post_fork: Callable[[], Any]
    # The soft limit of open files as the server was started with.
    nofile: tuple[int, int] | None = None
    # In development: has the manager restart it when a file that it has loaded changes.
    watch: SourceWatch | None = None


def spawn(birth: Birth) -> int:
    """Fork the companion and return its pid. Raises OSError where the fork is refused.

    Every signal is blocked across the fork, so that none reaches the child
    while it still has the manager's handlers.
    """
    parent = os.getpid()
    supervisor = session.identity(parent) or ""
    for stream in (sys.stdout, sys.stderr):
        # What is buffered must be written once, not by both.
        with contextlib.suppress(Exception):
            stream.flush()
    with blocked_signals():
        pid = os.fork()
        if pid == 0:
            _child(birth, parent, supervisor)
    return pid


def _child(birth: Birth, parent: int, supervisor: str) -> NoReturn:
    """The whole life of the child. No path leads back: not an exception, not a `finally` above."""
    code = 1
    try:
        try:
            _become(birth, parent, supervisor)
        except StartFailed as exc:
            _report(birth.run, str(exc))
        except BaseException as exc:
            # What the user's hook raised: shown where he looks for it.
            traceback.print_exc()
            _report(birth.run, _one_line(exc))
        else:
            code = run_target(birth)
        _flush()
    finally:
        # The only way out.
        os._exit(code)


def _become(birth: Birth, parent: int, supervisor: str) -> None:
    """From a copy of the manager to a companion just before its target."""
    config = birth.config
    os.setsid()
    # As in a Python program of its own: SIGINT raises, SIGPIPE is an error of write().
    reset_to_default(
        signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        {signal.SIGINT: signal.default_int_handler, signal.SIGPIPE: signal.SIG_IGN},
    )
    signalled = set_parent_death_signal(config.stop_signal)
    if os.getppid() != parent:
        # The manager died before the signal was armed; nobody would end this one.
        os._exit(0)
    pid = os.getpid()
    record = Record(
        name=config.name,
        pid=pid,
        started=session.identity(pid) or "",
        session=pid,
        supervisor=parent,
        supervisor_started=supervisor,
        stop_signal=config.stop_signal,
        stop_timeout=config.stop_timeout,
        signalled=signalled,
    )
    try:
        birth.run.write(record)
    except OSError as exc:
        raise StartFailed(f"cannot write the run file: {exc.strerror}") from None
    for fd in birth.close:
        with contextlib.suppress(OSError):
            os.close(fd)
    if birth.nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, birth.nofile)
    forget_inherited_exit_handlers()
    seed()
    _set_environment(config)
    _enter(config.cwd)
    _redirect(config)
    set_process_title(f"companion [{config.name}]")
    unblock_all()
    try:
        birth.post_fork()
    except Exception as exc:
        traceback.print_exc()
        raise StartFailed(f"companion_post_fork: {_one_line(exc)}") from None


def set_parent_death_signal(signum: int) -> bool:
    """Ask the kernel for *signum* when the parent dies; True where it can be asked (Linux)."""
    return _prctl(PR_SET_PDEATHSIG, signum)


def become_subreaper() -> bool:
    """Adopt descendants whose parents die; True where that exists (Linux)."""
    return _prctl(PR_SET_CHILD_SUBREAPER, 1)


def stay_dumpable() -> bool:
    """Keep /proc/<pid> of this process and its children readable after a change of user (Linux)."""
    return _prctl(PR_SET_DUMPABLE, 1)


def _load_prctl() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    function.restype = ctypes.c_int
    return function


# Loaded before any fork: nothing that can fail or take a lock is left for the child.
_PRCTL = _load_prctl()


def _prctl(option: int, value: int) -> bool:
    return _PRCTL is not None and _PRCTL(option, value, 0, 0, 0) == 0


def _set_environment(config: CompanionConfig) -> None:
    for name in SERVER_VARIABLES:
        os.environ.pop(name, None)
    os.environ["GUNICORN_COMPANION_NAME"] = config.name
    os.environ.update(config.env)


def _enter(directory: str | None) -> None:
    if directory is None:
        return
    try:
        os.chdir(directory)
    except OSError as exc:
        raise StartFailed(f"cannot enter cwd {directory}: {exc.strerror}") from None


def _redirect(config: CompanionConfig) -> None:
    """stdin from /dev/null, output as configured, all of it line-buffered."""
    null = os.open(os.devnull, os.O_RDWR)
    _move(null, 0)
    for key, number in (("stdout", 1), ("stderr", 2)):
        path = getattr(config, key)
        if path is None:
            _open_if_closed(number)
        elif key == "stderr" and path == "stdout":
            os.dup2(1, 2, inheritable=True)
        else:
            try:
                # Not to wait for the reader of a named pipe: a stop would have to wait as well.
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
                os.set_blocking(fd, True)
            except OSError as exc:
                raise StartFailed(f"cannot open {key} {path}: {exc.strerror}") from None
            _move(fd, number)
    _REPLACED.append(sys.stdin)
    sys.stdin = sys.__stdin__ = _text(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _line_buffered(sys.stdout, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _line_buffered(sys.stderr, 2)  # type: ignore[misc]


def _move(fd: int, number: int) -> None:
    if fd != number:
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    else:
        os.set_inheritable(fd, True)


def _open_if_closed(number: int) -> None:
    """A closed 1 or 2 would be given to the next file that the target opens."""
    try:
        os.fstat(number)
    except OSError:
        _move(os.open(os.devnull, os.O_WRONLY), number)


# The streams that were replaced: freed, they might close the descriptors below them.
_REPLACED: list[Any] = []


def _line_buffered(stream: Any, number: int) -> io.TextIOWrapper:
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):
            if stream.fileno() == number:
                stream.reconfigure(line_buffering=True)
                return stream
    _REPLACED.append(stream)
    return _text(number, "w")


def _text(number: int, mode: str) -> io.TextIOWrapper:
    file = open(number, mode, buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    assert isinstance(file, io.TextIOWrapper)
    return file


def _report(run: RunFile, reason: str) -> None:
    """Leave the reason where the manager reads it when it reaps this process."""
    with contextlib.suppress(Exception):
        record = run.read()
        if record is not None:
            run.write(replace(record, error=reason))


def _one_line(exc: BaseException) -> str:
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__


def import_target(target: Target) -> Callable[[], Any]:
    """The callable itself; a string is imported now. Raises StartFailed if that finds no callable."""
    if not isinstance(target, str):
        return target
    module_name, _, attributes = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise StartFailed(f"module {module_name!r} has no {attributes!r} to run") from None
    if not callable(found):
        raise StartFailed(f"{target} is not callable")
    return found  # type: ignore[no-any-return]


def run_target(birth: Birth) -> int:
    """Run the target as a program of its own would be run; return its exit code."""
    code = 0
    try:
        loaded_before = loaded_sources() if birth.watch is not None else set()
        try:
            target = import_target(birth.config.target)
        except StartFailed as exc:
            print(f"companion {birth.config.name}: {exc}", file=sys.stderr)
            _report(birth.run, str(exc))
            return 1
        except Exception as exc:
            traceback.print_exc()
            _report(birth.run, f"cannot import {describe_target(birth.config.target)}: {_one_line(exc)}")
            return 1
        # From here on the record speaks for this process; the lock is the manager's alone,
        # so that nothing this process leaves behind can hold it.
        birth.run.close()
        if birth.watch is not None:
            birth.watch.begin(loaded_before)
        target()
    except SystemExit as exc:
        code = _exit_code(exc)
    except KeyboardInterrupt:
        code = _interrupted()
    except BaseException:
        _excepthook()
        code = 1
    return _finalize(code)


def _exit_code(exc: SystemExit) -> int:
    """As the interpreter does: none is 0, a number is itself, anything else is printed and 1."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def _interrupted() -> NoReturn:
    """As the interpreter does: the parent sees a death by SIGINT, not an exit code."""
    _excepthook()
    _finalize(130)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(130)


def _excepthook() -> None:
    kind, value, trace = sys.exc_info()
    if kind is None or value is None:
        return
    # The first frame is ours; the user's traceback begins with the target.
    value.__traceback__ = trace.tb_next if trace is not None else None
    try:
        sys.excepthook(kind, value, value.__traceback__)
    except BaseException:
        # One that fails hides nothing, and the exit handlers have their turn.
        traceback.print_exc()
        sys.__excepthook__(kind, value, value.__traceback__)


def _finalize(code: int) -> int:
    """Join the threads, run the exit handlers, flush: what the interpreter does at its end."""
    with contextlib.suppress(SystemExit):
        try:
            threading._shutdown()  # type: ignore[attr-defined]
        except KeyboardInterrupt:
            code = 130
        # Every handler that raises is reported by the call itself.
        atexit._run_exitfuncs()
    return code if _flush() else code or 120  # the interpreter's own code for output that was lost


def _flush() -> bool:
    """Write what is buffered; False where that cannot be."""
    good = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            good = good and stream is None
    return good


def forget_inherited_exit_handlers() -> None:
    """What the master registered for its own exit is the master's to run.

    `multiprocessing` does likewise in its children. The handlers that belong to
    the standard library itself are registered again, for what this process will
    give them to do.
    """
    atexit._clear()
    registry: dict[Any, Any] = getattr(weakref.finalize, "_registry", {})
    for info in registry.values():
        info.atexit = False
    # The next finalize object registers the class's handler, which was just cleared.
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()
        # Children of the master's: this process must neither join nor terminate them.
        sys.modules["multiprocessing.process"]._children.clear()
        atexit.register(util._exit_function)
