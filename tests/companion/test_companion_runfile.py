# SPDX-License-Identifier: MIT
"""The record of who runs: its lock across forks, what a dead writer leaves, the end of orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from companiontools import Script, answer_of, no_descriptor_left, python_env, run_python
from harness import is_alive, session_of, wait_until

from gunicorn.companion import runfile
from gunicorn.companion.runfile import Record, RunFile
from gunicorn.companion.supervise.orphans import Orphan, orphans
from gunicorn.unix import session, spare

DEAD = 4_000_000  # above the highest pid that there can be


def record(pid: int = DEAD, **values: Any) -> Record:
    """The record of *pid*, whose supervisor is dead."""
    known = {
        "name": "rq",
        "pid": pid,
        "started": session.identity(pid) or "boot/1",
        "session": pid,
        "supervisor": DEAD,
        "supervisor_started": "boot/1",
        "stop_signal": signal.SIGTERM,
        "stop_timeout": 60.0,
        "signalled": False,
        "error": None,
    }
    return Record(**{**known, **values})


# -- the file ------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path):
    run = RunFile.claim(str(tmp_path), "rq")
    assert run is not None and run.read() is None
    odd = record(name='100% "a\\b"', started='%s "', error="%(x)s")
    for written in (record(error="a long reason" * 20), record(), record(error="ü", signalled=True), odd):
        run.write(written)
        assert run.read() == written == runfile.peek(str(tmp_path), "rq")
    run.clear()
    assert run.read() is None is runfile.peek(str(tmp_path), "rq")
    run.release()


def test_the_error_is_that_of_the_process_that_is_asked_about(tmp_path):
    run = RunFile.claim(str(tmp_path), "rq")
    assert run.error_of(DEAD) is None
    for error in (None, "a reason"):
        run.write(record(error=error))
        assert run.error_of(DEAD) == error
        assert run.error_of(DEAD - 1) is None
    run.release()


def test_the_file_is_only_for_its_user(tmp_path):
    old = os.umask(0)
    try:
        run = RunFile.claim(str(tmp_path), "rq")
    finally:
        os.umask(old)
    assert (tmp_path / "rq.run").stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(run.fd)
    run.release()


def test_a_claim_excludes_others_until_it_is_released(tmp_path):
    first = RunFile.claim(str(tmp_path), "rq")
    assert RunFile.claim(str(tmp_path), "rq") is None
    other = RunFile.claim(str(tmp_path), "other")
    assert other is not None
    other.release()
    first.release()
    assert list(tmp_path.iterdir()) == []
    again = RunFile.claim(str(tmp_path), "rq")
    assert again is not None
    again.release()


@pytest.mark.skipif(not session.HAVE_PROC, reason="counts descriptors by /proc")
def test_claims_leave_no_descriptor_behind(tmp_path):
    before, after = answer_of(
        """
        import contextlib, json, os, sys
        from gunicorn.companion import runfile
        from gunicorn.companion.runfile import RunFile
        directory = sys.argv[1]
        first = RunFile.claim(directory, "rq")
        before = os.listdir("/proc/self/fd")
        for _ in range(5):
            assert RunFile.claim(directory, "rq") is None
            runfile.peek(directory, "rq")
            RunFile.claim(None, "rq").release()
            with contextlib.suppress(OSError):
                RunFile.claim("/dev/null/directory", "rq")
        print(json.dumps([before, os.listdir("/proc/self/fd")]))
        """,
        str(tmp_path),
    )
    assert before == after


def test_a_directory_that_went_with_the_server_before_is_made_again(tmp_path):
    run = RunFile.claim(str(tmp_path / "run"), "rq")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    run.release()
    with pytest.raises(FileNotFoundError):
        RunFile.claim(str(tmp_path / "missing" / "run"), "rq")


def test_what_others_made_in_the_place_of_a_removed_file_is_theirs(tmp_path):
    run = RunFile.claim(str(tmp_path), "rq")
    assert run.in_place
    (tmp_path / "rq.run").unlink()
    other = RunFile.claim(str(tmp_path), "rq")
    assert other.in_place and not run.in_place
    run.release()
    assert other.in_place
    other.release()
    assert os.listdir(tmp_path) == []


def test_a_file_without_a_name_serves_one_start():
    run, other = RunFile.claim(None, "rq"), RunFile.claim(None, "rq")
    run.write(record())
    assert run.read() == record()
    assert other.read() is None
    run.release()
    other.release()
    assert runfile.peek(None, "rq") is None
    assert runfile.records(None) == {}


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "target").write_bytes(record().to_bytes())
    (tmp_path / "rq.run").symlink_to(tmp_path / "target")
    assert runfile.peek(str(tmp_path), "rq") is None
    with pytest.raises(OSError):
        RunFile.claim(str(tmp_path), "rq")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root would live by what others wrote")
def test_root_lives_by_no_file_that_another_user_has_made(tmp_path):
    tmp_path.chmod(0o777)
    # Its own session: that of the tests may have begun outside of this PID namespace, and is 0 here.
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        try:
            (tmp_path / "a.run").write_bytes(record(process.pid, session=process.pid).to_bytes())
            assert set(runfile.records(str(tmp_path))) == {"a"}
            os.link(tmp_path / "a.run", tmp_path / "second.run")
            assert runfile.records(str(tmp_path)) == {}
            (tmp_path / "second.run").unlink()
            os.chown(tmp_path / "a.run", 65534, 65534)
            assert runfile.records(str(tmp_path)) == {}
            with pytest.raises(PermissionError, match="another user has made it"):
                RunFile.claim(str(tmp_path), "a")
            # Those of the directory's owner, who has the companions, count.
            os.chown(tmp_path, 65534, 65534)
            assert set(runfile.records(str(tmp_path))) == {"a"}
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root would live by what others wrote")
def test_in_everybody_s_directory_a_user_speaks_for_his_own_processes(tmp_path):
    tmp_path.chmod(0o777)
    with subprocess.Popen(["sleep", "60"], user=65534, start_new_session=True) as process:
        try:
            for name, session_of in (("right", process.pid), ("wrong", os.getsid(0))):
                path = tmp_path / f"{name}.run"
                path.write_bytes(record(process.pid, session=session_of).to_bytes())
                os.chown(path, 65534, 65534)
            assert set(runfile.records(str(tmp_path))) == {"right"}
        finally:
            process.kill()


def test_a_pipe_in_the_place_of_a_record_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "rq.run")
    assert runfile.records(str(tmp_path)) == {}


# A parent and a child, which do to the claim what they are told, say "here" and wait.
FORKS = """
import os, sys
from gunicorn.companion.runfile import RunFile
run = RunFile.claim(sys.argv[1], "rq")
assert run is not None
way = sys.argv[2]
if os.fork():
    if way == "the parent dies":
        os._exit(0)
    if way == "the parent releases":
        run.release()
elif way == "the child closes":
    run.close()
print("here", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def forks(tmp_path) -> Iterator[Callable[[str], Script]]:
    """Starts a parent and a child that share one claim; both go on at ``go_on``."""
    started: list[Script] = []

    def start(way: str) -> Script:
        both = Script(FORKS, str(tmp_path), way)
        started.append(both)
        for _ in range(1 if way == "the parent dies" else 2):
            assert both.line() == "here"
        return both

    yield start
    for each in started:
        if not each.stdin.closed:
            each.go_on()
            each.wait_closed()
        each.end()


def claimable(directory) -> bool:
    run = RunFile.claim(str(directory), "rq")
    if run is not None:
        run.release()
    return run is not None


def test_a_child_holds_the_lock_of_a_parent_that_died(tmp_path, forks):
    both = forks("the parent dies")
    assert both.popen.wait(10) == 0
    assert not claimable(tmp_path)
    both.go_on()
    both.wait_closed()
    assert claimable(tmp_path)


def test_a_child_that_closes_its_descriptor_takes_nothing_from_the_parent(tmp_path, forks):
    both = forks("the child closes")
    assert not claimable(tmp_path)
    both.go_on()
    both.wait_closed()
    assert claimable(tmp_path)


def test_a_release_is_for_all_who_inherited_the_lock(tmp_path, forks):
    # Whatever a companion left behind may have the descriptor still.
    forks("the parent releases")
    assert not (tmp_path / "rq.run").exists()
    assert claimable(tmp_path)


def test_a_lock_ends_with_the_last_process_that_has_it(tmp_path):
    done = run_python(
        """
        import os, signal, sys
        from gunicorn.companion.runfile import RunFile
        assert RunFile.claim(sys.argv[1], "rq") and RunFile.claim(sys.argv[1], "other")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(tmp_path),
    )
    assert done.returncode == -signal.SIGKILL
    # The files are there and nobody's.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.run", "rq.run"]
    assert claimable(tmp_path)


def test_many_claim_at_once_and_one_has_it(tmp_path):
    code = """
        import os, sys
        from gunicorn.companion.runfile import RunFile
        for _ in range(1000):
            run = RunFile.claim(sys.argv[1], "rq")
            if run is None:
                continue
            with open(sys.argv[1] + "/holder", "x"):
                pass
            os.unlink(sys.argv[1] + "/holder")
            run.release()
    """
    popens = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], env=python_env())
        for _ in range(3)
    ]
    # The exclusive file is there twice only if two hold the claim, and then open() raises.
    assert [popen.wait(30) for popen in popens] == [0, 0, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"\xff\xfe",
        record().to_bytes()[:-20],
        record().to_bytes() + b"rest}",
        json.dumps({**asdict(record()), "pid": "12"}).encode(),
        json.dumps({**asdict(record()), "pid": True}).encode(),
        # kill(-1) is for every process that there is, kill(0) for our own group.
        json.dumps({**asdict(record()), "pid": -1, "started": None}).encode(),
        json.dumps({**asdict(record()), "pid": 0}).encode(),
        json.dumps({**asdict(record()), "session": None}).encode(),
        json.dumps({**asdict(record()), "stop_signal": "TERM"}).encode(),
        json.dumps({**asdict(record()), "stop_timeout": float("nan")}).encode(),
        json.dumps({**asdict(record()), "stop_timeout": -1}).encode(),
        json.dumps({**asdict(record()), "supervisor_started": None}).encode(),
        json.dumps({**asdict(record()), "signalled": "yes"}).encode(),
        b"[" * 20000,
    ],
    ids=range(20),
)
def test_what_is_no_record_counts_as_none(tmp_path, content):
    (tmp_path / "rq.run").write_bytes(content)
    assert runfile.peek(str(tmp_path), "rq") is None
    assert runfile.records(str(tmp_path)) == {}
    run = RunFile.claim(str(tmp_path), "rq")
    assert run.read() is None
    run.release()


def test_fields_of_a_later_version_do_no_harm():
    data = json.dumps({**asdict(record()), "index": 3}).encode()
    assert Record.from_bytes(data) == record()


def test_records_of_a_directory(tmp_path):
    assert runfile.records(str(tmp_path / "missing")) == {}
    for name in ("a", "b.c"):
        (tmp_path / f"{name}.run").write_bytes(record(name=name).to_bytes())
    (tmp_path / "companion-1.sock").touch()
    (tmp_path / "empty.run").touch()
    found = runfile.records(str(tmp_path))
    assert {name: each.name for name, each in found.items()} == {"a": "a", "b.c": "b.c"}


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


# -- whose it is ---------------------------------------------------------------------


def test_supervised_and_running():
    mine = session.identity(os.getpid())
    assert record(supervisor=os.getpid(), supervisor_started=mine).is_supervised()
    # Another process has the number of the supervisor now.
    assert not record(supervisor=os.getpid(), supervisor_started=mine + "0").is_supervised()
    assert not record().is_supervised()
    assert record(pid=os.getpid()).runs()
    assert not record(pid=os.getpid(), started="boot/1").runs()


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


def test_a_record_of_an_earlier_version_is_one():
    values = json.loads(record(stop_as_group=True, group_signalled=True).to_bytes())
    del values["stop_as_group"], values["group_signalled"]
    assert Record.from_bytes(json.dumps(values).encode()) == record()


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


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create")
def test_a_file_without_a_name_needs_no_file_system():
    fd = runfile.unnamed_file("rq:1")
    try:
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:rq:1")
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_a_file_without_a_name_where_memory_is_refused(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    fd = runfile.unnamed_file("rq")
    try:
        assert os.pwrite(fd, b"x", 0) == 1 and not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_there_is_room_for_a_record_before_it_is_written(tmp_path):
    run = RunFile.claim(str(tmp_path), "a")
    assert run is not None
    assert run.clear() and run.read() is None
    assert os.fstat(run.fd).st_size >= 2048
    run.release()
    # A device that is always full.
    full = RunFile(os.open("/dev/full", os.O_RDWR), None)
    assert not full.clear()
    full.close()
