# SPDX-License-Identifier: MIT
"""The scrape: replies of the control socket as text for Prometheus. Pure.

One table declares all metrics; that of the manual is made from it. No label holds a command line or a part of
an environment, where secrets may be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gunicorn.companion.client.commands import runs_as_it_should

Reply = Mapping[str, Any]

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"

STATES = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING")
WORKER_STATES = ("booting", "idle", "busy", "retiring")

# Ends that nobody asked for, and those by a limit: shown from the beginning, because Prometheus does not see
# the increase from nothing to 1. Other causes are shown once there is one.
EARLY_CAUSES = ("exit", "crash", "killed", "oom", "memory", "not ready", "watchdog", "liveness")


class Histogram(NamedTuple):
    """How many were at most as long as each bound but longer than the one before; and the sum of all."""

    bounds: list[float]
    counts: list[int]
    sum: float


class Sample(NamedTuple):
    """*created*: when the counting began, in seconds since the epoch."""

    value: float | Histogram
    labels: dict[str, str]
    created: float | None = None


class Facts(NamedTuple):
    """The replies to ``status`` (with memory) and ``web``; what an older server does not tell is missing."""

    status: Reply
    web: Reply | None


class Metric(NamedTuple):
    """*kind*: gauge, counter, histogram or info. A *unit* is the end of the name."""

    name: str
    kind: str
    help: str
    read: Callable[[Facts], Iterable[Sample]]
    labels: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The name in OpenMetrics, where the end of some is the kind's."""
        return self.name.removesuffix("_total").removesuffix("_info")

    @property
    def unit(self) -> str:
        unit = self.family.rpartition("_")[2]
        return unit if unit in ("seconds", "bytes") else ""


# -- reading -----------------------------------------------------------------------


def _build(facts: Facts) -> Iterator[Sample]:
    yield Sample(1, {"version": str(facts.status["server"].get("version", ""))})


def _of_web(find: Callable[[Reply], float | None]) -> Callable[[Facts], Iterator[Sample]]:
    """One figure of the web workers together."""

    def read(facts: Facts) -> Iterator[Sample]:
        value = None if facts.web is None else find(facts.web)
        if value is not None:
            yield Sample(value, {})

    return read


def _web_by(label: str, find: Callable[[Reply], Mapping[str, float | None]]) -> Any:
    """One figure for each value of *label*."""

    def read(facts: Facts) -> Iterator[Sample]:
        for word, value in (find(facts.web) if facts.web is not None else {}).items():
            if value is not None:
                yield Sample(value, {label: word})

    return read


def _workers(web: Reply) -> dict[str, float | None]:
    states = [worker["state"] for worker in web["workers"]]
    return {state: states.count(state) for state in (*WORKER_STATES, *sorted({*states} - {*WORKER_STATES}))}


def _oldest(web: Reply) -> float:
    running = [worker["oldest"]["since"] for worker in web["workers"] if worker.get("oldest")]
    return max(0.0, round(web["now"] - min(running), 3)) if running else 0.0


def _worker_memory(key: str) -> Callable[[Reply], float | None]:
    def find(web: Reply) -> float | None:
        known = [worker["memory"][key] for worker in web["workers"] if worker.get("memory")]
        return sum(known) if known else None

    return find


def _durations(facts: Facts) -> Iterator[Sample]:
    if facts.web is not None:
        totals = facts.web["totals"]
        yield Sample(Histogram(facts.web["buckets"], totals["histogram"], totals["seconds"]), {})


def _listeners(key: str) -> Callable[[Reply], dict[str, float | None]]:
    return lambda web: {listener["address"]: listener.get(key) for listener in web["listeners"]}


def _each(find: Callable[[Reply], float | None]) -> Callable[[Facts], Iterator[Sample]]:
    """One figure for each companion that has it."""

    def read(facts: Facts) -> Iterator[Sample]:
        for companion in facts.status["companions"]:
            value = find(companion)
            if value is not None:
                yield Sample(value, {"companion": companion["name"]})

    return read


def _states(facts: Facts) -> Iterator[Sample]:
    for companion in facts.status["companions"]:
        for state in STATES:
            yield Sample(int(companion["state"] == state), {"companion": companion["name"], "state": state})


def _started(companion: Reply) -> float | None:
    return companion.get("started_at") if companion["pid"] else None


def _memory(key: str) -> Callable[[Facts], Iterator[Sample]]:
    return _each(lambda companion: (companion.get("memory") or {}).get(key))


def _count(key: str) -> Callable[[Facts], Iterator[Sample]]:
    def read(facts: Facts) -> Iterator[Sample]:
        for companion in facts.status["companions"]:
            counters = companion.get("counters")
            if counters is not None:
                yield Sample(counters[key], {"companion": companion["name"]}, counters["since"])

    return read


def _schedule(find: Callable[[Reply], float | None]) -> Callable[[Facts], Iterator[Sample]]:
    """One figure for each companion with a schedule that this server keeps."""

    def read(companion: Reply) -> float | None:
        schedule = companion.get("schedule")
        return find(schedule) if schedule and "count" in schedule else None

    return _each(read)


def _holds_lease(companion: Reply) -> float | None:
    lease = companion.get("lease")
    return int(lease["held"]) if lease and not companion.get("schedule") else None


def _lease(find: Callable[[Reply], float | None]) -> Callable[[Facts], Iterator[Sample]]:
    """One figure for each companion that needs a lease."""
    return _each(lambda companion: find(companion["lease"]) if companion.get("lease") else None)


def _count_by_cause(key: str, early: tuple[str, ...]) -> Callable[[Facts], Iterator[Sample]]:
    def read(facts: Facts) -> Iterator[Sample]:
        for companion in facts.status["companions"]:
            counters = companion.get("counters")
            for cause, value in ({**dict.fromkeys(early, 0), **counters[key]} if counters else {}).items():
                labels = {"companion": companion["name"], "cause": cause}
                yield Sample(value, labels, counters["since"])

    return read


def _probes(find: Callable[[Reply], float | None]) -> Callable[[Facts], Iterator[Sample]]:
    """One figure for the latest result of each `probe` and `liveness`."""

    def read(facts: Facts) -> Iterator[Sample]:
        for companion in facts.status["companions"]:
            for key, found in companion.get("probes", {}).items():
                if found["good"] is not None:
                    labels = {"companion": companion["name"], "probe": key}
                    yield Sample(find(found) or 0, labels)

    return read


def _manager_memory(facts: Facts) -> Iterator[Sample]:
    manager = (facts.status.get("memory") or {}).get("manager")
    if manager:
        yield Sample(manager["private"], {})


# -- the table ---------------------------------------------------------------------

METRICS = (
    Metric("gunicorn_build_info", "info", "Version of the server; always 1.", _build, ("version",)),
    Metric(
        "gunicorn_master_beat_age_seconds",
        "gauge",
        "Time since the master's last turn; it makes one a second.",
        _of_web(lambda web: web["master"]["beat_age"]),
    ),
    Metric(
        "gunicorn_workers", "gauge", "Web workers by state.", _web_by("state", _workers), labels=("state",)
    ),
    Metric(
        "gunicorn_workers_wanted", "gauge", "Web workers that should run.", _of_web(lambda web: web["wanted"])
    ),
    Metric(
        "gunicorn_worker_ends_total",
        "counter",
        "Ends of web workers by reason.",
        _web_by("reason", lambda web: web["totals"]["ends"]),
        labels=("reason",),
    ),
    Metric(
        "gunicorn_reloads_total",
        "counter",
        "Reloads by result.",
        _web_by("result", lambda web: web["totals"]["reloads"]),
        labels=("result",),
    ),
    Metric(
        "gunicorn_requests_total",
        "counter",
        "Answered requests by class of their status.",
        _web_by("class", lambda web: web["totals"]["answers"]),
        labels=("class",),
    ),
    Metric(
        "gunicorn_request_duration_seconds",
        "histogram",
        "Time from the complete head of a request to the end of its answer.",
        _durations,
    ),
    Metric(
        "gunicorn_response_bytes_total",
        "counter",
        "Bytes of answers that were sent.",
        _of_web(lambda web: web["totals"]["bytes"]),
    ),
    Metric(
        "gunicorn_requests_running",
        "gauge",
        "Requests that are being answered.",
        _of_web(lambda web: web["totals"]["running"]),
    ),
    Metric(
        "gunicorn_oldest_request_age_seconds",
        "gauge",
        "How long the oldest of these has been running; 0 without one.",
        _of_web(_oldest),
    ),
    Metric(
        "gunicorn_connections",
        "gauge",
        "Connections that web workers hold open.",
        _of_web(lambda web: web["totals"]["connections"]),
    ),
    Metric(
        "gunicorn_listener_waiting",
        "gauge",
        "Connections that no worker has accepted yet.",
        _web_by("listener", _listeners("waiting")),
        labels=("listener",),
    ),
    Metric(
        "gunicorn_listener_backlog",
        "gauge",
        "How many connections may wait.",
        _web_by("listener", _listeners("backlog")),
        labels=("listener",),
    ),
    Metric(
        "gunicorn_workers_private_memory_bytes",
        "gauge",
        "Memory that would be free without the web workers.",
        _of_web(_worker_memory("private")),
    ),
    Metric(
        "gunicorn_companion_state",
        "gauge",
        "1 for the state that the companion is in, 0 for the others.",
        _states,
        labels=("companion", "state"),
    ),
    Metric(
        "gunicorn_companion_healthy",
        "gauge",
        "0 for a companion that makes gunicorn-companion status exit with 3: it should run and does not, or"
        " keeps failing.",
        _each(lambda companion: int(runs_as_it_should(dict(companion)))),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_start_time_seconds",
        "gauge",
        "When its present process was started, since the epoch.",
        _each(_started),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_lease_held",
        "gauge",
        "1 if this server holds the lease of the companion. Alarm when the sum over all servers is not 1."
        " Not shown with a schedule, where nobody holds it between two runs.",
        _each(_holds_lease),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_lease_transitions_total",
        "counter",
        "Times that this server has taken or lost the lease of the companion.",
        _lease(lambda lease: lease["transitions"]),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_lease_store_up",
        "gauge",
        "0 while the store of the companion's lease cannot be asked.",
        _lease(lambda lease: int(lease["store_up"])),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_starts_total",
        "counter",
        "Starts of a process.",
        _count("starts"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_ends_total",
        "counter",
        "Ends of a process by cause.",
        _count_by_cause("ends", EARLY_CAUSES),
        labels=("companion", "cause"),
    ),
    Metric(
        "gunicorn_companion_start_failures_total",
        "counter",
        "Times without a process, by cause: its start failed, it had to wait for a dependency, it gave up.",
        _count_by_cause("failures", ("start failed", "gave up")),
        labels=("companion", "cause"),
    ),
    Metric(
        "gunicorn_companion_kills_total",
        "counter",
        "Processes that did not stop in time and got SIGKILL.",
        _count("kills"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_private_memory_bytes",
        "gauge",
        "Memory of all its processes that would be free without them.",
        _memory("private"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_pss_memory_bytes",
        "gauge",
        "Memory of all its processes, with its part of what they share with others.",
        _memory("pss"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_saved_memory_bytes",
        "gauge",
        "Memory that copy-on-write saves, compared with a program of its own.",
        _memory("saved"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_cpu_seconds_total",
        "counter",
        "Processor time of all its processes, ended ones included.",
        _count("cpu"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_watchdog_limit_seconds",
        "gauge",
        "The watchdog setting.",
        _each(lambda companion: companion.get("watchdog")),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_watchdog_age_seconds",
        "gauge",
        "Time since its last sign of life, while the watchdog waits for one.",
        _each(lambda companion: companion.get("watchdog_age")),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_runs_total",
        "counter",
        "Runs of a companion with a schedule, retries included.",
        _schedule(lambda schedule: schedule["count"]),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_runs_failed_total",
        "counter",
        "Those of them that have failed.",
        _schedule(lambda schedule: schedule["failed"]),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_runs_skipped_total",
        "counter",
        "Times at which the run before had not ended.",
        _schedule(lambda schedule: schedule["skipped"]),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_runs_missed_total",
        "counter",
        "Times at which no server ran.",
        _schedule(lambda schedule: schedule["missed"]),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_last_success_time_seconds",
        "gauge",
        "When its last successful run ended, since the epoch.",
        _schedule(lambda schedule: schedule["last_success"]),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_last_run_duration_seconds",
        "gauge",
        "How long its latest run took that has ended.",
        _schedule(lambda schedule: (schedule["last"] or {}).get("took")),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_next_run_time_seconds",
        "gauge",
        "When it runs next, since the epoch.",
        _schedule(lambda schedule: schedule["next"]),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_probe_success",
        "gauge",
        "1 if its latest probe or liveness check has succeeded.",
        _probes(lambda found: int(found["good"])),
        labels=("companion", "probe"),
    ),
    Metric(
        "gunicorn_companion_probe_duration_seconds",
        "gauge",
        "How long that check took.",
        _probes(lambda found: found["took"]),
        labels=("companion", "probe"),
    ),
    Metric(
        "gunicorn_companion_log_bytes_total",
        "counter",
        "Bytes that it has written to its captured output.",
        _count("log_bytes"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_log_dropped_bytes_total",
        "counter",
        "Bytes of these that could not be written on.",
        _count("log_dropped_bytes"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_log_dropped_lines_total",
        "counter",
        "Lines of these.",
        _count("log_dropped_lines"),
        labels=("companion",),
    ),
    Metric(
        "gunicorn_companion_manager_private_memory_bytes",
        "gauge",
        "Memory that would be free without the companion manager.",
        _manager_memory,
    ),
)

# -- writing -----------------------------------------------------------------------


def render(status: Reply, web: Reply | None = None, *, openmetrics: bool = True) -> str:
    """Return the scrape: OpenMetrics, or Prometheus's own text format 0.0.4.

    *status*: the reply to ``status`` with memory; *web*: what the reply to ``web`` has under that name, None
    if there is none.
    """
    facts = Facts(status, web)
    lines: list[str] = []
    for metric in METRICS:
        samples = list(metric.read(facts))
        if samples:
            lines += _head(metric, openmetrics)
            lines += itertools.chain.from_iterable(_sample(metric, one, openmetrics) for one in samples)
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def negotiate(accept: str) -> tuple[str, bool]:
    """Return the content type for an Accept header, and whether it is OpenMetrics."""
    wishes = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if kind in wishes:
            wishes[kind] = max(wishes[kind], quality)
    best = wishes["application/openmetrics-text"]
    wanted = 0.0 < best >= wishes["text/plain"]
    return (OPENMETRICS if wanted else PLAIN), wanted


def _head(metric: Metric, openmetrics: bool) -> Iterator[str]:
    name = metric.family if openmetrics else metric.name
    kind = "gauge" if metric.kind == "info" and not openmetrics else metric.kind
    yield f"# HELP {name} {_escaped(metric.help)}"
    yield f"# TYPE {name} {kind}"
    if openmetrics and metric.unit:
        yield f"# UNIT {name} {metric.unit}"


def _sample(metric: Metric, sample: Sample, openmetrics: bool) -> Iterator[str]:
    if isinstance(sample.value, Histogram):
        yield from _histogram(metric, sample.value, sample.labels)
        return
    yield _line(metric.name, sample.labels, sample.value)
    if openmetrics and metric.kind == "counter" and sample.created is not None:
        yield _line(f"{metric.family}_created", sample.labels, sample.created)


def _histogram(metric: Metric, histogram: Histogram, labels: dict[str, str]) -> Iterator[str]:
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    sums = list(itertools.accumulate(histogram.counts))
    for bound, count in zip(bounds, sums, strict=True):
        yield _line(f"{metric.name}_bucket", {**labels, "le": bound}, count)
    yield _line(f"{metric.name}_count", labels, sums[-1])
    yield _line(f"{metric.name}_sum", labels, histogram.sum)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    number = value if isinstance(value, int) else float(value)
    return f"{name}{{{shown}}} {number + 0!r}" if shown else f"{name} {number + 0!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
