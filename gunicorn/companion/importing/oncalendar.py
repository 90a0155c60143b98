# SPDX-License-Identifier: MIT
"""Say in five fields of cron what ``OnCalendar=`` of a systemd timer says, where they can. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_WORDS = {
    "minutely": "* * * * *",
    "hourly": "0 * * * *",
    "daily": "0 0 * * *",
    "weekly": "0 0 * * 1",
    "monthly": "0 0 1 * *",
    "quarterly": "0 0 1 1,4,7,10 *",
    "semiannually": "0 0 1 1,7 *",
    "yearly": "0 0 1 1 *",
    "annually": "0 0 1 1 *",
}
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DATE_RE = re.compile(r"(?:\*-|(?=[^-]+-[^-]+\Z))([^-]+)-([^-]+)")
_TIME_RE = re.compile(r"([^:]+):([^:]+?)(?::0{1,2})?")
_PART_RE = re.compile(r"(\*|\d+(?:\.\.\d+)?)(/\d+)?")
_ZONE_RE = re.compile(r"UTC|[A-Z][A-Za-z]+/[A-Za-z_/+-]+")


class Times(NamedTuple):
    """Five fields of cron; and a time zone, or none."""

    fields: str
    zone: str | None = None


def to_cron(text: str) -> Times | None:
    """Return what *text* means; None if five fields cannot say it, or it is not understood here."""
    words = text.split()
    zone = words.pop() if len(words) > 1 and _ZONE_RE.fullmatch(words[-1]) else None
    if len(words) == 1 and words[0].lower() in _WORDS:
        return Times(_WORDS[words[0].lower()], zone)
    if not words:
        return None
    weekday = day = month = "*"
    minute = hour = "0"
    if words[0][0].isalpha():
        found = _weekdays(words.pop(0))
        if found is None:
            return None
        weekday = found
    if words and (date := _DATE_RE.fullmatch(words[0])):
        month, day = _field(date[1]), _field(date[2])
        words.pop(0)
    if words:
        time = _TIME_RE.fullmatch(words.pop(0))
        if time is None:
            return None
        hour, minute = _field(time[1]), _field(time[2])
    # With a day of both kinds, cron takes either one, and systemd both.
    if words or not all((minute, hour, day, month)) or "*" not in (day, weekday):
        return None
    return Times(f"{minute} {hour} {day} {month} {weekday}", zone)


def _field(text: str) -> str:
    """One field; empty if it cannot be said."""
    parts = []
    for part in text.split(","):
        match = _PART_RE.fullmatch(part)
        if match is None:
            return ""
        values = re.sub(r"\d+", lambda number: str(int(number[0])), match[1]).replace("..", "-")
        if match[2] and values == "0":
            values = "*"
        parts.append(values + (match[2] or ""))
    return ",".join(parts)


def _weekdays(text: str) -> str | None:
    """``mon..fri,sun`` as ``1-5,0``; None if there is another word."""
    parts = []
    for part in text.lower().split(","):
        days = [_DAYS.index(day[:3]) if day[:3] in _DAYS else -1 for day in part.split("..")]
        if -1 in days or len(days) > 2:
            return None
        # Sunday is the first day there is, or the last one.
        first, last = days[0], days[-1] or (7 if len(days) == 2 else 0)
        if first > last:
            return None
        parts.append(f"{first}" if len(days) == 1 else f"{first}-{last}")
    return ",".join(parts)
