# SPDX-License-Identifier: MIT
"""Waiting for what another server runs: cheap for many, and over as soon as it is free."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from harness import wait_until

from gunicorn.companion import session
from gunicorn.companion.claims import LOOK_AGAIN, Blocked, Claims
from gunicorn.companion.runfile import Record, RunFile

LOG = logging.getLogger("claims")


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


def settled(directory: Path) -> None:
    """Until the directory's last change is past beyond doubt."""
    wait_until(lambda: time.time_ns() - directory.stat().st_mtime_ns > 50_000_000)


def tries(claims: Claims, *names: str, after: float = 0.0) -> int:
    """How many run files are tried for, when each of *names* is claimed once; all are blocked."""
    now = time.monotonic() + after
    with mock.patch.object(RunFile, "claim", wraps=RunFile.claim) as claim:
        for name in names:
            assert isinstance(claims.claim(name, now), Blocked)
    return claim.call_count


def test_many_that_wait_are_not_tried_for_again_and_again(other: Other, tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(50)]
    for name in names:
        other.run(name)
    settled(tmp_path)
    claims = Claims(str(tmp_path), LOG)
    assert tries(claims, *names) == 50
    assert tries(claims, *names, after=0.1) == 50
    for after in (0.2, 0.3, 0.4):
        assert tries(claims, *names, after=after) == 0
    # But now and then, whatever the signs are; that shows a pid that has changed as well.
    other.run("c0", pid=77)
    assert tries(claims, *names, after=0.1 + LOOK_AGAIN) == 50
    assert claims.claim("c0", time.monotonic() + 0.2 + LOOK_AGAIN) == Blocked(77)


def test_what_is_let_go_is_had_at_the_next_try(other: Other, tmp_path: Path) -> None:
    for name in ("a", "b"):
        other.run(name)
    settled(tmp_path)
    claims = Claims(str(tmp_path), LOG)
    for after in (0, 0.1, 0.2):
        assert isinstance(claims.claim("a", time.monotonic() + after), Blocked)
    other.runs.pop("a").release()
    run = claims.claim("a", time.monotonic() + 0.3)
    assert isinstance(run, RunFile) and claims.held("a") is run
    claims.release("a")


def test_what_a_dead_server_ran_is_noticed_at_the_next_try(other: Other, tmp_path: Path) -> None:
    other.run("a")
    settled(tmp_path)
    claims = Claims(str(tmp_path), LOG)
    for after in (0, 0.1, 0.2):
        assert isinstance(claims.claim("a", time.monotonic() + after), Blocked)
    # Its locks go with it, and nothing in the directory changes.
    other.kill()
    os.close(other.runs.pop("a").fd)
    run = claims.claim("a", time.monotonic() + 0.3)
    assert isinstance(run, RunFile)
    claims.release("a")


def test_a_directory_that_has_just_changed_proves_nothing(other: Other, tmp_path: Path) -> None:
    other.run("a")
    claims = Claims(str(tmp_path), LOG)
    for after in (0, 0.1, 0.2, 0.3):
        os.utime(tmp_path)
        assert tries(claims, "a", after=after) == 1


def test_what_was_held_and_cleared_is_had_again_as_it_is(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path), LOG)
    now = time.monotonic()
    run = claims.claim("a", now)
    assert isinstance(run, RunFile)
    who = session.identity(os.getpid()) or ""
    record = Record("a", os.getpid(), who, os.getpid(), os.getpid(), who, signal.SIGTERM, 5.0)
    for _ in range(2):
        run.write(record)
        claims.clear("a")
        assert claims.claim("a", now) is run
        assert os.fstat(run.fd).st_size == 0
    # Without a word that the process has come to its end, what it wrote is looked at.
    run.write(record)
    assert claims.claim("a", now) is run
    assert os.fstat(run.fd).st_size == 0
    claims.clear("a")
    os.unlink(tmp_path / "a.run")
    other = claims.claim("a", now)
    assert isinstance(other, RunFile)
    assert other is not run
    assert other.in_place
    claims.release("a")
