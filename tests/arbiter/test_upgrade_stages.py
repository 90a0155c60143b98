# SPDX-License-Identifier: MIT
"""What an old master makes of its successor's report, of its silence and of its end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn.master.commands import answer
from gunicorn.master.upgrade import LONGEST_REASON, Upgrade, write_report
from gunicorn.unix.poller import Poller


class Log(list[str]):
    def __getattr__(self, level: str) -> Any:
        return lambda text, *args: self.append(f"{level}: {text % args}")


class Old:
    """A master whose successor only sleeps; the test reports in its place."""

    def __init__(self) -> None:
        self.poller, self.log, self.signals, self.told = Poller(), Log(), list[int](), list[str]()
        self.cfg, self.companions = SimpleNamespace(graceful_timeout=1), None
        self.unit = SimpleNamespace(upgrade_failed=self.told.append, announcer=None)
        self.pid, self.stopping, self.last_reload = os.getpid(), False, None
        self.reexec_pid, self.master_pid, self.end_at_once = 0, 0, False
        self.signal = self.signals.append
        self.child: subprocess.Popen[bytes] | None = None
        self.upgrade = Upgrade(self)

    def wakeup(self) -> None:
        pass

    def companion_manager_stop_timeout(self) -> float:
        return 3.0

    def reexec(self, report: tuple[int, int]) -> None:
        self.writer = os.dup(report[0])
        self.child = subprocess.Popen(["sleep", "60"])
        self.reexec_pid = self.child.pid

    def hear(self, reason: str | None) -> None:
        write_report(self.writer, reason)
        self.poller.wait(1)

    def bury(self) -> None:
        """Wait for the end of the successor, as the loop does."""
        assert self.child is not None
        status = self.child.wait(10)
        pid, self.reexec_pid = self.reexec_pid, 0
        writer = self.writer
        self.upgrade.buried(pid, f"ended with {status}", told=status == -signal.SIGTERM)
        if self.reexec_pid:
            os.close(writer)


@pytest.fixture
def old() -> Iterator[Old]:
    master = Old()
    yield master
    if master.child is not None:
        os.close(master.writer)
        master.child.kill()
        master.child.wait()


def result(old: Old) -> tuple[str, str | None, str | None]:
    assert old.upgrade.last is not None
    return tuple(old.upgrade.last[name] for name in ("result", "stage", "reason"))  # type: ignore[return-value]


def test_it_hands_over_when_the_successor_serves(old: Old) -> None:
    begun = old.upgrade.begin()
    assert (begun["number"], begun["pid"], result(old)) == (1, old.reexec_pid, ("pending", "booting", None))
    old.hear(None)
    assert old.signals == [signal.SIGTERM] and result(old) == ("pending", "handing over", None)
    assert old.upgrade.next_deadline(0.0) is None and not old.upgrade.ends_first(signal.SIGTERM)
    # Nothing is left to go back to: another one is started, unless somebody wants none.
    old.child.kill()  # type: ignore[union-attr]
    old.bury()
    assert f"process {old.reexec_pid} is to take over" in old.log[-1]
    assert old.upgrade.last is not None and old.upgrade.is_handing_over
    assert (old.upgrade.last["number"], old.upgrade.last["pid"]) == (1, old.reexec_pid)
    assert result(old) == ("pending", "handing over", None) and old.reexec_pid != begun["pid"]
    old.hear(None)
    old.child.terminate()  # type: ignore[union-attr]
    old.bury()
    assert result(old)[0] == "pending" and not old.reexec_pid and "nobody takes over" in old.log[-1]
    assert len(old.signals) == 1


def test_it_goes_back_when_the_successor_says_why_it_ends(old: Old) -> None:
    old.upgrade.begin()
    old.hear("no \N{SNOWMAN}\n  database " + "\N{SNOWMAN}" * 9000)
    assert (old.signals, result(old)[:2]) == ([], ("pending", "ending"))
    old.child.terminate()  # type: ignore[union-attr]
    old.bury()
    verdict, stage, reason = result(old)
    assert (verdict, stage) == ("rolled back", None) and reason and reason.startswith("no \N{SNOWMAN}")
    assert len(reason) == LONGEST_REASON and old.told == [reason]
    # And the next one has the next number.
    assert old.upgrade.begin()["number"] == 2


def test_one_that_ends_without_a_word(old: Old) -> None:
    old.upgrade.begin()
    old.child.kill()  # type: ignore[union-attr]
    old.bury()
    assert result(old) == ("rolled back", None, "the new master ended with -9: see the server's log")


def test_one_that_says_nothing_is_told_to_end_and_killed(old: Old) -> None:
    started = time.monotonic()
    old.upgrade.begin(20)
    due = old.upgrade.next_deadline(started)
    assert due is not None and started + 20 <= due < started + 30
    old.child.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
    old.upgrade.step(due - 1)
    assert result(old)[1] == "booting"
    old.upgrade.step(due)
    assert result(old)[1:] == ("ending", "the new master did not boot in time")
    due = old.upgrade.next_deadline(started)
    # Longer than it has for its own stop.
    assert due is not None and due > time.monotonic() + 3
    old.upgrade.step(due)
    old.bury()
    assert result(old)[0] == "rolled back" and old.signals == []


def test_a_stop_waits_for_it(old: Old) -> None:
    old.upgrade.begin()
    assert old.upgrade.ends_first(signal.SIGTERM) and old.upgrade.ends_first(signal.SIGINT)
    old.bury()
    assert old.signals == [signal.SIGINT] and not old.upgrade.ends_first(signal.SIGINT)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"pid": 1}, "the container ends with this master"),
        ({}, "unless the unit has Type=notify"),
        ({"last_reload": {"result": "pending"}}, "a reload is under way"),
        ({"stopping": True}, "the server is stopping"),
        ({"master_pid": 7}, "waits until process 7 is gone"),
        ({"reexec_pid": 8}, "process 8 is to take over"),
    ],
)
def test_where_an_upgrade_is_refused(
    old: Old, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], text: str
) -> None:
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    vars(old).update(facts)
    with pytest.raises(ValueError, match=text):
        answer(old, "upgrade")  # type: ignore[arg-type]
    assert old.child is None


def test_where_it_is_not(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    # The master that systemd has started has been succeeded before.
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "7")
    old.last_reload = {"result": "refused"}
    assert answer(old, "upgrade", timeout=5) == {  # type: ignore[arg-type]
        "message": f"process {old.reexec_pid} is to take over",
        "number": 1,
        "pid": old.reexec_pid,
    }


def test_without_a_descriptor_it_does_not_begin(old: Old) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(ValueError, match="cannot be started: Too many open files"):
            old.upgrade.begin()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert old.upgrade.last is None and old.upgrade.stage == ""
