# SPDX-License-Identifier: MIT
"""The record of a companion: its lock across forks, and what a dead writer leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest
from companiontools import DEAD, Script, answer_of, python_env, record, run_python

from gunicorn.companion import runfile
from gunicorn.companion.runfile import Record, RunFile
from gunicorn.unix import session

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
    assert run.report_of(DEAD) == (None, None)
    for error in (None, "a reason"):
        run.write(record(error=error, exception="an exception"))
        assert run.report_of(DEAD) == (error, "an exception")
        assert run.report_of(DEAD - 1) == (None, None)
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
        json.dumps({**asdict(record()), "later_signals": 3}).encode(),
        json.dumps({**asdict(record()), "later_signals": [[3]]}).encode(),
        json.dumps({**asdict(record()), "later_signals": [[-3, 10]]}).encode(),
        json.dumps({**asdict(record()), "later_signals": [[3, "10"]]}).encode(),
        json.dumps({**asdict(record()), "supervisor_started": None}).encode(),
        json.dumps({**asdict(record()), "signalled": "yes"}).encode(),
        b"[" * 20000,
    ],
    ids=range(24),
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


# -- whose it is ---------------------------------------------------------------------


def test_supervised_and_running():
    mine = session.identity(os.getpid())
    assert record(supervisor=os.getpid(), supervisor_started=mine).is_supervised()
    # Another process has the number of the supervisor now.
    assert not record(supervisor=os.getpid(), supervisor_started=mine + "0").is_supervised()
    assert not record().is_supervised()
    assert record(pid=os.getpid()).runs()
    assert not record(pid=os.getpid(), started="boot/1").runs()


def test_a_record_of_an_earlier_version_is_one():
    values = json.loads(record(stop_as_group=True, group_signalled=True).to_bytes())
    del values["stop_as_group"], values["group_signalled"], values["later_signals"]
    assert Record.from_bytes(json.dumps(values).encode()) == record()


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
    # And for the reason why its start failed.
    run.write(record())
    assert os.fstat(run.fd).st_size >= 2048
    run.release()
    # A device that is always full.
    full = RunFile(os.open("/dev/full", os.O_RDWR), None)
    assert not full.clear()
    full.close()
