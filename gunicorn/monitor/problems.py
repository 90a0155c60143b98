# SPDX-License-Identifier: MIT
"""What is wrong with a server, in sentences, from the answers of its control socket. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gunicorn.companion.client.commands import describe_refusal, runs_as_it_should

# Seconds: a master that has not turned its loop for so long hangs, and so may a request.
MASTER_SILENT = 5.0
REQUEST_LONG = 10.0

BAD, WARN = "bad", "warn"

Problem = dict[str, str]


def problems(status: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong, the worst first: ``{"level": "bad" or "warn", "about": NAME, "text": SENTENCE}``.

    *status* is the value of ``/api/status``.
    """
    found = [
        {"level": level, "about": about, "text": text}
        for part in (
            _of_companions(status.get("companions") or ()),
            _of_web(status.get("web"), (status.get("server") or {}).get("web_held_by")),
            _of_reload(status.get("server") or {}),
        )
        for level, about, text in part
    ]
    return sorted(found, key=lambda problem: problem["level"] != BAD)


def _of_companions(companions: Any) -> Iterator[tuple[str, str, str]]:
    for companion in companions:
        if runs_as_it_should(companion):
            continue
        name, text = companion["name"], companion["description"]
        if companion.get("flapping") and companion["pid"]:
            last = f"{companion['last_exit_cause']}, {companion['last_exit_reason']}"
            yield BAD, name, f"has failed {companion['failures']} times in a row, last: {last}"
        elif companion["state"] in ("BACKOFF", "STOPPED") or companion.get("hopeless"):
            yield BAD, name, text
        elif companion.get("standby"):
            yield BAD, name, f"runs on no server: {text}"
        elif companion.get("failures") or companion.get("stuck"):
            yield WARN, name, f"{companion['state'].lower()}: {text}"


def _of_reload(server: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    text = describe_refusal(server)
    if text is not None:
        yield WARN, "master", text


def _of_web(web: Mapping[str, Any] | None, held_by: str | None) -> Iterator[tuple[str, str, str]]:
    if web is None:
        return
    silence = web["master"]["beat_age"]
    if silence is not None and silence > MASTER_SILENT:
        yield BAD, "master", f"has not answered for {silence:.0f} s"
    serving = sum(worker["state"] in ("idle", "busy") for worker in web["workers"])
    if serving < web["wanted"]:
        text = f"{serving} of {web['wanted']} workers serve requests"
        if held_by is not None:
            text += f": they wait for {held_by}"
        yield BAD if not serving else WARN, "web", text
    for worker in web["workers"]:
        oldest = worker.get("oldest")
        if oldest and web["now"] - oldest["since"] > REQUEST_LONG:
            seconds = web["now"] - oldest["since"]
            yield (
                WARN,
                f"worker {worker['pid']}",
                f"{oldest['method']} {oldest['path']} has run for {seconds:.0f} s",
            )
    for listener in web.get("listeners") or ():
        waiting, backlog = listener.get("waiting"), listener.get("backlog")
        if waiting and backlog and waiting * 2 >= backlog:
            yield BAD, listener["address"], f"{waiting} connections wait, of {backlog} that may"
