# SPDX-License-Identifier: MIT
"""Make the rows and the summary of the live screen from what the server says. Pure."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gunicorn.companion.client.commands import describe_refusal, runs_as_it_should

Reply = Mapping[str, Any]

# How urgent a row is.
FINE, MOVING, BAD = range(3)
MARKS = (" ", "*", "!")

STATES = ("RUNNING", "STARTING", "BACKOFF", "STOPPING", "STOPPED", "idle", "busy", "booting", "retiring")

PROBLEMS = "problems"

# A request that runs for longer, or a master without a beat for longer, is marked; in seconds.
SLOW = 5.0
# So long after a failure a companion that runs again is marked; in seconds.
RECENT = 60.0
# Rates are taken over at least this time, in seconds: two looks may be much closer.
RATE_TIME = 1.5
# The time of the quantiles, in seconds.
WINDOW = 30.0
# Points of the line of load, and their distance in seconds.
LOAD_POINTS = 120
LOAD_INTERVAL = 2.0

BARS = "▁▂▃▄▅▆▇█"
# For terminals without these characters.
ASCII = str.maketrans(dict(zip(BARS, "_.-=+*%#", strict=True)) | {"…": ">", "·": "|"})

_COLOR_RE = re.compile("\x1b\\[[0-9;:]*m")
_CONTROL_RE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """Return *text* without anything that acts on a terminal: colours go, the rest is shown as ``\\x1b``."""
    plain = _COLOR_RE.sub("", str(text)).expandtabs(4)
    return _CONTROL_RE.sub(lambda match: f"\\x{ord(match[0]):02x}", plain)


@dataclass(frozen=True)
class Look:
    """What the server has said at one time. *at* is monotonic, *wall* the time of day."""

    at: float
    wall: float
    server: Reply
    companions: Sequence[Reply]
    # None: the server knows nothing of it.
    web: Reply | None = None


# -- rates ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    at: float
    counters: Mapping[Any, float]
    histogram: Sequence[int]


class Rates:
    """Differences between the latest looks."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        # Requests a second, the latest last.
        self.load: deque[float] = deque(maxlen=LOAD_POINTS)
        self._load_at: float | None = None

    def add(self, look: Look) -> None:
        web = look.web or {}
        totals = web.get("totals") or {}
        self._samples.append(
            _Sample(look.at, dict(_counters(look.companions, web)), totals.get("histogram") or ())
        )
        while len(self._samples) > 2 and look.at - self._samples[1].at >= WINDOW:
            self._samples.popleft()
        load = self.of("requests")
        if load is not None and (self._load_at is None or look.at - self._load_at >= LOAD_INTERVAL * 0.9):
            self.load.append(load)
            self._load_at = look.at

    def of(self, *key: Any) -> float | None:
        """The rate of a counter for each second; None if it is not known yet, or began anew."""
        # Not each look has each counter.
        known = [(sample.at, sample.counters[key]) for sample in self._samples if key in sample.counters]
        if len(known) < 2:
            return None
        at, now = known[-1]
        before, then = next((one for one in reversed(known) if at - one[0] >= RATE_TIME), known[0])
        return (now - then) / (at - before) if now >= then and at > before else None

    def quantile(self, share: float, buckets: Sequence[float]) -> float | None:
        """The time within which *share* of the latest requests were answered; None if there were none."""
        if not self._samples:
            return None
        now, then = self._samples[-1].histogram, self._samples[0].histogram
        counts = [max(0, new - old) for new, old in zip(now, then, strict=False)]
        return quantile(counts, buckets, share)


def _counters(companions: Iterable[Reply], web: Reply) -> Iterable[tuple[Any, float]]:
    for companion in companions:
        if companion.get("counters"):
            # Of all its processes ever.
            yield ("cpu", companion["name"]), companion["counters"]["cpu"]
    for worker in web.get("workers", ()):
        yield ("requests", worker["pid"]), worker.get("requests") or 0
        if worker.get("cpu") is not None:
            yield ("cpu", "worker", worker["pid"]), worker["cpu"]
    totals = web.get("totals")
    if totals:
        yield ("requests",), totals["requests"]
        yield ("errors",), totals["answers"]["5xx"]


def quantile(counts: Sequence[int], buckets: Sequence[float], share: float) -> float | None:
    """Estimate a quantile from a histogram with one more count than *buckets* has upper bounds."""
    rest = sum(counts) * share
    if not rest or not buckets:
        return None
    lower = 0.0
    for count, upper in zip(counts, buckets, strict=False):
        if count and rest <= count:
            return lower + (upper - lower) * rest / count
        rest -= count
        lower = upper
    return lower


# -- values as text ---------------------------------------------------------------


def show_age(seconds: float | None) -> str:
    """``8s``, ``12m08s``, ``3h05m``, ``2d03h``."""
    if seconds is None:
        return "-"
    total = max(0, int(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02}m"
    return f"{total // 86400}d{total % 86400 // 3600:02}h"


def show_size(size: float | None) -> str:
    """``512K``, ``12.3M``, ``1.2G``, of bytes."""
    if size is None:
        return "-"
    if size < 2**20:
        return f"{size / 2**10:.0f}K"
    if size < 2**30:
        return f"{size / 2**20:.1f}M" if size < 1000 * 2**20 else f"{size / 2**20:.0f}M"
    return f"{size / 2**30:.1f}G"


def show_time(seconds: float | None) -> str:
    """``0.4 ms``, ``12 ms``, ``1.2 s``."""
    if seconds is None:
        return "-"
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def show_number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def show_percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate * 100:.0f}%"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last *width* values as bars, the largest one full."""
    shown = list(values)[-width:] if width > 0 else []
    top = max(shown, default=0) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in shown)


# -- rows ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One companion or web worker: *values* by column, to sort by, and how they are shown."""

    key: str
    level: int
    values: Mapping[str, Any]
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    title: str
    # The name, to sort by.
    name: str
    show: Callable[[Any], str] = clean
    right: bool = False
    # Whether the largest value comes first, unless it is asked for the other way round.
    descending: bool = False
    # Shown on screens of at least this width.
    from_width: int = 0
    # The least and the greatest width.
    least: int = 0
    most: int = 200


def _figure(title: str, name: str, show: Callable[[Any], str], least: int = 0, from_width: int = 0) -> Column:
    return Column(title, name, show, right=True, descending=True, least=least, from_width=from_width)


# The last column of each takes what is left.
COMPANION_COLUMNS = (
    Column("NAME", "name", least=6, most=24),
    Column("STATE", "state", least=8),
    _figure("FOR", "for", show_age, 6),
    _figure("CPU", "cpu", show_percent, 4),
    _figure("MEM", "mem", show_size, 5),
    _figure("SAVED", "saved", show_size, 5, from_width=100),
    _figure("RESTARTS", "restarts", str, from_width=70),
    _figure("PID", "pid", lambda pid: str(pid or "-"), 5, from_width=120),
    Column("WHAT", "what"),
)
WORKER_COLUMNS = (
    Column("PID", "pid", str, right=True, least=7),
    Column("STATE", "state", least=8),
    _figure("FOR", "for", show_age, 6),
    _figure("CPU", "cpu", show_percent, 4),
    _figure("MEM", "mem", show_size, 5),
    _figure("REQ/S", "load", show_number, 5),
    _figure("REQUESTS", "requests", str, from_width=100),
    _figure("5XX", "errors", str, 3),
    _figure("CONN", "connections", str, from_width=100),
    _figure("RUN", "running", str, 3),
    Column("OLDEST REQUEST", "oldest"),
)


def companion_level(companion: Reply, wall: float) -> int:
    if runs_as_it_should(dict(companion)):
        ended = companion.get("exited_at")
        recovers = companion.get("failures") and ended is not None and wall - ended < RECENT
        return MOVING if recovers or companion["state"] == "STOPPING" else FINE
    settles = companion["state"] in ("STARTING", "STOPPING")
    return MOVING if settles and not companion.get("flapping") and not companion.get("stuck") else BAD


def companion_rows(look: Look, rates: Rates) -> list[Row]:
    """The companions in the order of the configuration."""
    return [_row(*_companion(companion, look, rates)) for companion in look.companions]


def _companion(companion: Reply, look: Look, rates: Rates) -> tuple[str, int, dict[str, Any], Any]:
    name, pid = companion["name"], companion["pid"]
    memory = companion.get("memory") or {}
    since = companion.get("started_at" if pid else "exited_at")
    values = {
        "name": name,
        "state": companion["state"],
        "for": None if since is None else look.wall - since,
        "cpu": rates.of("cpu", name) if pid else None,
        "mem": memory.get("private"),
        "saved": memory.get("saved"),
        "restarts": companion.get("restart_count") or 0,
        "pid": pid,
        "what": what(companion),
    }
    return name, companion_level(companion, look.wall), values, COMPANION_COLUMNS


def what(companion: Reply) -> str:
    """The server's description without pid and uptime, which have their own columns."""
    text = re.sub(r"^pid \d+(, uptime (\d+ days?, )?[\d:]+)?(, )?", "", str(companion["description"]))
    if companion.get("rolling"):
        text += f"{', ' if text else ''}to be restarted in its turn"
    return text


def worker_rows(look: Look, rates: Rates) -> list[Row]:
    """The web workers, oldest first."""
    workers = sorted((look.web or {}).get("workers", ()), key=lambda worker: worker.get("age") or 0)
    return [_row(*_worker(worker, look, rates)) for worker in workers]


def _worker(worker: Reply, look: Look, rates: Rates) -> tuple[str, int, dict[str, Any], Any]:
    oldest, memory = worker.get("oldest"), worker.get("memory") or {}
    lasts = None if oldest is None else look.wall - oldest["since"]
    started, pid = worker.get("started"), worker["pid"]
    values = {
        "pid": pid,
        "state": worker["state"],
        "for": None if started is None else look.wall - started,
        "cpu": rates.of("cpu", "worker", pid),
        "mem": memory.get("private"),
        "load": rates.of("requests", pid),
        "requests": worker.get("requests") or 0,
        "errors": (worker.get("answers") or {}).get("5xx", 0),
        "connections": worker.get("connections") or 0,
        "running": worker.get("running") or 0,
        "oldest": "" if oldest is None else f"{show_age(lasts)} {oldest['method']} {oldest['path']}",
    }
    level = FINE if worker["state"] in ("idle", "busy") else MOVING
    if lasts is not None and lasts > SLOW:
        level = BAD
    return str(pid), level, values, WORKER_COLUMNS


def _row(key: str, level: int, values: dict[str, Any], columns: Sequence[Column]) -> Row:
    return Row(
        key, level, values, {column.name: clean(column.show(values[column.name])) for column in columns}
    )


def orders(columns: Sequence[Column]) -> list[str]:
    """What rows can be sorted by: problems first, or a column but for the last one."""
    return [PROBLEMS, *(column.name for column in columns[:-1])]


def in_order(
    rows: Sequence[Row], columns: Sequence[Column], order: str, backwards: bool = False
) -> list[Row]:
    """Rows sorted by *order*: equal ones stay as they are, those without the value come last."""
    if order == PROBLEMS:
        return sorted(rows, key=lambda row: row.level, reverse=not backwards)
    column = next(column for column in columns if column.name == order)
    known = [row for row in rows if row.values[order] is not None]
    known.sort(key=lambda row: row.values[order], reverse=column.descending != backwards)
    return known + [row for row in rows if row.values[order] is None]


def matching(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows in which each word of *text* is, in whatever case."""
    words = text.lower().split()
    return [row for row in rows if all(word in " ".join(row.cells.values()).lower() for word in words)]


def widths(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[tuple[Column, int]]:
    """The columns for a screen of *width*, and the width of each; two for the mark, one between them."""
    shown = [column for column in columns if width >= column.from_width]
    found = []
    left = width - 2
    for column in shown[:-1]:
        longest = max((len(row.cells[column.name]) for row in rows), default=0)
        size = min(column.most, max(column.least, len(column.title), longest))
        found.append((column, size))
        left -= size + 1
    return [*found, (shown[-1], max(0, left))]


def fit(text: str, width: int, right: bool = False) -> str:
    """*text* in exactly *width* characters."""
    if len(text) > width:
        return text[: width - 1] + "…" if width > 0 else ""
    return text.rjust(width) if right else text.ljust(width)


# -- the summary --------------------------------------------------------------------


def summary(look: Look, rates: Rates, width: int) -> list[tuple[int, str]]:
    """The lines above the tables, each with its level: the server, its web workers, its companions."""
    server = look.server
    addresses = " ".join(server.get("addresses") or ())
    about = f"{server.get('application')}  {addresses}  pid {server.get('pid')}"
    lines = [(FINE, f"{about}  up {show_age(server.get('uptime'))}  {server.get('version')}")]
    if look.web is not None:
        lines.append(_web_summary(look.web, rates, width))
    lines.append(_companion_summary(look.companions, look.wall))
    if held_by := server.get("web_held_by"):
        lines.append((MOVING, f"Waiting     web workers wait for {held_by}"))
    if refusal := describe_refusal(server):
        lines.append((BAD, f"Reload      {refusal}"))
    return [(level, clean(line)) for level, line in lines]


def _web_summary(web: Reply, rates: Rates, width: int) -> tuple[int, str]:
    workers = web["workers"]
    states = Counter(worker["state"] for worker in workers)
    level = BAD if not workers else FINE
    parts = [f"{len(workers)} of {web['wanted']} workers", *_counted(states)]
    silence = (web.get("master") or {}).get("beat_age") or 0
    if silence > SLOW:
        level = BAD
        parts.insert(0, f"the master is silent for {show_age(silence)}")
    waiting = sum(listener.get("waiting") or 0 for listener in web.get("listeners", ()))
    if waiting:
        parts.append(f"{waiting} waiting")
    parts.append(f"{show_number(rates.of('requests'))} req/s")
    errors = rates.of("errors")
    if errors:
        level = BAD
        parts.append(f"{show_number(errors)} errors/s")
    p50, p95 = (show_time(rates.quantile(share, web.get("buckets") or ())) for share in (0.5, 0.95))
    parts.append(f"p50 {p50} p95 {p95}")
    text = f"Web         {', '.join(parts)} "
    return level, text + sparkline(rates.load, min(LOAD_POINTS, width - len(text)))


def _companion_summary(companions: Sequence[Reply], wall: float) -> tuple[int, str]:
    states = Counter(companion["state"] for companion in companions)
    bad = sum(companion_level(companion, wall) == BAD for companion in companions)
    known = [companion["memory"] for companion in companions if companion.get("memory")]
    parts = [", ".join(_counted(states)) or "none is configured"]
    if bad:
        parts.insert(0, f"{bad} failing")
    if known:
        private, saved = (show_size(sum(memory[key] for memory in known)) for key in ("private", "saved"))
        parts.append(f"{private}, saved {saved}")
    return (BAD if bad else FINE), f"Companions  {' · '.join(parts)}"


def _counted(states: Mapping[str, int]) -> list[str]:
    # Always in the same order, so that the eye finds them.
    known = sorted(states, key=lambda state: STATES.index(state) if state in STATES else len(STATES))
    return [f"{states[state]} {state}" for state in known]


# -- details ------------------------------------------------------------------------


def worker_details(worker: Reply, wall: float) -> list[str]:
    """What is known of one web worker, as lines."""
    answers = worker.get("answers") or {}
    classes = ", ".join(f"{count} {kind}" for kind, count in answers.items() if count)
    served = worker.get("requests") or 0
    age, mean = (
        show_age(_since(worker.get("started"), wall)),
        (worker.get("seconds") or 0) / served if served else None,
    )
    lines = [
        f"{worker['state']}, {age} old, {worker.get('connections') or 0} connections, "
        f"{worker.get('running') or 0} requests running",
        f"{served} requests{f' ({classes})' if classes else ''}, "
        f"{show_size(worker.get('bytes') or 0)} sent, {show_time(mean)} each",
    ]
    oldest = worker.get("oldest")
    if oldest:
        age = show_age(_since(oldest["since"], wall))
        lines.append(f"oldest request: {oldest['method']} {oldest['path']}, for {age}")
    return [clean(line) for line in lines]


def companion_details(companion: Reply, wall: float) -> list[str]:
    """What is known of one companion, as lines: its state, and its latest ends, the last one first."""
    lines = [f"{companion['state']}, {companion['description']}"]
    details = companion.get("details")
    if details:
        lines[0] += f" (since {show_age(_since(details['since'], wall))})" if details["since"] else ""
        starts = details["starts_in_the_last_hour"]
        lines.append(f"runs {details['runs']}, {starts} start{'s' * (starts != 1)} in the last hour")
        for entry in details["ends"]:
            lines.append(f"ended {show_age(_since(entry['time'], wall))} ago: {entry['description']}")
    return [clean(line) for line in lines]


def _since(moment: float | None, wall: float) -> float | None:
    return None if moment is None else wall - moment
