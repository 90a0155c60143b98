# SPDX-License-Identifier: MIT
"""The commands of the control socket and their functions in the manager."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gunicorn import __version__
from gunicorn.companion.checks import check_numprocs, did_you_mean, parse_signal
from gunicorn.companion.control import error
from gunicorn.companion.process import CompanionProcess, State
from gunicorn.companion.supervise import memory as memory_of
from gunicorn.companion.supervise import rereading
from gunicorn.companion.supervise.order import chosen, in_order
from gunicorn.unix import session
from gunicorn.unix.signals import signal_name

if TYPE_CHECKING:
    from gunicorn.companion.manager import CompanionManager

Request = Mapping[str, Any]
Reply = dict[str, Any]


def answer(manager: CompanionManager, request: Request) -> Reply:
    """The reply to one request; whatever is wrong with it is an error reply."""
    command = request.get("cmd")
    handler = COMMANDS.get(command) if isinstance(command, str) else None
    if handler is None:
        if not isinstance(command, str):
            return error("'cmd' is missing; it is one of " + ", ".join(COMMANDS))
        return error(f"unknown command {did_you_mean(command, COMMANDS)}")
    try:
        return handler(manager, request)
    except (LookupError, ValueError) as exc:
        return error(str(exc.args[0]))
    except Exception:
        # A fault here must not take the companions down.
        manager.log.exception("The command %r failed", command)
        return error("internal error; see the server's log")


def encoded_answer(manager: CompanionManager, request: Request) -> Reply | bytes:
    """The same for the socket: the one large and frequent reply comes encoded, for a thousand companions."""
    if request.get("cmd") == "status" and request.get("name") is None and not request.get("memory"):
        now, wall = time.monotonic(), time.time()
        rolling = manager.rolling
        companions = ",".join(
            f'{p.status_json(now, wall)[:-1]},"rolling":{"true" if p.name in rolling else "false"}}}'
            for p in in_order(manager.processes.values())
        )
        server = json.dumps(_server(manager, now), separators=(",", ":"))
        return f'{{"ok":true,"server":{server},"companions":[{companions}]}}'.encode()
    return answer(manager, request)


# -- names -------------------------------------------------------------------


def _named(manager: CompanionManager, request: Request) -> list[CompanionProcess]:
    name = request.get("name")
    if not isinstance(name, str):
        raise LookupError("'name' is missing: which companion?")
    found = chosen(manager.processes, name)
    if not found and any(character in name for character in "*?["):
        raise LookupError(f"no companion matches {name}")
    if not found:
        known = {*manager.processes, *(p.config.group for p in manager.processes.values())}
        raise LookupError(f"no companion named {did_you_mean(name, known)}")
    return found


# -- asking ------------------------------------------------------------------


def status(manager: CompanionManager, name: str | None = None, memory: bool = False) -> Reply:
    """Every companion, or those that *name* means; KeyError where that is nobody."""
    now, wall = time.monotonic(), time.time()
    processes: Iterable[CompanionProcess] = manager.processes.values()
    if name is not None:
        processes = chosen(manager.processes, name)
        if not processes:
            raise KeyError(name)
    ordered = in_order(processes)
    shown = []
    for process in ordered:
        one = process.status_dict(now, wall)
        one["rolling"] = process.name in manager.rolling
        shown.append(one)
    reply: Reply = {"ok": True, "server": _server(manager, now), "companions": shown}
    if memory:
        _add_memory(reply, ordered, manager)
    return reply


def _server(manager: CompanionManager, now: float) -> dict[str, Any]:
    server = {key: value for key, value in manager.server.items() if key != "started"}
    server["uptime"] = round(now - manager.server["started"], 3) if "started" in manager.server else None
    server["manager_pid"] = manager.pid
    return server


def _add_memory(reply: Reply, processes: list[CompanionProcess], manager: CompanionManager) -> None:
    sessions = {p.session for p in processes if p.pid is not None and p.session is not None}
    found = memory_of.of_sessions(sessions, manager.endings.belonging(manager.processes.values()))
    usages = []
    for process, one in zip(processes, reply["companions"], strict=True):
        usage = found.get(process.session or 0) if process.pid is not None else None
        if usage is None and process.pid is not None:
            # Just after its fork it is not in its session yet.
            usage = memory_of.of_process(process.pid)
        one["memory"] = None if usage is None else usage.as_dict()
        if usage is not None:
            usages.append(usage)
    reply["memory"] = memory_of.totals(usages, manager.pid)


def state_event(process: CompanionProcess, before: State, now: float) -> Reply:
    """What subscribers of ``events`` are sent when a companion's state has changed."""
    return {
        "event": "state",
        "time": round(time.time(), 3),
        "name": process.name,
        "from": before.value,
        "to": process.state.value,
        "pid": process.pid,
        "description": process.description(now),
        "last_exit_cause": process.cause,
        "last_exit_reason": process.cause_text,
    }


def leftovers_event(process: CompanionProcess, pids: Sequence[int], now: float) -> Reply:
    """What subscribers of ``events`` are sent when processes that a companion has left behind are killed."""
    return {
        "event": "leftovers killed",
        "time": round(time.time(), 3),
        "name": process.name,
        "pids": list(pids),
        "description": process.description(now),
    }


def _status(manager: CompanionManager, request: Request) -> Reply:
    name = request.get("name")
    if name is not None:
        _named(manager, request)
    return status(manager, name, memory=bool(request.get("memory")))


def _events(manager: CompanionManager, request: Request) -> Reply:
    return {"ok": True, "subscribe": True}


def _version(manager: CompanionManager, request: Request) -> Reply:
    return {"ok": True, "version": __version__}


def _pid(manager: CompanionManager, request: Request) -> Reply:
    return {"ok": True, "pid": manager.pid, "server_pid": manager.server.get("pid")}


# -- steering ----------------------------------------------------------------


def _steer(manager: CompanionManager, request: Request) -> Reply:
    """start, stop, restart, on one companion or all copies of one."""
    command = request["cmd"]
    processes = _named(manager, request)
    if command == "stop":
        processes = list(dict.fromkeys([*processes, *_stopped_with(manager, request)]))
    if manager.stopping and command != "stop":
        return error(manager.why_nothing_starts)
    methods = {
        "start": manager.start_process,
        "stop": manager.stop_process,
        "restart": manager.restart_process,
    }
    method = methods[command]
    if command == "restart" and request.get("rolling"):
        method = manager.restart_in_turn
    there = {"start": State.RUNNING, "stop": State.STOPPED}.get(command)
    already = [process.name for process in processes if process.state is there]
    if command == "stop":
        outcomes = manager.stop_processes(processes)
    else:
        outcomes = {process.name: method(process.name) for process in processes}
    manager.after_command()
    accepted = [name for name, (good, _) in outcomes.items() if good]
    reply: Reply = {"ok": True, "message": "; ".join(outcomes[name][1] for name in accepted)}
    if len(accepted) < len(outcomes):
        # What was not refused goes on.
        reply.update(error("; ".join(text for good, text in outcomes.values() if not good)))
    if [*outcomes] != [request["name"]]:
        reply["names"] = accepted
    if already:
        reply["already"] = already
    return reply


def _stopped_with(manager: CompanionManager, request: Request) -> list[CompanionProcess]:
    """Those of *names* that there are: they are stopped with *name*, in their order."""
    names = request.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("'names' is not a list of names")
    return [process for name in names for process in chosen(manager.processes, name)]


def _signal(manager: CompanionManager, request: Request) -> Reply:
    processes = _named(manager, request)
    wanted = request.get("signal")
    if not isinstance(wanted, (str, int)):
        return error("'signal' is missing: which one?")
    number = parse_signal(wanted)
    idle = [process.name for process in processes if process.pid is None]
    if idle:
        return error(f"{', '.join(idle)}: not running, so it cannot get a signal")
    texts = []
    for process in processes:
        assert process.pid is not None
        session.send(process.pid, number)
        texts.append(f"{process.name} (pid {process.pid}) gets {signal_name(number)}")
    manager.log.info("By command: %s", "; ".join(texts))
    return {"ok": True, "message": "; ".join(texts), "names": [process.name for process in processes]}


def _scale(manager: CompanionManager, request: Request) -> Reply:
    if manager.stopping:
        return error(manager.why_nothing_starts)
    processes = [process for process in _named(manager, request) if not process.removed]
    group = request["name"].removesuffix(":*")
    if not processes or processes[0].config.numprocs is None or processes[0].config.group != group:
        return error(f"{request['name']} cannot be scaled: it has no numprocs")
    number = check_numprocs(request.get("numprocs"))
    if number is None:
        return error("'numprocs' is missing: how many?")
    found = rereading.scale_group(manager, group, number)
    manager.after_command()
    return {"ok": True, "added": found.added, "removed": found.removed}


def _reread(manager: CompanionManager, request: Request) -> Reply:
    return manager.reread(dry_run=bool(request.get("dry_run")))


# A fixed table: what a client names is never looked up as an attribute.
COMMANDS: dict[str, Callable[[CompanionManager, Request], Reply]] = {
    "status": _status,
    "start": _steer,
    "stop": _steer,
    "restart": _steer,
    "signal": _signal,
    "scale": _scale,
    "reread": _reread,
    "events": _events,
    "pid": _pid,
    "version": _version,
}
