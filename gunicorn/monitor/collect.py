# SPDX-License-Identifier: MIT
"""Ask the control socket for the monitor, with a limit of time."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from gunicorn.companion.client.commands import stands_by
from gunicorn.companion.client.connection import Connection, Failure, connect, refusal
from gunicorn.companion.control import LineReader
from gunicorn.monitor import inherited, timeline
from gunicorn.monitor.problems import problems
from gunicorn.monitor.stream import STILL_HERE, event

# In the place of a state: another server runs the companion.
STANDBY = "standby"

Reply = dict[str, Any]

# Seconds for an answer of the manager: one that hangs must not hold anybody up.
PATIENCE = 0.8
# A stream without news sends a comment this often, to find out whether the client is still there.
QUIET = 5.0
# The log keeper keeps no longer lines.
_LONGEST_LINE = 4 * 1024 * 1024
_CHUNK = 65536


class Unavailable(Exception):
    """The manager does not answer."""


class Refused(Exception):
    """The manager refuses."""


class Channel:
    """A connection on which lines come for as long as it lasts. ``reply`` is the first. Raises OSError."""

    def __init__(self, sock: socket.socket, request: Reply) -> None:
        self.sock = sock
        self._reader = LineReader(_LONGEST_LINE)
        self._kept: list[Reply] = []
        try:
            sock.sendall(json.dumps(request).encode() + b"\n")
            lines = self.wait(PATIENCE)
            if not lines:
                raise OSError("no answer")
        except BaseException:
            sock.close()
            raise
        self.reply, *self._kept = lines

    def close(self) -> None:
        self.sock.close()

    def wait(self, timeout: float) -> list[Reply] | None:
        """Return the lines that have come, waiting for the first; none after *timeout*, None at the end."""
        found, self._kept = self._kept, []
        deadline = time.monotonic() + timeout
        while not found:
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(_CHUNK)
            except TimeoutError:
                return []
            except OSError:
                return None
            if not data:
                return None
            self._reader.feed(data)
            found = [json.loads(line) for line in self._reader.lines() if line is not None]
        return found


class Source:
    """The facts of one server, from its control socket *path*."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        # When somebody looked: time, private and saved bytes.
        self.memory: deque[tuple[float, int, int]] = deque(maxlen=timeline.KEPT)

    def ask(self, patience: float = PATIENCE, **request: Any) -> Reply:
        """Return the reply to one request. Raises Unavailable or Refused."""
        [reply] = self._ask_all([request], patience)
        if not reply.get("ok"):
            raise Refused(refusal(reply))
        return reply

    def _ask_all(self, requests: list[Reply], patience: float = PATIENCE) -> list[Reply]:
        deadline = time.monotonic() + patience
        replies = []
        try:
            with self._connect(patience) as connection:
                for request in requests:
                    connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
                    replies.append(connection.ask(**request))
        except Failure as failure:
            raise Unavailable(f"The companion manager does not answer: {failure}") from None
        return replies

    def _connect(self, patience: float) -> Connection:
        if self.path is None:
            raise Unavailable("The server has no control socket.")
        return connect(self.path, patience)

    def status(self, memory: bool = True) -> Reply:
        """Return the value of ``/api/status``."""
        status, web = self._ask_all([{"cmd": "status", "memory": memory}, {"cmd": "web", "memory": memory}])
        if not status.get("ok"):
            raise Unavailable(f"The companion manager does not answer: {refusal(status)}")
        found = {name: status.get(name) for name in ("server", "companions", "memory")}
        found["web"] = web.get("web")
        found["problems"] = problems(found)
        if memory:
            total = status["memory"]
            self.memory.append((time.time(), total["private"], total["saved"]))
        return found

    def states(self, patience: float) -> dict[str, str]:
        """Return the state of each companion by name; `STANDBY` of one that waits for its lease alone."""
        status = self.ask(patience, cmd="status")
        return {
            companion["name"]: STANDBY if stands_by(companion) else companion["state"]
            for companion in status["companions"]
        }

    def companion(self, name: str) -> Reply | None:
        """Return all that is known of one companion; None if the name means none, or several."""
        found = self.ask(cmd="status", name=name, details=True)["companions"]
        return found[0] if len(found) == 1 and found[0]["name"] == name else None

    def events(self, name: str | None) -> list[Reply]:
        """Return the latest events, of one companion or of all."""
        # The manager takes null for no name.
        history: list[Reply] = self.ask(cmd="history", name=name)["history"]
        return history

    def logs(self, name: str | None, lines: int) -> list[Reply]:
        """Return the last lines of one companion or of all."""
        found: list[Reply] = []
        with contextlib.closing(self._open_logs(name, lines=lines)) as channel:
            while more := channel.wait(PATIENCE):
                found += more
        return found

    def follow_logs(self, name: str | None, lines: int) -> Iterator[bytes]:
        """Return the last lines and all that follow, as server-sent events. Raises Unavailable, Refused."""
        return _follow(self._open_logs(name, lines=lines, follow=True))

    def _open_logs(self, name: str | None, **request: Any) -> Channel:
        return self.open(cmd="logs", names=[] if name is None else [name], **request)

    def open(self, **request: Any) -> Channel:
        """Ask for what comes line by line. Raises Unavailable or Refused."""
        try:
            channel = Channel(self._connect(PATIENCE).sock, request)
        except (Failure, OSError) as error:
            raise Unavailable(f"The companion manager does not answer: {error}") from None
        if not channel.reply.get("ok"):
            channel.close()
            raise Refused(refusal(channel.reply))
        return channel

    def history(self, seconds: float | None = None) -> Reply:
        """Return the value of ``/api/history``; of the last *seconds* only."""
        board, kept = inherited.scoreboard, inherited.timeline
        samples: list[Reply] = []
        if board is not None and kept is not None:
            notes = kept.notes()
            if seconds is not None:
                notes = [note for note in notes if note.time > time.time() - seconds]
            try:
                restarts = timeline.restarts_in(self.events(None))
            except (Unavailable, Refused):
                restarts = None
            bounds = board.read()["buckets"]
            samples = timeline.samples(notes, bounds, restarts=restarts, memory=list(self.memory))
        return {"interval": timeline.INTERVAL, "samples": samples}


def _follow(channel: Channel) -> Iterator[bytes]:
    with contextlib.closing(channel):
        yield STILL_HERE
        while (lines := channel.wait(QUIET)) is not None:
            yield b"".join(event("line", line) for line in lines) or STILL_HERE
