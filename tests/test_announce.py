# SPDX-License-Identifier: MIT
"""What a service manager is told at each turn of a server's life."""

from __future__ import annotations

from typing import Any

import pytest

from gunicorn.master import announce
from gunicorn.master.announce import Announcer, Phase, Situation, watchdog_seconds

BOOTING = {"wanted": 2, "booted": 1}
SERVING = {"wanted": 2, "booted": 2, "ready": True}
STOPPING = {"stopping": True, "wanted": 2}
EXTEND = "EXTEND_TIMEOUT_USEC=15000000"


def at(**facts: Any) -> Situation:
    return Situation(pid=10, **facts)


# Each life is a list of (seconds, what is the case, what is told).
LIVES: dict[str, list[tuple[float, dict[str, Any], str]]] = {
    "start": [
        (0, {"wanted": 2}, "STATUS=Starting: 0 of 2 workers ready"),
        (0.1, {"wanted": 2}, ""),
        (0.2, BOOTING, "STATUS=Starting: 1 of 2 workers ready"),
        (0.3, SERVING, "READY=1\nSTATUS=Serving: 2 workers"),
        (0.4, SERVING, ""),
        (9.0, BOOTING, ""),
    ],
    "web workers wait for a long migration": [
        (0, {"wanted": 2, "held_by": "migrate"}, f"{EXTEND}\nSTATUS=Starting: web workers wait for migrate"),
        (2, {"wanted": 2, "held_by": "migrate"}, ""),
        (3, {"wanted": 2, "held_by": "migrate"}, EXTEND),
        (4, {"wanted": 2}, "STATUS=Starting: 0 of 2 workers ready"),
        (9, SERVING, "READY=1\nSTATUS=Serving: 2 workers"),
    ],
    "companions are counted": [
        (0, {**SERVING, "companions": 1}, "READY=1\nSTATUS=Serving: 2 workers, 1 companion"),
        (1, {**SERVING, "companions": 3}, "STATUS=Serving: 2 workers, 3 companions"),
    ],
    "a worker more": [
        (0, {"wanted": 1, "booted": 1, "ready": True}, "READY=1\nSTATUS=Serving: 1 worker"),
        (1, {"wanted": 2, "booted": 1}, "STATUS=Serving: 2 workers"),
        (2, SERVING, ""),
    ],
    "no workers wanted": [(0, {"ready": True}, "READY=1\nSTATUS=Serving: 0 workers")],
    "stop": [
        (0, SERVING, "READY=1\nSTATUS=Serving: 2 workers"),
        (1, {**STOPPING, "left": 2}, f"STOPPING=1\n{EXTEND}\nSTATUS=Stopping: waiting for 2 workers"),
        (2, {**STOPPING, "left": 2}, ""),
        (3, {**STOPPING, "left": 1}, "STATUS=Stopping: waiting for 1 worker"),
        (4, {**STOPPING, "left": 1}, EXTEND),
        (6, STOPPING, "STATUS=Stopping"),
    ],
    "companions drain": [
        (
            0,
            {**STOPPING, "left": 1, "companions_left": True},
            f"STOPPING=1\n{EXTEND}\nSTATUS=Stopping: waiting for 1 worker and companions",
        ),
        (2, {**STOPPING, "companions_left": True}, "STATUS=Stopping: waiting for companions"),
        (3, {**STOPPING, "companions_left": True}, EXTEND),
        (5.9, {**STOPPING, "companions_left": True}, ""),
        (6, {**STOPPING, "companions_left": True}, EXTEND),
    ],
    "it halts": [
        (
            0,
            {**STOPPING, "left": 1, "reason": "the application failed to load"},
            f"STOPPING=1\n{EXTEND}\nSTATUS=Stopping: the application failed to load; waiting for 1 worker",
        ),
        (
            1,
            {**STOPPING, "reason": "the application failed to load"},
            "STATUS=Stopping: the application failed to load",
        ),
    ],
    "a successor is silent until it is promoted": [
        (0, {**SERVING, "waiting": True}, ""),
        (9, {**SERVING, "waiting": True}, ""),
        (10, SERVING, "MAINPID=10\nREADY=1\nSTATUS=Serving: 2 workers"),
        (11, SERVING, ""),
    ],
    "a successor that is told to go says nothing": [
        (0, {**SERVING, "waiting": True}, ""),
        (1, {**STOPPING, "waiting": True}, ""),
    ],
    "an old master hands over": [
        (0, SERVING, "READY=1\nSTATUS=Serving: 2 workers"),
        (1, {**SERVING, "successor": 20}, "STATUS=Serving: 2 workers; process 20 is to take over"),
        (
            2,
            {**STOPPING, "left": 2, "successor": 20},
            f"{EXTEND}\nSTATUS=Handing over to process 20: waiting for 2 workers",
        ),
        (5, {**STOPPING, "left": 2, "successor": 20}, EXTEND),
    ],
    "its successor does not live to see it": [
        (0, SERVING, "READY=1\nSTATUS=Serving: 2 workers"),
        (1, {**STOPPING, "successor": 20}, f"{EXTEND}\nSTATUS=Handing over to process 20"),
        (2, {**STOPPING, "left": 1}, "STOPPING=1\nSTATUS=Stopping: waiting for 1 worker"),
    ],
    "an upgrade is rolled back": [
        (0, {**SERVING, "successor": 20}, "READY=1\nSTATUS=Serving: 2 workers; process 20 is to take over"),
        (1, SERVING, "STATUS=Serving: 2 workers"),
    ],
}


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
def test_a_life(life: list[tuple[float, dict[str, Any], str]]) -> None:
    announcer = Announcer()
    for now, facts, told in life:
        assert announcer.step(now, at(**facts)) == told, now


def serving(watchdog: float = 0.0) -> Announcer:
    announcer = Announcer(watchdog)
    assert announcer.step(0, at(**SERVING)).startswith("READY=1\n")
    return announcer


def test_a_reload() -> None:
    announcer = serving()
    begin = "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=Reloading: reading the configuration"
    assert announcer.reload_begins(1.25) == begin.format(1250000)
    assert announcer.step(1.3, at(wanted=2)) == "STATUS=Reloading: 0 of 2 new workers ready"
    # Another one meanwhile: its time is the one that counts, and one READY=1 answers both.
    assert announcer.reload_begins(1.5) == begin.format(1500000)
    assert announcer.step(1.6, at(**BOOTING)) == "STATUS=Reloading: 1 of 2 new workers ready"
    assert announcer.step(2, at(**SERVING)) == "READY=1\nSTATUS=Serving: 2 workers"
    assert announcer.step(3, at(**SERVING)) == ""


def test_a_refused_reload_says_why_until_the_next() -> None:
    announcer = serving()
    announcer.reload_begins(1)
    announcer.reload_refused("no such file:\nx.py")
    told = "READY=1\nSTATUS=Serving: 2 workers; the last reload failed: no such file: x.py"
    assert announcer.step(1, at(**SERVING)) == told
    assert announcer.step(2, at(**SERVING)) == ""
    announcer.reload_begins(3)
    assert announcer.step(3, at(**SERVING)) == "READY=1\nSTATUS=Serving: 2 workers"
    announcer.upgrade_failed("no such file")
    assert (
        announcer.step(4, at(**SERVING)) == "STATUS=Serving: 2 workers; the last upgrade failed: no such file"
    )


def test_a_message_is_short_enough_for_systemd() -> None:
    announcer = serving()
    announcer.reload_begins(1)
    announcer.reload_refused("\N{SNOWMAN}" * 9000)
    assert len(announcer.step(1, at(**SERVING)).encode()) < 4096


def test_no_reload_is_announced_by_who_is_not_in_charge() -> None:
    for facts in (BOOTING, {**SERVING, "waiting": True}, STOPPING):
        announcer = Announcer()
        announcer.step(0, at(**facts))
        assert announcer.reload_begins(1) == ""
    assert announcer.phase is Phase.STOPPING


def test_signs_of_life() -> None:
    announcer = Announcer(watchdog=2)
    assert announcer.step(0, at(**BOOTING)).splitlines()[0] == "WATCHDOG=1"
    assert announcer.step(1, at(**BOOTING)) == ""
    assert announcer.next_deadline(1.9) == 2
    assert announcer.step(2, at(**BOOTING)) == "WATCHDOG=1"
    assert announcer.step(3, at(**SERVING)).splitlines()[0] == "READY=1"
    assert announcer.next_deadline(3) == 4
    assert announcer.step(4, at(**STOPPING)).splitlines() == [
        "STOPPING=1",
        EXTEND,
        "WATCHDOG=1",
        "STATUS=Stopping",
    ]
    assert announcer.step(6, at(**STOPPING, successor=20)).splitlines()[0] == "WATCHDOG=1"


def test_a_successor_gives_no_sign_of_life_until_it_is_promoted() -> None:
    announcer = Announcer(watchdog=2)
    assert announcer.step(0, at(**SERVING, waiting=True)) == ""
    assert announcer.next_deadline(0) is None
    assert "WATCHDOG=1" in announcer.step(1, at(**SERVING)).splitlines()


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({**STOPPING, "successor": 20}, "MAINPID=20"),
        (STOPPING, ""),
        ({**STOPPING, "waiting": True}, ""),
        ({**STOPPING, "successor": 20, "waiting": True}, ""),
    ],
)
def test_the_last_word(facts: dict[str, Any], told: str) -> None:
    announcer = Announcer()
    announcer.step(0, at(**facts))
    assert announcer.leave(1, at(**facts)) == told


def test_the_last_word_of_one_that_never_began() -> None:
    told = Announcer().leave(1, at(reason="no such address"))
    assert told == f"STOPPING=1\n{EXTEND}\nSTATUS=Stopping: no such address"


def test_when_to_look_again() -> None:
    announcer = Announcer()
    announcer.step(0, at(**BOOTING))
    assert announcer.next_deadline(7) == 7 + announce.BOOT_TICK
    announcer.step(8, at(**SERVING))
    assert announcer.next_deadline(9) is None
    announcer.reload_begins(10)
    assert announcer.next_deadline(10) == 10 + announce.BOOT_TICK
    announcer.step(11, at(**STOPPING))
    assert announcer.next_deadline(12) == 11 + announce.EXTEND_EVERY


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("3000000", "10", 1.5),
        ("3000000", None, 1.5),
        ("3000000", "", 1.5),
        ("3000000", "11", 0),
        ("0", "10", 0),
        ("", "10", 0),
        (None, "10", 0),
        ("-5", "10", 0),
        ("soon", "10", 0),
        ("1", "10", announce.SHORTEST_WATCHDOG),
    ],
)
def test_the_watchdog_that_the_environment_asks_for(
    usec: str | None, pid: str | None, seconds: float
) -> None:
    found = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    environ = {name: value for name, value in found.items() if value is not None}
    assert watchdog_seconds(environ, 10) == seconds
