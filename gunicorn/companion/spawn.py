# SPDX-License-Identifier: MIT
"""Fork a companion, and turn the child into it step by step."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from socket import socket
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from gunicorn.companion.checks import Target, describe_target
from gunicorn.companion.child import attributes, descriptors, envfile, lease, mark, streams
from gunicorn.companion.child.attributes import StartFailed
from gunicorn.companion.child.exit import forget_inherited_exit_handlers, run_to_the_end
from gunicorn.companion.child.program import CannotRun, execute
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.runfile import Record, RunFile, note_exception
from gunicorn.errors import AppImportError
from gunicorn.loading import call_factory, collecting_seldom, parse_expression
from gunicorn.monitor import inherited
from gunicorn.settings import redact
from gunicorn.settings.monitor import MONITOR_TARGET
from gunicorn.unix import libc, spare
from gunicorn.unix.exit import flush
from gunicorn.unix.process import leave, set_process_title
from gunicorn.unix.session import identity, own_identity
from gunicorn.unix.signals import blocked_signals, reset_to_default, unblock_all

if TYPE_CHECKING:
    from gunicorn.companion.child.stacks import StackFile
    from gunicorn.companion.child.watch import SourceWatch

# Variables from a service manager or an older master, which are for the server alone.
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
    "GUNICORN_LEASE_NAME",
    "GUNICORN_LEASE_TOKEN",
)


# All signals that can be reset, and the two that a Python program of its own handles: SIGINT raises
# KeyboardInterrupt, and SIGPIPE is an error of write(2). Plain numbers: members of an enum would cost each
# child private memory.
RESET_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
HANDLERS: dict[int, Any] = {
    int(signal.SIGINT): signal.default_int_handler,
    int(signal.SIGPIPE): int(signal.SIG_IGN),
}

# Characters of an error that the record of a run file has room for.
LONGEST_REPORT = 500


@dataclass(frozen=True)
class Launch:
    """What the manager starts a companion with."""

    config: CompanionConfig
    run: RunFile
    # The manager's own descriptors, which the child closes.
    close: Iterable[int]
    # The companion_post_fork hook, if there is one.
    post_fork: Callable[[], Any] | None
    # The limits of open files that the server was started with; none: those of the manager.
    nofile: tuple[int, int] | None = None
    # In development: has the manager restart it when a file that it has loaded changes.
    watch: SourceWatch | None = None
    # Where it writes its stacks when the manager asks.
    stacks: StackFile | None = None
    # The sockets of `bind`: 3, 4 … in the child.
    listeners: Sequence[socket] = ()
    # The address of its NOTIFY_SOCKET.
    notify: str | None = None
    # Captured output: the writing ends of pipes, by descriptor in the child.
    pipes: Mapping[int, int] = field(default_factory=dict)
    # Identifies the companion's processes outside its session: see `child.mark`.
    mark: str = ""
    # The lease that it holds; and a pipe, by which the manager lets it go on when the guard knows it.
    grant: lease.Grant | None = None
    gate: tuple[int, int] | None = None
    # Closes the server's logs, after `post_fork`, which may write to them.
    close_logs: Callable[[], Any] | None = None
    # In a crash loop: errors whose tracebacks have been printed, and until when (monotonic) they are the same
    # trouble.
    repeats: Collection[str | None] = ()
    repeats_until: float = 0.0


class Prepared(NamedTuple):
    """What the manager finds out for a child before the fork."""

    parent: int
    parent_identity: str
    # Variables to set; None: to remove.
    environment: Mapping[str, str | None]


def spawn(launches: Sequence[Launch]) -> list[int | OSError]:
    """Fork a companion for each of *launches*; return their pids, or the error of a failed fork.

    A page of memory is shared until manager or child writes to it, and Python writes to each object that it
    uses, to count references. So all that can be known is found out before the first fork, and little happens
    between two forks.
    """
    parent = os.getpid()
    try:
        parent_identity = identity(parent) or ""
    except OSError as exc:
        return [exc] * len(launches)
    prepared = [Prepared(parent, parent_identity, changes_of_environment(launch)) for launch in launches]
    outcomes: list[int | OSError] = []
    # What is buffered must not be written by both processes.
    flush()
    # No signal reaches a child while it still has the manager's handlers.
    with blocked_signals():
        for launch, its in zip(launches, prepared, strict=True):
            try:
                pid = os.fork()
            except OSError as exc:
                outcomes.append(exc)
                continue
            if pid == 0:
                _run_child(launch, its)
            outcomes.append(pid)
    return outcomes


def _run_child(launch: Launch, prepared: Prepared) -> NoReturn:
    """Run the child from its fork to its end: nothing leads back into the manager's code."""
    code = 1
    try:
        try:
            become(launch, prepared)
        except StartFailed as exc:
            _report(launch.run, str(exc))
        except BaseException as exc:
            traceback.print_exc()
            _report(launch.run, _one_line(exc))
        else:
            code = run_to_the_end(
                functools.partial(_load, launch), functools.partial(_report_exception, launch)
            )
    finally:
        leave(code)


def become(launch: Launch, prepared: Prepared) -> None:
    """Turn a copy of the manager into the companion, ready for its target, or into its program.

    Raises StartFailed.
    """
    config = launch.config
    os.setsid()
    reset_signals()
    signalled = end_with_parent(prepared.parent, config.stop_signal)
    write_record(launch, prepared, signalled)
    close_descriptors(launch)
    restore_file_limit(launch.nofile)
    pipes = lift_pipes(launch)
    take_listeners(launch)
    forget_inherited_exit_handlers()
    enter_directory(config.cwd)
    set_environment(launch, prepared.environment)
    redirect_output(config, pipes)
    attributes.set_nice(config.nice)
    attributes.set_umask(config.umask)
    attributes.set_oom_score(config.oom_score_adj)
    attributes.set_cpu_affinity(config.cpu_affinity)
    arm_faulthandler(config)
    listen_for_dumps(launch)
    set_title(config)
    mark.leave(launch.mark)
    lease.take(launch.grant)
    attributes.set_limits(config.rlimits)
    wait_for_guard(launch)
    unblock_all()
    call_post_fork(launch)
    if config.command is not None:
        execute_program(launch, config.command)


def reset_signals() -> None:
    """Set the dispositions of a Python program of its own.

    A fork copies handlers, and exec keeps what is ignored.
    """
    reset_to_default(RESET_SIGNALS, HANDLERS)


def end_with_parent(parent: int, stop_signal: int) -> bool:
    """Have the kernel send *stop_signal* when the manager dies; return whether it will (Linux)."""
    armed = libc.set_parent_death_signal(stop_signal)
    if os.getppid() != parent:
        # The manager died before the signal was armed, so nothing would stop this process.
        os._exit(0)
    return armed


def write_record(launch: Launch, prepared: Prepared, signalled: bool) -> None:
    """Write the run file's record: from here on, a later manager knows this process.

    The manager cannot do it, because it can die just after the fork. Until now, the inherited lock has kept
    others from a start.
    """
    config, pid = launch.config, os.getpid()
    record = Record(
        name=config.name,
        pid=pid,
        started=own_identity(),
        session=pid,
        supervisor=prepared.parent,
        supervisor_started=prepared.parent_identity,
        stop_signal=int(config.stop_signal),
        stop_timeout=config.stop_timeout,
        signalled=signalled,
        stop_as_group=config.stop_as_group,
        later_signals=config.later_signals,
    )
    try:
        launch.run.write(record)
    except OSError as exc:
        raise StartFailed(f"cannot write the run file: {exc.strerror}") from None


def close_descriptors(launch: Launch) -> None:
    """Close the manager's own descriptors; exec closes the others that a program must not have."""
    kept = {launch.run.fd, *launch.pipes.values(), *(listener.fileno() for listener in launch.listeners)}
    descriptors.close_all(set(launch.close) - kept)
    if launch.gate is not None:
        os.close(launch.gate[1])
    # It was one of them.
    spare.ONE.fds.clear()
    descriptors.release()


def restore_file_limit(nofile: tuple[int, int] | None) -> None:
    """Undo the manager's own limit of open files, which a fork inherits."""
    if nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, nofile)


def lift_pipes(launch: Launch) -> dict[int, int]:
    """Move the pipes off the numbers of the sockets of `bind`; return them by their place in the child."""
    count = len(launch.listeners)
    return {number: descriptors.lift(fd, count) for number, fd in launch.pipes.items()}


def take_listeners(launch: Launch) -> None:
    """Free the numbers 3, 4 … for the sockets of `bind`; a Python target gets its sockets at once."""
    count = len(launch.listeners)
    if not count:
        return
    if launch.config.target == MONITOR_TARGET:
        # It takes the socket as it is: gevent, in a configuration file, may have these numbers.
        [inherited.listener] = launch.listeners
        return
    launch.run.fd = descriptors.lift(launch.run.fd, count)
    if launch.watch is not None:
        launch.watch.lift(count)
    if launch.config.socket_owner == launch.config.name:
        for listener in launch.listeners:
            # The mode belongs to the socket, and the last process may have changed it. Copies share it,
            # and may be running.
            os.set_blocking(listener.fileno(), True)
    if launch.config.command is None:
        try:
            descriptors.hand_over(_numbers(launch.listeners))
        except descriptors.Occupied as exc:
            raise StartFailed(str(exc)) from None


def _numbers(listeners: Iterable[socket]) -> list[int]:
    return [listener.fileno() for listener in listeners]


def changes_of_environment(launch: Launch) -> dict[str, str | None]:
    """Take the server's variables out, and put the companion's in; `env` has the last word."""
    removed = dict.fromkeys(name for name in SERVER_VARIABLES if name in os.environ)
    return {**removed, **variables_of(launch), **launch.config.env}


def set_environment(launch: Launch, changes: Mapping[str, str | None]) -> None:
    """Make *changes*, and add the variables of `env_file` and the one that needs the pid."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    env = launch.config.env
    for path in launch.config.env_file:
        try:
            found = envfile.read(path)
        except envfile.CannotRead as exc:
            raise StartFailed(f"cannot read env_file {exc}") from None
        os.environ.update({name: value for name, value in found.items() if name not in env})
    if launch.listeners and "LISTEN_PID" not in env:
        os.environ["LISTEN_PID"] = str(os.getpid())


def variables_of(launch: Launch) -> dict[str, str]:
    """Return what a companion is told about itself: in our variables, and in those of systemd's protocols.

    LISTEN_PID is set after the fork.
    """
    config = launch.config
    found = {"GUNICORN_COMPANION_NAME": config.name}
    if config.index is not None:
        found["GUNICORN_COMPANION_INDEX"] = str(config.index)
    if launch.mark:
        found[mark.VARIABLE] = launch.mark
    if launch.grant is not None:
        found["GUNICORN_LEASE_NAME"] = launch.grant.name
        found["GUNICORN_LEASE_TOKEN"] = str(launch.grant.token)
    if launch.notify is not None:
        found["NOTIFY_SOCKET"] = launch.notify
    if config.watchdog is not None:
        # Without WATCHDOG_PID, because the program may run under a wrapper.
        found["WATCHDOG_USEC"] = str(max(1, round(config.watchdog * 1_000_000)))
    if config.command is not None and "PYTHONUNBUFFERED" not in os.environ:
        # Python buffers 8 KiB of output unless it is a terminal, and a SIGKILL would lose them.
        found["PYTHONUNBUFFERED"] = "1"
    count = len(launch.listeners)
    if count:
        found["LISTEN_FDS"] = str(count)
        # As with a .socket unit of several addresses: each has the unit's name.
        found["LISTEN_FDNAMES"] = ":".join([config.group] * count)
    return found


def enter_directory(directory: str | None) -> None:
    """Change to the working directory `cwd`."""
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as exc:
            raise StartFailed(f"cannot enter cwd {directory}: {exc.strerror}") from None


def redirect_output(config: CompanionConfig, pipes: Mapping[int, int]) -> None:
    """Have stdin from /dev/null, and stdout and stderr where the configuration says, or captured."""
    for key, number in (("stdout", 1), ("stderr", 2)):
        output = config.output(key)
        path = None if output is None else output.file
        try:
            streams.redirect(number, path, pipes.get(number))
        except OSError as exc:
            raise StartFailed(f"cannot open {key} {path}: {exc.strerror}") from None
    if config.stderr == "stdout":
        streams.join_stderr()
    streams.replace_standard_streams()


def arm_faulthandler(config: CompanionConfig) -> None:
    """Have the SIGABRT of `watchdog` and `liveness` write the stack of every thread to stderr.

    That the master's faulthandler was armed was undone with its other signal handlers.
    """
    hangs = config.watchdog is not None or config.liveness is not None
    if config.command is None and (hangs or faulthandler.is_enabled()):
        # It still takes itself for armed, and would do nothing.
        faulthandler.disable()
        faulthandler.enable(2)


def listen_for_dumps(launch: Launch) -> None:
    """Have the process answer ``dump``; a program by exec has no Python handlers."""
    if launch.config.command is None and launch.stacks is not None:
        launch.stacks.listen()


def set_title(config: CompanionConfig) -> None:
    """Show the companion's name in process listings; a program has a name of its own."""
    if config.command is None:
        set_process_title(f"companion [{config.name}]")


def wait_for_guard(launch: Launch) -> None:
    """Wait until the manager has told the lease guard of this process.

    If the manager is stopped just after the fork, nobody would end it.
    """
    if launch.gate is not None:
        go_on = os.read(launch.gate[0], 1)
        os.close(launch.gate[0])
        if not go_on:
            # The manager is gone.
            os._exit(0)


def call_post_fork(launch: Launch) -> None:
    """Call the hook in the finished process, which signals can end."""
    if launch.post_fork is not None:
        try:
            launch.post_fork()
        except Exception as exc:
            reason = f"companion_post_fork: {_one_line(exc)}"
            if not _is_repeat(launch, reason):
                traceback.print_exc()
            raise StartFailed(reason) from None


def execute_program(launch: Launch, command: Sequence[str]) -> NoReturn:
    """Become the program of `command`. Its sockets come now, since the hook may have used their numbers."""
    flush()
    descriptors.hand_over(_numbers(launch.listeners), force=True)
    try:
        execute(command, os.environ, descriptors.FIRST + len(launch.listeners))
    except CannotRun as exc:
        raise StartFailed(str(exc)) from None


def _load(launch: Launch) -> Callable[[], Any] | None:
    """Return the target to call; report and return None if it cannot be imported."""
    config = launch.config
    assert config.target is not None
    if launch.close_logs is not None:
        launch.close_logs()
    loaded_before = set() if launch.watch is None else launch.watch.loaded()
    try:
        target = import_target(config.target)
    except StartFailed as exc:
        print(f"companion {config.name}: {exc}", file=sys.stderr)
        _report(launch.run, str(exc))
        return None
    except Exception as exc:
        reason = f"cannot import {describe_target(config.target)}: {_one_line(exc)}"
        if not _is_repeat(launch, reason):
            traceback.print_exc()
        _report(launch.run, reason)
        return None
    # The lock is the manager's alone from here on: no descendant of this process can hold it.
    launch.run.close()
    if launch.watch is not None:
        launch.watch.begin(loaded_before)
    return target


def import_target(target: Target) -> Callable[[], Any]:
    """Return the callable itself, imported if *target* is a string. Raises StartFailed if there is none."""
    if not isinstance(target, str):
        return target
    module_name, _, expression = target.partition(":")
    path, call = parse_expression(expression, target)
    with collecting_seldom():
        found: Any = importlib.import_module(module_name)
    name = ".".join(path)
    for attribute in path:
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise StartFailed(f"module {module_name!r} has no {name!r} to run") from None
    if call is not None:
        try:
            found = call_factory(found, f"{module_name}:{name}", *call)
        except AppImportError as error:
            raise StartFailed(str(error)) from None
        if not callable(found):
            raise StartFailed(f"{target} returns {found!r}, and not what the companion is to call")
    if not callable(found):
        raise StartFailed(f"{target} is not callable")
    return found  # type: ignore[no-any-return]


def _report(run: RunFile, reason: str) -> None:
    """Leave the reason where the manager reads it when it reaps this process."""
    reason = _short(reason)
    with contextlib.suppress(Exception):
        record = run.read()
        if record is not None:
            run.write(replace(record, error=reason))
            return
    # The record could not be written, so stderr is what is left.
    with contextlib.suppress(Exception):
        print(f"companion pid {os.getpid()}: {reason}", file=sys.stderr, flush=True)


def _report_exception(launch: Launch, exc: BaseException) -> bool:
    """Leave the exception that ends the target where the manager reads it; tell if that is all to be said."""
    text = _one_line(exc)
    with contextlib.suppress(Exception):
        note_exception(launch.run.path, _short(text))
    return _is_repeat(launch, text)


def _is_repeat(launch: Launch, error: str) -> bool:
    """Whether the processes before have printed the traceback of *error*; then print a line in its place."""
    error = _short(error)
    if error not in launch.repeats or time.monotonic() > launch.repeats_until:
        return False
    with contextlib.suppress(Exception):
        print(f"{error} (again; its traceback has been printed before)", file=sys.stderr, flush=True)
    return True


def _short(text: str) -> str:
    return redact.in_text(text)[:LONGEST_REPORT]


def _one_line(exc: BaseException) -> str:
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__
