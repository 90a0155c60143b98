# SPDX-License-Identifier: MIT
"""The scrape's text: both forms are valid and say the same, whatever is told."""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import metrics_table
import pytest
from proctools import program
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from gunicorn.companion.process import Cause, State
from gunicorn.monitor.openmetrics import (
    EARLY_CAUSES,
    METRICS,
    OPENMETRICS,
    PLAIN,
    STATES,
    negotiate,
    render,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"

# By name and labels.
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def companion(name: str = "rq:0", **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "RUNNING",
        "pid": 4713,
        "autostart": True,
        "manual_stop": False,
        "started_at": 1700000000.25,
        "flapping": False,
        "watchdog": 30.0,
        "watchdog_age": 1.5,
        "probes": {
            "probe": {"good": True, "took": 0.25},
            "liveness": {"good": False, "took": 3},
        },
        "lease": {"held": True, "transitions": 5, "store_up": False},
        "memory": {"rss": 9, "pss": 3000, "private": 1000, "saved": 2000},
        "counters": {
            "since": 1699990000.5,
            "starts": 3,
            "kills": 1,
            "cpu": 12.25,
            "log_bytes": 4096,
            "log_dropped_bytes": 10,
            "log_dropped_lines": 2,
            "ends": {"crash": 1, "not ready": 1},
            "failures": {"dependency": 1},
        },
        **values,
    }


def nightly(**last: Any) -> dict[str, Any]:
    schedule = {
        "count": 9,
        "failed": 2,
        "skipped": 3,
        "missed": 1,
        "last_success": 1700000100.5,
        "last": {"took": 12.5, "good": True, **last},
        "next": 1700003600.0,
    }
    return companion("nightly", state="STOPPED", pid=None, schedule=schedule)


def status(*companions: dict[str, Any]) -> dict[str, Any]:
    return {
        "ok": True,
        "server": {"pid": 1, "version": "1.2.3"},
        "companions": list(companions),
        "memory": {"manager": {"private": 5000}},
    }


def web(**values: Any) -> dict[str, Any]:
    none = {"pid": 12, "age": 1, "oldest": None, "memory": None, "cpu": None}
    return {
        "class": "gthread",
        "wanted": 4,
        "master": {"pid": 1, "beat_age": 0.4},
        "now": 1700000100.0,
        "listeners": [
            {"address": "http://127.0.0.1:8000", "waiting": 3, "backlog": 2048},
            {"address": "unix:/run/shop.sock", "waiting": None, "backlog": None},
        ],
        "workers": [
            {**none, "state": "idle"},
            {**none, "state": "busy", "oldest": {"method": "GET", "path": "/x", "since": 1700000095.5}},
            {**none, "state": "busy", "memory": {"private": 700, "pss": 900}},
        ],
        "totals": {
            "requests": 9,
            "bytes": 5000,
            "seconds": 3.5,
            "answers": {"1xx": 0, "2xx": 7, "3xx": 0, "4xx": 1, "5xx": 1},
            "histogram": [4, 3, 1, 1],
            "connections": 6,
            "running": 2,
            "ends": {"exit": 1, "max_requests": 2},
            "reloads": {"applied": 3, "refused": 2},
        },
        "buckets": [0.001, 0.1, 60.0],
        **values,
    }


def parsed(text: str) -> Values:
    """The samples of a scrape, as the client library reads its form."""
    if text.endswith("# EOF\n"):
        families = openmetrics_parser.text_string_to_metric_families(text)
    else:
        families = parser.text_string_to_metric_families(text)
    found: Values = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(found: Values, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def both(*args: Any) -> Values:
    """What both forms say, which is the same but for the times of creation."""
    plain = parsed(render(*args, openmetrics=False))
    rich = parsed(render(*args))
    assert {key: number for key, number in rich.items() if not key[0].endswith("_created")} == plain
    return rich


def lint(text: str) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_web_workers() -> None:
    found = both(status(), web())
    labelled = {"idle": 1, "busy": 2, "booting": 0, "retiring": 0}
    assert {state: value(found, "gunicorn_workers", state=state) for state in labelled} == labelled
    assert value(found, "gunicorn_workers_wanted") == 4
    assert value(found, "gunicorn_worker_ends_total", reason="max_requests") == 2
    assert value(found, "gunicorn_reloads_total", result="refused") == 2
    assert value(found, "gunicorn_requests_total", **{"class": "5xx"}) == 1
    assert value(found, "gunicorn_response_bytes_total") == 5000
    assert value(found, "gunicorn_requests_running") == 2
    assert value(found, "gunicorn_oldest_request_age_seconds") == 4.5
    assert value(found, "gunicorn_connections") == 6
    assert value(found, "gunicorn_master_beat_age_seconds") == 0.4
    assert value(found, "gunicorn_workers_private_memory_bytes") == 700
    assert value(found, "gunicorn_listener_waiting", listener="http://127.0.0.1:8000") == 3
    # The system does not tell of the other.
    assert [key for key in found if key[0] == "gunicorn_listener_backlog"] == [
        ("gunicorn_listener_backlog", frozenset({("listener", "http://127.0.0.1:8000")}))
    ]


def test_durations_are_a_histogram() -> None:
    found = both(status(), web())
    buckets = {
        dict(labels)["le"]: count
        for (name, labels), count in found.items()
        if name == "gunicorn_request_duration_seconds_bucket"
    }
    assert buckets == {"0.001": 4, "0.1": 7, "60.0": 8, "+Inf": 9}
    assert value(found, "gunicorn_request_duration_seconds_count") == 9
    assert value(found, "gunicorn_request_duration_seconds_sum") == 3.5


def test_companions() -> None:
    found = both(status(companion()))
    name = {"companion": "rq:0"}
    states = {state: value(found, "gunicorn_companion_state", state=state, **name) for state in STATES}
    assert [state for state, number in states.items() if number] == ["RUNNING"]
    expected = {
        "gunicorn_companion_healthy": 1,
        "gunicorn_companion_start_time_seconds": 1700000000.25,
        "gunicorn_companion_starts_total": 3,
        "gunicorn_companion_starts_created": 1699990000.5,
        "gunicorn_companion_kills_total": 1,
        "gunicorn_companion_private_memory_bytes": 1000,
        "gunicorn_companion_pss_memory_bytes": 3000,
        "gunicorn_companion_saved_memory_bytes": 2000,
        "gunicorn_companion_cpu_seconds_total": 12.25,
        "gunicorn_companion_watchdog_limit_seconds": 30,
        "gunicorn_companion_watchdog_age_seconds": 1.5,
        "gunicorn_companion_log_bytes_total": 4096,
        "gunicorn_companion_log_dropped_bytes_total": 10,
        "gunicorn_companion_log_dropped_lines_total": 2,
    }
    assert {metric: value(found, metric, **name) for metric in expected} == expected
    ends = {"crash": 1, "not ready": 1, "exit": 0, "oom": 0}
    assert {c: value(found, "gunicorn_companion_ends_total", cause=c, **name) for c in ends} == ends
    assert value(found, "gunicorn_companion_start_failures_total", cause="dependency", **name) == 1
    for metric, each in (("success", (1, 0)), ("duration_seconds", (0.25, 3))):
        both_keys = [
            value(found, f"gunicorn_companion_probe_{metric}", probe=key, **name)
            for key in ("probe", "liveness")
        ]
        assert tuple(both_keys) == each
    assert value(found, "gunicorn_build_info", version="1.2.3") == 1
    assert value(found, "gunicorn_companion_manager_private_memory_bytes") == 5000


@pytest.mark.parametrize(
    ("values", "healthy"),
    [
        ({}, 1),
        ({"flapping": True}, 0),
        ({"state": "BACKOFF"}, 0),
        ({"state": "STOPPED", "manual_stop": True}, 1),
        ({"state": "STOPPED", "reason": "gave up"}, 0),
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": 0, "done": True}, 1),
    ],
)
def test_healthy_is_what_the_exit_code_of_status_says(values: dict[str, Any], healthy: int) -> None:
    found = both(status(companion(**values)))
    assert value(found, "gunicorn_companion_healthy", companion="rq:0") == healthy


def test_a_schedule() -> None:
    found = both(status(nightly(), companion()))
    names = {"runs_total": 9, "runs_failed_total": 2, "runs_skipped_total": 3, "runs_missed_total": 1}
    times = {"last_success_time_seconds": 1700000100.5, "next_run_time_seconds": 1700003600.0}
    for name, expected in {**names, **times, "last_run_duration_seconds": 12.5, "healthy": 1}.items():
        assert value(found, f"gunicorn_companion_{name}", companion="nightly") == expected
    # Between two runs nobody holds its lease.
    assert not any(
        name.endswith("lease_held") and ("companion", "nightly") in labels for name, labels in found
    )
    assert value(found, "gunicorn_companion_lease_held", companion="rq:0") == 1
    failed = both(status(nightly(good=False)))
    assert value(failed, "gunicorn_companion_healthy", companion="nightly") == 0


def test_what_is_not_known_is_left_out() -> None:
    bare = companion(state="STOPPED", pid=None, memory=None, watchdog=None, watchdog_age=None)
    names = {name for name, _ in both(status(bare))}
    for part in ("start_time", "memory_bytes", "watchdog"):
        assert not any(part in name and "manager" not in name for name in names)
    assert "gunicorn_workers" not in names
    # As an older server answers.
    del bare["counters"], bare["watchdog"], bare["watchdog_age"], bare["probes"]
    assert "gunicorn_companion_starts_total" not in {name for name, _ in both(status(bare))}


def test_one_that_was_never_started_has_no_time_of_creation() -> None:
    new = companion(pid=None)
    new["counters"] = {**new["counters"], "since": None, "starts": 0, "ends": {}, "failures": {}}
    found = both(status(new))
    assert value(found, "gunicorn_companion_starts_total", companion="rq:0") == 0
    assert not any(name.endswith("_created") for name, _ in found)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\\nb", "ä{}=,", "\\"])
def test_label_values_are_escaped(name: str) -> None:
    found = both(status(companion(name)))
    assert value(found, "gunicorn_companion_healthy", companion=name) == 1
    lint(render(status(companion(name)), web(), openmetrics=False))


def test_every_metric_passes_promtool() -> None:
    text = render(status(companion(), nightly()), web(), openmetrics=False)
    for metric in METRICS:
        assert f"# TYPE {metric.name} " in text
    lint(text)


def test_the_table_declares_the_labels_that_are_shown() -> None:
    found = both(status(companion(), nightly()), web())
    shown: dict[str, set[str]] = {}
    for name, labels in found:
        shown.setdefault(name, set()).update(label for label, _ in labels)
    for metric in METRICS:
        if metric.kind != "histogram":
            assert shown[metric.name] == set(metric.labels), metric.name


def test_units_and_ends_of_names() -> None:
    text = render(status(companion()), web())
    assert "# UNIT gunicorn_companion_cpu_seconds seconds\n" in text
    assert "# TYPE gunicorn_companion_cpu_seconds counter\n" in text
    assert "# TYPE gunicorn_build info\n" in text
    assert text.endswith("\n# EOF\n")
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")


def test_words_are_those_of_status() -> None:
    assert {state.value for state in State} == {*STATES}
    assert {*EARLY_CAUSES} <= {cause.value for cause in Cause}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        # Prometheus 2 and 3.
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
            "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            True,
        ),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
        ("Application/OpenMetrics-Text ; Q=1", True),
    ],
)
def test_what_is_asked_for(accept: str, wanted: bool) -> None:
    assert negotiate(accept) == ((OPENMETRICS, True) if wanted else (PLAIN, False))


def test_the_manual_has_the_table_and_good_alerts(tmp_path: Path) -> None:
    page = (DOCS / "metrics.rst").read_text()
    assert ".. include:: metrics.inc" in page
    assert all(f"``{metric.name}``" in metrics_table.table() for metric in METRICS)
    yaml = page.rpartition(".. code-block:: yaml\n\n")[2].partition("\nCheck them")[0]
    rules = tmp_path / "rules.yml"
    rules.write_text(textwrap.dedent(yaml))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(rules)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"gunicorn_\w+", yaml)) <= {metric.name for metric in METRICS}
