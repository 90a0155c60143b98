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
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from os import closerange, environ, getpid, getppid, pwrite, setsid
from resource import RLIMIT_NOFILE, setrlimit
from socket import socket
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from gunicorn.companion.checks import Target, describe_target
from gunicorn.companion.child import descriptors
from gunicorn.companion.child.ending import (
    flush,
    forget_inherited_exit_handlers,
    has_inherited_exit_handlers,
    run_to_the_end,
)
from gunicorn.companion.child.program import CannotRun, execute
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.detached import VARIABLE as MARK_VARIABLE
from gunicorn.companion.detached import leave as leave_mark
from gunicorn.companion.runfile import RunFile, record_form
from gunicorn.settings import redact
from gunicorn.unix import spare
from gunicorn.unix.process import can_set_title, open_if_closed, set_process_title
from gunicorn.unix.session import HAVE_PROC, boot_id, identity, own_start
from gunicorn.unix.signals import block_all, reset_to_default, set_mask
from gunicorn.unix.trust import open_file

if TYPE_CHECKING:
    from gunicorn.companion.child.watch import SourceWatch

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

# Has a Python program write its output at once.
UNBUFFERED = "PYTHONUNBUFFERED"

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
    # Descriptors of the manager, in ranges: the child closes them, but for those that are named here.
    close: Sequence[tuple[int, int]]
    # Called in the child just before the target: the companion_post_fork hook, if there is one.
    post_fork: Callable[[], Any] | None
    # The soft limit of open files as the server was started with.
    nofile: tuple[int, int] | None = None
    # In development: has the manager restart it when a file that it has loaded changes.
    watch: SourceWatch | None = None
    # The sockets of `bind`: 3, 4 … in the child.
    listeners: Sequence[int | socket] = ()
    # Where the companion says how it is: its NOTIFY_SOCKET.
    notify: str | None = None
    # Tells whose it is of a process that leaves the session: see `detached`.
    mark: str = ""
    # Closes what the server logs to. After `post_fork`, which may log there.
    close_logs: Callable[[], Any] | None = None


class Plan(NamedTuple):
    """What a child does with its birth, found out before the fork.

    What a child only reads it shares with the manager; each page that it writes to is copied, and to call
    a function, or to look an attribute up, is to count references in several.
    """

    birth: Birth
    parent: int
    stop_signal: int
    # Its record except the parts that the child fills in, and the file for it.
    record: bytes
    run_fd: int
    # Ranges of descriptors to close.
    close: list[tuple[int, int]]
    nofile: tuple[int, int] | None
    # Whether there is more to settle than most companions ask for.
    special: bool
    variables: list[tuple[str, str]]
    # None where there is no way to set it.
    title: str | None
    # None where it has to be found by the child.
    target: Callable[[], Any] | None
    # The sockets to hand over; and of SERVER_VARIABLES those that are set.
    listeners: list[int]
    unwanted: list[str]

    @classmethod
    def of(cls, birth: Birth, unwanted: list[str] | None = None) -> Plan:
        """*unwanted*: `server_variables`, if at hand."""
        config, pid = birth.config, os.getpid()
        listeners = [each if isinstance(each, int) else each.fileno() for each in birth.listeners]
        unwanted = server_variables() if unwanted is None else unwanted
        # All but the number that an own start is counted from.
        start = f"{boot_id()}/" if HAVE_PROC else ""
        record = record_form(
            config.name,
            pid,
            _identity(pid),
            config.stop_signal,
            config.stop_timeout,
            start,
            as_group=config.stop_as_group,
        )
        return cls(
            birth,
            pid,
            int(config.stop_signal),
            record.encode(),
            birth.run.fd,
            descriptors.without(birth.close, (birth.run.fd, *listeners)),
            birth.nofile,
            bool(
                listeners
                or unwanted
                or descriptors.holds_numbers()
                or config.cwd
                or config.stdout
                or config.stderr
                or config.nice is not None
                or _needs_faulthandler(config)
            ),
            [*variables_of(birth).items(), *config.env.items()],
            f"companion [{config.name}]" if can_set_title() and config.command is None else None,
            None if birth.watch is not None else _loaded_target(config.target),
            listeners,
            unwanted,
        )


def server_variables() -> list[str]:
    """Those of SERVER_VARIABLES that are set."""
    return [name for name in SERVER_VARIABLES if name in environ]


@functools.lru_cache(maxsize=1)
def _identity(pid: int) -> str:
    return identity(pid) or ""


def prepare_parent() -> None:
    """Do once what every child would have to do otherwise: streams and exit handlers as companions have them.

    For a process that does nothing but run companions, reads nothing, and runs no handler at its exit.
    """
    global _prepared
    _settle_streams()
    forget_inherited_exit_handlers()
    _prepared = (sys.stdin, sys.stdout, sys.stderr)
    _call_once()


# The streams of a parent that is prepared.
_prepared: tuple[Any, ...] = ()


def _is_prepared() -> bool:
    """Whether `prepare_parent` has been called, and nothing has been changed since."""
    return _prepared == (sys.stdin, sys.stdout, sys.stderr) and not has_inherited_exit_handlers()


def _call_once() -> None:
    """What only a child calls the linker would look up in each child: it does at a function's first call."""
    getppid()
    own_start()
    fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        pwrite(fd, b"%d" % fd, 0)
    closerange(fd, fd + 1)


def spawn(plans: Iterable[Plan]) -> list[int | OSError]:
    """Fork a companion for each of *plans*; return their pids, or the error of a failed fork.

    Every signal is blocked across the forks, so that none reaches a child while it still has the manager's
    handlers. Flush all buffers before. Do as little as possible between two forks: after each, every page
    that is written to is copied.
    """
    forked: list[int | OSError] = []
    prepared = _is_prepared()
    mask = block_all()
    try:
        for plan in plans:
            try:
                # Looked up: gevent may have replaced it, and has more to do in a child.
                pid = os.fork()
            except OSError as exc:
                forked.append(exc)
                continue
            if pid == 0:
                _child(plan, prepared)
            forked.append(pid)
    finally:
        set_mask(mask)
    return forked


def _child(plan: Plan, prepared: bool) -> NoReturn:
    """The whole life of the child. No path leads back: not an exception, not a `finally` above."""
    code = 1
    try:
        try:
            _become(plan, prepared)
        except StartFailed as exc:
            _report(plan.birth.run, str(exc))
        except BaseException as exc:
            # What the user's hook raised: shown where he looks for it.
            traceback.print_exc()
            _report(plan.birth.run, _one_line(exc))
        else:
            # Run as a program of its own would be.
            code = run_to_the_end(_load, plan)
        flush()
    finally:
        # The only way out.
        os._exit(code)


def _become(plan: Plan, prepared: bool) -> None:
    """Turn a copy of the manager into a companion just before its target, or into the program of `command`.

    What is done each time is done here and not in functions of its own, and by names of this module or of
    this function: for each function, and each attribute, some more pages would be copied.
    """
    birth, parent, stop_signal, form, run_fd, close, nofile, special, variables, title, *_ = plan
    setsid()
    reset_to_default(RESET_SIGNALS, HANDLERS)
    # From here on this process ends with its parent.
    signalled = _PRCTL is not None and _PRCTL(PR_SET_PDEATHSIG, stop_signal, 0, 0, 0) == 0
    if getppid() != parent:
        # The manager died before the signal was armed, so nothing would stop this process.
        os._exit(0)
    pid = getpid()
    try:
        # And is known. The file is blank, as it was claimed.
        pwrite(run_fd, form % (pid, own_start(), pid, b"true" if signalled else b"false", b"null"), 0)
    except OSError as exc:
        raise StartFailed(f"cannot write the run file: {exc.strerror}") from None
    for first, end in close:
        closerange(first, end)
    spare.ONE.fds.clear()
    if nofile is not None:
        setrlimit(RLIMIT_NOFILE, nofile)
    if special or not prepared:
        _settle(plan)
    for name, value in variables:
        environ[name] = value
    if title is not None:
        set_process_title(title)
    leave_mark(birth.mark)
    set_mask(())
    if birth.post_fork is not None:
        try:
            birth.post_fork()
        except Exception as exc:
            traceback.print_exc()
            raise StartFailed(f"companion_post_fork: {_one_line(exc)}") from None
    if birth.config.command is not None:
        _execute(plan)


def _settle(plan: Plan) -> None:
    """What only some companions need, or all where the parent is not prepared."""
    config = plan.birth.config
    if plan.listeners:
        _take_listeners(plan)
    descriptors.release()
    forget_inherited_exit_handlers()
    for name in plan.unwanted:
        environ.pop(name, None)
    if plan.listeners:
        environ["LISTEN_PID"] = str(os.getpid())
    if config.cwd is not None:
        _enter(config.cwd)
    _redirect(config)
    if config.nice is not None:
        _set_nice(config.nice)
    if _needs_faulthandler(config):
        _arm_faulthandler()


def _set_nice(value: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except OSError as exc:
        raise StartFailed(f"cannot set nice to {value}: {exc.strerror}") from None


def _needs_faulthandler(config: CompanionConfig) -> bool:
    return config.command is None and (config.watchdog is not None or faulthandler.is_enabled())


def _take_listeners(plan: Plan) -> None:
    """Make room for the sockets of `bind`; a Python target gets them."""
    _make_room(plan.birth, plan.listeners)
    if plan.birth.config.command is None:
        try:
            descriptors.hand_over(plan.listeners)
        except descriptors.Occupied as exc:
            raise StartFailed(str(exc)) from None


def _make_room(birth: Birth, listeners: Sequence[int]) -> None:
    """Leave the numbers to the sockets that get them, and these as they are to be found."""
    birth.run.fd = descriptors.lift(birth.run.fd, len(listeners))
    if birth.watch is not None:
        birth.watch.lift(len(listeners))
    if birth.config.index is None:
        for fd in listeners:
            # What the program before has set is gone with it. Copies of one program agree, and may run.
            os.set_blocking(fd, True)


def _execute(plan: Plan) -> NoReturn:
    """Become the program of `command`. Until then what the hook uses stays where it is."""
    command = plan.birth.config.command
    assert command is not None
    flush()
    descriptors.hand_over(plan.listeners, force=True)
    try:
        execute(command, os.environ, descriptors.FIRST + len(plan.listeners))
    except CannotRun as exc:
        raise StartFailed(str(exc)) from None


def _arm_faulthandler() -> None:
    """The watchdog's SIGABRT has every thread's stack written to stderr.

    What the master had armed was undone with its other signal handlers.
    """
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
    # Without types for the arguments: to be converted by them, each is made an object first, and these
    # small numbers arrive alike. The result is an int in any case.
    return function


# Loaded before any fork: nothing that can fail or take a lock is left for the child.
_PRCTL = _load_prctl()


def _prctl(option: int, value: int) -> bool:
    return _PRCTL is not None and _PRCTL(option, value, 0, 0, 0) == 0


def variables_of(birth: Birth) -> dict[str, str]:
    """Return a companion's own variables: ours, and those of systemd's protocols except LISTEN_PID."""
    config = birth.config
    found = {"GUNICORN_COMPANION_NAME": config.name}
    if config.index is not None:
        found["GUNICORN_COMPANION_INDEX"] = str(config.index)
    if birth.mark:
        found[MARK_VARIABLE] = birth.mark
    if birth.notify is not None:
        found["NOTIFY_SOCKET"] = birth.notify
    if config.watchdog is not None:
        # Without WATCHDOG_PID: a wrapper that stays would keep its program from beating.
        found["WATCHDOG_USEC"] = str(max(1, round(config.watchdog * 1_000_000)))
    if config.command is not None and UNBUFFERED not in environ:
        # Unless its output is a terminal, Python buffers 8 KiB of it, which a SIGKILL would lose.
        found[UNBUFFERED] = "1"
    count = len(birth.listeners)
    if count:
        found["LISTEN_FDS"] = str(count)
        # As with a .socket unit of several addresses: each has the unit's name.
        found["LISTEN_FDNAMES"] = ":".join([config.group] * count)
    return found


def _enter(directory: str) -> None:
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
            open_if_closed(1)
            os.dup2(1, 2, inheritable=True)
            continue
        try:
            # Not to wait for the reader of a named pipe: a stop would have to wait as well.
            fd = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK)
            os.set_blocking(fd, True)
        except OSError as exc:
            raise StartFailed(f"cannot open {key} {path}: {exc.strerror}") from None
        _move(fd, number)
    if _prepared != (sys.stdin, sys.stdout, sys.stderr):
        _settle_streams()


def _settle_streams() -> None:
    _move(os.open(os.devnull, os.O_RDWR), 0)
    open_if_closed(1)
    open_if_closed(2)
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
    reason = redact.in_text(reason)
    with contextlib.suppress(Exception):
        record = run.read()
        if record is not None:
            run.write(replace(record, error=reason))
            return
    # Its record could not be written, so nobody else knows of it.
    with contextlib.suppress(Exception):
        print(f"companion pid {getpid()}: {reason}", file=sys.stderr, flush=True)


def _one_line(exc: BaseException) -> str:
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__


def _loaded_target(target: Target | None) -> Callable[[], Any] | None:
    """The callable, if it is at hand without running any code: one of a module that is loaded."""
    if not isinstance(target, str):
        return target
    module_name, _, name = target.partition(":")
    module = sys.modules.get(module_name)
    found = vars(module).get(name) if type(module) is ModuleType else None
    return found if callable(found) else None


def import_target(target: Target) -> Callable[[], Any]:
    """The callable itself; a string is imported now. Raises StartFailed if that finds no callable."""
    if not isinstance(target, str):
        return target
    module_name, _, attributes = target.partition(":")
    # One that the preloaded application has imported is there already.
    found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise StartFailed(f"module {module_name!r} has no {attributes!r} to run") from None
    if not callable(found):
        raise StartFailed(f"{target} is not callable")
    return found  # type: ignore[no-any-return]


def _load(plan: Plan) -> Callable[[], Any] | None:
    """Return the target to call; report and return None if it cannot be imported."""
    birth, target = plan.birth, plan.target
    config = birth.config
    if birth.close_logs is not None:
        birth.close_logs()
    loaded_before = set() if birth.watch is None else birth.watch.loaded()
    if target is None:
        assert config.target is not None
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
