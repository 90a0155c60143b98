# SPDX-License-Identifier: MIT
"""The pages as the server sends them, and what counts as a problem."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from gunicorn.monitor.html import render_companion, render_error, render_index
from gunicorn.monitor.problems import problems

EVIL = "<script>alert('1')</script>\"&"

COMPANION: dict[str, Any] = {
    "name": "rq:0",
    "group": "rq",
    "groups": ["workers", EVIL],
    "state": "RUNNING",
    "pid": 7,
    "autostart": True,
    "manual_stop": False,
    "reason": None,
    "flapping": False,
    "failures": 0,
    "description": "pid 7, uptime 00:00:09",
    "uptime": 9.0,
    "restart_count": 0,
    "last_exit_cause": None,
    "exited_at": None,
    "status_text": None,
}
WORKER: dict[str, Any] = {"pid": 12, "age": 1, "state": "idle", "started": 90.0, "oldest": None}
WEB: dict[str, Any] = {
    "class": "sync",
    "wanted": 1,
    "now": 100.0,
    "master": {"pid": 1, "beat_age": 0.4},
    "workers": [WORKER],
    "listeners": [{"address": "http://127.0.0.1:8000", "waiting": 0, "backlog": 2048}],
}


def status(**changes: Any) -> dict[str, Any]:
    """A status where all is well, but for *changes* of the companion, the web and the server."""
    companion = {**COMPANION, **changes.pop("companion", {})}
    web = {**copy.deepcopy(WEB), **changes.pop("web", {})}
    server = {"pid": 1, **changes.pop("server", {})}
    found = {"server": server, "companions": [companion], "web": web, "memory": None}
    found["problems"] = problems(found)
    return found


def standby(unheld_for: float) -> dict[str, Any]:
    lease = {"ttl": 15, "unheld_for": unheld_for, "summary": "shop, unreachable"}
    text = "standby: unreachable"
    return {"state": "STARTING", "pid": None, "standby": True, "lease": lease, "description": text}


class Tags(HTMLParser):
    """Counts elements, and that each is closed where it should be."""

    VOID = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        assert not any(name == "style" or name.startswith("on") for name, _ in attrs), attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_names_are_text() -> None:
    hostile = status(
        companion={"name": EVIL, "state": "BACKOFF", "pid": None, "description": EVIL},
        web={
            "class": EVIL,
            "workers": [{**WORKER, "oldest": {"method": "GET", "path": EVIL, "since": 1.0}}],
        },
    )
    for text in (
        render_index(hostile),
        render_companion(hostile["companions"][0], [{"line": EVIL}]),
        render_error(EVIL, EVIL),
    ):
        tags = Tags(text)
        assert tags.open == []
        # That of the page alone; and it is no inline script.
        assert tags.count["script"] == 1
        assert re.search(r"<script[^>]* src=[^>]*></script>", text)
        assert "alert(&#x27;1&#x27;)" in text


def test_the_lease_of_a_companion_is_shown() -> None:
    assert "<dt>Lease</dt><dd>shop, unreachable</dd>" in render_companion({**COMPANION, **standby(1)}, [])


def test_a_page_with_nothing_on_it() -> None:
    text = render_index({"server": None, "companions": None, "web": None, "memory": None, "problems": []})
    assert "All is well" in text and "There are none." in text
    assert Tags(text).open == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"companion": {"state": "STOPPED", "pid": None, "manual_stop": True}}, None),
        ({"companion": standby(29)}, None),
        ({"companion": standby(31)}, "bad rq:0 runs on no server: standby: unreachable"),
        ({"companion": {"state": "STARTING"}}, None),
        ({"companion": {"state": "BACKOFF", "pid": None, "description": "retrying"}}, "bad rq:0 retrying"),
        (
            {"companion": {"state": "STARTING", "stuck": "db", "description": "waiting for db"}},
            "warn rq:0 starting: waiting for db",
        ),
        (
            {
                "companion": {
                    "flapping": True,
                    "failures": 3,
                    "last_exit_cause": "crash",
                    "last_exit_reason": "exited with status 1",
                }
            },
            "bad rq:0 has failed 3 times in a row, last: crash, exited with status 1",
        ),
        ({"web": {"workers": []}}, "bad web 0 of 1 workers serve requests"),
        (
            {"web": {"workers": []}, "server": {"web_held_by": "migrate"}},
            "bad web 0 of 1 workers serve requests: they wait for migrate",
        ),
        ({"web": {"wanted": 2}}, "warn web 1 of 2 workers serve requests"),
        ({"web": {"master": {"beat_age": 9.0}}}, "bad master has not answered for 9 s"),
        (
            {"web": {"workers": [{**WORKER, "oldest": {"method": "GET", "path": "/slow", "since": 70.0}}]}},
            "warn worker 12 GET /slow has run for 30 s",
        ),
        (
            {"web": {"listeners": [{"address": "unix:a", "waiting": 40, "backlog": 64}]}},
            "bad unix:a 40 connections wait, of 64 that may",
        ),
        ({"web": {"listeners": [{"address": "unix:a", "waiting": None, "backlog": None}]}}, None),
    ],
)
def test_what_counts_as_a_problem(changes: dict[str, Any], expected: str | None) -> None:
    found = [" ".join(problem.values()) for problem in status(**changes)["problems"]]
    assert found == ([] if expected is None else [expected])


def test_the_worst_comes_first() -> None:
    found = status(web={"wanted": 2}, companion={"state": "BACKOFF", "pid": None})["problems"]
    assert [problem["level"] for problem in found] == ["bad", "warn"]


def test_the_page_of_a_companion_names_its_groups() -> None:
    page = render_companion({**COMPANION, "groups": ["workers", "night"]}, [])
    assert "<dt>Groups</dt><dd>workers, night</dd>" in page
    assert "Groups" not in render_companion({**COMPANION, "groups": []}, [])


def test_the_page_of_a_companion_shows_the_runs_of_its_schedule() -> None:
    runs = [
        {"started": 1700000000.0, "why": "schedule", "good": False, "took": 12.34, "how": "exited <1>"},
        {"started": 1700000060.0, "why": "retry", "good": True, "took": 3.0, "how": "exited with status 0"},
        {"started": 1700000120.0, "why": "command", "good": None, "took": None, "how": None},
    ]
    page = render_companion({**COMPANION, "details": {"runs_of_schedule": runs}}, [])
    rows = page[page.index("Latest runs") : page.index("Latest ends")]
    assert rows.index("command") < rows.index("retry") < rows.index("schedule")
    for text in ("12.3 s", "failed: exited &lt;1&gt;", "success", "runs"):
        assert text in rows
    assert "Latest runs" not in render_companion(COMPANION, [])
