# SPDX-License-Identifier: MIT
"""The end of a forked process: handlers, threads and output as in Python, but nothing is freed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

# The fork ends by end_fork(), and its parent as Python does.
PROGRAM = """
import atexit, os, sys, threading
from gunicorn.unix.exit import end_fork

class Held:
    def __del__(self):
        os.write(1, b"freed in %d\\n" % (os.getpid() != parent))

def work():
    may_end.wait()
    print("worked")

parent, held, may_end = os.getpid(), Held(), threading.Event()
pid = os.fork()
if pid == 0:
    atexit.register(lambda: print("handled"))
    threading.Thread(target=work).start()
    threading.Timer(0, may_end.set).start()
    {before}
    end_fork(SystemExit({code}))
    os._exit(9)
print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def ended(code: str = "0", before: str = "") -> tuple[list[str], str]:
    """The output of both processes as lines, and the error output."""
    program = textwrap.dedent(PROGRAM).format(code=code, before=before)
    # With buffers, which have to be flushed.
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=20
    )
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [("None", 0, ""), ("3", 3, ""), ("256 + 4", 4, ""), ("'no room'", 1, "no room\n")],
)
def test_a_fork_runs_its_handlers_and_frees_nothing(code: str, status: int, stderr: str) -> None:
    assert ended(code) == (["worked", "handled", f"status {status}", "freed in 0"], stderr)


def test_a_handler_that_fails_hides_neither_the_others_nor_the_status() -> None:
    lines, stderr = ended("3", "atexit.register(lambda: 1 / 0)")
    assert lines == ["worked", "handled", "status 3", "freed in 0"]
    assert "ZeroDivisionError" in stderr


def test_output_that_cannot_be_written_is_a_failure() -> None:
    lines, _ = ended("0", "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    assert lines == ["status 120", "freed in 0"]


MONITORED = "sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, 'a test')"


@pytest.mark.parametrize(
    "tracer",
    [
        "sys.settrace(lambda *event: None)",
        "sys.setprofile(lambda *event: None)",
        *([MONITORED] if sys.version_info >= (3, 12) else []),
    ],
)
def test_a_tracer_gets_its_exception(tracer: str) -> None:
    assert ended("0", tracer) == (["status 9", "freed in 0"], "")
