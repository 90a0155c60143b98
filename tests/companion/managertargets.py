# SPDX-License-Identifier: MIT
"""Companions for the tests of the manager. What they tell goes line by line into ``<name>.told``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path


def tell(text: object) -> None:
    name = os.environ["GUNICORN_COMPANION_NAME"]
    fd = os.open(
        Path(os.environ["TEST_DIRECTORY"]) / f"{name}.told", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
    )
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def allowed() -> bool:
    """Whether the test said "go on"."""
    return (Path(os.environ["TEST_DIRECTORY"]) / "go").exists()


def rest() -> None:
    while True:
        # Not for long: a signal just before it has its handler called only after it.
        time.sleep(0.1)


def obey() -> None:
    """Ends with its stop signal, as what has no handler does."""
    tell(f"runs {os.getpid()}")
    rest()


def drain() -> None:
    """Finishes its job before it ends, when the test says so; its child has a process group of its own."""
    signals: list[str] = []

    def note(signum: int, frame: object) -> None:
        signals.append(signal.Signals(signum).name)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(signum, note)
    child = os.fork()
    if child == 0:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(signum, signal.SIG_IGN)
        os.setpgid(0, 0)
        rest()
    tell(f"runs {os.getpid()} with {child}")
    told = 0
    while True:
        time.sleep(0.01)
        for name in signals[told:]:
            told += 1
            tell(f"{name} {os.getpid()}")
        if told and allowed():
            tell(f"finished {os.getpid()}")
            sys.exit(0)


def drains_with_helper() -> None:
    """Drains, and has a helper outside of its session that it needs until then."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            tell(f"helper {os.getpid()}")
            rest()
        os._exit(0)
    os.wait()
    drain()


def ignore() -> None:
    """Ignores its stop signal, and so does its child, which is in a process group of its own."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        rest()
    tell(f"runs {os.getpid()} with {child}")
    rest()


def exit_0() -> None:
    pass


def exit_3() -> None:
    sys.exit(3)


def exit_4() -> None:
    os._exit(4)


def exits_when_told() -> None:
    """Exits with 3 when the test says so, to this very process."""
    path = Path(os.environ["TEST_DIRECTORY"]) / f"end-{os.getpid()}"
    while not path.exists():
        time.sleep(0.005)
    sys.exit(3)


def looks_at_the_log_when_aborted() -> None:
    """Tells whether the server has logged already why it gets SIGABRT."""

    def look(*args: object) -> None:
        log = (Path(os.environ["TEST_DIRECTORY"]) / "log").read_text()
        tell(f"logged {'Killing companion' in log}")
        os._exit(1)

    signal.signal(signal.SIGABRT, look)
    rest()


def fails() -> None:
    raise RuntimeError("no queue")


def closes_output() -> None:
    sys.stdout.close()
    os.close(1)
    os.close(2)
    obey()


def forks_and_dies() -> None:
    """Leaves a child behind in its session, which does not end by itself."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rest()
    tell(f"left {child}")
    sys.exit(5)


def double_forks() -> None:
    """As daemons do, but in the session that it has."""
    read, write = os.pipe()
    if os.fork() == 0:
        grandchild = os.fork()
        if grandchild == 0:
            rest()
        os.write(write, b"%d" % grandchild)
        os._exit(0)
    os.wait()
    tell(f"left {int(os.read(read, 20))}")
    sys.exit(6)


def escapes() -> None:
    """Something of it leaves the session and loses its parent."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        escapee = os.fork()
        if escapee == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            rest()
        os.write(write, b"%d" % escapee)
        os._exit(0)
    os.wait()
    tell(f"escaped {int(os.read(read, 20))}")
    rest()


def has_helpers() -> None:
    """Two large ones have left its session and lost their parents; one of them has executed a program."""
    for program in (False, True):
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            # Before the fork: the stop may come as soon as the helper is told of.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            helper = os.fork()
            if helper == 0:
                if program:
                    code = "import time; held = bytes(b'x') * 30_000_000; print(flush=True); time.sleep(60)"
                    os.execv(sys.executable, [sys.executable, "-c", code])
                held = b"x" * 30_000_000
                rest()
                print(held)
            os.write(write, b"%d" % helper)
            os._exit(0)
        os.wait()
        tell(f"helper {int(os.read(read, 20))}")
    tell(f"runs {os.getpid()}")
    if os.environ.get("LEAVES"):
        sys.exit(0)
    rest()


def hides_a_child() -> None:
    """Its child leaves the session and so outlives it; what that one has forked before is still in it."""
    read, write = os.pipe()
    if os.fork() == 0:
        hidden = os.fork()
        if hidden == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            rest()
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, b"%d" % hidden)
        rest()
    tell(f"left {int(os.read(read, 20))}")
    sys.exit(7)


def becomes_sleep() -> None:
    os.execvp("sleep", ["sleep", "60"])


def threads() -> None:
    threading.Thread(target=rest, daemon=True).start()
    tell(f"threads {threading.active_count()}")
    rest()


def launcher() -> None:
    """As a shell that does not pass signals on: only its child would obey."""
    signal.signal(signal.SIGTERM, lambda *args: None)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *args: (tell("child obeys"), os._exit(0)))
        tell(f"child {os.getpid()}")
        rest()
    os.waitpid(child, 0)
    tell("launcher ends")


def leaves_at_once() -> None:
    """As a shell or npm: gone as soon as it is asked, while its child has a job to finish."""
    child = os.fork()
    if child == 0:
        signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda signum, frame: (signals.append(signum), tell("asked")))
        tell(f"child {os.getpid()}")
        while not (signals and allowed()):
            time.sleep(0.01)
        tell("finished")
        os._exit(0)
    tell(f"runs {os.getpid()}")
    rest()


def slow_stop() -> None:
    """Takes half a second to end."""

    def end(*args: object) -> None:
        time.sleep(0.5)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    tell(f"runs {os.getpid()}")
    rest()
