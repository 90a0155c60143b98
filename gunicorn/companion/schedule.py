# SPDX-License-Identifier: MIT
"""The times of a schedule: when they come, which of them are due and which were missed. Pure.

The times of ``30 3 * * *`` are those of the wall clock in a time zone, and cronsim finds them. Those of
``every 15m`` follow each other by the clock that counts from boot: it goes on while the machine sleeps, and
nobody sets it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple, Protocol

from gunicorn.companion.checks import check_time

NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
EXAMPLES = "'30 3 * * *' (minute, hour, day of the month, month, day of the week), '@daily' or 'every 15m'"

_EVERY_RE = re.compile(r"@?every +(\d{1,9}) *([smhd]?)", re.IGNORECASE)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

# A year: an interval or a jitter beyond it is a typing error.
LONGEST = 366 * 86400

# A run that begins up to so many seconds late is not missed: a manager or a server was just replaced.
GRACE = 90.0
# As cron does: a clock that was set by more than this is right now, and was wrong before. Steps up to this
# neither repeat nor lose a run.
LARGEST_STEP = 3 * 3600.0
# With a star as hour or minute a schedule goes by the new time if the clock was set back by more than this.
SMALL_STEP = 60.0

# No time of a run comes near it: the year 5138.
_FAR = 1e11

# How far to look back for the latest time that has passed: further only if there is none.
_BACK = (2 * 3600, 2 * 86400, 62 * 86400)


class Moment(NamedTuple):
    """One moment by the wall clock (seconds since the epoch) and by the clock that counts from boot."""

    wall: float
    boot: float


class Timetable(Protocol):
    """The times of a schedule, by the wall clock if ``by_wall``, else by the clock from boot."""

    by_wall: bool

    def next_after(self, moment: float) -> float | None:
        """The first time after *moment*, which is one of the times if they follow each other; None: never."""

    def latest(self, through: float, now: float) -> float:
        """The last time up to *now*, of those after *through*; *through* if there is none."""


@dataclass(frozen=True)
class Every:
    """``every 15m``."""

    seconds: int
    by_wall = False

    def next_after(self, moment: float) -> float:
        return moment + self.seconds

    def latest(self, through: float, now: float) -> float:
        return through + max(0, math.floor((now - through) / self.seconds)) * self.seconds


@dataclass(frozen=True)
class Cron:
    """Five fields of cron, in *zone*.

    In summer time the rules are those of Debian's cron: a fixed time that is skipped comes right after the
    gap, and one that the clock shows twice comes once. With a star as hour or minute each real time counts.
    """

    fields: str
    zone: tzinfo
    by_wall = True

    def next_after(self, moment: float) -> float | None:
        return next(self._times(moment), None)

    def latest(self, through: float, now: float) -> float:
        for seconds in (*_BACK, math.inf):
            last = found = max(through, now - seconds)
            for each in self._times(found):
                if each > now:
                    break
                last = each
            if last != found or found == through:
                return last
        raise AssertionError("unreachable")

    def _times(self, moment: float) -> Iterator[float]:
        from cronsim import CronSim

        for each in CronSim(self.fields, datetime.fromtimestamp(math.floor(moment), self.zone)):
            # Of a time that comes twice, the first one may be over.
            if each.timestamp() > moment:
                yield each.timestamp()

    @property
    def is_fixed(self) -> bool:
        """Whether it names its hours and minutes."""
        return not any(field.startswith("*") for field in self.fields.split()[:2])


class HostZone(tzinfo):
    """The time zone of this machine, by the C library: also where there is no database of zones."""

    def utcoffset(self, dt: datetime | None) -> timedelta:
        naive = (dt or datetime.now()).replace(tzinfo=None)
        as_utc = naive.replace(tzinfo=timezone.utc, fold=0).timestamp()
        return timedelta(seconds=round(as_utc - naive.timestamp()))

    def dst(self, dt: datetime | None) -> None:
        return None

    def tzname(self, dt: datetime | None) -> str:
        return "local time"

    def fromutc(self, dt: datetime) -> datetime:
        stamp = dt.replace(tzinfo=timezone.utc).timestamp()
        return datetime.fromtimestamp(stamp).replace(tzinfo=self)


HOST = HostZone()


def host_zone_is_usable() -> bool:
    """Whether Python can count in the time zone of this machine: the C library takes any TZ."""
    try:
        datetime.now(HOST).utcoffset()
    except ValueError:
        return False
    return True


# -- what may be configured ---------------------------------------------------------


def check_schedule(value: Any) -> str:
    """Return the schedule in its usual form. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a schedule, such as {EXAMPLES}")
    text = " ".join(value.split())
    if every := _EVERY_RE.fullmatch(text):
        seconds = int(every[1]) * _UNITS[every[2].lower() or "s"]
        if not 1 <= seconds <= LONGEST:
            raise ValueError(f"{value!r}: the time is not between a second and a year")
        return f"every {every[1]}{every[2].lower() or 's'}"
    if text.lower() == "@reboot":
        raise ValueError(
            "'@reboot' is no time: leave out schedule, and the companion starts with the server; "
            '"autorestart": "on-failure" makes it a job'
        )
    text = NAMED.get(text.lower(), text)
    if text.startswith(("@", "every", "EVERY")) or len(text.split()) != 5:
        raise ValueError(f"{value!r} is not a schedule, such as {EXAMPLES}")
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        raise ValueError(
            f"{value!r} needs the package cronsim: install gunicorn[schedule] (pip install "
            "'gunicorn[schedule]'). 'every 15m' needs nothing"
        ) from None
    try:
        # Of each leap year the first one within the 50 years that are searched.
        found = next(CronSim(text, datetime(2024, 1, 1)), None)
    except CronSimError as exc:
        what = str(exc).removeprefix("Bad ")
        never = ", or there is no such day in these months" if what == "day-of-month" else ""
        raise ValueError(f"{value!r}: wrong {what}{never}; a schedule is like {EXAMPLES}") from None
    if found is None:
        raise ValueError(f"{value!r} never comes: there is no such day")
    return text


def check_timezone(value: Any) -> str:
    """Return the name of a time zone. Raises ValueError."""
    import zoneinfo

    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not the name of a time zone, such as 'Europe/Berlin' or 'UTC'")
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if not known:
            raise ValueError(
                f"{value!r}: no database of time zones is found: install the package tzdata, "
                "of the system or by pip install tzdata"
            ) from None
        import difflib

        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "names are like 'Europe/Berlin' or 'UTC'"
        raise ValueError(f"{value!r} is no known time zone: {hint}") from None
    return value


def check_jitter(value: Any) -> float:
    if check_time(value) > LONGEST:
        raise ValueError("it is more than a year")
    return check_time(value)


@functools.lru_cache(maxsize=1024)
def timetable(schedule: str, zone: str | None) -> Timetable:
    """Return the times of *schedule*, which was checked, in the time zone *zone*; None: that of the host."""
    if every := _EVERY_RE.fullmatch(schedule):
        return Every(int(every[1]) * _UNITS[every[2]])
    return Cron(schedule, zone_of(zone))


def zone_of(name: str | None) -> tzinfo:
    if name is None:
        return HOST
    import zoneinfo

    return zoneinfo.ZoneInfo(name)


# -- what is due ---------------------------------------------------------------------


class Due(NamedTuple):
    """A time that has come. *at*: by the wall clock; *late*: for how many seconds nobody looked."""

    at: float
    late: float

    @property
    def is_missed(self) -> bool:
        return self.late > GRACE


@dataclass
class Clock:
    """Follows one timetable from look to look.

    ``through``: all times up to it are dealt with, by the clock of the timetable. ``seen``: the last look;
    None before the first. ``delay``: the seconds of jitter before the next run.
    """

    times: Timetable
    through: float
    delay: float = 0.0
    seen: Moment | None = None

    def __post_init__(self) -> None:
        self.next_time = self.times.next_after(self.through)

    @classmethod
    def since(cls, times: Timetable, wall: float, now: Moment) -> Clock:
        """A clock of which all times up to *wall* are dealt with."""
        if times.by_wall:
            return cls(times, wall)
        return cls(times, now.boot - max(0.0, now.wall - wall))

    @property
    def next_at(self) -> float:
        """When the next run is to begin, by the clock of the timetable."""
        return math.inf if self.next_time is None else self.next_time + self.delay

    def seconds_left(self, now: Moment) -> float:
        return self.next_at - self._by_own_clock(now)

    def _by_own_clock(self, moment: Moment) -> float:
        return moment.wall if self.times.by_wall else moment.boot

    def skip_to(self, now: Moment) -> None:
        """Count all times up to *now* as dealt with."""
        self._deal_with(self._by_own_clock(now))

    def _deal_with(self, through: float) -> None:
        self.through = through
        self.next_time = self.times.next_after(through)

    def look(self, now: Moment) -> Due | None:
        """Return the latest time that has come since the last look, if there is one."""
        if isinstance(self.times, Cron):
            self._follow_steps(self.times, now)
        since = math.inf if self.seen is None else now.boot - self.seen.boot
        self.seen = now
        moment = self._by_own_clock(now)
        if moment < self.next_at:
            return None
        assert self.next_time is not None
        # It has come, even if a rounded difference says that it has not.
        latest = max(self.next_time, self.times.latest(self.through, moment - self.delay))
        # A step of the clock has made nobody wait.
        late = min(moment - latest - self.delay, since)
        self._deal_with(latest)
        return Due(now.wall - (moment - latest), late)

    def _follow_steps(self, times: Cron, now: Moment) -> None:
        back = self.through - now.wall
        if back > LARGEST_STEP or (back > SMALL_STEP and not times.is_fixed):
            self._deal_with(now.wall)
        elif self.seen is not None:
            step = (now.wall - self.seen.wall) - (now.boot - self.seen.boot)
            if step > LARGEST_STEP:
                self._deal_with(now.wall)

    def wall_of_through(self, now: Moment) -> float:
        """``through`` by the wall clock, to go on from it after a boot."""
        return self.through if self.times.by_wall else now.wall - (now.boot - self.through)


def is_time(value: object) -> bool:
    """Whether *value*, which others may have written, can be seconds since the epoch."""
    # Not a number is in no range.
    return type(value) in (int, float) and 0 <= value < _FAR  # type: ignore[operator]


# -- runs of a fleet ----------------------------------------------------------------


@dataclass
class Note:
    """What a server stores with the lease: the *state* of the run at *through*, and who makes it.

    The state is ``begun``, ``done`` or ``cut`` (short).
    """

    through: float
    state: str
    by: str

    @classmethod
    def of(cls, text: str) -> Note | None:
        """What *text* says; None if it is none of ours."""
        try:
            found = json.loads(text)
            through, state, by = found["through"], str(found["state"]), str(found["by"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return cls(float(through), state, by) if is_time(through) else None

    def text(self) -> str:
        return json.dumps(asdict(self))

    def deals_with(self, time: float, times: Timetable, now: float, *, by: str, catch_up: bool) -> bool:
        """Whether *by*, which holds the lease now and has made no run for *time*, need not make it.

        Who still makes a run has the lease: a run that has only begun was cut short.
        """
        if self.through > now + LARGEST_STEP:
            # That server's clock was wrong.
            return False
        following = times.next_after(self.through)
        if following is not None and following <= time:
            return False
        not_begun = self.state == "begun" and self.by == by and self.through == time
        return not (not_begun or (catch_up and self.state != "done"))


def next_times(schedule: str, zone: str | None, now: float, count: int) -> list[str]:
    """The next times after *now* for people: ``2026-11-28 03:30 CET``; none for ``every``."""
    times = timetable(schedule, zone)
    found: list[str] = []
    moment: float | None = now
    while times.by_wall and len(found) < count and (moment := times.next_after(moment or now)) is not None:
        found.append(datetime.fromtimestamp(moment, zone_of(zone)).strftime("%Y-%m-%d %H:%M"))
    return found


def clock_time(moment: float, now: float, zone: str | None) -> str:
    """``03:30`` within a day of *now*, else ``2026-11-29 03:30``; with the name of a zone that is set."""
    at = datetime.fromtimestamp(moment, zone_of(zone))
    text = at.strftime("%H:%M" if abs(moment - now) < 86400 else "%Y-%m-%d %H:%M")
    return text if zone is None else f"{text} {zone}"
