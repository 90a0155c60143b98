# SPDX-License-Identifier: MIT
from __future__ import annotations

import random
from signal import SIGKILL, SIGSEGV, SIGTERM

import pytest

from gunicorn.master.pool import (
    FORGIVEN_AFTER,
    LONGEST_BOOT_PAUSE,
    LONGEST_PAUSE,
    PROBATION,
    SILENT_BOOT,
    YOUNG,
    Pacing,
    Plan,
    Trial,
    WorkerRecord,
    due_for_kill,
    end_cause,
    halt_reason,
    match_addresses,
    next_kill,
    next_proof,
    overdue,
    plan,
)
from gunicorn.scoreboard import ENDS


def workers(text: str) -> list[WorkerRecord]:
    """A pool in short: per worker a letter, pid and age being its place.

    ``b`` booted, ``n`` new, ``o`` outdated and booted, ``x`` outdated and not booted, ``r`` retiring,
    ``l`` leaving by itself, ``f`` booted, of a refused reload, ``e`` booted and to be replaced.
    """
    records = [
        WorkerRecord(
            place,
            place,
            0.0,
            booted=letter in "borlfe",
            outdated=letter in "oxf",
            retiring=letter == "r",
            leaving=letter == "l",
        )
        for place, letter in enumerate(text, 1)
    ]
    for record, letter in zip(records, text, strict=True):
        record.refused = letter == "f"
        record.expiring = "lifetime" if letter == "e" else ""
    return records


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
        # One that is due stays until another one has booted, one after the other.
        ("e", 1, Plan(spawn=1, waiting=True)),
        ("en", 1, Plan(waiting=True)),
        ("eb", 1, Plan(retire=(1,))),
        ("eee", 3, Plan(spawn=1, waiting=True)),
        ("eeen", 3, Plan(waiting=True)),
        ("eeeb", 3, Plan(retire=(1,), waiting=True)),
        ("reeb", 3, Plan(spawn=1, waiting=True)),
        ("reebb", 3, Plan(retire=(2,), waiting=True)),
        ("be", 2, Plan(spawn=1, waiting=True)),
        # One that is missing anyway is not the replacement.
        ("be", 3, Plan(spawn=2, waiting=True)),
        ("ben", 3, Plan(spawn=1, waiting=True)),
        # With fewer wanted it needs none.
        ("ebb", 1, Plan(retire=(1,))),
        ("eeb", 1, Plan(retire=(1,), waiting=True)),
        ("ebn", 1, Plan(retire=(3,), waiting=True)),
        ("e", 0, Plan(retire=(1,))),
        # A reload replaces it anyway, and a refused one takes its replacement away.
        ("oe", 1, Plan(retire=(1,))),
        ("one", 2, Plan(waiting=True)),
        ("ex", 1, Plan(retire=(2,))),
    ],
)
def test_plan(pool: str, wanted: int, expected: Plan) -> None:
    assert plan(workers(pool), wanted, 1.0) == expected


def test_an_old_worker_waits_until_the_new_one_has_run_for_a_while() -> None:
    assert plan(workers("on"), 1, 1e6) == Plan(waiting=True)
    (old, new) = records = workers("ob")
    new.booted_at = 10.0
    assert plan(records, 1, 10.0 + PROBATION - 0.01) == Plan(waiting=True)
    assert plan(records, 1, 10.0 + PROBATION) == Plan(retire=(1,))
    # Of a class without heartbeats no worker shows that it has booted.
    old.booted = new.booted = False
    assert plan(records, 1, SILENT_BOOT - 0.1) == Plan(waiting=True)
    assert plan(records, 1, SILENT_BOOT) == Plan(retire=(1,))


@pytest.mark.parametrize(
    "pool, wanted, batch, trial, expected",
    [
        # On trial every old worker stays, however many new ones serve.
        ("oo", 2, 0, True, Plan(spawn=2, waiting=True)),
        ("oobb", 2, 0, True, Plan(waiting=True)),
        ("oooo", 1, 0, True, Plan(spawn=1, waiting=True)),
        ("oob", 0, 0, True, Plan(retire=(3,), waiting=True)),
        ("oobn", 1, 0, True, Plan(retire=(4,), waiting=True)),
        # But those of a reload that was refused go.
        ("oof", 2, 0, True, Plan(spawn=2, retire=(3,), waiting=True)),
        ("off", 2, 0, True, Plan(spawn=2, retire=(2,), waiting=True)),
        ("off", 2, 0, False, Plan(spawn=2, retire=(2,), waiting=True)),
        ("bbff", 2, 0, False, Plan(retire=(3, 4))),
        ("ff", 2, 0, False, Plan(spawn=2, waiting=True)),
        # In batches: so many at once, and the next when there is room.
        ("oooo", 4, 1, True, Plan(spawn=1, waiting=True)),
        ("oooo", 4, 3, False, Plan(spawn=3, waiting=True)),
        ("ooon", 4, 2, False, Plan(spawn=2, waiting=True)),
        ("oooob", 4, 1, True, Plan(waiting=True)),
        ("oooob", 4, 1, False, Plan(retire=(1,), waiting=True)),
        ("rooob", 4, 1, False, Plan(waiting=True)),
        ("ooob", 4, 1, False, Plan(spawn=1, waiting=True)),
        ("ooobn", 4, 1, False, Plan(waiting=True)),
        # More or fewer workers than before; a batch larger than all.
        ("oo", 4, 1, False, Plan(spawn=3, waiting=True)),
        ("oooo", 2, 1, True, Plan(spawn=1, waiting=True)),
        ("oo", 2, 9, False, Plan(spawn=2, waiting=True)),
        ("bb", 4, 1, False, Plan(spawn=2)),
    ],
)
def test_plans_of_a_reload(pool: str, wanted: int, batch: int, trial: bool, expected: Plan) -> None:
    assert plan(workers(pool), wanted, 1.0, trial=trial, batch=batch) == expected


def test_plans_lead_to_what_is_wanted() -> None:
    """Whatever happens meanwhile, carrying plans out ends with as many as wanted, all of the last reload."""
    chance = random.Random(5)
    for _ in range(200):
        records: dict[int, WorkerRecord] = {}
        pid, wanted, told = 0, 1, []
        batch = chance.choice([0, 0, 1, 2])
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
            wish = plan(records.values(), wanted, now, batch=batch)
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
    assert overdue(beats, dict.fromkeys(beats, timeout), 100.0) == expected


def test_each_worker_has_its_own_timeout() -> None:
    """During a reload that of the old configuration, or of the new one."""
    assert overdue({1: 60.0, 2: 60.0, 3: 60.0}, {1: 30, 2: 0, 3: 50}, 100.0) == [1]


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
        now += FORGIVEN_AFTER
        pacing.start_failed(now)
        assert pacing.pause(now) == pauses[0]

    def test_who_cannot_boot_waits_longer(self) -> None:
        pacing, now = Pacing(), 1000.0
        for _ in range(20):
            pacing.worker_ended(now, 0.1, booted=False, asked=False, failed=True)
            now += pacing.pause(now)
        pacing.worker_ended(now, 0.1, booted=False, asked=False, failed=True)
        assert pacing.pause(now) == LONGEST_BOOT_PAUSE
        pacing.worker_ended(now, 0.1, booted=True, asked=False, failed=True)
        assert pacing.pause(now) == LONGEST_PAUSE

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


@pytest.mark.parametrize(
    "pool, needed, passed",
    [
        ("oo", 2, False),
        ("oobn", 2, False),
        ("oobb", 2, True),
        ("oobl", 2, True),
        ("oobr", 2, False),
        # The first batch is enough.
        ("oob", 1, True),
        # Whether or not an old one is left.
        ("bn", 2, False),
        ("bb", 2, True),
        ("oo", 0, True),
        # Nobody can tell whether they boot: "SILENT_BOOT" decides.
        ("xxnn", 2, False),
    ],
)
def test_a_trial_is_passed_when_all_have_booted(pool: str, needed: int, passed: bool) -> None:
    assert Trial().is_passed(workers(pool), needed, 1.0) is passed


def test_a_trial_of_workers_that_have_just_booted() -> None:
    records = workers("ob")
    records[1].booted_at = 10.0
    assert not Trial().is_passed(records, 1, 10.0 + PROBATION - 0.01)
    assert Trial().is_passed(records, 1, 10.0 + PROBATION)
    assert Trial().is_passed(workers("xxnn"), 2, SILENT_BOOT)


def test_workers_that_leave_in_order_have_shown_themselves() -> None:
    """As with ``max_requests = 1``: never so many are there at once."""
    trial = Trial()
    for _ in range(2):
        assert not trial.worker_ended(booted=True, failed=False, needed=3)
    assert trial.is_passed(workers("oooob"), 3, 1.0)
    assert not Trial().is_passed(workers("oooob"), 3, 1.0)


@pytest.mark.parametrize(
    ("pool", "booted_at", "expected"),
    [
        ("bb", [1.0, 1.2], 1.0 + PROBATION),
        # Proven already; not booted; of the configuration before.
        ("bb", [0.0, 1.2], 1.2 + PROBATION),
        ("nb", [0.5, 1.2], 1.2 + PROBATION),
        ("ob", [0.5, 1.2], 1.2 + PROBATION),
        ("on", [0.5, 1.0], None),
    ],
)
def test_when_the_next_has_proven_itself(pool: str, booted_at: list[float], expected: float | None) -> None:
    records = workers(pool)
    for record, moment in zip(records, booted_at, strict=True):
        record.booted_at = moment
    assert next_proof(records, 0.9) == expected


def test_who_is_about_to_end_has_proven_nothing() -> None:
    """On a busy machine a failure takes its time from the first words to the exit."""
    records = workers("ob")
    records[1].ending = True
    assert not Trial().is_passed(records, 1, 1e6)
    records[1].leaving = True
    assert Trial().is_passed(records, 1, 1e6)


@pytest.mark.parametrize("needed, deaths", [(1, 2), (2, 2), (4, 4)])
def test_what_decides_against_a_reload(needed: int, deaths: int) -> None:
    assert Trial().worker_ended(booted=False, failed=True, needed=needed)
    trial = Trial()
    decided = [trial.worker_ended(booted=True, failed=True, needed=needed) for _ in range(deaths)]
    assert decided == [False] * (deaths - 1) + [True]


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


def test_why_a_worker_ended_that_was_due() -> None:
    (record,) = workers("e")
    assert end_cause(record, SIGSEGV, False, None) == "crash"
    record.retiring = True
    assert end_cause(record, SIGKILL, False, None) == "lifetime"
    record.outdated = True
    assert end_cause(record, 0, False, None) == "reload"


def test_a_worker_that_a_reload_replaces_ends_by_it_unless_somebody_was_faster() -> None:
    (record,) = workers("o")
    assert end_cause(record, SIGKILL, False, None) == "killed"
    record.retiring = True
    assert end_cause(record, SIGKILL, False, None) == "reload"
    record.commanded = True
    assert end_cause(record, SIGKILL, False, None) == "command"
