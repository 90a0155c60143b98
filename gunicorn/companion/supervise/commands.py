# SPDX-License-Identifier: MIT
"""The commands of the control socket and their methods in the manager."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NoReturn

from gunicorn import __version__
from gunicorn.companion.checks import WEB, check_numprocs, did_you_mean, parse_signal
from gunicorn.companion.child import stacks
from gunicorn.companion.control import error
from gunicorn.companion.output.capture import Capture
from gunicorn.companion.process import Cause, CompanionProcess, State
from gunicorn.companion.supervise import memory as memory_of
from gunicorn.companion.supervise.changes import Changes
from gunicorn.companion.supervise.details import details
from gunicorn.companion.supervise.dumps import Dumps
from gunicorn.companion.supervise.leases import Leases
from gunicorn.companion.supervise.memory import Belonging
from gunicorn.companion.supervise.questions import Questions
from gunicorn.companion.supervise.steering import Steering
from gunicorn.companion.supervise.web import WebWorkers
from gunicorn.companion.table import ProcessTable, in_order
from gunicorn.unix import session
from gunicorn.unix.kernel import KERNEL, Kernel
from gunicorn.unix.signals import signal_name

Request = Mapping[str, Any]
Reply = dict[str, Any]


@dataclass(eq=False, repr=False)
class Commands:
    """Answers requests about the companions of *table*.

    *server* is the server's part of ``status``. *belonging* finds processes that have left their companion's
    session. *capture*: what keeps their output, if it is captured. *after_command* starts at once what a
    command has made possible.
    """

    table: ProcessTable
    log: Any
    _: KW_ONLY
    steering: Steering
    changes: Changes
    server: Mapping[str, Any]
    belonging: Belonging
    after_command: Callable[[], None]
    web: WebWorkers
    questions: Questions
    leases: Leases
    capture: Capture | None = None
    dumps: Dumps | None = None
    kernel: Kernel = KERNEL

    def answer(self, request: Request) -> Reply:
        """The reply to one request; whatever is wrong with it is an error reply."""
        command = request.get("cmd")
        handler = COMMANDS.get(command) if isinstance(command, str) else None
        if handler is None:
            if not isinstance(command, str):
                return error("'cmd' is missing; it is one of " + ", ".join(COMMANDS))
            return error(f"unknown command {did_you_mean(command, COMMANDS)}")
        try:
            return handler(self, request)
        except (LookupError, ValueError) as exc:
            return error(str(exc.args[0]))
        except Exception:
            # A fault here must not take the companions down.
            self.log.exception("The command %r failed", command)
            return error("internal error; see the server's log")

    def _named(self, request: Request) -> list[CompanionProcess]:
        name = request.get("name")
        if not isinstance(name, str):
            raise LookupError("'name' is missing: which companion?")
        return self.table.chosen(name) or self._not_found(name)

    def _not_found(self, name: str) -> NoReturn:
        known = {*self.table, *(label for p in self.table.values() for label in p.config.labels)}
        # `workers:*` is a group of supervisord.
        group = f"@{name.removesuffix(':*')}"
        if name == WEB:
            raise LookupError("web is no companion: 'web' shows the web workers, 'web reload' replaces them")
        if group in known:
            raise LookupError(f"no companion named {name}: the group is {group}")
        if any(character in name for character in "*?["):
            raise LookupError(f"no companion matches {name}")
        kind = "group" if name.startswith("@") else "companion named"
        raise LookupError(f"no {kind} {did_you_mean(name, known)}")

    # -- asking ------------------------------------------------------------

    def _status(self, request: Request) -> Reply:
        now, wall = self.kernel.now(), time.time()
        asked: Iterable[CompanionProcess] = self.table.values()
        if request.get("name") is not None:
            asked = self._named(request)
        processes = in_order(asked)
        shown = []
        for process in processes:
            one = process.status_dict(now, wall)
            one["rolling"] = process.name in self.steering.rolling
            one["change_stopped_by"] = self.steering.rolling.stopped_by(process.name)
            if self.capture is not None:
                one["output"] = self.capture.counters(process.name)._asdict()
            shown.append(one)
        reply: Reply = {"ok": True, "server": self._server(now), "companions": shown}
        alone = bool(request.get("details")) and len(processes) == 1
        if request.get("memory") or alone:
            belonging = self.belonging()
            self._add_measured(reply, processes, belonging)
            if alone:
                history = self.changes.kept.history
                shown[0]["details"] = details(processes[0], shown[0]["memory"], history, belonging, now, wall)
        return reply

    def _server(self, now: float) -> dict[str, Any]:
        server = {key: value for key, value in self.server.items() if key not in ("started", "inodes")}
        server["uptime"] = round(now - self.server["started"], 3) if "started" in self.server else None
        server["manager_pid"] = os.getpid()
        return server

    def _add_measured(
        self, reply: Reply, processes: Collection[CompanionProcess], belonging: Mapping[int, int]
    ) -> None:
        """Add the memory of each, and what is counted of it."""
        sessions = {p.session for p in processes if p.session is not None}
        families = memory_of.families(sessions, belonging)
        for process in processes:
            # Just after its fork it is not in its session yet.
            if process.pid is not None and process.pid not in families.setdefault(process.pid, []):
                families[process.pid].append(process.pid)
        found = memory_of.of_families(families)
        kept = self.changes.kept
        before = kept.old_totals
        usages = []
        for process, one in zip(processes, reply["companions"], strict=True):
            usage = found.get(process.session or 0) if process.pid is not None else None
            one["memory"] = None if usage is None else usage.as_dict()
            if usage is not None:
                usages.append(usage)
            times = [session.cpu_seconds(pid) for pid in families.get(process.session or 0, ())]
            known = [seconds for seconds in times if seconds is not None]
            one["cpu"] = round(sum(known), 2) if known else None
            output = None if self.capture is None else self.capture.counters(process.name)
            kept.totals.measured(process.name, one["cpu"], output)
            one["counters"] = kept.totals.of(process.name, before)
        reply["memory"] = memory_of.totals(usages, os.getpid())
        # What has been told must not be less under the next manager.
        kept.write()

    def _history(self, request: Request) -> Reply:
        """The latest events, of all companions or of those named, the last one last."""
        entries = list(self.changes.kept.history.entries)
        name = request.get("name")
        if name is not None:
            # It may be configured no more.
            gone = any(entry["name"] == name for entry in entries)
            names = {name} if gone else {process.name for process in self._named(request)}
            entries = [entry for entry in entries if entry["name"] in names]
        return {"ok": True, "history": entries}

    def _lease(self, request: Request) -> Reply:
        """The leases; with ``release``, the name of one or of a companion, give that away."""
        name = request.get("release")
        if name is None:
            return {"ok": True, "leases": self.leases.as_dicts()}
        found = [lease for lease in self.leases.all() if lease.name == name]
        if not found and isinstance(name, str) and name in self.table:
            found = [its for its in [self.leases.of(self.table[name].config)] if its is not None]
        if not found:
            known = [lease.name for lease in self.leases.all()]
            raise LookupError(f"no lease named {did_you_mean(str(name), known)}")
        held = [lease for lease in found if lease.token]
        if not held:
            others = "; ".join(
                f"lease {lease.name} is not held by this server: {lease.description}" for lease in found
            )
            raise ValueError(f"{others}; 'lease release' works on the server that holds it")
        for lease in held:
            self.leases.release(lease)
            for process in self.table.values():
                if process.lease is lease and process.pid is not None:
                    self.steering.restart(process.name, Cause.COMMAND, f"lease {lease.name} is given away")
        self.after_command()
        return {"ok": True, "message": f"lease {held[0].name} is given away"}

    def _events(self, request: Request) -> Reply:
        names = _list_of_names(request)
        if not names:
            return {"ok": True, "subscribe": True}
        seen = {process.name for name in names for process in self._named({"name": name})}

        def wants(event: dict[str, Any]) -> bool:
            # A copy may be added later, and one that is removed has a last event.
            seen.update(process.name for name in names for process in self.table.chosen(name))
            return event.get("name") in seen

        return {"ok": True, "subscribe": True, "wants": wants}

    def _logs(self, request: Request) -> Reply:
        """Have the log keeper answer."""
        if self.capture is None:
            return error("the output of companions is not captured: companion_log_lines is 0")
        if not self.capture.answers:
            return error("the log keeper is being restarted; retry")
        names = _list_of_names(request)
        lines, since, stream = request.get("lines", 10), request.get("since"), request.get("stream")
        if isinstance(lines, bool) or not isinstance(lines, int) or lines < 0:
            raise ValueError(f"'lines': {lines!r} is not a number of 0 or more")
        if since is not None and (isinstance(since, bool) or not isinstance(since, (int, float))):
            raise ValueError(f"'since': {since!r} is not a time")
        if stream not in (None, "stdout", "stderr"):
            raise ValueError(f"'stream': {stream!r} is neither 'stdout' nor 'stderr'")
        wanted = {
            "names": sorted({process.name for name in names for process in self._named({"name": name})}),
            "lines": lines,
            "since": since or 0,
            "stream": stream,
            "follow": bool(request.get("follow")),
            "resume": bool(request.get("resume")),
        }
        return {"hand_over": functools.partial(self.capture.answer, wanted)}

    def _web(self, request: Request) -> Reply:
        """The web workers; or have the master change them."""
        if request.get("do") is None:
            return self.web.read(memory=bool(request.get("memory")))
        if self.steering.stopping:
            return error(self.steering.why_nothing_starts)
        return self.web.change(request)

    def _whole_server(self, request: Request) -> Reply:
        """Have the master reload, upgrade or shut down the server."""
        wanted: Reply = {}
        if request["cmd"] == "shutdown":
            wanted["now"] = bool(request.get("now"))
        elif request["cmd"] == "upgrade" and request.get("timeout") is not None:
            wanted["timeout"] = timeout = request["timeout"]
            if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 2**31:
                raise ValueError(f"'timeout': {timeout!r} is not a number of seconds")
        return self.questions.ask(request["cmd"], **wanted)

    def _dump(self, request: Request) -> Reply:
        """Have processes write down their stacks; they need some time for it."""
        if self.dumps is None or self.dumps.file is None or not stacks.ASK:
            return error("stacks cannot be shown here: that needs Linux, and a file in memory")
        what = request.get("what")
        if isinstance(what, bool) or not isinstance(what, str | int):
            raise ValueError("'what' is missing: the name of a companion, a pid, or 'web'")
        if isinstance(what, int) or (what.isascii() and what.isdigit()):
            targets = self.dumps.with_pid(int(what))
        else:
            targets = list(self.dumps.workers()) if what == "web" else []
            if what != "web" or self.table.chosen(what):
                targets += self.dumps.companions(self._named({"name": what}))
        if not targets:
            return error(f"{what}: not running")
        return {"later": functools.partial(self.dumps.start, targets)}

    def _version(self, request: Request) -> Reply:
        return {"ok": True, "version": __version__}

    def _pid(self, request: Request) -> Reply:
        return {"ok": True, "pid": os.getpid(), "server_pid": self.server.get("pid")}

    # -- steering ----------------------------------------------------------

    def _start(self, request: Request) -> Reply:
        return self._each(request, self.steering.start, already=State.RUNNING)

    def _restart(self, request: Request) -> Reply:
        return self._each(
            request, self.steering.restart_in_turn if request.get("rolling") else self.steering.restart
        )

    def _each(
        self,
        request: Request,
        method: Callable[[str], tuple[bool, str]],
        already: State | None = None,
    ) -> Reply:
        """Call *method* for one companion or all copies of one."""
        processes = self._named(request)
        if self.steering.stopping:
            return error(self.steering.why_nothing_starts)
        there = [process.name for process in processes if process.state is already]
        later = [process for process in processes if self._waits_for_its_time(process, request)]
        outcomes = {
            process.name: (self.steering.resume if process in later else method)(process.name)
            for process in processes
        }
        return self._summary(request, outcomes, there, [process.name for process in later])

    @staticmethod
    def _waits_for_its_time(process: CompanionProcess, request: Request) -> bool:
        """Whether it has a schedule, and is not itself meant to run now."""
        config = process.config
        meant = request["name"] in (config.name, config.group) and not request.get("later")
        return config.schedule is not None and not meant

    def _stop(self, request: Request) -> Reply:
        processes = list(dict.fromkeys([*self._named(request), *self._stopped_with(request)]))
        there = [process.name for process in processes if self.steering.is_stopped(process)]
        return self._summary(request, self.steering.stop(processes), there)

    def _summary(
        self,
        request: Request,
        outcomes: Mapping[str, tuple[bool, str]],
        already: list[str],
        later: Collection[str] = (),
    ) -> Reply:
        self.after_command()
        accepted = [name for name, (good, _) in outcomes.items() if good]
        reply: Reply = {"ok": True, "message": "; ".join(outcomes[name][1] for name in accepted)}
        if len(accepted) < len(outcomes):
            reply.update(error("; ".join(text for good, text in outcomes.values() if not good)))
        if [*outcomes] != [request["name"]]:
            reply["names"] = [name for name in accepted if name not in later]
        if later:
            reply["at_its_time"] = list(later)
        if already:
            reply["already"] = already
        return reply

    def _stopped_with(self, request: Request) -> list[CompanionProcess]:
        """Return the companions of *names*, which are stopped together with *name*."""
        return [process for name in _list_of_names(request) for process in self.table.chosen(name)]

    def _signal(self, request: Request) -> Reply:
        processes = self._named(request)
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
            self.kernel.send(process.pid, number)
            texts.append(f"{process.name} (pid {process.pid}) gets {signal_name(number)}")
        self.log.info("By command: %s", "; ".join(texts))
        return {"ok": True, "message": "; ".join(texts), "names": [process.name for process in processes]}

    def _scale(self, request: Request) -> Reply:
        if self.steering.stopping:
            return error(self.steering.why_nothing_starts)
        self._named(request)
        group = request["name"].removesuffix(":*")
        # Not by the name alone: a companion that was called like the set may still be ending.
        processes = [p for p in self.table.values() if p.config.group == group and not p.removed]
        if group.startswith("@"):
            return error(f"{group} cannot be scaled: name one of its companions with numprocs")
        if not processes or processes[0].config.numprocs is None:
            return error(f"{request['name']} cannot be scaled: it has no numprocs")
        if request.get("numprocs") is None:
            return error("'numprocs' is missing: how many?")
        number = check_numprocs(request["numprocs"])
        found = self.changes.scale_group(group, number)
        self.after_command()
        return {"ok": True, "added": found.added, "removed": found.removed}

    def _reread(self, request: Request) -> Reply:
        return self.changes.reread(dry_run=bool(request.get("dry_run")))


def _list_of_names(request: Request) -> list[str]:
    names = request.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("'names' is not a list of names")
    return names


# A fixed table: a client's word is never looked up as an attribute.
COMMANDS: dict[str, Callable[[Commands, Request], Reply]] = {
    "status": Commands._status,
    "start": Commands._start,
    "stop": Commands._stop,
    "restart": Commands._restart,
    "signal": Commands._signal,
    "scale": Commands._scale,
    "reread": Commands._reread,
    "events": Commands._events,
    "history": Commands._history,
    "logs": Commands._logs,
    "web": Commands._web,
    "reload": Commands._whole_server,
    "upgrade": Commands._whole_server,
    "shutdown": Commands._whole_server,
    "dump": Commands._dump,
    "lease": Commands._lease,
    "pid": Commands._pid,
    "version": Commands._version,
}
