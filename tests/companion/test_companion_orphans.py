# SPDX-License-Identifier: MIT
"""The end of sessions whose manager is dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from companiontools import Script, no_descriptor_left, record
from harness import is_alive, session_of, wait_until

from gunicorn.companion import runfile
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.supervise.orphans import Orphan, orphans
from gunicorn.unix import session, spare


def test_files_of_the_dead_are_removed(tmp_path, companion):
    mine = session.identity(os.getpid())
    contents = {
        "blank": b" " * 2048,
        "gone": record().to_bytes(),
        "supervised": record(supervisor=os.getpid(), supervisor_started=mine).to_bytes(),
        "runs": companion.record.to_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.run").write_bytes(content)
    (tmp_path / "companion-1.sock").touch()
    held = RunFile.claim(str(tmp_path), "held")
    runfile.remove_dead(str(tmp_path))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["companion-1.sock", "held.run", "runs.run", "supervised.run"]
    held.release()
    runfile.remove_dead(str(tmp_path / "missing"))


def test_orphans_are_those_without_a_living_supervisor(tmp_path):
    (tmp_path / "a.run").write_bytes(record(name="a").to_bytes())
    living = record(
        name="b", supervisor=os.getpid(), supervisor_started=session.identity(os.getpid())
    ).to_bytes()
    (tmp_path / "b.run").write_bytes(living)
    assert list(orphans(str(tmp_path), 0.0)) == ["a"]


# -- the end of an orphan --------------------------------------------------------------

# A leader that does with TERM what it is told, and a child in a process group of its own which ignores it.
COMPANION = """
import os, signal, sys, time
way = sys.argv[1]
def on_term(*args):
    os.write(1, b"TERM\\n")
    if way == "drain":
        os.read(0, 1)
    if way != "ignore":
        os._exit(0)
signal.signal(signal.SIGTERM, on_term)
r, w = os.pipe()
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.write(w, b".")
else:
    os.read(r, 1)
    os.write(1, b"%d\\n" % child)
while True:
    # Not for long: a signal just before it has its handler called only after it.
    time.sleep(0.1)
"""


class Companion(Script):
    def __init__(self, way: str) -> None:
        super().__init__(COMPANION, way, start_new_session=True)
        self.child = int(self.line())
        self.record = record(self.pid)

    def end(self, *more: int) -> None:
        super().end(*session_of(self.pid), *more)


@pytest.fixture
def companion(request) -> Iterator[Companion]:
    found = Companion(getattr(request, "param", "obey"))
    yield found
    found.end()


def run_to_its_end(orphan: Orphan, now: float | None = None) -> None:
    wait_until(lambda: orphan.step(time.monotonic() if now is None else now), message="session empty")


def test_an_orphan_gets_its_signal_and_the_rest_of_its_session_goes(companion):
    orphan = Orphan(companion.record, time.monotonic())
    assert companion.line() == "TERM"
    run_to_its_end(orphan)
    assert session_of(companion.pid) == []
    assert companion.popen.wait(10) == 0


@pytest.mark.parametrize("companion", ["drain"], indirect=True)
def test_one_that_drains_is_let_finish(companion):
    now = time.monotonic()
    orphan = Orphan(companion.record, now)
    assert companion.line() == "TERM"
    # However often it is looked at, as long as its time is not over.
    for later in (0, 1, 30, 59.9):
        assert orphan.step(now + later) is False
    assert session_of(companion.pid) == sorted([companion.pid, companion.child])
    companion.go_on()
    run_to_its_end(orphan, now + 59.9)
    assert companion.popen.wait(10) == 0


@pytest.mark.parametrize("companion", ["ignore"], indirect=True)
def test_one_that_ignores_its_signal_is_killed_at_its_deadline(companion):
    now = time.monotonic()
    orphan = Orphan(companion.record, now)
    assert companion.line() == "TERM"
    assert orphan.step(now + 59) is False
    assert is_alive(companion.pid)
    run_to_its_end(orphan, now + 60)
    assert companion.popen.wait(10) == -signal.SIGKILL
    assert session_of(companion.pid) == []


@pytest.mark.parametrize("companion", ["ignore"], indirect=True)
@pytest.mark.parametrize("at", [60, 50])
def test_the_next_stop_signal_comes_in_its_time(companion, at):
    now = time.monotonic()
    stops = replace(companion.record, stop_timeout=70, later_signals=((int(signal.SIGQUIT), 10),))
    orphan = Orphan(stops, now)
    assert companion.line() == "TERM"
    if at == 50:
        # A quicker stop of the server.
        orphan.deadline = now + 60
    assert orphan.drains(now + at - 0.1)
    assert orphan.step(now + at - 0.1) is False
    assert is_alive(companion.pid)
    assert not orphan.drains(now + at)
    run_to_its_end(orphan, now + at)
    assert companion.popen.wait(10) == -signal.SIGQUIT


@pytest.mark.parametrize("companion", ["drain"], indirect=True)
def test_one_that_cannot_be_looked_at_is_not_gone_and_is_asked_later(companion):
    now = time.monotonic()
    spare.ONE.fds.clear()
    with no_descriptor_left():
        orphan = Orphan(companion.record, now, uid=os.getuid())
        assert not orphan.drains(now)
        assert orphan.step(now) is False
    assert orphan.step(now) is False
    assert companion.line() == "TERM"
    companion.go_on()
    run_to_its_end(orphan, now)
    assert session_of(companion.pid) == []


# As a shell with a job: gone as soon as it is asked, while its child finishes something.
LAUNCHER = """
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, lambda *args: os.write(1, b"asked\\n"))
    os.write(1, b"%d\\n" % os.getpid())
    os.read(0, 1)
    os._exit(0)
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize("way", ["finishes", "is late", "was asked before"])
def test_a_group_has_until_the_deadline_and_is_asked_though_the_kernel_has_asked_its_leader(way):
    script = Script(LAUNCHER, start_new_session=True)
    try:
        child = int(script.line())
        before = way == "was asked before"
        given = record(script.pid, signalled=True, stop_as_group=True, group_signalled=before)
        os.kill(script.pid, signal.SIGTERM)
        script.popen.wait(20)
        now = time.monotonic()
        orphan = Orphan(given, now)
        if not before:
            assert script.line() == "asked"
        assert [orphan.step(now + later) for later in (0, 1, 59.9)] == [False, False, False]
        # Between two looks at the processes a while passes.
        assert orphan.drains(now + 59.95)
        if way == "is late":
            run_to_its_end(orphan, now + 60)
        else:
            script.go_on()
            wait_until(lambda: not is_alive(child))
            assert orphan.step(now + 59.99, session.members({script.pid}))
        assert session_of(script.pid) == []
        assert script.line() == ""
    finally:
        script.end()


@pytest.mark.parametrize("companion", ["ignore"], indirect=True)
def test_the_timeout_can_be_cut(companion):
    now = time.monotonic()
    orphan = Orphan(companion.record, now, timeout=0.0)
    run_to_its_end(orphan, now)


def test_one_that_had_its_signal_is_only_waited_for(companion):
    orphan = Orphan(replace(companion.record, signalled=True), time.monotonic())
    assert orphan.step(time.monotonic()) is False
    # A second signal would come in between.
    companion.go_on()
    os.kill(companion.child, 0)
    assert is_alive(companion.pid)
    os.kill(companion.pid, signal.SIGTERM)
    assert companion.line() == "TERM"
    run_to_its_end(orphan)


def test_one_that_is_stopped_hears_the_signal_that_it_had(companion):
    os.kill(companion.pid, signal.SIGSTOP)
    os.kill(companion.pid, signal.SIGTERM)
    orphan = Orphan(replace(companion.record, signalled=True), time.monotonic())
    assert companion.line() == "TERM"
    run_to_its_end(orphan)


def test_the_signal_is_recorded_for_the_next_manager(tmp_path, companion):
    run = RunFile.claim(str(tmp_path), "rq")
    run.write(companion.record)
    orphan = Orphan(companion.record, time.monotonic(), run)
    assert run.read() == replace(companion.record, signalled=True)
    run_to_its_end(orphan)
    run.release()


def test_leftovers_go_though_the_leader_is_gone(companion):
    os.kill(companion.pid, signal.SIGKILL)
    companion.popen.wait(10)
    assert session_of(companion.pid) == [companion.child]
    run_to_its_end(Orphan(companion.record, time.monotonic()))
    assert session_of(companion.pid) == []


def test_who_has_the_number_of_an_orphan_now_is_left_alone(companion):
    other = replace(companion.record, started="boot/1")
    orphan = Orphan(other, time.monotonic(), timeout=0.0)
    assert orphan.step(time.monotonic()) is True
    companion.go_on()
    assert session_of(companion.pid) == sorted([companion.pid, companion.child])


@pytest.mark.skipif(os.geteuid() != 0, reason="asks for another user's processes")
def test_a_record_moves_nobody_to_signal_processes_of_others(companion):
    # The directory is the companions' user's, the master may be root.
    orphan = Orphan(companion.record, time.monotonic(), timeout=0.0, uid=65534)
    assert orphan.step(time.monotonic()) is True
    assert orphan.kill() is False
    assert session_of(companion.pid) == sorted([companion.pid, companion.child])
    run_to_its_end(Orphan(companion.record, time.monotonic(), uid=0))
