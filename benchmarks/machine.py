# SPDX-License-Identifier: MIT
"""What is asked of the operating system: cores, CPU time, memory, context switches."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

CAN_PIN = hasattr(os, "sched_setaffinity")
PROC = Path("/proc/self/smaps_rollup").exists()
# Not more: there are programs that close every descriptor that they might have.
FILES = 16384
TICK = os.sysconf("SC_CLK_TCK")


def cores() -> tuple[set[int], set[int]] | None:
    """One core for the server, the others for what loads it; None where they cannot be told apart."""
    if not CAN_PIN:
        return None
    allowed = sorted(ALLOWED)
    return ({allowed[0]}, set(allowed[1:])) if len(allowed) > 1 else None


ALLOWED: set[int] = set(os.sched_getaffinity(0)) if CAN_PIN else set()


def on_server_core() -> contextlib.AbstractContextManager[None]:
    """Whatever is started in here runs on the server's core: affinity is inherited."""
    both = cores()
    return contextlib.nullcontext() if both is None else _on(both[0])


def on_all_cores() -> contextlib.AbstractContextManager[None]:
    """Whatever is started in here runs on any core."""
    return contextlib.nullcontext() if cores() is None else _on(ALLOWED)


def on_load_cores() -> contextlib.AbstractContextManager[None]:
    """This process, and by inheritance the load generators, leave the server's core alone."""
    both = cores()
    return contextlib.nullcontext() if both is None else _on(both[1])


@contextlib.contextmanager
def _on(chosen: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_file_limit() -> None:
    """1,000 connections or processes are watched: 1,024 descriptors, the usual limit, are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if hard < 0 else min(FILES, hard), hard))


def describe() -> dict[str, str | int]:
    """The machine as far as results depend on it; nothing that names it."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "pinned": "yes" if cores() is not None else "no",
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# -- processes ---------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """*pid* and every process below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc") if PROC else ():
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting.extend(children.get(found[-1], ()))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the living threads of *pids*, in seconds.

    From the scheduler's own count where there is one: the ticks of ``utime`` and ``stime`` are
    10 ms each, too coarse for short runs.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    total += _task_seconds(f"/proc/{pid}/task/{task}")
    return total


def _task_seconds(task: str) -> float:
    try:
        return int(Path(f"{task}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        numbers = Path(f"{task}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / TICK


def private_bytes(pid: int) -> int:
    """The memory that *pid* alone costs."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def proportional_bytes(pids: Iterable[int]) -> int:
    """The memory that *pids* have together: what several share counts once, if no other process shares it."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def switches(pid: int) -> int:
    """How often the threads of *pid* went to sleep and were woken, so far."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def start_process(
    command: Sequence[str], directory: Path, env: dict[str, str], *, pinned: bool = True
) -> subprocess.Popen[bytes]:
    """*command*, leader of a session of its own, with its output in the directory's ``log``.

    It runs on the server's core, or on any if it is not *pinned*.
    """
    with open(directory / "log", "ab") as log, on_server_core() if pinned else on_all_cores():
        return subprocess.Popen(
            command,
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def end_process(process: subprocess.Popen[bytes], timeout: float = 10.0, ask: int = signal.SIGTERM) -> None:
    """Ask *process* to end; whatever is left of it and of what was below it, in any session, is killed."""
    members = identities(descendants(process.pid))
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(ask)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            members |= identities(descendants(process.pid))
    # A number that was given to somebody else meanwhile has another start time.
    for pid, _ in members & identities(pid for pid, _ in members):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()


def identities(pids: Iterable[int]) -> set[tuple[int, str]]:
    """Each living process with its start time, which together name it for good."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found.add((pid, fields[19]))
    return found


def wait_until(done: Callable[[], object], deadline: float, what: str) -> None:
    """Poll *done*; raises RuntimeError once the time is over."""
    end = time.monotonic() + deadline
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {deadline:g} s")
        time.sleep(0.01)


def clean_environment() -> dict[str, str]:
    """The caller's environment without what would configure a server."""
    prefixes = ("GUNICORN_", "WEB_CONCURRENCY", "UWSGI_", "GRANIAN_", "FLASK_", "PYTHON", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    for name in ("RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"):
        env.pop(name, None)
    return env
