# SPDX-License-Identifier: MIT
"""What only the master can answer: the manager passes the questions of clients on, and waits for nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.companion.control import error

Reply = dict[str, Any]
Answer = Callable[[Reply], object]


class Questions:
    """The clients that wait for an answer of the master, by the number of their question.

    *tell* sends a message to the master; None if this manager has no master that listens.
    """

    def __init__(self, tell: Callable[[Reply], object] | None) -> None:
        self.tell = tell
        self._waiting: dict[int, Answer] = {}
        self._ticket = 0

    def ask(self, cmd: str, **wanted: Any) -> Reply:
        """Return what has the control server wait for the master's answer to *cmd*."""
        if self.tell is None:
            return error(f"this server does not take commands such as {cmd}: it has no master")
        return {"later": lambda answer: self._send({"cmd": cmd, **wanted}, answer)}

    def _send(self, question: Reply, answer: Answer) -> None:
        if self.tell is None:
            answer(error("the master is gone"))
            return
        self._ticket += 1
        self._waiting[self._ticket] = answer
        self.tell({"ask": {**question, "ticket": self._ticket}})

    def answered(self, message: Reply) -> None:
        """Pass the master's answer on."""
        answer = self._waiting.pop(message.pop("ticket"), None)
        if answer is not None:
            answer(message)

    def master_gone(self) -> None:
        """Nobody will answer any more."""
        self.tell = None
        while self._waiting:
            self._waiting.popitem()[1](error("the master is gone"))
