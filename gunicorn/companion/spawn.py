# SPDX-License-Identifier: MIT
"""The child's side of a companion's start, from the fork to the end of its target."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import importlib
import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from socket import socket
from typing import Any, NamedTuple, NoReturn

from gunicorn.companion import session, sockets
from gunicorn.companion.checks import Target, describe_target
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.ending import flush, forget_inherited_exit_handlers, run_to_the_end
from gunicorn.companion.program import CannotRun, execute
from gunicorn.companion.runfile import Record, RunFile
from gunicorn.companion.watch import SourceWatch
from gunicorn.reloader import loaded_sources
from gunicorn.unix.process import set_process_title
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
    "GUNICORN_COMPANION_RUN_DIR",
    "GUNICORN_COMPANION_STATE",
    "GUNICORN_COMPANION_INDEX",
)

# Plain numbers: members of an enum are slow, and all of it is done in each child.
RESET_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
# As in a Python program of its own: SIGINT raises, SIGPIPE is an error of write().
HANDLERS: dict[int, Any] = {
    int(signal.SIGINT): signal.default_int_handler,
    int(signal.SIGPIPE): int(signal.SIG_IGN),
}


class StartFailed(Exception):
    """The start itself failed; the text is for ``status``."""


@dataclass(frozen=True)
class Birth:
    """What the manager gives a child along."""

    config: CompanionConfig
    run: RunFile
    # Descriptors of the manager: the child closes them, but for those that are named below.
    close: Iterable[int]
    # Called in the child just before the target: the companion_post_fork hook.
    post_fork: Callable[[], Any]
    # The soft limit of open files as the server was started with.
    nofile: tuple[int, int] | None = None
    # In development: has the manager restart it when a file that it has loaded changes.
    watch: SourceWatch | None = None
    # The sockets of `bind`: 3, 4 … in the child.
    listeners: Sequence[int | socket] = ()
    # Where the companion says how it is: its NOTIFY_SOCKET.
    notify: str | None = None


class _Parent(NamedTuple):
    """What a child has to know of its parent, found out once."""

    pid: int
    identity: str
    # Of SERVER_VARIABLES those that are set.
    unwanted: tuple[str, ...]

    @classmethod
    @functools.lru_cache(maxsize=1)
    def of(cls, pid: int) -> _Parent:
        return cls(pid, session.identity(pid) or "", tuple(n for n in SERVER_VARIABLES if n in os.environ))


# Who starts many at once gives the same descriptors along each time.
_ranges = functools.lru_cache(maxsize=1)(sockets.runs)


class _Origin(NamedTuple):
    """Where a child comes from, found out before the fork."""

    parent: _Parent
    # Ranges of descriptors to close, and the sockets to hand over.
    close: list[tuple[int, int]]
    listeners: list[int]

    @classmethod
    def of(cls, birth: Birth) -> _Origin:
        listeners = [each if isinstance(each, int) else each.fileno() for each in birth.listeners]
        return cls(_Parent.of(os.getpid()), _ranges(tuple(birth.close)), listeners)


def prepare_parent() -> None:
    """Do once what every child would have to do otherwise: streams as companions have them.

    For a process that does nothing but run companions, and reads nothing.
    """
    global _prepared
    _settle_streams()
    _prepared = (sys.stdin, sys.stdout, sys.stderr)


# The streams of a parent that is prepared.
_prepared: tuple[Any, ...] = ()


def spawn(birth: Birth) -> int:
    """Fork the companion and return its pid. Raises OSError where the fork is refused.

    Every signal is blocked across the fork, so that none reaches the child
    while it still has the manager's handlers.
    """
    origin = _Origin.of(birth)
    # What is buffered must be written once, not by both.
    flush()
    with blocked_signals():
        pid = os.fork()
        if pid == 0:
            _child(birth, origin)
    return pid


def _child(birth: Birth, origin: _Origin) -> NoReturn:
    """The whole life of the child. No path leads back: not an exception, not a `finally` above."""
    code = 1
    try:
        try:
            _become(birth, origin)
            if birth.config.command is not None:
                _execute(birth, origin)
        except StartFailed as exc:
            _report(birth.run, str(exc))
        except BaseException as exc:
            # What the user's hook raised: shown where he looks for it.
            traceback.print_exc()
            _report(birth.run, _one_line(exc))
        else:
            code = run_target(birth)
        flush()
    finally:
        # The only way out.
        os._exit(code)


def _become(birth: Birth, origin: _Origin) -> None:
    """From a copy of the manager to a companion just before its target."""
    config = birth.config
    os.setsid()
    reset_to_default(RESET_SIGNALS, HANDLERS)
    _leave_record(birth, origin)
    _arrange_descriptors(birth, origin)
    if birth.nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, birth.nofile)
    forget_inherited_exit_handlers()
    _set_environment(birth, origin.parent.unwanted)
    _enter(config.cwd)
    _redirect(config)
    if config.command is None:
        set_process_title(f"companion [{config.name}]")
        _arm_faulthandler(config)
    unblock_all()
    try:
        birth.post_fork()
    except Exception as exc:
        traceback.print_exc()
        raise StartFailed(f"companion_post_fork: {_one_line(exc)}") from None


def _leave_record(birth: Birth, origin: _Origin) -> None:
    """From here on this process is known, and ends with its parent."""
    config = birth.config
    signalled = set_parent_death_signal(config.stop_signal)
    parent = origin.parent
    if os.getppid() != parent.pid:
        # The manager died before the signal was armed; nobody would end this one.
        os._exit(0)
    pid = os.getpid()
    started = session.identity(pid) or ""
    try:
        birth.run.write(
            Record(
                config.name,
                pid,
                started,
                session=pid,
                supervisor=parent.pid,
                supervisor_started=parent.identity,
                stop_signal=config.stop_signal,
                stop_timeout=config.stop_timeout,
                signalled=signalled,
            )
        )
    except OSError as exc:
        raise StartFailed(f"cannot write the run file: {exc.strerror}") from None


def _arrange_descriptors(birth: Birth, origin: _Origin) -> None:
    """Close what is the manager's; a Python target gets its sockets."""
    sockets.close_ranges(origin.close, besides=(birth.run.fd, *origin.listeners))
    if origin.listeners:
        _make_room(birth, origin.listeners)
        if birth.config.command is None:
            try:
                sockets.hand_over(origin.listeners)
            except sockets.Occupied as exc:
                raise StartFailed(str(exc)) from None
    sockets.release()


def _make_room(birth: Birth, listeners: Sequence[int]) -> None:
    """Leave the numbers to the sockets that get them, and these as they are to be found."""
    birth.run.fd = sockets.lift(birth.run.fd, len(listeners))
    if birth.watch is not None:
        birth.watch.lift(len(listeners))
    if birth.config.index is None:
        for fd in listeners:
            # What the program before has set is gone with it. Copies of one program agree, and may run.
            os.set_blocking(fd, True)


def _execute(birth: Birth, origin: _Origin) -> NoReturn:
    """Become the program of `command`. Until then what the hook uses stays where it is."""
    assert birth.config.command is not None
    flush()
    sockets.hand_over(origin.listeners, force=True)
    try:
        execute(birth.config.command, os.environ, sockets.FIRST + len(origin.listeners))
    except CannotRun as exc:
        raise StartFailed(str(exc)) from None


def _arm_faulthandler(config: CompanionConfig) -> None:
    """The watchdog's SIGABRT has every thread's stack written to stderr.

    What the master had armed was undone with its other signal handlers.
    """
    if config.watchdog is not None or faulthandler.is_enabled():
        # It would take itself for armed still, and do nothing.
        faulthandler.disable()
        faulthandler.enable(2)


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


def _set_environment(birth: Birth, unwanted: Iterable[str]) -> None:
    for name in unwanted:
        os.environ.pop(name, None)
    for name, value in (*variables_of(birth, os.getpid()).items(), *birth.config.env.items()):
        os.environ[name] = value


def variables_of(birth: Birth, pid: int) -> dict[str, str]:
    """What a companion is told of itself: ours, and those of systemd's protocols."""
    config = birth.config
    found = {"GUNICORN_COMPANION_NAME": config.name}
    if config.index is not None:
        found["GUNICORN_COMPANION_INDEX"] = str(config.index)
    if birth.notify is not None:
        found["NOTIFY_SOCKET"] = birth.notify
    if config.watchdog is not None:
        # Without WATCHDOG_PID: a wrapper that stays would keep its program from beating.
        found["WATCHDOG_USEC"] = str(max(1, round(config.watchdog * 1_000_000)))
    count = len(birth.listeners)
    if count:
        found["LISTEN_PID"] = str(pid)
        found["LISTEN_FDS"] = str(count)
        # As with a .socket unit of several addresses: each has the unit's name.
        found["LISTEN_FDNAMES"] = ":".join([config.group] * count)
    return found


def _enter(directory: str | None) -> None:
    if directory is None:
        return
    try:
        os.chdir(directory)
    except OSError as exc:
        raise StartFailed(f"cannot enter cwd {directory}: {exc.strerror}") from None


def _redirect(config: CompanionConfig) -> None:
    """stdin from /dev/null, output as configured, all of it line-buffered."""
    for key, number in (("stdout", 1), ("stderr", 2)):
        path = getattr(config, key)
        if path is None:
            continue
        if key == "stderr" and path == "stdout":
            _open_if_closed(1)
            os.dup2(1, 2, inheritable=True)
            continue
        try:
            # Not to wait for the reader of a named pipe: a stop would have to wait as well.
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
            os.set_blocking(fd, True)
        except OSError as exc:
            raise StartFailed(f"cannot open {key} {path}: {exc.strerror}") from None
        _move(fd, number)
    if _prepared != (sys.stdin, sys.stdout, sys.stderr):
        _settle_streams()


def _settle_streams() -> None:
    _move(os.open(os.devnull, os.O_RDWR), 0)
    _open_if_closed(1)
    _open_if_closed(2)
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
    return run_to_the_end(lambda: _load(birth))


def _load(birth: Birth) -> Callable[[], Any] | None:
    """The target, for its call; None where it cannot be imported, which is told."""
    config = birth.config
    assert config.target is not None
    loaded_before = loaded_sources() if birth.watch is not None else set()
    try:
        target = import_target(config.target)
    except StartFailed as exc:
        print(f"companion {config.name}: {exc}", file=sys.stderr)
        _report(birth.run, str(exc))
        return None
    except Exception as exc:
        traceback.print_exc()
        _report(birth.run, f"cannot import {describe_target(config.target)}: {_one_line(exc)}")
        return None
    # From here on the record speaks for this process; the lock is the manager's alone,
    # so that nothing this process leaves behind can hold it.
    birth.run.close()
    if birth.watch is not None:
        birth.watch.begin(loaded_before)
    return target
