# SPDX-License-Identifier: MIT
"""Write the stacks of all threads of a process into a shared file, when the manager asks by a signal.

Reading the frames of a thread while it runs Python code crashes the process. So first a handler in Python
is asked: it runs between two bytecodes, and no other thread runs meanwhile. A main thread that is within one
call of C code does not get to it. Then its own frames stand still, and a handler in C (`faulthandler`) may
write the stacks, if the other threads stand still too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import NamedTuple

from gunicorn.companion.runfile import unnamed_file
from gunicorn.unix.signals import set_handler

# Numbers that applications and their libraries leave alone. ASK and INTERRUPT call the handler in Python, and
# READ that in C. After ASK and READ, the kernel goes on with the system call that they have interrupted.
# INTERRUPT ends it with EINTR: Python calls the handler and goes on, but a library in C may not expect it.
ASK, READ, INTERRUPT = (
    [signal.SIGRTMAX - number for number in (6, 7, 8)] if sys.platform == "linux" else (0, 0, 0)
)

# A thread that waits for the interpreter lock wakes after so many seconds, each time.
GIL_INTERVAL = 0.005
# The part of the time that a thread runs: at least, if it is busy in C code on a busy machine, and at most,
# if it only waits.
BUSY, IDLE = 0.1, 0.01

# In front of the text: the pid of the process that is asked. Behind the text of the handler in Python: END.
_HEAD = struct.Struct("=q")
END = b"\0"

# Numbers of descriptors from here on are seldom used again by an application that closes all it finds.
_FROM = 200


# What is no thread and waits. For a greenlet its frame: None for one that has just ended or is running. For a
# task its frames, the innermost first.
Suspended = Callable[[], Iterable[FrameType | list[FrameType] | None]]


class StackFile:
    """The file, which the manager and all that are asked have open, and nobody else."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._suspended: Suspended = tuple

    @classmethod
    def create(cls) -> StackFile:
        """Raises OSError."""
        fd = unnamed_file("gunicorn-stacks")
        with contextlib.suppress(OSError):
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FROM)
            os.close(fd)
            fd = high
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
        return cls(fd)

    # -- in the process that is asked ----------------------------------------

    def listen(self, suspended: Suspended = tuple) -> None:
        """Have this process, and those that it forks, answer from now on; also with what is *suspended*."""
        if not ASK:
            return
        self._suspended = suspended
        set_handler(ASK, self._answer, restart=True)
        set_handler(INTERRUPT, self._answer, restart=False)
        # In a companion the handler was reset with all others, and `faulthandler` does not know.
        faulthandler.unregister(READ)
        faulthandler.register(READ, file=self.fd, all_threads=True, chain=False)

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        # The question may be answered or forgotten by now, and the application may have closed the file.
        with contextlib.suppress(Exception):
            if os.pread(self.fd, _HEAD.size + 1, 0) == _HEAD.pack(os.getpid()):
                for suspended in self._suspended():
                    if suspended:
                        os.write(self.fd, _describe(suspended))
                faulthandler.dump_traceback(self.fd, all_threads=True)
                os.write(self.fd, END)

    # -- in the manager --------------------------------------------------------

    def begin(self, pid: int) -> None:
        """Ask *pid*, and nobody else."""
        self.end()
        os.write(self.fd, _HEAD.pack(pid))

    def end(self) -> None:
        os.ftruncate(self.fd, 0)

    def read(self) -> tuple[str, bool]:
        """Return the text so far, and whether that is known to be all."""
        size = os.fstat(self.fd).st_size - _HEAD.size
        if size <= 0:
            return "", False
        text, end, _ = os.pread(self.fd, size, _HEAD.size).partition(END)
        return tidy(text.decode("utf-8", "backslashreplace")), bool(end)

    def is_open_in(self, pid: int) -> bool:
        """Whether the descriptor of *pid* with this number is still this file; False if that is not shown."""
        try:
            return os.path.samestat(os.stat(f"/proc/{pid}/fd/{self.fd}"), os.fstat(self.fd))
        except OSError:
            return False


def _describe(suspended: FrameType | list[FrameType]) -> bytes:
    """The stack of a greenlet or of a task, as `faulthandler` would write it."""
    if isinstance(suspended, list):
        name, frames = "Task", suspended
    else:
        name, frames = "Greenlet", [suspended]
        while (caller := frames[-1].f_back) is not None:
            frames.append(caller)
    lines = [f"{name} (most recent call first):\n"]
    for frame in frames:
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}\n')
    return "".join([*lines, "\n"]).encode("utf-8", "backslashreplace")


def tidy(text: str) -> str:
    """Leave out the handler, and what is below the first function of a worker or of a companion."""
    lines, below = [], False
    for line in text.splitlines(keepends=True):
        below = below and line != "\n"
        if not below and not line.endswith(_HANDLER):
            lines.append(line)
        below = below or line.endswith(_BEGINNINGS)
    return "".join(lines)


_HANDLER = f" in {StackFile._answer.__name__}\n"
_BEGINNINGS = (" in _run_worker\n", " in _run_child\n")


class Status:
    """What the kernel tells of a process: its state, and the signals that it handles, blocks, or has not had.

    Raises OSError if there is no such process.
    """

    def __init__(self, pid: int) -> None:
        fields = _read_status(f"/proc/{pid}/status")
        self.state = fields["State"][0]
        self._masks = {name: int(fields[name][0], 16) for name in ("SigCgt", "SigBlk", "SigPnd", "ShdPnd")}

    def _has(self, signum: int, *names: str) -> bool:
        return any(self._masks[name] >> (signum - 1) & 1 for name in names)

    @property
    def listens(self) -> bool:
        """Whether it has a handler for each of the signals, which would kill it otherwise."""
        return all(self._has(signum, "SigCgt") for signum in (ASK, READ, INTERRUPT))

    @property
    def is_writing(self) -> bool:
        """Whether the handler of READ is not through yet: while it runs, the kernel blocks its signal."""
        return self._has(READ, "SigBlk", "SigPnd", "ShdPnd")


class Thread(NamedTuple):
    """What the kernel has counted of a thread: the seconds it has run, and how often it went to sleep."""

    state: str
    cpu: float
    sleeps: int


def threads_of(pid: int) -> dict[int, Thread]:
    """All threads of *pid* by their number; that of the main thread is *pid*."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            directory = f"/proc/{pid}/task/{name}"
            # It may end just now.
            with contextlib.suppress(OSError):
                fields = _read_status(f"{directory}/status")
                with open(f"{directory}/schedstat", "rb") as file:
                    cpu = int(file.read().split()[0]) / 1e9
                found[int(name)] = Thread(fields["State"][0], cpu, int(fields["voluntary_ctxt_switches"][0]))
    return found


def _read_status(path: str) -> dict[str, list[str]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return {name: rest.split() for name, _, rest in (line.partition(":") for line in file)}


def stand_still(pid: int, before: Mapping[int, Thread], after: Mapping[int, Thread], seconds: float) -> bool:
    """Whether no thread of *pid* runs Python code, as its threads were *before* and *seconds* later.

    The main thread has not called the handler in that time, as it does between any two bytecodes.
    """
    main_before, main = before.get(pid), after.get(pid)
    if main is None or main_before is None:
        return False
    if abs((main.sleeps - main_before.sleeps) * GIL_INTERVAL / seconds - 1) < 0.4:
        # It waits for the interpreter lock, which a thread in Python code would have handed over.
        return True
    if main.state == "R" and main.cpu - main_before.cpu < BUSY * seconds:
        # It may be in Python code, and waits for a processor.
        return False
    others = [number for number in after if number != pid]
    return all(number in before and _rests(before[number], after[number], seconds) for number in others)


def _rests(before: Thread, after: Thread, seconds: float) -> bool:
    return after.state != "R" and after.cpu - before.cpu < IDLE * seconds
