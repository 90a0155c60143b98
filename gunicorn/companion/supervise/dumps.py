# SPDX-License-Identifier: MIT
"""Have processes write down the stacks of their threads, one after the other, without waiting for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn.companion.child import stacks
from gunicorn.companion.child.stacks import StackFile, Status, Thread
from gunicorn.companion.process import CompanionProcess
from gunicorn.companion.supervise import memory as memory_of
from gunicorn.companion.supervise.memory import Belonging
from gunicorn.companion.table import ProcessTable
from gunicorn.unix import session
from gunicorn.unix.kernel import KERNEL, Kernel

if TYPE_CHECKING:
    from gunicorn.scoreboard import Scoreboard

# Seconds of silence after which a process is given up; between two attempts; and between two looks, the first
# and the longest.
LIMIT = 2.0
PATIENCE = 0.25
FIRST_LOOK = 0.002
LONGEST_LOOK = 0.05
# Characters of one answer.
MOST = 32 * 1024 * 1024

WORKER = "worker"

Reply = dict[str, Any]
Answer = Callable[[Reply], object]


class Target(NamedTuple):
    name: str
    pid: int


@dataclass
class _Job:
    """What one client has asked for."""

    targets: deque[Target]
    answer: Answer
    dumps: list[Reply] = field(default_factory=list)

    def note(self, target: Target, found: str | None, error: str | None = None) -> None:
        if sum(len(dump["stacks"] or "") for dump in self.dumps) + len(found or "") > MOST:
            found, error = None, "the answer is long enough already; ask for this process alone"
        self.dumps.append({**target._asdict(), "stacks": found, "error": error})


@dataclass
class _Question:
    """One process that is being asked."""

    target: Target
    # When it was asked, or wrote something.
    heard_at: float
    # Its threads at the last attempt, and when that was.
    threads: Mapping[int, Thread]
    tried_at: float
    pause: float = FIRST_LOOK
    # The last signal that it was sent, and the text at the last look.
    signal: int = stacks.ASK
    text: str = ""


@dataclass(eq=False, repr=False)
class Dumps:
    """Takes the stacks of web workers of *scoreboard*, and of companions of *table* with their descendants.

    They share *file*, so one process is asked at a time. ``due``: when `step` is to be called; None: after
    `start`.
    """

    table: ProcessTable
    _: KW_ONLY
    file: StackFile | None
    scoreboard: Scoreboard | None
    belonging: Belonging
    kernel: Kernel = KERNEL
    due: float | None = field(default=None, init=False)
    _jobs: deque[_Job] = field(default_factory=deque, init=False)
    _question: _Question | None = field(default=None, init=False)

    # -- who is asked ----------------------------------------------------------

    def with_pid(self, pid: int) -> list[Target]:
        """The process *pid*. Raises LookupError if it is none of this server's."""
        for target in (*self.workers(), *self.companions(self.table.values(), every=True)):
            if target.pid == pid:
                return [target]
        raise LookupError(f"process {pid} is neither a web worker of this server nor of a companion")

    def workers(self) -> Iterator[Target]:
        """The web workers."""
        if self.scoreboard is not None:
            board = self.scoreboard.read()
            for worker in board["workers"]:
                info = session.read_stat(worker["pid"])
                if info is not None and info.ppid == board["master"]["pid"]:
                    yield Target(WORKER, worker["pid"])

    def companions(self, processes: Iterable[CompanionProcess], *, every: bool = False) -> Iterator[Target]:
        """Their processes, each before its descendants: of those only Python's own forks unless *every*."""
        running = [process for process in processes if process.pid is not None]
        sessions = {process.session for process in running if process.session is not None}
        families = memory_of.families(sessions, self.belonging() if sessions else {})
        for process in running:
            assert process.pid is not None
            yield Target(process.name, process.pid)
            for pid in sorted(families.get(process.session or 0, ())):
                if pid != process.pid and (every or _listens(pid)):
                    yield Target(process.name, pid)

    # -- asking ----------------------------------------------------------------

    def start(self, targets: Collection[Target], answer: Answer) -> None:
        """Ask *targets*, and call *answer* with the reply: from `step`."""
        self._jobs.append(_Job(deque(targets), answer))
        if self.due is None:
            self.due = self.kernel.now()

    def step(self, now: float) -> None:
        """Take a look at the process that is being asked, or ask the next one, if that is due."""
        if self.due is None or now < self.due or self.file is None:
            return
        if self._question is not None:
            self._look(self.file, self._question, now)
        while self._question is None and self._jobs:
            job = self._jobs[0]
            if job.targets:
                self._ask(self.file, job.targets.popleft(), now)
            else:
                self._jobs.popleft()
                job.answer({"ok": True, "dumps": job.dumps})
        self.due = now + self._question.pause if self._question is not None else None

    def _ask(self, file: StackFile, target: Target, now: float) -> None:
        error = _why_not(target.pid)
        if error is None:
            try:
                file.begin(target.pid)
                if not self.kernel.send(target.pid, stacks.ASK):
                    error = "it has ended"
            except OSError as exc:
                error = f"there is no room for its stacks: {exc.strerror}"
        if error is None:
            self._question = _Question(target, now, stacks.threads_of(target.pid), now)
        else:
            self._jobs[0].note(target, None, error)

    def _look(self, file: StackFile, question: _Question, now: float) -> None:
        text, whole = file.read()
        pid = question.target.pid
        try:
            status = Status(pid)
        except OSError:
            self._end(file, question, None, "it has ended")
            return
        if question.signal == stacks.READ and text and text == question.text:
            whole = whole or not status.is_writing
        if text != question.text:
            question.text, question.heard_at = text, now
        if whole:
            self._end(file, question, text, None)
        elif now >= question.heard_at + LIMIT:
            self._end(file, question, None, _why_silent(status))
        elif now >= question.tried_at + PATIENCE and question.signal != stacks.READ and not text:
            self._try_again(file, question, now, status)
        else:
            question.pause = min(question.pause * 2, LONGEST_LOOK)

    def _try_again(self, file: StackFile, question: _Question, now: float, status: Status) -> None:
        """Its main thread is in C code, or waits in a system call: send another signal, if that is safe."""
        pid = question.target.pid
        threads = stacks.threads_of(pid)
        still = stacks.stand_still(pid, question.threads, threads, now - question.tried_at)
        wanted = stacks.READ if still and file.is_open_in(pid) else stacks.INTERRUPT
        if wanted != question.signal and status.listens:
            question.signal, question.pause = wanted, FIRST_LOOK
            self.kernel.send(pid, wanted)
        question.threads, question.tried_at = threads, now

    def _end(self, file: StackFile, question: _Question, text: str | None, error: str | None) -> None:
        file.end()
        self._question = None
        self._jobs[0].note(question.target, text, error)


def _listens(pid: int) -> bool:
    try:
        return Status(pid).listens
    except OSError:
        return False


def _why_not(pid: int) -> str | None:
    """Why a process cannot be asked; None if it can."""
    try:
        status = Status(pid)
    except OSError:
        return "it has ended"
    if status.state in "ZX":
        return "it has ended"
    if status.state == "T":
        return "it is stopped (SIGSTOP)"
    if status.state == "t":
        return "a debugger has stopped it"
    if not status.listens:
        return (
            "it does not listen: it runs a program, began before there were companions, or is just starting"
        )
    return None


def _why_silent(status: Status) -> str:
    if status.state == "D":
        return "it waits in the kernel and takes no signals: for a disk, perhaps"
    return (
        f"no answer within {LIMIT:g} s: its main thread is in C code, and while other threads run,"
        " reading their stacks might crash it"
    )
