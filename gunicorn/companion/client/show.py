# SPDX-License-Identifier: MIT
"""What ``status`` and ``history`` print: tables, a page of one companion, memory."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterable

from gunicorn.companion.client.commands import (
    EVERY,
    describe,
    describe_refusal,
    runs_as_it_should,
)
from gunicorn.companion.client.connection import NOT_RUNNING, OK, Connection, Reply, connect
from gunicorn.companion.client.logs import Lines, next_line

# -- tables --------------------------------------------------------------------


def show_status(connection: Connection, options: Namespace) -> int:
    more = {"memory": True} if options.json or options.verbose else {}
    names = [] if EVERY in options.names else list(dict.fromkeys(options.names))
    if len(names) == 1:
        more = {"memory": True, "details": True}
    replies = [connection.must(cmd="status", name=name, **more) for name in names]
    if not names:
        replies.append(connection.must(cmd="status", **more))
    # A copy may be named by itself and by its set.
    found = {companion["name"]: companion for reply in replies for companion in reply["companions"]}
    companions = list(found.values())
    memory = replies[0].get("memory")
    if len(replies) > 1 and memory is not None:
        memory = {**memory, **sum_up(companions)}
    if options.json:
        merged = {**replies[0], "companions": companions}
        print(json.dumps(merged if memory is None else {**merged, "memory": memory}, indent=2))
    elif not companions:
        print("no companions are configured")
    elif options.verbose:
        print_memory(companions, memory or {})
    elif "details" in companions[0]:
        show_page(connection, options, companions[0])
    else:
        print_table([companion["name"], companion["state"], describe(companion)] for companion in companions)
    if not (options.json or names) and (refusal := describe_refusal(replies[0].get("server", {}))):
        print(f"\n{refusal}")
    if not (options.json or names) and (held_by := replies[0].get("server", {}).get("web_held_by")):
        print(f"\nweb workers wait for {held_by}")
    return OK if all(runs_as_it_should(companion) for companion in companions) else NOT_RUNNING


def print_table(rows: Iterable[list[str]], right: Iterable[int] = ()) -> None:
    """Print aligned columns like ``supervisorctl status``; those in *right* are right-aligned."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[1] = max(widths[1], 8)  # the longest state, so that all calls have the same columns
    for row in rows:
        cells = [
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("   ".join(cells).rstrip())


def show_history(connection: Connection, options: Namespace) -> int:
    """Print the latest starts and ends, the last one last."""
    replies = [connection.must(cmd="history", name=name) for name in dict.fromkeys(options.names)]
    if not options.names:
        replies.append(connection.must(cmd="history"))
    found = [entry for reply in replies for entry in reply["history"]]
    # A copy may be named by itself and by its set.
    entries = [entry for place, entry in enumerate(found) if entry not in found[:place]]
    entries = sorted(entries, key=lambda entry: entry["time"])[-options.number :]
    if options.json:
        print(json.dumps({"ok": True, "history": entries}, indent=2))
    elif entries:
        print_table(
            [
                _moment(entry["time"]),
                entry["name"],
                entry["event"],
                entry["description"],
            ]
            for entry in entries
        )
    return OK


# -- one companion ---------------------------------------------------------------

# Lines of output below the facts.
LAST_LINES = 10


def show_page(connection: Connection, options: Namespace, companion: Reply) -> None:
    """Print all about one companion: its line of the table, the facts, and its latest output."""
    print_table([[companion["name"], companion["state"], describe(companion)]])
    facts = [(word, line) for word, lines in _facts(companion) for line in lines]
    print()
    shown = ""
    for word, line in facts:
        print(f"{'' if word == shown else word:<12} {line}".rstrip())
        shown = word
    with connect(connection.path, options.timeout) as other:
        reply = other.ask(cmd="logs", names=[companion["name"]], lines=LAST_LINES)
        if reply.get("ok"):
            print("\noutput")
            show = Lines(alone=True).show
            while (output := next_line(other)) is not None:
                show(output)


def _facts(companion: Reply) -> Iterable[tuple[str, list[str]]]:
    """The facts of a companion by their word, each with its lines."""
    details = companion["details"]
    where = f"   in {details['cwd']}" if details["cwd"] else ""
    yield "runs", [f"{details['runs']}{where}"]
    if companion.get("groups"):
        yield "groups", [", ".join(companion["groups"])]
    if details["since"] is not None:
        yield "since", [_moment(details["since"])]
    yield "processes", list(_tree(details["processes"]))
    memory = companion.get("memory")
    if memory:
        private, pss, saved = (show_size(memory[key]) for key in ("private", "pss", "saved"))
        yield "memory", [f"{private} private, {pss} in proportion (PSS); copy-on-write saves {saved}"]
    if details["descriptors"]:
        yield "descriptors", ["{open} open, {sockets} of them sockets".format(**details["descriptors"])]
    yield "listens on", details["addresses"]
    if lease := companion.get("lease"):
        yield "lease", [lease["summary"]]
    for key, found in companion.get("probes", {}).items():
        yield key, list(_check(found))
    yield "limits", [_limit(name, **limit) for name, limit in details["limits"].items()]
    if schedule := companion.get("schedule"):
        yield "schedule", list(_schedule(schedule))
        yield "latest runs", [_run(run) for run in reversed(details["runs_of_schedule"])]
    count = details["starts_in_the_last_hour"]
    yield "starts", [f"{count} in the last hour"]
    yield "ends", [f"{_moment(entry['time'])}   {entry['description']}" for entry in details["ends"]]


def _moment(seconds: float, zone: str | None = None) -> str:
    """``2026-11-27 03:30:00``, by the clock of the host, or of *zone* and with its name."""
    if zone is None:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    from datetime import datetime
    from zoneinfo import ZoneInfo

    return f"{datetime.fromtimestamp(seconds, ZoneInfo(zone)):%Y-%m-%d %H:%M:%S} {zone}"


def _tree(processes: list[Reply]) -> Iterable[str]:
    """One line for each process, below its parent."""
    pids = {process["pid"] for process in processes}

    def below(parent: int | None, depth: int) -> Iterable[str]:
        for process in processes:
            top = process["ppid"] not in pids
            if top if parent is None else process["ppid"] == parent:
                cpu = "" if process["cpu"] is None else f"   {process['cpu']:.2f} s CPU"
                yield f"{'  ' * depth}{process['pid']} {process['name']}{cpu}"
                yield from below(process["pid"], depth + 1)

    return below(None, 0)


def _check(found: Reply) -> Iterable[str]:
    """A ``probe`` or ``liveness``: what is checked, the latest result, and the end of what was said."""
    yield found["checks"]
    if found["good"] is None:
        yield "not checked yet"
        return
    result = "good" if found["good"] else f"failed ({found['failures']} in a row): {found['reason']}"
    yield f"{_moment(found['at'])}   {result}, in {found['took'] * 1000:.0f} ms"
    yield from (f"| {line}" for line in found["output"].splitlines()[-LAST_LINES:])


def _schedule(schedule: Reply) -> Iterable[str]:
    """Its times, the next one, and what is counted."""
    zone = schedule["timezone"]
    # Behind the next time, or without one here.
    yield schedule["times"] + (f"   {zone}" if zone and schedule["next"] is None else "")
    if schedule["next"] is not None:
        yield f"next {_moment(schedule['next'], zone)}"
    if "count" in schedule:
        counts = ("failed", "skipped", "missed")
        runs = "1 run" if schedule["count"] == 1 else f"{schedule['count']} runs"
        yield ", ".join([runs, *(f"{schedule[key]} {key}" for key in counts)])


def _run(run: Reply) -> str:
    """``2026-11-27 03:30:00   took 12.0 s, by its schedule``."""
    why = f"by its {run['why']}" if run["why"] == "schedule" else f"by {run['why']}"
    if run["good"] is None:
        return f"{_moment(run['started'])}   runs, {why}"
    failed = "" if run["good"] else f"   failed: {run['how']}"
    return f"{_moment(run['started'])}   took {run['took']:.1f} s, {why}{failed}"


def _limit(name: str, limit: float, now: float | None) -> str:
    """``max_memory 300.0 MiB, now 12.3 MiB (4 %)``."""

    def show(value: float) -> str:
        if name == "max_memory":
            return show_size(int(value))
        return f"{value:g}" if name in ("start_retries", "start_limit") else f"{value:.1f} s"

    if now is None:
        return f"{name} {show(limit)}"
    return f"{name} {show(limit)}, now {show(now)}" + (f" ({now / limit:.0%})" if limit else "")


# -- memory --------------------------------------------------------------------

MIB = 1024 * 1024


def print_memory(companions: list[Reply], memory: Reply) -> None:
    """Print the table with the memory of each, and a sentence with the sum."""
    header = ["NAME", "STATE", "PSS", "PRIVATE", "SAVED", "DESCRIPTION"]
    rows = [
        [
            companion["name"],
            companion["state"],
            *(show_size((companion.get("memory") or {}).get(key)) for key in ("pss", "private", "saved")),
            describe(companion),
        ]
        for companion in companions
    ]
    print_table([header, *rows], right=(2, 3, 4))
    print(f"\n{describe_sum(companions, memory)}")


def sum_up(companions: list[Reply]) -> dict[str, int]:
    """Sum up the memory of *companions*; ``separate``: their memory as separate processes."""
    known = [companion["memory"] for companion in companions if companion.get("memory")]
    sums = {key: sum(one[key] for one in known) for key in ("rss", "pss", "private", "saved")}
    return {**sums, "separate": sums["pss"] + sums["saved"]}


def describe_sum(companions: list[Reply], memory: Reply) -> str:
    count = sum(1 for companion in companions if companion.get("memory"))
    if not count:
        running = any(companion["pid"] for companion in companions)
        return "This system does not report what they share." if running else "None of them is running."
    sums = {key: show_size(size) for key, size in sum_up(companions).items()}
    these, they = (f"These {count} companions take", "they") if count > 1 else ("This companion takes", "it")
    text = (
        f"{these} {sums['pss']} together, {sums['private']} of it private. "
        f"As separate processes {they} would take {sums['separate']}: copy-on-write saves {sums['saved']}."
    )
    if count == 1:
        text = text.replace(" together", "")
    manager = memory.get("manager")
    if manager:
        text += f"\nTheir manager takes {show_size(manager['pss'])}."
    return text


def show_size(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:.1f} MiB"
