# SPDX-License-Identifier: MIT
"""A process ends although nobody reads what it has written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from proctools import full_pipe

BEGIN = "import signal, sys\nfrom gunicorn.unix.unreadoutput import discard_unread_output, flush_output\n"
END = "\ndiscard_unread_output()\nflush_output()\nsys.exit(signal.getitimer(signal.ITIMER_REAL)[0] > 0)"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_buffered_holds_up_no_end(stream: str) -> None:
    reading, writing = full_pipe()
    code = f"{BEGIN}sys.stderr.reconfigure(line_buffering=False)\nsys.{stream}.write('bye'){END}"
    try:
        ended = subprocess.run([sys.executable, "-E", "-c", code], stdout=writing, stderr=writing, timeout=20)
    finally:
        os.close(reading)
        os.close(writing)
    assert ended.returncode == 0


def test_what_is_read_arrives() -> None:
    code = f"{BEGIN}sys.stdout.write('bye'){END}"
    assert subprocess.run([sys.executable, "-E", "-c", code], capture_output=True).stdout == b"bye"


def test_an_alarm_of_the_application_is_its_own() -> None:
    code = f"{BEGIN}signal.signal(signal.SIGALRM, print)\nsignal.alarm(60){END}"
    assert subprocess.run([sys.executable, "-E", "-c", code]).returncode == 1


def test_in_another_thread_it_does_nothing() -> None:
    code = f"{BEGIN}import threading\nthreading.Thread(target=discard_unread_output).start()"
    ended = subprocess.run([sys.executable, "-E", "-c", code], capture_output=True)
    assert ended.stderr == b""
