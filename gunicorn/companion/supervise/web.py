# SPDX-License-Identifier: MIT
"""The web workers, for the control socket: read from the scoreboard, and changed by the master on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from gunicorn import memory as memory_of
from gunicorn.companion.control import error
from gunicorn.companion.supervise.questions import Questions, Reply
from gunicorn.unix import session, sockdiag

if TYPE_CHECKING:
    from gunicorn.scoreboard import Scoreboard

ACTIONS = ("add", "remove", "reload", "kill")


@dataclass(eq=False, repr=False)
class WebWorkers:
    """Answers ``web``. *server*: addresses and inodes of the listeners. *questions* go to the master."""

    scoreboard: Scoreboard | None
    _: KW_ONLY
    server: Mapping[str, Any]
    questions: Questions

    # -- asking ------------------------------------------------------------

    def read(self, *, memory: bool) -> Reply:
        """Return what the scoreboard, the listeners and, with *memory*, the processes tell."""
        if self.scoreboard is None:
            return error("what web workers do is not known: the server had no memory for its scoreboard")
        found = self.scoreboard.read()
        for worker in found["workers"]:
            worker["cpu"] = session.cpu_seconds(worker["pid"])
            usage = memory_of.of_process(worker["pid"]) if memory else None
            worker["memory"] = usage and {"private": usage.private, "pss": usage.pss}
        held_by = self.server.get("web_held_by")
        return {"ok": True, "web": {**found, "held_by": held_by, "listeners": self._listeners()}}

    def _listeners(self) -> list[Reply]:
        inodes = self.server.get("inodes", ())
        queues = sockdiag.backlogs(inodes)
        return [
            {"address": address, "waiting": waiting, "backlog": backlog}
            for address, inode in zip(self.server.get("addresses", ()), inodes, strict=False)
            for waiting, backlog in [queues.get(inode, (None, None))]
        ]

    # -- changing ----------------------------------------------------------

    def change(self, request: Mapping[str, Any]) -> Reply:
        """Ask the master for a change. Raises ValueError for a request that makes no sense."""
        do = request["do"]
        if do not in ACTIONS:
            raise ValueError(f"'do': {do!r} is none of {', '.join(ACTIONS)}")
        wanted: Reply = {"do": do}
        if do in ("add", "remove"):
            wanted["count"] = _positive("count", request.get("count", 1))
        elif do == "kill":
            wanted["pid"] = _positive("pid", request.get("pid"))
        return self.questions.ask("web", **wanted)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(f"{name!r}: {value!r} is not a number of 1 or more")
    return value
