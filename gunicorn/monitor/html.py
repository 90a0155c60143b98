# SPDX-License-Identifier: MIT
"""The monitor's pages as the server sends them: tables that need no script. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from gunicorn.companion.status import format_age, format_uptime

_MISSING = "-"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/static/icon.svg">
<link rel="stylesheet" href="/static/page.css">
<script type="module" src="/static/page.js"></script>
</head>
<body{attributes}>
<a class="skip" href="#main">Skip to content</a>
<header id="head"><p class="brand"><a href="/">{brand}</a></p><p class="facts">{facts}</p></header>
<main id="main" tabindex="-1">
{content}
<p class="reload">As of {now}. <a href="">Load again</a></p>
</main>
</body>
</html>
"""


class Markup(str):
    """Text that is HTML already."""


def render_index(status: Mapping[str, Any]) -> str:
    """Return the page of the server; *status* is the value of ``/api/status``."""
    server, web = status.get("server") or {}, status.get("web")
    content = [_verdict(status), _companions(status.get("companions") or ())]
    if web is not None:
        content.append(_workers(web))
    content.append(_memory(status.get("memory")))
    facts = " · ".join(
        filter(
            None,
            [
                ", ".join(server.get("addresses") or ()),
                f"master {server['pid']}" if server.get("pid") else "",
                f"up {format_uptime(server['uptime'])}" if server.get("uptime") is not None else "",
                f"version {server['version']}" if server.get("version") else "",
            ],
        )
    )
    title = str(server.get("application") or "gunicorn")
    return _page(title, title, facts, Markup("\n".join(content)))


def render_companion(companion: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the page of one companion, from what ``status NAME`` tells, with its last *lines* of output."""
    name, details = companion["name"], companion.get("details") or {}
    memory = companion.get("memory") or {}
    facts = [
        ("State", _state(companion)),
        ("Now", companion["description"]),
        ("Runs", details.get("runs")),
        ("Groups", ", ".join(companion.get("groups") or ()) or None),
        ("Memory", _size(memory.get("private"))),
        ("Saved by sharing", _size(memory.get("saved"))),
        ("Limits", "; ".join(_limit(*limit) for limit in (details.get("limits") or {}).items()) or None),
        ("Lease", (companion.get("lease") or {}).get("summary")),
        ("Addresses", ", ".join(details.get("addresses") or ()) or None),
        ("Starts in the last hour", details.get("starts_in_the_last_hour")),
    ]
    rows = "".join(f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>" for label, value in facts if value)
    ends = [
        [_moment(end["time"]), end["pid"], format_uptime(end["uptime"] or 0), end["cause"], end["reason"]]
        for end in details.get("ends") or ()
    ]
    runs = [
        [_moment(run["started"]), run["why"], _took(run), _how(run)]
        for run in reversed(details.get("runs_of_schedule") or ())
    ]
    output = "\n".join(_text(line["line"]) for line in lines)
    content = Markup(
        f"<h1>{_text(name)}</h1><dl class=facts>{rows}</dl>"
        + (_table("Latest runs", ["When", "Why", "Took", "How"], runs, "") if runs else "")
        + _table("Latest ends", ["When", "Pid", "After", "Cause", "How"], ends, "None yet.")
        + f"<h2>Output</h2><pre class=log tabindex=0>{output or 'Nothing yet.'}</pre>"
    )
    return _page(f"{name} · companion", "All processes", "", content, companion=name)


def _took(run: Mapping[str, Any]) -> str:
    return "" if run["took"] is None else f"{run['took']:.1f} s"


def _how(run: Mapping[str, Any]) -> str:
    """How a run has ended, in words."""
    if run["good"] is None:
        return "runs"
    return "success" if run["good"] else f"failed: {run['how']}"


def render_error(text: str, companion: str | None = None) -> str:
    """Return a page that says why there is none; the script tries again."""
    content = Markup(f'<section class="verdict bad"><h1>No answer</h1><p>{_text(text)}</p></section>')
    return _page("gunicorn", "All processes", "", content, companion)


def _page(title: str, brand: str, facts: str, content: Markup, companion: str | None = None) -> str:
    attributes = "" if companion is None else f' data-companion="{_text(companion)}"'
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return _PAGE.format(
        title=_text(title),
        brand=_text(brand),
        facts=_text(facts),
        content=content,
        attributes=attributes,
        now=_text(now),
    )


def _verdict(status: Mapping[str, Any]) -> Markup:
    found = status["problems"]
    if not found:
        return Markup('<section class="verdict good"><h1>All is well</h1></section>')
    items = "".join(
        f'<li class="{problem["level"]}"><b>{_text(problem["about"])}</b> {_text(problem["text"])}</li>'
        for problem in found
    )
    title = f"{len(found)} problem{'s' if len(found) != 1 else ''}"
    return Markup(
        f'<section class="verdict {_text(found[0]["level"])}"><h1>{title}</h1><ul>{items}</ul></section>'
    )


def _companions(companions: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for companion in companions:
        memory, counters = companion.get("memory") or {}, companion.get("counters") or {}
        uptime = companion.get("uptime")
        rows.append(
            [
                Markup(f'<a href="/companion/{quote(companion["name"], "")}">{_text(companion["name"])}</a>'),
                _state(companion),
                _note(companion),
                companion.get("pid"),
                None if uptime is None else format_uptime(uptime),
                companion.get("restart_count"),
                _seconds(counters.get("cpu")),
                _size(memory.get("private")),
                _size(memory.get("saved")),
            ]
        )
    heads = ["Name", "State", "Last end", "Pid", "Uptime", "Restarts", "CPU time", "Memory", "Saved"]
    return _table("Companions", heads, rows, "There are none.")


def _note(companion: Mapping[str, Any]) -> str:
    """How the latest process ended, if one has; of one that has none: what it does now."""
    if not companion["pid"] or companion["state"] == "STOPPING":
        return str(companion["description"])
    if not companion.get("last_exit_cause") or not companion.get("exited_at"):
        return str(companion.get("status_text") or "")
    age = format_age(max(0.0, time.time() - companion["exited_at"]))
    return f"{companion['last_exit_cause']}: {companion['last_exit_reason']}, {age} ago"


def _workers(web: Mapping[str, Any]) -> Markup:
    rows = []
    for worker in web["workers"]:
        oldest, memory = worker.get("oldest"), worker.get("memory") or {}
        running = ""
        if oldest:
            age = format_age(max(0.0, web["now"] - oldest["since"]))
            running = f"{oldest['method']} {oldest['path']} for {age}"
        rows.append(
            [
                worker["pid"],
                worker["age"],
                Markup(f'<span class="state {_text(worker["state"])}">{_text(worker["state"])}</span>'),
                running,
                format_uptime(max(0.0, web["now"] - worker["started"])),
                worker.get("requests"),
                worker.get("running"),
                _seconds(worker.get("cpu")),
                _size(memory.get("private")),
            ]
        )
    heads = [
        "Pid", "Number", "State", "Oldest request", "Uptime", "Requests", "Running", "CPU time", "Memory",
    ]  # fmt: skip
    listeners = "; ".join(
        listener["address"]
        + (
            f": {listener['waiting']} of {listener['backlog']} wait"
            if listener["waiting"] is not None
            else ""
        )
        for listener in web.get("listeners") or ()
    )
    about = f"{web['class']}, {web['wanted']} wanted. {listeners}"
    return Markup(
        _table("Web workers", heads, rows, "There are none.") + f"<p class=about>{_text(about)}</p>"
    )


def _memory(memory: Mapping[str, Any] | None) -> Markup:
    if not memory:
        return Markup("")
    return Markup(
        f"<p class=about>Companions use {_size(memory['private'])} of their own;"
        f" sharing the loaded application saves {_size(memory['saved'])}.</p>"
    )


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], none: str) -> Markup:
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    if not body:
        return Markup(f"<h2>{_text(title)}</h2><p>{_text(none)}</p>")
    head = "".join(f"<th scope=col>{_text(name)}</th>" for name in heads)
    return Markup(
        f'<h2>{_text(title)}</h2><div class="scroll" tabindex="0" role="region" aria-label="{_text(title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _text(value: Any) -> str:
    if isinstance(value, Markup):
        return value
    return _MISSING if value is None else escape(str(value))


def _state(companion: Mapping[str, Any]) -> Markup:
    state = companion["state"]
    flapping = " flapping" if companion.get("flapping") else ""
    return Markup(f'<span class="state {_text(state.lower())}">{_text(state)}</span>{flapping}')


def _limit(name: str, limit: Mapping[str, Any]) -> str:
    show = _size if name == "max_memory" else _number
    return f"{name} {show(limit['limit'])}, now {show(limit['now'])}"


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:g}"


def _size(value: float | None) -> str:
    return _MISSING if value is None else f"{value / 2**20:.1f} MiB"


def _seconds(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.1f} s"


def _moment(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
