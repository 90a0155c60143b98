# SPDX-License-Identifier: MIT
"""The commands of ``gunicorn-companion``: ask, print, wait, and return the exit code.

The client waits; the manager does not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable

from gunicorn.companion.client.connection import (
    DEFAULT_TIMEOUT,
    NOT_RUNNING,
    OK,
    REFUSED,
    RETRY_INTERVAL,
    Changes,
    Connection,
    Failure,
    Reply,
    complain,
    connect,
    refusal,
)

EVERY = "all"

# For `wait`, besides the states: STOPPED because its work is done, not by a failure or a command.
DONE = "DONE"

# Of names in front of lines, as in the server's own output.
LOG_COLORS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)

# The least time for an answer to `wait`, in seconds.
SHORTEST_ANSWER_TIME = 2.0

# -- status --------------------------------------------------------------------


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


def describe(companion: Reply) -> str:
    """The server's description, and whether a rolling restart will reach it."""
    text = str(companion["description"])
    if companion.get("rolling"):
        text += ", to be restarted in its turn"
    return text


def runs_as_it_should(companion: Reply) -> bool:
    state = companion["state"]
    if state in ("STOPPED", "STOPPING") and companion["manual_stop"]:
        return True
    if state != "STOPPED":
        return bool(state == "RUNNING") and not companion.get("flapping")
    if companion.get("reason") == "exited":
        # It exited by itself, and autorestart does not apply.
        return is_done(companion)
    # Giving up is a failure, even after a manual start.
    return not companion["autostart"] and companion.get("reason") != "gave up"


def is_done(companion: Reply) -> bool:
    """Whether it has finished its work."""
    # An older server does not send "done".
    well = companion.get("reason") == "exited" and companion.get("last_exit_code") == 0
    return companion["state"] == "STOPPED" and bool(companion.get("done", well))


def has_come_to(companion: Reply, wanted: str) -> bool:
    """Whether it has reached the state *wanted*; a finished job counts as RUNNING."""
    if wanted in (DONE, "RUNNING") and is_done(companion):
        return True
    return bool(companion["state"] == wanted)


def never_comes_to(companion: Reply, wanted: str) -> bool:
    """Whether it will not reach the state *wanted* by itself."""
    if companion["state"] == "STOPPED":
        return not companion.get("rolling")
    if wanted == DONE and companion.get("autorestart") == "always":
        return True
    return wanted in (DONE, "RUNNING") and bool(companion.get("hopeless"))


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
            show = _Lines(alone=True).show
            while (output := _next_line(other)) is not None:
                show(output)


def _facts(companion: Reply) -> Iterable[tuple[str, list[str]]]:
    """The facts of a companion by their word, each with its lines."""
    details = companion["details"]
    where = f"   in {details['cwd']}" if details["cwd"] else ""
    yield "runs", [f"{details['runs']}{where}"]
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
    yield "limits", [_limit(name, **limit) for name, limit in details["limits"].items()]
    count = details["starts_in_the_last_hour"]
    yield "starts", [f"{count} in the last hour"]
    yield "ends", [f"{_moment(entry['time'])}   {entry['description']}" for entry in details["ends"]]


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


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


def _limit(name: str, limit: float, now: float | None) -> str:
    """``max_memory 300.0 MiB, now 12.3 MiB (4 %)``."""

    def show(value: float) -> str:
        if name == "max_memory":
            return show_size(int(value))
        return f"{value:g}" if name == "start_retries" else f"{value:.1f} s"

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


# -- commands for companions ------------------------------------------


def steer(connection: Connection, options: Namespace) -> int:
    """Start, stop or restart companions, then wait until each has settled."""
    rolling = bool(getattr(options, "rolling", False))
    request = {"cmd": options.command, **({"rolling": True} if rolling else {})}
    names = _expand(connection, options.names)
    if options.command == "stop" and len(names) > 1:
        # Together, in their order. An older server stops them one by one.
        request["names"] = names
    accepted, code = _send_each(connection, options, request, names)
    wanted = "STOPPED" if options.command == "stop" else "RUNNING"
    done = {"start": "started", "stop": "stopped", "restart": "restarted"}[options.command]
    goals = {name: (wanted, f"already {done}" if already else done) for name, already in accepted.items()}
    if not options.no_wait and not _settle(connection, options, goals, rolling):
        code = REFUSED
    return code


def _send_each(
    connection: Connection, options: Namespace, request: Reply, names: list[str]
) -> tuple[dict[str, bool], int]:
    """Send *request* for each of *names*; return the accepted companions, and the exit code.

    The value of each is whether it was already in the requested state. A set may be refused in part.
    """
    code = OK
    accepted: dict[str, bool] = {}
    for name in names:
        if "names" in request and name in accepted:
            continue
        reply = connection.ask(**request, name=name)
        if options.json:
            print(json.dumps(reply))
        already = reply.get("already", ())
        for each in reply.get("names") or ([name] if reply.get("ok") else []):
            accepted.setdefault(each, each in already)
        if options.no_wait and not options.json and reply.get("message"):
            print(reply["message"])
        if not reply.get("ok"):
            code = REFUSED
            complain(refusal(reply))
    return accepted, code


def _expand(connection: Connection, names: list[str]) -> list[str]:
    if EVERY not in names:
        return list(dict.fromkeys(names))
    return [companion["name"] for companion in connection.must(cmd="status")["companions"]]


def _deadline(options: Namespace) -> float | None:
    started: float = options.started
    return None if options.timeout is None else started + float(options.timeout)


def _settle(
    connection: Connection, options: Namespace, goals: dict[str, tuple[str, str]], rolling: bool = False
) -> bool:
    """Wait until every companion has settled; False if one settled in another state than requested.

    *goals*: by name the wanted state and the word for reaching it.
    """
    if not goals:
        return True
    deadline = _deadline(options)
    good = True
    with Changes(connection.path) as changes:
        while True:
            found = _look(connection, list(goals))
            for name in list(goals):
                companion = found.get(name)
                if not _has_settled(companion):
                    continue
                wanted, done = goals.pop(name)
                good = _tell(options, name, companion, wanted, done) and good
            if rolling and not good and goals:
                # The others wait for the failed one.
                complain(f"not restarted yet: {', '.join(goals)}")
                return False
            if not goals:
                return good
            if deadline is not None and time.monotonic() >= deadline:
                late = (f"{name} ({_state_of(found.get(name))})" for name in goals)
                raise Failure(f"not settled in time: {', '.join(late)}")
            changes.wait(deadline)


def _look(connection: Connection, names: list[str]) -> dict[str, Reply]:
    """Return the companions by name: all, or the only one in *names*."""
    if len(names) == 1:
        reply = connection.ask(cmd="status", name=names[0])
        # It may have been removed from the configuration.
        if not reply.get("ok"):
            return {}
    else:
        reply = connection.must(cmd="status")
    return {companion["name"]: companion for companion in reply["companions"]}


def _has_settled(companion: Reply | None) -> bool:
    if companion is None:
        return True
    if companion["state"] == "STARTING":
        # Stuck: a companion in its `after` fails or is stopped.
        return bool(companion.get("stuck"))
    waits = companion.get("rolling") or companion.get("stops_after")
    return companion["state"] != "STOPPING" and not waits


def _state_of(companion: Reply | None) -> str:
    if companion is None:
        return "STOPPED, removed from the configuration"
    return f"{companion['state']}, {describe(companion)}"


def _tell(options: Namespace, name: str, companion: Reply | None, wanted: str, done: str) -> bool:
    if wanted == "STOPPED" if companion is None else has_come_to(companion, wanted):
        if not options.json:
            finished = companion is not None and companion["state"] != wanted
            print(f"{name}: {'done' if finished else done}")
        return True
    complain(f"{name}: {_state_of(companion)}")
    return False


def send_signal(connection: Connection, options: Namespace) -> int:
    options.no_wait = True
    names = _expand(connection, [options.name])
    return _send_each(connection, options, {"cmd": "signal", "signal": options.signal}, names)[1]


def scale(connection: Connection, options: Namespace) -> int:
    reply = connection.ask(cmd="scale", name=options.name, numprocs=options.numprocs)
    if options.json:
        print(json.dumps(reply))
    if not reply.get("ok"):
        raise Failure(refusal(reply), REFUSED)
    goals = dict.fromkeys(reply.get("added", ()), ("RUNNING", "added"))
    goals.update((name, ("STOPPED", "removed")) for name in reply.get("removed", ()))
    if not goals:
        if not options.json:
            print("nothing changed")
        return OK
    if options.no_wait:
        for name, (_, done) in goals.items():
            if not options.json:
                print(f"{name}: {done}")
        return OK
    return OK if _settle(connection, options, goals) else REFUSED


# -- waiting -------------------------------------------------------------------


def wait(connection: Connection, options: Namespace) -> int:
    """Wait until all are in a state at the same time; fail at once if one of them will not reach it."""
    deadline = _deadline(options)
    if options.timeout is not None:
        # The timeout is for the companions; an answer has its own time.
        connection.sock.settimeout(max(options.timeout, SHORTEST_ANSWER_TIME))
    seen: set[str] = set()
    with Changes(connection.path) as changes:
        while True:
            found = _look_at(connection, options.names, seen if options.state == "STOPPED" else set())
            others = [one for one in found.values() if not has_come_to(one, options.state)]
            if not others:
                break
            stuck = [one for one in others if never_comes_to(one, options.state)]
            late = deadline is not None and time.monotonic() >= deadline
            for companion in stuck or (others if late else ()):
                endless = options.state == DONE and companion.get("autorestart") == "always"
                more = "; it never finishes, because its autorestart is 'always'" if endless else ""
                complain(f"{companion['name']}: {_state_of(companion)}{more}")
            if stuck or late:
                return REFUSED
            changes.wait(deadline)
    if options.json:
        print(json.dumps({"ok": True, "companions": list(found.values())}, indent=2))
    else:
        for name, companion in found.items():
            print(f"{name}: {DONE if is_done(companion) and options.state == 'RUNNING' else options.state}")
    return OK


def _look_at(connection: Connection, names: list[str], known: set[str]) -> dict[str, Reply]:
    """The companions of *names*; those in *known*, which grows, may be gone."""
    if EVERY in names:
        names = []
    replies = [connection.ask(cmd="status", name=name) for name in dict.fromkeys(names)]
    if not names:
        replies.append(connection.must(cmd="status"))
    for name, reply in zip(dict.fromkeys(names), replies, strict=False):
        if not reply.get("ok") and name not in known:
            raise Failure(refusal(reply), REFUSED)
    known.update(names)
    return {companion["name"]: companion for reply in replies for companion in reply.get("companions", ())}


# -- the rest ------------------------------------------------------------------


def reread(connection: Connection, options: Namespace) -> int:
    if options.timeout is None:
        # It runs the configuration file, which may take long.
        connection.sock.settimeout(None)
    reply = connection.ask(cmd="reread", **({"dry_run": True} if options.dry_run else {}))
    if options.json:
        print(json.dumps(reply, indent=2))
        return OK if reply.get("ok") else REFUSED
    if not reply.get("ok"):
        kept = "; the configuration stays as it was" if reply.get("kept_old_config") else ""
        raise Failure(f"{refusal(reply)}{kept}", REFUSED)
    changed = False
    would = "would be " if options.dry_run else ""
    for kind in ("added", "removed", "restarted", "updated"):
        for name in reply.get(kind, []):
            changed = True
            print(f"{name}: {would}{kind}")
    if not changed:
        print("nothing would change" if options.dry_run else "nothing changed")
    return OK


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


def follow_events(connection: Connection, options: Namespace) -> int:
    """Print one line of JSON for each event, until the server ends."""
    connection.must(cmd="events")
    # There may be no event for a long time.
    connection.sock.settimeout(None)
    while True:
        sys.stdout.write(connection.line().decode("utf-8", "replace"))
        sys.stdout.flush()


def show_logs(connection: Connection, options: Namespace) -> int:
    """Print kept lines; with ``--follow`` new ones until the server ends or somebody interrupts."""
    names = [] if EVERY in options.names else options.names
    request: Reply = {"cmd": "logs", "names": names, "lines": options.lines, "follow": options.follow}
    if options.since is not None:
        request["since"] = time.time() - options.since
    if options.stream:
        request["stream"] = options.stream
    reply = connection.must(**request)
    show = _show_line if options.json else _Lines(alone=len(reply["names"]) == 1).show
    # A line may take any time to come.
    connection.sock.settimeout(None)
    last = 0.0
    while True:
        while (line := _next_line(connection)) is not None:
            show(line)
            last = json.loads(line).get("time", last)
        if not options.follow:
            return OK
        # The process that answers was replaced, if the server has not ended.
        request.update(resume=True, since=last + 1e-6)
        connection = _ask_again(connection, options, request)


def _next_line(connection: Connection) -> bytes | None:
    """None at the end. A process that was killed may have sent a part of a line."""
    try:
        line = connection.file.readline()
    except ConnectionResetError:
        return None
    return line if line.endswith(b"\n") else None


def _ask_again(connection: Connection, options: Namespace, request: Reply) -> Connection:
    """Raises Failure if nobody answers for a while."""
    deadline = time.monotonic() + DEFAULT_TIMEOUT
    while True:
        again = connect(connection.path, options.timeout)
        try:
            again.must(**request)
        except Failure:
            # It may have been passed to the process that was just killed.
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_INTERVAL)
        else:
            again.sock.settimeout(None)
            return again


class _Lines:
    """Prints lines with the name of their companion, unless there can be only one."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        colors = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.colored = colors and os.environ.get("TERM") != "dumb"

    def show(self, line: bytes) -> None:
        found = json.loads(line)
        if "left_out" in found:
            complain(f"{found['left_out']} lines are left out: they came faster than they were read")
            return
        # Bytes that are no text were sent as surrogates.
        text = found["line"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if not self.alone:
            self._show_name(found["name"])
        print(text, flush=True)

    def _show_name(self, name: str) -> None:
        if not self.colored:
            sys.stdout.write(f"{name} | ")
            return
        color = LOG_COLORS[sum(name.encode()) % len(LOG_COLORS)]
        # `Printable` lets no colour pass.
        stream = getattr(sys.stdout, "stream", sys.stdout)
        stream.write(f"\x1b[{color}m{name} |\x1b[0m ")


def _show_line(line: bytes) -> None:
    sys.stdout.write(line.decode("utf-8", "replace"))
    sys.stdout.flush()


def show_pid(connection: Connection, options: Namespace) -> int:
    """Print the pid of the manager, or of companions. One without a process has none: not 0, for ``kill``."""
    if not options.names:
        reply = connection.must(cmd="pid")
        pid = connection.check_pid(reply.get("pid"))
        print(json.dumps(reply) if options.json else pid)
        return OK
    companions = _look_at(connection, options.names, set())
    if options.json:
        print(json.dumps({name: companion["pid"] for name, companion in companions.items()}))
    code = OK
    for name, companion in companions.items():
        if companion["pid"] is None:
            code = REFUSED
            complain(f"{name} has no process: {companion['state']}, {companion['description']}")
        elif not options.json:
            print(connection.check_pid(companion["pid"]))
    return code


def show_version(connection: Connection, options: Namespace) -> int:
    reply = connection.must(cmd="version")
    print(json.dumps(reply) if options.json else reply["version"])
    return OK
