# SPDX-License-Identifier: MIT
"""The times of a schedule: summer time, month ends, steps of the clock, sleep, and what is due or missed."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import sys
import time
import zoneinfo
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn.companion.runfile import RunFile
from gunicorn.companion.schedule import (
    GRACE,
    HOST,
    Clock,
    Moment,
    Note,
    check_schedule,
    check_timezone,
    clock_time,
    next_times,
    timetable,
    zone_of,
)
from gunicorn.companion.supervise.schedules import Memory, Schedules

HOUR = 3600.0
DAY = 24 * HOUR


def wall(text: str, zone: str | None = "UTC", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone_of(zone), fold=fold).timestamp()


def shown(moment: float, zone: str | None = "UTC") -> str:
    return datetime.fromtimestamp(moment, zone_of(zone)).strftime("%m-%d %H:%M")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("30 3 * * *", "30 3 * * *"),
        ("  30  3 * *\tMON-FRI ", "30 3 * * MON-FRI"),
        ("@daily", "0 0 * * *"),
        ("@Hourly", "0 * * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("every 90s", "every 90s"),
        ("every  15 m", "every 15m"),
        ("every 90", "every 90s"),
        ("@every 2h", "every 2h"),
        ("0 0 29 2 *", "0 0 29 2 *"),
    ],
)
def test_a_schedule_in_its_usual_form(given: str, found: str) -> None:
    assert check_schedule(given) == check_schedule(found) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (7, "7 is not a schedule, such as '30 3 * * *' (minute, hour"),
        ("", "'' is not a schedule"),
        ("daily", "'daily' is not a schedule"),
        ("@dayly", "'@dayly' is not a schedule"),
        ("* * * *", "is not a schedule"),
        ("0 0 3 * * *", "is not a schedule"),
        ("61 * * * *", "'61 * * * *': wrong minute; a schedule is like"),
        ("0 24 * * *", "wrong hour"),
        ("0 0 30 2 *", "wrong day-of-month, or there is no such day in these months"),
        ("0 0 31 4,6 *", "there is no such day in these months"),
        ("every 0s", "the time is not between a second and a year"),
        ("every 400d", "the time is not between a second and a year"),
        ("every 1.5h", "'every 1.5h' is not a schedule"),
        ("every", "'every' is not a schedule"),
        ("@reboot", "'@reboot' is no time: leave out schedule"),
    ],
)
def test_a_wrong_schedule_says_what_is_right(given: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_schedule(given)
    assert said in str(caught.value)


def test_without_cronsim_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(ValueError, match=r"install gunicorn\[schedule\]"):
        check_schedule("@daily")
    assert check_schedule("every 15m") == "every 15m"


def test_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_timezone("Europe/Berlin") == "Europe/Berlin"
    for wrong, said in [
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("../x", "is no known"),
        (7, "7 is not"),
    ]:
        with pytest.raises(ValueError, match=said.replace("?", r"\?")):
            check_timezone(wrong)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    with pytest.raises(ValueError, match="install the package tzdata"):
        check_timezone("Europe/Nowhere")


# -- the times -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "zone", "after", "expected"),
    [
        # The clock goes from 02:00 to 03:00, so a fixed time in between comes right after the gap.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", ["03-29 03:00", "03-30 02:30", "03-31 02:30"]),
        ("30 3 * * *", "Europe/Berlin", "2026-03-28 12:00", ["03-29 03:30", "03-30 03:30"]),
        # It shows 02:30 twice; the time comes once.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", ["10-25 02:30", "10-26 02:30"]),
        # Each real hour counts, also the one that the clock shows twice or not at all.
        ("30 * * * *", "Europe/Berlin", "2026-10-25 01:45", ["10-25 02:30", "10-25 02:30", "10-25 03:30"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29 01:15", ["03-29 01:30", "03-29 03:30"]),
        # The southern half, and half an hour of summer time.
        ("30 2 * * *", "Australia/Sydney", "2026-10-03 12:00", ["10-04 03:00", "10-05 02:30"]),
        ("30 2 * * *", "Australia/Sydney", "2026-04-04 12:00", ["04-05 02:30", "04-06 02:30"]),
        ("10 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00", ["10-04 02:30", "10-05 02:10"]),
        ("0 0 * * *", "America/Santiago", "2026-09-05 12:00", ["09-06 01:00", "09-07 00:00"]),
        ("0 2 * * *", "Asia/Tokyo", "2026-03-28 12:00", ["03-29 02:00", "03-30 02:00"]),
        # Leap days, month ends, days of the week.
        ("0 0 29 2 *", "UTC", "2026-01-01", ["02-29 00:00", "02-29 00:00"]),
        ("0 0 31 * *", "UTC", "2026-01-31 12:00", ["03-31 00:00", "05-31 00:00"]),
        ("0 0 L * *", "UTC", "2028-01-31 12:00", ["02-29 00:00", "03-31 00:00"]),
        ("59 23 31 12 *", "UTC", "2026-12-31 23:58", ["12-31 23:59", "12-31 23:59"]),
        ("0 9 * * MON-FRI", "UTC", "2026-11-27 09:00", ["11-30 09:00", "12-01 09:00"]),
        ("0 9 1 * MON", "UTC", "2026-11-27", ["11-30 09:00", "12-01 09:00", "12-07 09:00"]),
    ],
)
def test_the_next_times(schedule: str, zone: str, after: str, expected: list[str]) -> None:
    times = timetable(schedule, zone)
    moment, found = wall(after, zone), []
    for _ in expected:
        following = times.next_after(moment)
        assert following is not None and following > moment
        # Whoever looks late finds the same time.
        assert times.latest(moment, following) == times.latest(moment, following + 1) == following
        assert times.latest(moment, following - 1) == moment
        moment = following
        found.append(shown(moment, zone))
    assert found == expected


def test_a_time_that_the_clock_shows_twice_comes_once() -> None:
    """Also for a server that starts in between."""
    times = timetable("30 2 * * *", "Europe/Berlin")
    for between in ("02:10", "02:45"):
        second = wall(f"2026-10-25 {between}", "Europe/Berlin", fold=1)
        following = times.next_after(second)
        assert following is not None
        assert shown(following, "Europe/Berlin") == "10-26 02:30"


@pytest.mark.parametrize(
    ("schedule", "ago"),
    [
        ("*/10 * * * *", 60),
        ("*/10 * * * *", 30 * 60),
        ("*/10 * * * *", 3 * DAY),
        ("30 3 * * *", 3 * HOUR),
        ("30 3 * * *", 26 * HOUR),
        ("30 3 * * *", 70 * DAY),
        ("0 0 1 1 *", 40 * DAY),
        ("0 0 1 1 *", 400 * DAY),
        ("0 0 29 2 *", 1000 * DAY),
    ],
)
def test_the_latest_time_is_the_last_of_all(schedule: str, ago: float) -> None:
    times, now = timetable(schedule, "UTC"), wall("2026-11-27 12:34:56")
    moment: float | None = now - ago
    latest = moment
    while moment is not None and moment <= now:
        latest, moment = moment, times.next_after(moment)
    assert times.latest(now - ago, now) == latest


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A rule, as some systems have it in TZ, and no name of a zone.
    monkeypatch.setenv("TZ", "EST5EDT,M3.2.0,M11.1.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
def test_the_zone_of_the_host_is_as_good_as_a_named_one() -> None:
    zone = zoneinfo.ZoneInfo("America/New_York")
    changes = (wall("2026-03-08 06:00"), wall("2026-11-01 05:00"))
    at_changes = [int(change) + 600 * step for change in changes for step in range(-12, 24)]
    for moment in [*range(int(wall("2026-01-01")), int(wall("2027-01-01")), 86400), *at_changes]:
        ours, theirs = datetime.fromtimestamp(moment, HOST), datetime.fromtimestamp(moment, zone)
        assert (ours.replace(tzinfo=None), ours.utcoffset()) == (
            theirs.replace(tzinfo=None),
            theirs.utcoffset(),
        )
        assert ours.timestamp() == moment
    for schedule in ("30 2 * * *", "30 1 * * *", "*/30 * * * *"):
        for begin in ("2026-03-07", "2026-10-31"):
            one, other = timetable(schedule, None), timetable(schedule, "America/New_York")
            moment = wall(begin)
            for _ in range(60):
                assert one.next_after(moment) == other.next_after(moment)
                moment = one.next_after(moment) or 0


def test_times_for_people() -> None:
    now = wall("2026-11-27 12:00")
    found = next_times("30 3 * * *", "Asia/Tokyo", now, 2)
    assert found == ["2026-11-28 03:30", "2026-11-29 03:30"]
    assert next_times("every 15m", None, now, 3) == []
    assert clock_time(now + HOUR, now, "Asia/Tokyo") == "22:00 Asia/Tokyo"
    assert clock_time(now + 2 * DAY, now, "UTC") == "2026-11-29 12:00 UTC"


# -- what is due -------------------------------------------------------------------------

NIGHT = "30 3 * * *"
QUARTER = "*/15 * * * *"


class Host:
    """Two clocks, and a look at them at least once a minute while the machine is awake."""

    def __init__(self, schedule: str, begin: str, through: str | None = None) -> None:
        self.now = Moment(wall(begin), 5000.0)
        self.clock = Clock.since(timetable(schedule, "UTC"), wall(through or begin), self.now)
        self.found: list[str] = []
        self.look()

    def look(self) -> None:
        if (due := self.clock.look(self.now)) is not None:
            at = datetime.fromtimestamp(due.at, timezone.utc).strftime("%d %H:%M")
            self.found.append(f"{at}{' missed' if due.is_missed else ''}")

    def sleep(self, seconds: float) -> None:
        """Nobody looks meanwhile."""
        self.now = Moment(self.now.wall + seconds, self.now.boot + seconds)
        self.look()

    def wait(self, seconds: float) -> None:
        while seconds > 0:
            step = min(60.0, seconds)
            seconds -= step
            self.sleep(step)

    def set_clock(self, seconds: float) -> None:
        self.now = Moment(self.now.wall + seconds, self.now.boot)
        self.look()


def test_each_time_comes_once() -> None:
    host = Host(NIGHT, "2026-11-27 12:00")
    host.wait(3 * DAY)
    assert host.found == ["28 03:30", "29 03:30", "30 03:30"]


@pytest.mark.parametrize(
    ("through", "begin", "expected"),
    [
        # A server that is back after a few seconds is in time; one that was down for longer has missed it.
        ("2026-11-26 03:30", "2026-11-27 03:30:20", ["27 03:30"]),
        ("2026-11-26 03:30", "2026-11-27 08:00", ["27 03:30 missed"]),
        ("2026-11-20 03:30", "2026-11-27 03:29", ["26 03:30 missed", "27 03:30"]),
        # In the minute of a run that was made, or that is yet to come.
        ("2026-11-27 03:30", "2026-11-27 03:30:20", []),
        ("2026-11-26 03:30", "2026-11-27 03:29:50", ["27 03:30"]),
        # The clock was wrong by a year when that was noted.
        ("2027-11-27 03:30", "2026-11-27 03:29", ["27 03:30"]),
    ],
)
def test_a_server_that_comes_back(through: str, begin: str, expected: list[str]) -> None:
    host = Host(NIGHT, begin, through)
    host.wait(60)
    assert host.found == expected


@pytest.mark.parametrize(
    ("schedule", "begin", "step", "expected"),
    [
        # A step back repeats nothing, and later times come by the new clock.
        (NIGHT, "2026-11-27 03:20", -HOUR, ["27 03:30", "28 03:30"]),
        (NIGHT, "2026-11-27 03:20", -5.0, ["27 03:30", "28 03:30"]),
        # A step forward loses nothing.
        (NIGHT, "2026-11-27 03:00", HOUR, ["27 03:30", "28 03:30"]),
        (NIGHT, "2026-11-27 03:00", 2.9 * HOUR, ["27 03:30", "28 03:30"]),
        # After more than three hours the new time counts, and the old one was wrong.
        (NIGHT, "2026-11-27 03:20", -4 * HOUR, ["27 03:30", "27 03:30", "28 03:30"]),
        (NIGHT, "2026-11-27 01:00", 4 * HOUR, ["28 03:30"]),
        (NIGHT, "2026-11-27 03:20", 365 * DAY, ["27 03:30", "28 03:30"]),
    ],
)
def test_a_step_of_the_clock(schedule: str, begin: str, step: float, expected: list[str]) -> None:
    host = Host(schedule, begin)
    host.wait(15 * 60)
    host.set_clock(step)
    host.wait(30 * HOUR)
    assert host.found == expected


def test_a_schedule_with_a_star_goes_by_the_new_time_at_once() -> None:
    host = Host(QUARTER, "2026-11-27 12:00")
    host.wait(20 * 60)
    host.set_clock(-HOUR)
    host.wait(20 * 60)
    assert host.found == ["27 12:15", "27 11:30"]
    # But the adjustment of a few seconds repeats nothing.
    host.wait(5 * 60)
    host.set_clock(-2.0)
    host.wait(60)
    assert host.found == ["27 12:15", "27 11:30", "27 11:45"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(NIGHT, ["28 03:30 missed", "29 03:30"]), ("every 2h", ["28 07:00 missed", "28 09:00"])],
)
def test_times_that_pass_while_the_machine_sleeps_are_missed(schedule: str, expected: list[str]) -> None:
    host = Host(schedule, "2026-11-27 23:00")
    host.sleep(9 * HOUR)
    host.wait(DAY)
    assert host.found[:2] == expected
    # A doze is no more than a delay.
    host = Host(schedule, "2026-11-28 03:29:50", "2026-11-28 01:30:10")
    host.sleep(GRACE)
    assert "missed" not in host.found[0]


def test_every_keeps_its_rhythm() -> None:
    host = Host("every 7s", "2026-11-27 12:00")
    for seconds in (6.5, 0.7, 8.0, 14.0, 0.1):
        host.sleep(seconds)
    assert len(host.found) == 3
    assert host.clock.seconds_left(host.now) == pytest.approx(35 - 29.3)
    # Nobody sets that clock.
    host.set_clock(-HOUR)
    assert host.clock.seconds_left(host.now) == pytest.approx(35 - 29.3)
    # A server that comes back goes on with it.
    later = Moment(host.now.wall + 100, 3.0)
    clock = Clock.since(host.clock.times, host.clock.wall_of_through(host.now), later)
    assert clock.look(later) is not None
    assert clock.seconds_left(later) == pytest.approx((35 - 29.3 - 100) % 7)


def test_jitter_delays_a_run_and_nothing_else() -> None:
    host = Host(NIGHT, "2026-11-27 03:00")
    host.clock.delay = 600.0
    host.wait(39 * 60)
    assert host.found == []
    host.clock.delay = 600.0
    host.wait(2 * 60)
    assert host.found == ["27 03:30"]
    assert host.clock.through == wall("2026-11-27 03:30")


def test_no_rounding_brings_a_time_again() -> None:
    chance = random.Random(7)
    host = Host("every 7s", "2026-11-27 12:00")
    host.now = Moment(host.now.wall, 0.1)
    host.clock = Clock.since(host.clock.times, host.now.wall, host.now)
    # A rounded wait may also end just before its time; then the next one finds it.
    for _ in range(2010):
        if len(host.found) < 2000:
            host.clock.delay = 3 * chance.random()
            host.sleep(host.clock.seconds_left(host.now))
    assert len(host.found) == 2000
    assert host.clock.through == pytest.approx(0.1 + 2000 * 7)


# -- runs of a fleet ---------------------------------------------------------------------

T = wall("2026-11-27 03:30")


@pytest.mark.parametrize(
    ("schedule", "note", "catch_up", "dealt_with"),
    [
        # Another server has made the run of this time, or of a later one.
        (NIGHT, Note(T, "done", "b"), True, True),
        (NIGHT, Note(T + DAY, "done", "b"), True, True),
        # The run of last night says nothing about this one.
        (NIGHT, Note(T - DAY, "done", "b"), False, False),
        (NIGHT, Note(T - DAY, "begun", "b"), False, False),
        # Its server died in the middle, or has cut it short.
        (NIGHT, Note(T, "begun", "b"), False, True),
        (NIGHT, Note(T, "begun", "b"), True, False),
        (NIGHT, Note(T, "cut", "b"), False, True),
        (NIGHT, Note(T, "cut", "b"), True, False),
        # This server has noted it, lost the lease before it began, and has it again.
        (NIGHT, Note(T, "begun", "a"), False, False),
        (NIGHT, Note(T, "cut", "a"), False, True),
        # The clock of the other one is wrong by a month, or by a minute.
        (NIGHT, Note(T + 30 * DAY, "done", "b"), False, False),
        ("every 15m", Note(T - 840, "done", "b"), False, True),
        ("every 15m", Note(T - 900, "done", "b"), False, False),
        ("every 15m", Note(T + 60, "done", "b"), False, True),
    ],
)
def test_a_server_that_gets_the_lease(schedule: str, note: Note, catch_up: bool, dealt_with: bool) -> None:
    found = Note.of(note.text())
    assert found == note
    times = timetable(schedule, "UTC")
    # A day is more than a step of the clock.
    now = T + 22 * HOUR
    assert found.deals_with(T, times, now, by="a", catch_up=catch_up) is dealt_with


_THROUGHS = ('"x"', "[]", "true", "1" + "0" * 400, "NaN", "1e400", "-1e400", "-1e300", "-1e11")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", "1", "[" * 200_000),
        *(f'{{"through": {through}, "state": "done", "by": ""}}' for through in _THROUGHS),
    ],
    ids=lambda text: text[:20],
)
def test_a_note_that_is_none_of_ours(text: str) -> None:
    assert Note.of(text) is None


_RUN = {"started": 90.0, "why": "schedule", "good": None, "took": None, "how": None}
_SOUND = asdict(Memory(["every 1s", None], 100.0, runs=[_RUN]))


def read_memory(text: str, directory: Path) -> Memory:
    (directory / "a.schedule").write_text(text)
    with (directory / "a.schedule").open() as file:
        return Memory.of(RunFile(file.fileno(), None), ["every 1s", None], 200.0)


def test_a_disk_that_is_full_is_no_success(tmp_path: Path) -> None:
    memory = Memory(["every 1s", None], 100.0, runs=[_RUN] * 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "a.schedule").open("w+") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(OSError, match="No space left on device"):
                memory.write(RunFile(file.fileno(), None))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_memory_is_read_again(tmp_path: Path) -> None:
    for run in (_RUN, {**_RUN, "good": False, "took": 1, "how": "exited with status 1"}):
        assert read_memory(json.dumps({**_SOUND, "runs": [run]}), tmp_path).runs == [run]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "[]",
        *(
            json.dumps({**_SOUND, **changed})
            for changed in (
                {"through": "x"},
                {"through": math.inf},
                {"through": math.nan},
                {"through": -1e11},
                {"runs": 1},
                {"runs": [1]},
                {"runs": [{}]},
                {"runs": [{**_RUN, "good": "yes"}]},
                {"runs": [{**_RUN, "started": math.inf}]},
                {"runs": [{**_RUN, "took": "long"}]},
                {"runs": [{**_RUN, "how": 1}]},
                {"count": None},
                {"last_success": []},
                {"id": 1},
            )
        ),
    ],
)
def test_a_memory_that_is_garbage_is_begun_anew(text: str, tmp_path: Path) -> None:
    found = read_memory(text, tmp_path)
    assert (found.through, found.count, found.runs, found.last_success) == (200.0, 0, [], None)


def test_each_reason_why_runs_cannot_be_noted_is_told_once() -> None:
    told: list[str] = []
    log: Any = SimpleNamespace(warning=lambda text, *values: told.append(text % values))
    rights: Any = SimpleNamespace(run_dir="/run/shop")
    nothing: Any = None
    schedules = Schedules(nothing, log, kept=nothing, start_rights=rights, leases=nothing)
    for name, number in (("a", errno.ENOSPC), ("b", errno.EISDIR), ("c", errno.ENOSPC), ("b", errno.EISDIR)):
        schedules._complain(name, OSError(number, os.strerror(number)))
    assert [text.partition(". If")[0] for text in told] == [
        "The runs of companion a cannot be noted in /run/shop/a.schedule: No space left on device",
        "The runs of companion b cannot be noted in /run/shop/b.schedule: Is a directory",
    ]
