# SPDX-License-Identifier: MIT
"""Find the companion of a process that has left its session."""

from __future__ import annotations

import pytest
from companiontools import answer_of

from gunicorn.unix import session

pytestmark = pytest.mark.skipif(not session.HAVE_PROC, reason="needs /proc")

EXECUTES = """
import json, os, signal, sys, time
from gunicorn.companion.child.mark import VARIABLE, Mark, leave
from gunicorn.companion.child.mark import read as read_mark

mark = Mark.of("/run", "rq", os.getpid())
missed = looks = 0
for program in 40 * (["sleep", "60"], [sys.executable, "-c", "import time; time.sleep(60)"]):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        leave(str(mark))
        os.write(write, b".")
        os.execvpe(program[0], program, {**os.environ, VARIABLE: str(mark)})
    os.read(read, 1)
    deadline = time.monotonic() + 0.005
    while time.monotonic() < deadline:
        looks += 1
        missed += read_mark(pid) != mark
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
print(json.dumps([missed, looks > 80]))
"""


def test_a_mark_is_seen_while_its_process_executes_a_program():
    # In the middle of execve(2) neither the old memory nor the new environment is there.
    assert answer_of(EXECUTES) == [0, True]


def test_a_process_without_an_environment_has_no_mark_and_costs_no_wait():
    code = """
    import json, os, signal, subprocess, time
    from gunicorn.companion.child.mark import EXECUTION
    from gunicorn.companion.child.mark import read as read_mark

    child = subprocess.Popen(["sleep", "60"], env={})
    begun = time.monotonic()
    marks = [read_mark(child.pid) for _ in range(20)]
    elapsed = time.monotonic() - begun
    child.kill()
    found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    marks.append(read_mark(found.si_pid))
    print(json.dumps([marks == [None] * 21, elapsed < 20 * EXECUTION]))
    """
    assert answer_of(code) == [True, True]
