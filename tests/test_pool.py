# SPDX-License-Identifier: MIT
from __future__ import annotations

import random
from signal import SIGKILL, SIGSEGV, SIGTERM

import pytest

from gunicorn.master.pool import (
    FORGIVEN_AFTER,
    LONGEST_PAUSE,
    TRIAL,
    YOUNG,
    Pacing,
    Plan,
    WorkerRecord,
    due_for_kill,
    end_cause,
    halt_reason,
    is_trial,
    match_addresses,
    next_kill,
    overdue,
    plan,
)
from gunicorn.scoreboard import ENDS


def workers(text: str) -> list[WorkerRecord]:
    """A pool in short: per worker a letter, pid and age being its place.

    ``b`` booted, ``n`` new, ``o`` outdated and booted, ``x`` outdated and not booted, ``r`` retiring,
    ``l`` leaving by itself.
    """
    return [
        WorkerRecord(
            place,
            place,
            0.0,
            booted=letter in "borl",
            outdated=letter in "ox",
            retiring=letter == "r",
            leaving=letter == "l",
        )
        for place, letter in enumerate(text, 1)
    ]


@pytest.mark.parametrize(
    "pool, wanted, expected",
    [
        ("", 0, Plan()),
        ("", 3, Plan(spawn=3)),
        ("bb", 3, Plan(spawn=1)),
        ("bb", 2, Plan()),
        ("bn", 2, Plan()),
        # Too many: the oldest goes, but one that does not serve yet before one that does.
        ("bbb", 2, Plan(retire=(1,))),
        ("bbbb", 2, Plan(retire=(1, 2))),
        ("bbn", 2, Plan(retire=(3,))),
        ("bb", 0, Plan(retire=(1, 2))),
        # What has been told to end is neither counted nor told again.
        ("rrbb", 2, Plan()),
        ("rrb", 2, Plan(spawn=1)),
        ("rr", 0, Plan()),
        # One that leaves by itself is replaced before it is gone.
        ("lb", 2, Plan(spawn=1)),
        ("lbn", 2, Plan()),
        ("l", 0, Plan()),
        # After a reload: new ones first, an old one goes for each that has booted.
        ("oo", 2, Plan(spawn=2, waiting=True)),
        ("oonn", 2, Plan(waiting=True)),
        ("oobn", 2, Plan(retire=(1,), waiting=True)),
        ("oobb", 2, Plan(retire=(1, 2))),
        ("rrbb", 2, Plan()),
        # Fewer or more of the new ones.
        ("oooo", 1, Plan(spawn=1, retire=(1, 2, 3), waiting=True)),
        ("o", 3, Plan(spawn=3, waiting=True)),
        ("onnn", 3, Plan(waiting=True)),
        ("obnn", 3, Plan(waiting=True)),
        ("oobnn", 3, Plan(waiting=True)),
        ("oo", 0, Plan(retire=(1, 2))),
        # A reload on the heels of another: those of the one between never served.
        ("ooxxnn", 2, Plan(retire=(3, 4), waiting=True)),
    ],
)
def test_plan(pool: str, wanted: int, expected: Plan) -> None:
    assert plan(workers(pool), wanted, 1.0, 30.0) == expected


def test_an_old_worker_does_not_wait_for_ever() -> None:
    assert plan(workers("on"), 1, 29.9, 30.0) == Plan(waiting=True)
    assert plan(workers("on"), 1, 30.0, 30.0) == Plan(retire=(1,))


def test_plans_lead_to_what_is_wanted() -> None:
    """Whatever happens meanwhile, carrying plans out ends with as many as wanted, all of the last reload."""
    chance = random.Random(5)
    for _ in range(200):
        records: dict[int, WorkerRecord] = {}
        pid, wanted, told = 0, 1, []
        for step in range(60):
            now = float(step)
            event = (
                chance.choice(["hup", "ttin", "ttou", "die", "end", "boot", "boot"]) if step < 30 else "boot"
            )
            if event == "hup":
                for record in records.values():
                    record.outdated = True
            elif event == "ttin":
                wanted += 1
            elif event == "ttou":
                wanted = max(1, wanted - 1)
            elif event == "die" and records:
                del records[chance.choice(list(records))]
            elif event == "boot":
                for record in records.values():
                    record.booted = True
            if event == "end" or step >= 30:
                records = {p: r for p, r in records.items() if not r.retiring}
            wish = plan(records.values(), wanted, now, 30.0)
            for victim in wish.retire:
                assert not records[victim].retiring
                records[victim].retiring = True
                told.append(victim)
            for _ in range(wish.spawn):
                pid += 1
                records[pid] = WorkerRecord(pid, pid, now)
        assert len(told) == len(set(told))
        assert [r for r in records.values() if r.outdated or r.retiring] == []
        assert len(records) == wanted


@pytest.mark.parametrize("timeout, expected", [(30, [1]), (0, []), (-1, []), (29.5, [1, 2]), (100, [])])
def test_overdue(timeout: float, expected: list[int]) -> None:
    beats = {1: 60.0, 2: 70.0, 3: 99.0}
    assert overdue(beats, timeout, 100.0) == expected


def test_kills() -> None:
    records = workers("bbbb")
    assert next_kill(records) is None and due_for_kill(records, 1e9) == []
    records[0].kill_at, records[1].kill_at, records[2].kill_at = 10.0, 20.0, 5.0
    records[2].killed_at = 6.0
    assert next_kill(records) == 10.0
    assert due_for_kill(records, 9.9) == []
    assert due_for_kill(records, 10.0) == [records[0]]
    assert due_for_kill(records, 20.0) == records[:2]


@pytest.mark.parametrize(
    "code, booted, expected",
    [
        (3, False, 3),
        (4, False, 4),
        (3, True, None),
        (4, True, None),
        (0, False, None),
        (1, False, None),
        (None, False, None),
        (None, True, None),
    ],
)
def test_halt(code: int | None, booted: bool, expected: int | None) -> None:
    reason = halt_reason(code, booted, boot_error=3, load_error=4)
    assert (reason[1] if reason else None) == expected


class TestPacing:
    def test_nothing_failed(self) -> None:
        assert Pacing().pause(0.0) == 0.0
        assert Pacing().pause(1e9) == 0.0

    def test_pauses_grow_up_to_a_limit_and_are_forgiven(self) -> None:
        pacing = Pacing()
        pauses = []
        now = 1000.0
        for _ in range(12):
            pacing.start_failed(now)
            pauses.append(pacing.pause(now))
            now += pauses[-1]
            assert pacing.pause(now) == 0.0
        assert pauses[0] < 0.1
        assert pauses == sorted(pauses)
        assert pauses[-1] == LONGEST_PAUSE
        pacing.start_failed(now + FORGIVEN_AFTER)
        assert pacing.pause(now + FORGIVEN_AFTER) == pauses[0]

    @pytest.mark.parametrize(
        "lived, booted, asked, failed, counts",
        [
            (0.1, False, False, True, True),
            (60.0, False, False, True, True),
            (0.1, False, False, False, True),
            (0.1, True, False, True, True),
            (0.1, True, False, False, False),
            (YOUNG, True, False, True, False),
            (0.1, False, True, True, False),
        ],
    )
    def test_which_ends_count(
        self, lived: float, booted: bool, asked: bool, failed: bool, counts: bool
    ) -> None:
        pacing = Pacing()
        pacing.worker_ended(50.0, lived, booted=booted, asked=asked, failed=failed)
        assert (pacing.pause(50.0) > 0) == counts

    def test_a_single_kill_costs_next_to_nothing(self) -> None:
        pacing = Pacing()
        pacing.worker_ended(50.0, 0.1, booted=False, asked=False, failed=True)
        assert pacing.pause(50.0) < 0.1


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("", "", ([], [])),
        ("ab", "ab", ([0, 1], [])),
        ("ab", "ba", ([1, 0], [])),
        ("ab", "bc", ([1, None], [0])),
        ("a", "aa", ([0, None], [])),
        ("aa", "a", ([0], [1])),
        ("ab", "", ([], [0, 1])),
        ("", "ab", ([None, None], [])),
    ],
)
def test_match_addresses(old: str, new: str, expected: object) -> None:
    assert match_addresses(old, new) == expected


def test_a_configuration_is_on_trial_until_a_worker_of_it_has_booted() -> None:
    old = WorkerRecord(1, 1, spawned_at=0.0, booted=True, outdated=True)
    new = WorkerRecord(2, 2, spawned_at=100.0)
    assert is_trial([old], 1, 100.0)
    assert is_trial([old, new], 1, 101.0)
    assert not is_trial([old], 0, 101.0)
    assert not is_trial([new], 1, 101.0)
    assert not is_trial([old, new], 1, 100.0 + TRIAL)
    new.booted = True
    assert not is_trial([old, new], 1, 101.0)
    new.booted, old.retiring = False, True
    assert not is_trial([old, new], 1, 101.0)


@pytest.mark.parametrize(
    "letter, status, timed_out, own, cause",
    [
        ("b", 0, False, None, "exit"),
        ("b", 1 << 8, False, None, "crash"),
        ("b", SIGSEGV, False, None, "crash"),
        ("b", SIGKILL, False, None, "killed"),
        ("b", SIGTERM, False, None, "killed"),
        ("n", 3 << 8, False, None, "boot"),
        ("n", SIGKILL, False, None, "boot"),
        ("b", 1 << 8, True, None, "timeout"),
        ("n", SIGKILL, True, None, "timeout"),
        ("l", 0, False, "max_requests", "max_requests"),
        ("b", 0, False, "reload", "reload"),
        ("r", 0, False, None, "command"),
        ("r", SIGKILL, False, "max_requests", "command"),
        ("r", SIGKILL, True, None, "command"),
    ],
)
def test_why_a_worker_ended(letter: str, status: int, timed_out: bool, own: str | None, cause: str) -> None:
    (record,) = workers(letter)
    assert end_cause(record, status, timed_out, own) == cause
    assert cause in ENDS


def test_a_worker_that_a_reload_replaces_ends_by_it_unless_somebody_was_faster() -> None:
    (record,) = workers("o")
    assert end_cause(record, SIGKILL, False, None) == "killed"
    record.retiring = True
    assert end_cause(record, SIGKILL, False, None) == "reload"
    record.commanded = True
    assert end_cause(record, SIGKILL, False, None) == "command"
