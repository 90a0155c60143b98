# SPDX-License-Identifier: MIT
"""The check ``command``: run programs, read what they write, and end all that they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gunicorn.companion.child import envfile
from gunicorn.companion.child.program import CannotRun, execute
from gunicorn.companion.probing.connections import Outcome
from gunicorn.companion.spawn import RESET_SIGNALS, restore_file_limit
from gunicorn.unix import libc, session
from gunicorn.unix.poller import Poller
from gunicorn.unix.process import describe_status
from gunicorn.unix.signals import blocked_signals, reset_to_default, unblock_all

# What is kept of the output, and what one read takes.
KEPT = 4096
_READ = 64 * 1024
# Reads after the end of a command: more than a pipe holds was written by what it has left behind.
_LAST_READS = 16


class Command:
    """One run of a program. ``outcome``: none yet. ``alive``: it has not been waited for."""

    def __init__(self, pid: int, fd: int, poller: Poller) -> None:
        self.pid = pid
        self.fd = fd
        self.poller = poller
        self.outcome: Outcome | None = None
        self.alive = True
        self.output = b""
        self.poller.add(fd, lambda events: self.read() and None)

    def read(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(self.fd, _READ)
        except BlockingIOError:
            return False
        if not data:
            # Whether it has succeeded shows when it has ended.
            self.poller.remove(self.fd)
            return False
        self.output = (self.output + data)[-KEPT:]
        return True

    def ended(self, status: int) -> None:
        """Note how it has ended, unless it had to be killed."""
        self.alive = False
        if self.fd < 0:
            return
        for _ in range(_LAST_READS):
            if not self.read():
                break
        self.outcome = Outcome(status == 0, "" if status == 0 else describe_status(status), self.text)

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", "replace")

    def expire(self, reason: str) -> None:
        """End it with *reason*: its time is over."""
        self.outcome = Outcome(False, reason, self.text)

    def close(self) -> None:
        """Kill it if it still runs; a second call does nothing."""
        if self.fd >= 0:
            self.poller.remove(self.fd)
            os.close(self.fd)
            self.fd = -1
            if self.alive:
                kill_group(self.pid)


def kill_group(leader: int) -> None:
    """SIGKILL to *leader*, which has not been waited for, and to its process group."""
    session.send(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


@dataclass
class Program:
    """What is run. Its environment is *environment*, what is in *env_files*, and *env* with the last word.

    *env*: None removes a variable. *nofile*: its limits of open files; none: ours.
    """

    words: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    env_files: Sequence[str]
    env: Mapping[str, str | None]
    nofile: tuple[int, int] | None


class Commands:
    """All commands that run. What they leave behind becomes our child (Linux), and is killed."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.running: dict[int, Command] = {}
        self.children = session.OwnChildren()
        libc.become_subreaper()

    def run(self, program: Program) -> Command:
        """Raises OSError."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        parent = os.getpid()
        try:
            with blocked_signals():
                pid = os.fork()
                if pid == 0:
                    _run_child(program, writing, parent)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self.running[pid] = Command(pid, reading, self.poller)
        return self.running[pid]

    def reap(self) -> None:
        """Collect what has ended, and kill what it has left behind."""
        while (found := self._collect()) is not None:
            command = self.running.pop(found[0], None)
            if command is not None:
                command.ended(found[1])
        self._kill_strays()

    def _collect(self) -> tuple[int, int] | None:
        """Wait for a child that has ended; return its pid and its wait status, or None if there is none."""
        pid = -1
        with contextlib.suppress(ChildProcessError):
            # Not on every macOS.
            if hasattr(os, "waitid"):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return None
                pid = ended.si_pid
                if pid in self.running:
                    # Before it is waited for: its number, which is that of its group, may be another's then.
                    kill_group(pid)
            pid, status = os.waitpid(pid, os.WNOHANG)
            return (pid, status) if pid else None
        return None

    def _kill_strays(self) -> None:
        """Kill children that we have not started, but for those of a command that still runs."""
        for pid in (self.children.read() or set()) - self.running.keys():
            command = self.running.get(session.session_of(pid) or 0)
            if command is None or command.fd < 0:
                session.send(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill all of them."""
        for command in self.running.values():
            command.close()
        self._kill_strays()


def _environment(program: Program) -> dict[str, str]:
    """Raises CannotRead."""
    found: dict[str, str | None] = dict(program.environment)
    for path in program.env_files:
        found.update(envfile.read(path))
    found.update(program.env)
    return {name: value for name, value in found.items() if value is not None}


def _run_child(program: Program, output: int, parent: int) -> NoReturn:
    """The whole life of the child: it becomes the program."""
    try:
        os.setsid()
        reset_to_default(RESET_SIGNALS)
        libc.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        restore_file_limit(program.nofile)
        os.chdir(program.directory)
        unblock_all()
        execute(program.words, _environment(program), 3)
    except (CannotRun, envfile.CannotRead) as exc:
        os.write(2, f"{exc}\n".encode("utf-8", "replace"))
    except OSError as exc:
        os.write(2, f"{exc.filename or 'cannot begin'}: {exc.strerror}\n".encode("utf-8", "replace"))
    finally:
        os._exit(127)
