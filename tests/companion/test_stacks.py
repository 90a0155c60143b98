# SPDX-License-Identifier: MIT
"""When the stacks of a process may be read by another's handler, and what is shown of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from companiontools import python_env
from proctools import LINUX

from gunicorn.companion.child import stacks
from gunicorn.companion.child.stacks import StackFile, Status, Thread, stand_still, tidy

pytestmark = pytest.mark.skipif(not LINUX, reason="dumps need Linux")

MAIN, OTHER = 10, 11
BEFORE = {MAIN: Thread("S", 1.0, 100), OTHER: Thread("S", 2.0, 200)}


def after(
    state: str = "S", cpu: float = 0.0, sleeps: int = 0, *, other: str = "S", other_cpu: float = 0.0
) -> dict[int, Thread]:
    """The threads half a second later, by what has changed."""
    return {MAIN: Thread(state, 1.0 + cpu, 100 + sleeps), OTHER: Thread(other, 2.0 + other_cpu, 200)}


@pytest.mark.parametrize(
    ("now", "still"),
    [
        pytest.param(after(), True, id="all wait"),
        pytest.param(after("R", 0.5), True, id="the main thread is busy in C"),
        pytest.param(after("R", 0.01), False, id="the main thread waits for a processor"),
        pytest.param(after(other="R"), False, id="another may run"),
        pytest.param(after(other_cpu=0.1), False, id="another has run"),
        pytest.param(after(other_cpu=0.002), True, id="another wakes now and then"),
        pytest.param(
            after(sleeps=98, other="R", other_cpu=0.5), True, id="another is busy in C, with the lock"
        ),
        pytest.param(after(sleeps=3, other="R", other_cpu=0.5), False, id="another runs Python"),
        pytest.param(
            after(sleeps=2000, other="R", other_cpu=0.5), False, id="the main thread wakes too often"
        ),
        pytest.param({**after(), 12: Thread("S", 0.0, 0)}, False, id="a new thread"),
        pytest.param({MAIN: Thread("S", 1.0, 100)}, True, id="the other one has ended"),
        pytest.param({}, False, id="the process has ended"),
    ],
)
def test_whether_all_threads_stand_still(now: dict[int, Thread], still: bool) -> None:
    assert stand_still(MAIN, BEFORE, now, 0.5) is still


def test_the_handler_and_what_all_begin_with_are_left_out() -> None:
    frames = ["_answer", "work", "_run_worker", "spawn_worker", "run"]
    thread = "".join(f'  File "x.py", line 1 in {name}\n' for name in frames)
    heads = ["Thread 0x1 (most recent call first):\n", "Current thread 0x2 (most recent call first):\n"]
    shown = '  File "x.py", line 1 in work\n  File "x.py", line 1 in _run_worker\n'
    assert tidy("\n".join(head + thread for head in heads)) == "\n".join(head + shown for head in heads)


LISTENER = """
import os, signal, sys, time
from gunicorn.companion.child.stacks import StackFile
StackFile(int(sys.argv[1])).listen()
print("listens", flush=True)
for line in sys.stdin:
    print("goes on", flush=True)
"""


def test_only_the_process_that_is_asked_answers_and_only_once() -> None:
    file = StackFile.create()
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(file.fd)],
        env=python_env(),
        pass_fds=[file.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"listens\n"
        assert Status(process.pid).listens and not Status(os.getpid()).listens
        assert file.is_open_in(process.pid) and not file.is_open_in(1)
        file.begin(os.getpid())
        process.send_signal(stacks.INTERRUPT)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"goes on\n"
        assert file.read() == ("", False)
        file.begin(process.pid)
        for _ in range(3):
            process.send_signal(stacks.INTERRUPT)
        process.stdin.close()
        assert process.wait(10) == 0
    text, whole = file.read()
    assert whole
    assert text.count("(most recent call first)") == 1
    assert '"<string>"' in text and " in _answer" not in text
    file.end()
    assert file.read() == ("", False)
    os.close(file.fd)


def test_the_signals_are_real_time_signals_that_the_c_library_leaves_alone() -> None:
    for signum in (stacks.ASK, stacks.READ, stacks.INTERRUPT):
        assert signal.SIGRTMIN + 10 < signum < signal.SIGRTMAX
