# SPDX-License-Identifier: MIT
"""The command ``web``: a table of the web workers, and commands for them."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterable

from gunicorn.companion.client import terminal
from gunicorn.companion.client.commands import deadline_of, describe_refusal
from gunicorn.companion.client.connection import (
    NOT_RUNNING,
    OK,
    REFUSED,
    RETRY_INTERVAL,
    Connection,
    Failure,
    Reply,
    complain,
    refusal,
)
from gunicorn.companion.client.show import show_size

# Seconds: the master's loop turns once a second. A request of this age is shown in red.
LATE_BEAT = 5.0
OLD_REQUEST = 10.0

HEADER = ("PID", "STATE", "AGE", "REQUESTS", "RUNNING", "CPU", "PRIVATE", "OLDEST REQUEST")
LEFT = (1, len(HEADER) - 1)
COLORS = {"busy": terminal.GREEN, "booting": terminal.YELLOW, "retiring": terminal.YELLOW}


def web(connection: Connection, options: Namespace) -> int:
    """Show the web workers, or change them."""
    takes = {"add": "N", "remove": "N", "kill": "PID"}.get(options.do)
    if options.number is not None and takes is None:
        raise Failure(f"{options.do} takes no number")
    if options.number is None and takes == "PID":
        raise Failure("the PID of the worker is missing: 'gunicorn-companion web' shows them")
    return _show(connection, options) if options.do is None else _change(connection, options)


# -- the table -----------------------------------------------------------------


def _show(connection: Connection, options: Namespace) -> int:
    reply = connection.must(cmd="web", memory=True)
    found = reply["web"]
    if options.json:
        print(json.dumps(reply, indent=2))
    else:
        _print_workers(found)
        print()
        for word, line in _facts(found):
            print(f"{word:<12} {line}")
    hangs = found["master"]["beat_age"] >= LATE_BEAT
    return NOT_RUNNING if hangs or _serving(found) < found["wanted"] else OK


def _print_workers(found: Reply) -> None:
    workers = sorted(found["workers"], key=lambda worker: worker["age"])
    rows = [HEADER, *(_row(worker, found["now"]) for worker in workers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    widths[-1] = 0
    limit = terminal.width()
    colors = terminal.has_colors()
    for row, worker in zip(rows, [None, *workers], strict=True):
        room = limit
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            text = f"{cell:<{width}}" if column in LEFT else f"{cell:>{width}}"
            text += "  " if column < len(row) - 1 else ""
            if room is not None:
                text = _cut(text, room)
                room -= len(text)
            terminal.put(text, _color(worker, column, found["now"]) if colors and worker else None)
        print()


def _row(worker: Reply, now: float) -> tuple[str, ...]:
    oldest, cpu, memory = worker["oldest"], worker["cpu"], worker["memory"]
    return (
        str(worker["pid"]),
        worker["state"],
        show_span(now - worker["started"]),
        str(worker["requests"]),
        str(worker["running"]),
        "-" if cpu is None else show_span(cpu),
        show_size(memory and memory["private"]),
        f"{show_span(now - oldest['since'])} {oldest['method']} {oldest['path']}" if oldest else "-",
    )


def _color(worker: Reply, column: int, now: float) -> int | None:
    if HEADER[column] == "STATE":
        return COLORS.get(worker["state"])
    oldest = worker["oldest"]
    if column == len(HEADER) - 1 and oldest and now - oldest["since"] >= OLD_REQUEST:
        return terminal.RED
    return None


def _cut(text: str, room: int) -> str:
    return text[:room] if len(text.rstrip()) <= room else text[: max(0, room - 2)] + ".."[:room]


def show_span(seconds: float) -> str:
    """``0.4s``, ``12s``, ``90m``, ``3h``, ``5d``: at most four characters for a year."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    for unit, size, limit in (("s", 1, 100), ("m", 60, 100), ("h", 3600, 48)):
        if seconds / size < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def _facts(found: Reply) -> Iterable[tuple[str, str]]:
    totals, threads = found["totals"], found["threads"]
    threaded = f", {threads} threads each" if threads > 1 else ""
    yield (
        "workers",
        f"{_serving(found)} of {found['wanted']} serve{_range(found)}; class {found['class']}{threaded}",
    )
    answers = _counts(totals["answers"])
    if held_by := found.get("held_by"):
        yield "waiting", f"they wait for {held_by}"
    yield "requests", f"{totals['requests']} since the start{': ' if answers else ''}{answers}"
    yield "now", f"requests running: {totals['running']}, connections open: {totals['connections']}"
    for listener in found["listeners"]:
        if listener["waiting"] is not None:
            yield "backlog", f"{listener['waiting']} of {listener['backlog']} at {listener['address']}"
    if ends := _counts(totals["ends"]):
        yield "ended", ends
    if found["master"]["beat_age"] >= LATE_BEAT:
        age = show_span(found["master"]["beat_age"])
        yield "master", f"process {found['master']['pid']} hangs: no sign of life for {age}"


def _range(found: Reply) -> str:
    """How many there may be, where the load decides it; a server of an older version does not tell."""
    fixed, most = found.get("fixed", 0), found.get("most", 0)
    return f" ({fixed} to {most} by load)" if most > fixed else ""


def _counts(counts: Reply) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _serving(found: Reply) -> int:
    return sum(worker["state"] in ("idle", "busy") for worker in found["workers"])


# -- commands ------------------------------------------------------------------


def _change(connection: Connection, options: Namespace) -> int:
    """Have the master do it, then wait until it is done."""
    request = {"cmd": "web", "do": options.do}
    if options.number is not None:
        request["pid" if options.do == "kill" else "count"] = options.number
    failed = connection.must(cmd="web")["web"]["totals"]["ends"]["boot"]
    reply = connection.ask(**request)
    if options.json:
        print(json.dumps(reply))
    if not reply.get("ok"):
        raise Failure(refusal(reply), REFUSED)
    if options.no_wait:
        if not options.json:
            print(reply["message"])
        return OK
    deadline = deadline_of(options)
    while not _is_done(found := connection.must(cmd="web")["web"], options, reply):
        serve = f"{_serving(found)} of {found['wanted']} workers serve"
        if options.do == "reload" and (why := _why_refused(connection, reply)):
            complain(f"{why}; {serve}")
            return REFUSED
        if options.do == "add" and found["totals"]["ends"]["boot"] > failed:
            complain(f"a new worker did not start: see the server's log; {serve}, and the server tries again")
            return REFUSED
        if deadline is not None and time.monotonic() >= deadline:
            raise Failure(f"not done in time: {serve}, {len(found['workers'])} are there")
        time.sleep(RETRY_INTERVAL)
    if not options.json:
        count = _serving(found)
        serve = f"{count} worker{'s serve' if count != 1 else ' serves'}"
        print(f"{options.number}: killed" if options.do == "kill" else serve)
    return OK


def _why_refused(connection: Connection, reply: Reply) -> str | None:
    """Return why the server keeps its old workers; None if it does not, or not yet."""
    server = connection.must(cmd="status").get("server") or {}
    last = server.get("reload") or {}
    return describe_refusal(server) if last.get("number") == reply.get("number") else None


def _is_done(found: Reply, options: Namespace, reply: Reply) -> bool:
    workers = found["workers"]
    if options.do == "kill":
        return all(worker["pid"] != options.number for worker in workers)
    if options.do == "remove":
        return len(workers) <= int(found["wanted"])
    if options.do == "reload" and any(worker["age"] <= reply["newest"] for worker in workers):
        return False
    return _serving(found) >= int(found["wanted"])
