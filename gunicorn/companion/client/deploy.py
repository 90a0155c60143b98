# SPDX-License-Identifier: MIT
"""Commands for the whole server: ``reload``, ``upgrade``, ``shutdown``.

The master does it, whether or not somebody waits. Meanwhile its manager, or the master itself, may be
replaced by another one, so each look at the server has its own connection.
"""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable

from gunicorn.companion.client.commands import deadline_of, describe, settle
from gunicorn.companion.client.connection import (
    NOT_RUNNING,
    OK,
    REFUSED,
    RETRY_INTERVAL,
    Closed,
    Connection,
    Failure,
    NoServer,
    Reply,
    complain,
    connect,
    peer,
    refusal,
)
from gunicorn.companion.client.default_paths import master_of, socket_name

# Seconds without an answer until the processes of the server are looked for.
LOST = 10.0
# Seconds for the answer to one look.
LOOK_TIMEOUT = 5.0


def reload(connection: Connection, options: Namespace) -> int:
    """Have the master reload everything."""
    # First: its manager may be replaced at once.
    server = Server(connection, options)
    asked = time.time()
    reply = _ask(connection, options, {"cmd": "reload"})
    if not options.wait:
        return OK

    told: list[str | None] = [None]

    def is_over(about: Reply) -> bool:
        # At the start of a server this may last: no worker boots before those companions are there.
        if (held_by := about.get("web_held_by")) not in told:
            told.append(held_by)
            _say(options, f"web workers wait for {held_by}")
        result = about.get("reload") or {"number": 0}
        return bool(result["number"] >= reply["number"] and result["result"] != "pending")

    status = server.wait_until(is_over)
    result = status["server"]["reload"]
    changed = result.get("companions") or {}
    if result["result"] == "refused":
        return _finish(options, REFUSED, f"reload refused: {result['reason']}", reload=result)
    _say(options, "all web workers are new")
    if "error" in changed:
        kept = f"companions keep their configuration: {changed['error']}"
        return _finish(options, NOT_RUNNING, kept, reload=result)
    words = {name: kind for kind in ("added", "restarted") for name in changed.get(kind, ())}
    if not changed:
        # Their manager was replaced, and they with it.
        words = {one["name"]: "restarted" for one in status["companions"]}
    return _settled(server, options, status, words, changed.get("removed", ()), since=asked, reload=result)


def upgrade(connection: Connection, options: Namespace) -> int:
    """Have the master start its successor and hand over to it."""
    limit = {} if options.timeout is None else {"timeout": options.timeout}
    # This is the server's limit. How long old companions finish their work is up to them.
    options.timeout = None
    server = Server(connection, options)
    reply = _ask(connection, options, {"cmd": "upgrade", **limit})
    if not options.wait:
        return OK
    pid = reply["pid"]
    server.follow(pid)
    stages = [None, "booting"]

    def is_over(about: Reply) -> bool:
        result = about.get("upgrade") or {}
        if result.get("number") != reply["number"]:
            return False
        if result["pid"] not in server.pids:
            # In the place of one that has died.
            _say(options, f"process {result['pid']} is to take over")
            server.follow(result["pid"])
        if result["stage"] not in stages:
            stages.append(result["stage"])
            _say(options, STAGES[result["stage"]].format(pid=pid, reason=result["reason"]))
        return bool(result["result"] != "pending")

    status = server.wait_until(is_over)
    result = status["server"]["upgrade"]
    if result["result"] != "done":
        return _finish(options, REFUSED, f"upgrade rolled back: {result['reason']}", upgrade=result)
    _say(options, f"process {result['pid']} has taken over")
    words = {one["name"]: "RUNNING" for one in status["companions"]}
    return _settled(server, options, status, words, (), upgrade=result)


STAGES = {
    "handing over": "process {pid} serves; waiting for the old web workers and companions to end",
    "ending": "{reason}; waiting for process {pid} to end",
}


def shutdown(connection: Connection, options: Namespace) -> int:
    """Have the master stop everything."""
    manager = connection.must(cmd="pid")["pid"]
    # In another container the number of the master would be another process here.
    visible = peer(connection.sock) in (None, manager)
    reply = _ask(connection, options, {"cmd": "shutdown", "now": options.now})
    if not options.wait:
        return OK
    deadline = deadline_of(options)
    late = Failure(f"not done in time: process {reply['pid']} still runs")
    if not connection.wait_for_end(deadline):
        raise late
    while visible and _lives(reply["pid"]):
        if deadline is not None and time.monotonic() >= deadline:
            raise late
        time.sleep(RETRY_INTERVAL)
    return _finish(options, OK, f"process {reply['pid']} has ended")


COMMANDS = {"reload": reload, "upgrade": upgrade, "shutdown": shutdown}

# -- talking to people and programs ----------------------------------------------


def _ask(connection: Connection, options: Namespace, request: Reply) -> Reply:
    reply = connection.ask(**request)
    if options.json and not (options.wait and reply.get("ok")):
        print(json.dumps(reply))
    if not reply.get("ok"):
        raise Failure(refusal(reply), REFUSED)
    _say(options, reply["message"])
    return reply


def _say(options: Namespace, text: str) -> None:
    if not options.json:
        print(text, flush=True)


def _finish(options: Namespace, code: int, text: str, **more: Reply) -> int:
    """Say how it ended, in words or with *more* as JSON."""
    if options.json:
        print(json.dumps({"ok": code == OK, **({} if code == OK else {"error": text}), **more}))
    if code != OK:
        complain(text)
    else:
        _say(options, text)
    return code


def _settled(
    server: Server,
    options: Namespace,
    status: Reply,
    words: dict[str, str],
    removed: Iterable[str],
    since: float = 0.0,
    **more: Reply,
) -> int:
    """Wait until the companions of *words* run and those *removed* are gone; say how it ended.

    *since*: see `settle`.
    """
    goals = {
        one["name"]: ("RUNNING", words[one["name"]]) for one in status["companions"] if _is_due(one, words)
    }
    goals.update((name, ("STOPPED", "removed")) for name in removed)
    while True:
        try:
            with connect(server.path, options.timeout) as connection:
                good = settle(connection, options, dict(goals), since=since)
            break
        except (Closed, NoServer):
            # Its manager was killed, perhaps; the next one answers soon.
            server.wait_until(lambda about: True)
    for one in status["companions"]:
        # Perhaps by an earlier deploy, and this one has not changed it.
        if one["name"] not in goals and one["state"] == "STOPPED" and one.get("reason") == "gave up":
            complain(f"{one['name']}: STOPPED, {describe(one)}; `start {one['name']}` tries it again")
            good = False
    if good:
        return _finish(options, OK, "done", **more)
    # Not 1: nothing was taken back.
    return _finish(options, NOT_RUNNING, "done, but not all companions run", **more)


def _is_due(companion: Reply, names: Iterable[str]) -> bool:
    if companion["name"] not in names or companion["manual_stop"]:
        return False
    return bool(companion["state"] != "STOPPED" or companion["autostart"])


# -- the server ----------------------------------------------------------------


class Server:
    """The server, while its manager or its master changes. *path* is where it has answered last."""

    def __init__(self, connection: Connection, options: Namespace) -> None:
        self.path = connection.path
        self._paths = [connection.path]
        self.pids = [connection.must(cmd="pid")["server_pid"]]
        self._deadline = deadline_of(options)

    def follow(self, pid: int) -> None:
        """Look at the master *pid* as well, which is to take over."""
        self.pids.append(pid)
        if master_of(self.path) is not None:
            self._paths.append(os.path.join(os.path.dirname(self.path), socket_name(pid)))

    def wait_until(self, is_over: Callable[[Reply], bool]) -> Reply:
        """Return the first status whose part about the server satisfies *is_over*. Raises Failure."""
        heard = time.monotonic()
        while True:
            for path in self._paths:
                status = _status_at(path)
                if status is None or status["server"]["pid"] not in self.pids:
                    continue
                heard = time.monotonic()
                if is_over(status["server"]):
                    self.path = path
                    return status
            now = time.monotonic()
            if self._deadline is not None and now >= self._deadline:
                raise Failure("not done in time; the server goes on with it: see its log, and status")
            if now - heard >= LOST:
                self._explain_silence()
            time.sleep(RETRY_INTERVAL)

    def _explain_silence(self) -> None:
        """Raise Failure unless the server may still answer."""
        left = [pid for pid in self.pids if _lives(pid)]
        if not left:
            raise Failure("the server is gone: see its log")
        if left == self.pids[-1:]:
            raise Failure(
                f"process {left[0]} has no control socket any more: has it companions? "
                "See its log for the result"
            )


def _status_at(path: str) -> Reply | None:
    """The status of the server that listens at *path*; None if there is no answer."""
    try:
        with connect(path, 0) as connection:
            connection.sock.settimeout(LOOK_TIMEOUT)
            reply = connection.must(cmd="status")
    except Failure:
        return None
    return reply if "server" in reply else None


def _lives(pid: int) -> bool:
    """Whether there is a process *pid*, and not only its exit status."""
    from gunicorn.unix import session

    found = session.read_stat(pid) if session.HAVE_PROC else None
    return found.runs if found is not None else session.exists(pid)
