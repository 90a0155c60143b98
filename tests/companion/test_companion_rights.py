# SPDX-License-Identifier: MIT
"""The rights to start companions, which the managers of several servers share."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import short_tmpdir, wait_until

from gunicorn.companion import runfile
from gunicorn.companion.runfile import Record, RunFile
from gunicorn.companion.supervise.rights import Blocked, StartRights
from gunicorn.companion.supervise.sharedstate import Rights, SharedState
from gunicorn.unix import session

LOG = logging.getLogger("rights")


class Other:
    """Another server: a process that lives, in whose name this one holds run files."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.pid = os.fork()
        if self.pid == 0:
            signal.pause()
            os._exit(0)
        self.runs: dict[str, RunFile] = {}

    def run(self, name: str, pid: int = 0) -> None:
        run = self.runs.get(name) or RunFile.claim(self.directory, name)
        assert run is not None
        self.runs[name] = run
        who = session.identity(self.pid) or ""
        run.write(Record(name, pid or self.pid, who, self.pid, self.pid, who, signal.SIGTERM, 1, True))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def end(self) -> None:
        for run in self.runs.values():
            run.release()
        if session.identity(self.pid) is not None:
            self.kill()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    other = Other(tmp_path)
    yield other
    other.end()


def test_a_released_right_is_had_at_the_next_try(other: Other, tmp_path: Path) -> None:
    other.run("a")
    start_rights = StartRights(str(tmp_path), LOG)
    assert start_rights.claim("a", time.monotonic()) == Blocked(other.pid)
    other.run("a", pid=77)
    assert start_rights.claim("a", time.monotonic()) == Blocked(77)
    other.runs.pop("a").release()
    run = start_rights.claim("a", time.monotonic())
    assert isinstance(run, RunFile) and start_rights.held("a") is run
    start_rights.release("a")


def test_the_right_of_a_killed_server_is_had_at_the_next_try(other: Other, tmp_path: Path) -> None:
    other.run("a")
    start_rights = StartRights(str(tmp_path), LOG)
    assert isinstance(start_rights.claim("a", time.monotonic()), Blocked)
    # Its locks go with it, and nothing in the directory changes.
    other.kill()
    os.close(other.runs.pop("a").fd)
    assert isinstance(start_rights.claim("a", time.monotonic()), RunFile)
    start_rights.release("a")


def test_a_wait_is_logged_once(other: Other, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other.run("a")
    start_rights = StartRights(str(tmp_path), LOG)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert isinstance(start_rights.claim("a", time.monotonic()), Blocked)
    assert [record.getMessage() for record in caplog.records] == [
        f"Companion a waits: another server runs it (pid {other.pid})"
    ]


def test_what_was_held_and_cleared_is_had_again_as_it_is(tmp_path: Path) -> None:
    start_rights = StartRights(str(tmp_path), LOG)
    now = time.monotonic()
    run = start_rights.claim("a", now)
    assert isinstance(run, RunFile)
    who = session.identity(os.getpid()) or ""
    record = Record("a", os.getpid(), who, os.getpid(), os.getpid(), who, signal.SIGTERM, 5.0)
    for _ in range(2):
        run.write(record)
        start_rights.clear("a")
        assert start_rights.claim("a", now) is run
        assert run.read() is None
    # Without a word that the process has come to its end, what it wrote is looked at.
    run.write(record)
    assert start_rights.claim("a", now) is run
    assert run.read() is None
    start_rights.clear("a")
    os.unlink(tmp_path / "a.run")
    other = start_rights.claim("a", now)
    assert isinstance(other, RunFile)
    assert other is not run
    assert other.in_place
    start_rights.release("a")


# -- a directory that cannot be used, or is taken away --


def as_nobody(check: Callable[[], str], directory: Path) -> str:
    """What *check* returns where *directory* may be read and not be written to."""
    for path in directory.iterdir():
        path.chmod(0o444)
    directory.chmod(0o555)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            os.write(write, check().encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    directory.chmod(0o755)
    with open(read) as file:
        return file.read()


@pytest.fixture
def public() -> Iterator[Path]:
    path = short_tmpdir()
    yield path
    shutil.rmtree(path)


def test_where_the_record_can_be_read_it_is_waited_for(public: Path) -> None:
    other = Other(public)
    try:
        other.run("a")
        (public / "b.run").touch()

        def check() -> str:
            start_rights = StartRights(str(public), LOG)
            found = [start_rights.claim(name, time.monotonic()) for name in ("a", "b")]
            assert isinstance(found[1], RunFile) and found[1].path is None
            # And what may run beside it does.
            alone = start_rights.claim("a", time.monotonic(), singleton=False)
            assert isinstance(alone, RunFile)
            return str(found[0])

        assert as_nobody(check, public) == str(Blocked(other.pid))
    finally:
        other.end()


def test_where_the_record_can_be_read_an_orphan_is_ended(public: Path) -> None:
    other = Other(public)
    old = Other(public)
    if os.geteuid() == 0:
        old.kill()
        old.pid = os.fork()
        if old.pid == 0:
            os.setsid()
            os.setresuid(65534, 65534, 65534)
            signal.pause()
            os._exit(0)
        wait_until(lambda: os.stat(f"/proc/{old.pid}").st_uid == 65534)
    try:
        run = RunFile.claim(str(public), "a")
        assert run is not None
        who, supervisor = (session.identity(pid) or "" for pid in (old.pid, other.pid))
        run.write(Record("a", old.pid, who, old.pid, other.pid, supervisor, signal.SIGTERM, 1))
        run.close()
        other.kill()

        def check() -> str:
            start_rights = StartRights(str(public), LOG)
            blocked = start_rights.claim("a", time.monotonic())
            if session.identity(old.pid) is not None:
                assert isinstance(blocked, Blocked) and blocked.session == old.pid
            return "ended"

        assert as_nobody(check, public) == "ended"
        assert os.waitstatus_to_exitcode(os.waitpid(old.pid, 0)[1]) == -signal.SIGTERM
    finally:
        old.end()


def test_what_was_removed_is_made_again_with_what_it_said(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    start_rights = StartRights(str(run_dir), LOG)
    run_dir.mkdir()
    who = session.identity(os.getpid()) or ""
    record = Record("a", os.getpid(), who, os.getpid(), os.getpid(), who, signal.SIGTERM, 5.0)
    for name in ("a", "b", "c"):
        assert isinstance(start_rights.claim(name, time.monotonic()), RunFile)
    for name in ("a", "b"):
        run = start_rights.held(name)
        assert run is not None
        run.write(replace(record, name=name))
    (run_dir / "b.run").unlink()
    start_rights.renew()
    assert runfile.records(str(run_dir)).keys() == {"a", "b"}
    shutil.rmtree(run_dir)
    start_rights.renew()
    assert runfile.records(str(run_dir)) == {name: replace(record, name=name) for name in ("a", "b")}
    assert StartRights(str(run_dir), LOG).claim("c", time.monotonic()) == Blocked(None)
    # What is held between two starts is held on.
    start_rights.clear("c")
    (run_dir / "c.run").unlink()
    again = start_rights.claim("c", time.monotonic())
    assert isinstance(again, RunFile) and again.in_place and again is start_rights.held("c")
    descriptors = start_rights.descriptors()
    assert len(descriptors) == len(set(descriptors)) == 3
    for name in ("a", "b", "c"):
        start_rights.release(name)
    assert list(run_dir.iterdir()) == []


def test_what_somebody_else_has_made_meanwhile_is_his(tmp_path: Path) -> None:
    start_rights, others = StartRights(str(tmp_path), LOG), StartRights(str(tmp_path), LOG)
    now = time.monotonic()
    mine = start_rights.claim("a", now)
    (tmp_path / "a.run").unlink()
    assert isinstance(others.claim("a", now), RunFile)
    start_rights.renew()
    assert start_rights.held("a") is mine
    start_rights.clear("a")
    assert start_rights.claim("a", now) == Blocked(None)
    others.release("a")


def test_two_masters_see_each_other_s_rights_without_run_files() -> None:
    shared, elder = SharedState.create(), SharedState.create()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # The manager of the old master.
        theirs = StartRights(None, LOG, Rights(elder.copy()))
        theirs.claim("a", time.monotonic())
        os.write(write, b".")
        signal.pause()
        os._exit(0)
    start_rights = StartRights(None, LOG, Rights(shared, elder))
    try:
        os.read(read, 1)
        assert start_rights.claim("a", time.monotonic()) == Blocked(None)
        assert isinstance(start_rights.claim("b", time.monotonic()), RunFile)
        assert isinstance(start_rights.claim("a", time.monotonic(), singleton=False), RunFile)
        start_rights.release("a")
        # The next manager of the old master sees what the new one has.
        child = os.fork()
        if child == 0:
            next_one = StartRights(None, LOG, Rights(elder.copy()))
            os._exit(0 if next_one.claim("b", time.monotonic()) == Blocked(None) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert isinstance(start_rights.claim("a", time.monotonic()), RunFile)
    for name in ("a", "b"):
        start_rights.release(name)
    for file in (read, write, shared.fd, elder.fd):
        os.close(file)


# -- one form of a companion and the other ----------------------------------------------------


@pytest.mark.parametrize(
    ("there", "wanted"), [("sched", "sched:0"), ("sched:1", "sched"), ("sched:0", "sched")]
)
def test_a_single_one_and_copies_of_it_never_run_together(
    other: Other, tmp_path: Path, there, wanted
) -> None:
    other.run(there, pid=7)
    start_rights = StartRights(str(tmp_path), LOG)
    now = time.monotonic()
    assert start_rights.claim(wanted, now) == Blocked(7)
    assert start_rights.held(wanted) is None
    # Between two processes the right is the other's still.
    other.runs[there].clear()
    assert start_rights.claim(wanted, now + 1) == Blocked(None)
    # Nor do others of a similar name mind.
    assert isinstance(start_rights.claim("scheduler", now + 1), RunFile)
    other.runs.pop(there).release()
    assert isinstance(start_rights.claim(wanted, now + 2), RunFile)
    start_rights.release(wanted)
    start_rights.release("scheduler")


def test_copies_of_one_companion_run_together(other: Other, tmp_path: Path) -> None:
    other.run("sched:0")
    start_rights = StartRights(str(tmp_path), LOG)
    assert isinstance(start_rights.claim("sched:1", time.monotonic()), RunFile)
    start_rights.release("sched:1")


def test_where_both_are_allowed_neither_form_waits(other: Other, tmp_path: Path) -> None:
    other.run("sched")
    start_rights = StartRights(str(tmp_path), LOG)
    assert isinstance(start_rights.claim("sched:0", time.monotonic(), singleton=False), RunFile)
    start_rights.release("sched:0")


@pytest.mark.parametrize("directory", [True, False])
def test_the_other_form_is_waited_for_in_one_manager_too(tmp_path: Path, directory: bool) -> None:
    start_rights = StartRights(str(tmp_path) if directory else None, LOG)
    now = time.monotonic()
    assert isinstance(start_rights.claim("sched", now), RunFile)
    assert start_rights.claim("sched:0", now) == Blocked(None)
    start_rights.release("sched")
    assert isinstance(start_rights.claim("sched:0", now), RunFile)
    assert start_rights.claim("sched", now) == Blocked(None)
    start_rights.release("sched:0")


def test_what_a_dead_manager_left_of_the_other_form_is_ended_and_waited_for(
    tmp_path: Path, other: Other
) -> None:
    other.run("sched", pid=4_000_000)
    other.runs.pop("sched").close()
    other.kill()
    start_rights = StartRights(str(tmp_path), LOG)
    now = time.monotonic()
    assert start_rights.claim("sched:0", now) == Blocked(4_000_000)
    assert start_rights.orphans
    start_rights.step_orphans(now, {other.pid}, {})
    assert isinstance(start_rights.claim("sched:0", now + 1), RunFile)
    start_rights.release("sched:0")
