# SPDX-License-Identifier: MIT
"""The commands of ``gunicorn-companion``: ask, print, wait, and return the exit code.

The client waits; the manager does not.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from gunicorn.companion.client.connection import (
    OK,
    REFUSED,
    Changes,
    Connection,
    Failure,
    Reply,
    complain,
    refusal,
)

EVERY = "all"

# For `wait`, besides the states: STOPPED because its work is done, not by a failure or a command.
DONE = "DONE"

# The least time for an answer to `wait`, in seconds.
SHORTEST_ANSWER_TIME = 2.0

# -- states --------------------------------------------------------------------


def describe(companion: Reply) -> str:
    """The server's description, and whether a restart or a new configuration has yet to reach it."""
    text = str(companion["description"])
    if companion.get("rolling"):
        text += ", to be restarted in its turn"
    if companion.get("change_stopped_by"):
        text += (
            f", still with its old configuration: {companion['change_stopped_by']} gave up with the new one"
        )
    return text


def runs_as_it_should(companion: Reply) -> bool:
    state = companion["state"]
    if state in ("STOPPED", "STOPPING") and companion["manual_stop"]:
        return True
    if stands_by(companion):
        # Another server runs it, or soon will.
        unheld = companion["lease"]["unheld_for"]
        return unheld is None or unheld <= 2 * companion["lease"]["ttl"]
    if schedule := companion.get("schedule"):
        # It runs as soon as it is started; what has failed has failed until the next run.
        last = schedule["last"]
        return state != "BACKOFF" and not companion.get("stuck") and (last is None or bool(last["good"]))
    if state != "STOPPED":
        return bool(state == "RUNNING") and not companion.get("flapping")
    if companion.get("reason") == "exited":
        # It exited by itself, and autorestart does not apply.
        return is_done(companion)
    # Giving up is a failure, even after a manual start.
    return not companion["autostart"] and companion.get("reason") != "gave up"


def stands_by(companion: Reply) -> bool:
    """Whether nothing but its lease keeps it from a start."""
    return bool(companion.get("standby")) and companion.get("lease") is not None


def describe_refusal(server: Mapping[str, Any]) -> str | None:
    """Return the sentence about the last reload or upgrade, if it was refused; else None."""
    tried = [(last["at"], what, last) for what in ("reload", "upgrade") if (last := server.get(what))]
    if not tried:
        return None
    _, what, last = max(tried, key=lambda one: one[0])
    if last["result"] not in ("refused", "rolled back"):
        return None
    at, today = time.localtime(last["at"]), time.strftime("%Y-%m-%d")
    day = time.strftime("%Y-%m-%d", at)
    moment = time.strftime("%H:%M" if day == today else "%Y-%m-%d %H:%M", at)
    return f"{what} {last['result']} at {moment}: {last['reason']}"


def is_done(companion: Reply) -> bool:
    """Whether it has finished its work."""
    # An older server does not send "done".
    well = companion.get("reason") == "exited" and companion.get("last_exit_code") == 0
    return companion["state"] == "STOPPED" and bool(companion.get("done", well))


def has_come_to(companion: Reply, wanted: str) -> bool:
    """Whether it has reached the state *wanted*; a finished job counts as RUNNING."""
    if wanted in (DONE, "RUNNING") and is_done(companion):
        return True
    if wanted == "RUNNING" and stands_by(companion) and companion["lease"]["holder"]:
        return True
    return bool(companion["state"] == wanted)


def never_comes_to(companion: Reply, wanted: str) -> bool:
    """Whether it will not reach the state *wanted* by itself."""
    if companion["state"] == "STOPPED":
        return not companion.get("rolling")
    if wanted == DONE and companion.get("autorestart") == "always":
        return True
    return wanted in (DONE, "RUNNING") and bool(companion.get("hopeless"))


# -- commands for companions ------------------------------------------


def steer(connection: Connection, options: Namespace) -> int:
    """Start, stop or restart companions, then wait until each has settled."""
    rolling = bool(getattr(options, "rolling", False))
    request = {"cmd": options.command, **({"rolling": True} if rolling else {})}
    if getattr(options, "later", False) or (options.command != "stop" and EVERY in options.names):
        request["later"] = True
    names = _expand(connection, options.names)
    if options.command == "stop" and len(names) > 1:
        # Together, in their order. An older server stops them one by one.
        request["names"] = names
    accepted, code = _send_each(connection, options, request, names)
    wanted = "STOPPED" if options.command == "stop" else "RUNNING"
    done = {"start": "started", "stop": "stopped", "restart": "restarted"}[options.command]
    goals = {name: (wanted, f"already {done}" if already else done) for name, already in accepted.items()}
    if not options.no_wait and not settle(connection, options, goals, rolling=rolling):
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
        for each in reply.get("at_its_time", ()):
            # Nothing to wait for.
            if not (options.json or options.no_wait):
                print(f"{each}: at its next time")
        for each in reply.get("names") or ([name] if reply.get("ok") and "at_its_time" not in reply else []):
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


def deadline_of(options: Namespace) -> float | None:
    """When ``--timeout`` has passed (monotonic); None without one."""
    started: float = options.started
    return None if options.timeout is None else started + float(options.timeout)


def settle(
    connection: Connection,
    options: Namespace,
    goals: dict[str, tuple[str, str]],
    *,
    rolling: bool = False,
    since: float = 0.0,
) -> bool:
    """Wait until every companion has settled; False if one settled in another state than requested.

    *goals*: by name the wanted state and the word for reaching it. One that runs since before *since* (wall
    clock) has lost its turn to be restarted, because one before it has given up.
    """
    if not goals:
        return True
    deadline = deadline_of(options)
    good = True
    with Changes(connection.path) as changes:
        while True:
            # One may have been removed from the configuration.
            found = _look_at(connection, list(goals) if len(goals) == 1 else [], set(goals))
            for name in list(goals):
                companion = found.get(name)
                if not _has_settled(companion):
                    continue
                wanted, done = goals.pop(name)
                runs = (
                    companion if companion is not None and companion["state"] == wanted == "RUNNING" else {}
                )
                if (runs.get("started_at") or since) < since:
                    complain(f"{name}: goes on as before: {_state_of(companion)}")
                    good = False
                    continue
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


def _has_settled(companion: Reply | None) -> bool:
    if companion is None:
        return True
    if stands_by(companion):
        # It may get the lease in a moment.
        return bool(companion["lease"]["holder"]) or not companion["lease"]["store_up"]
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
    changed = companion is None or not companion.get("change_stopped_by")
    if changed and (wanted == "STOPPED" if companion is None else has_come_to(companion, wanted)):
        if not options.json:
            finished = companion is not None and companion["state"] != wanted
            if companion is not None and stands_by(companion):
                done, finished = describe(companion), False
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
    return OK if settle(connection, options, goals) else REFUSED


# -- waiting -------------------------------------------------------------------


def wait(connection: Connection, options: Namespace) -> int:
    """Wait until all are in a state at the same time; fail at once if one of them will not reach it."""
    deadline = deadline_of(options)
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
            reached = DONE if is_done(companion) and options.state == "RUNNING" else options.state
            print(f"{name}: {describe(companion) if stands_by(companion) else reached}")
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


def follow_events(connection: Connection, options: Namespace) -> int:
    """Print one line of JSON for each event, until the server ends."""
    names = [] if EVERY in options.names else options.names
    connection.must(cmd="events", **({"names": names} if names else {}))
    # There may be no event for a long time.
    connection.sock.settimeout(None)
    while True:
        sys.stdout.write(connection.line().decode("utf-8", "replace"))
        sys.stdout.flush()


def show_stacks(connection: Connection, options: Namespace) -> int:
    """Print the stacks of each process; the reason for one that has none goes to stderr."""
    if options.timeout is None:
        # The server has its own limit for each process.
        connection.sock.settimeout(None)
    dumps = [
        dump
        for name in _expand(connection, options.names)
        for dump in connection.must(cmd="dump", what=name)["dumps"]
    ]
    if options.json:
        print(json.dumps({"ok": True, "dumps": dumps}, indent=2))
    else:
        for dump in dumps:
            process = f"{dump['name']} (pid {dump['pid']})"
            if dump["error"]:
                complain(f"{process}: {dump['error']}")
            else:
                print(f"{process}\n{dump['stacks']}")
    return REFUSED if any(dump["error"] for dump in dumps) else OK


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
