# SPDX-License-Identifier: MIT
"""A simulated store of leases, with a rival, and the keeper and guard of a manager on a simulated kernel."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from gunicorn.companion.leasing.words import LeaseMemory

RIVAL = "the rival (pid 1) x"
# How often the rival tries, and how long the store takes.
TRY, TAKES = 0.5, 0.01


class Process(Protocol):
    """As `processworld.Life`."""

    pid: int
    name: str

    @property
    def empty(self) -> bool: ...


class Clock(Protocol):
    """As `processworld.SimulatedKernel`."""

    time: float

    def at(self, moment: float, what: Callable[[], object]) -> None: ...
    def life(self, pid: int) -> Any: ...
    def send_by_others(self, pid: int, signum: int) -> None: ...


class Store:
    """Holds the leases of all, by name: owner, token and end."""

    def __init__(self, kernel: Clock) -> None:
        self.kernel = kernel
        self.up = True
        # Whether the rival wants each lease that is free; then it holds it for long.
        self.rival = False
        self.leases: dict[str, tuple[str, int, float]] = {}
        # By lease what its holders have stored with it.
        self.notes: dict[str, str] = {}
        # Called with the name of a lease that the rival takes.
        self.on_rival: Callable[[str], object] = lambda name: None
        self._try_as_rival()

    def get(self, name: str) -> tuple[str, int, float]:
        owner, token, end = self.leases.get(name, ("", 0, 0.0))
        return (owner, token, end) if end > self.kernel.time else ("", token, 0.0)

    @property
    def rivals(self) -> list[str]:
        """The leases that the rival holds."""
        return [name for name in self.leases if self.get(name)[0] == RIVAL]

    def acquire(self, name: str, owner: str, ttl: float) -> tuple[bool, str, int, float]:
        holder, token, end = self.get(name)
        if holder not in ("", owner):
            return False, holder, token, end - self.kernel.time
        if not holder:
            token += 1
        self.leases[name] = owner, token, self.kernel.time + ttl
        return True, owner, token, ttl

    def renew(self, name: str, owner: str, token: int, ttl: float) -> bool:
        # What nobody has taken meanwhile may still be renewed.
        if self.leases.get(name, ("", 0, 0.0))[:2] != (owner, token):
            return False
        self.leases[name] = owner, token, self.kernel.time + ttl
        return True

    def release(self, name: str, owner: str, token: int) -> None:
        if self.leases.get(name, ("", 0, 0.0))[:2] == (owner, token):
            self.leases[name] = "", token, 0.0

    def _try_as_rival(self) -> None:
        for name in list(self.leases):
            holder, token, _ = self.get(name)
            if self.rival and not holder:
                self.on_rival(name)
                self.leases[name] = RIVAL, token + 1, self.kernel.time + 7.0
            elif holder == RIVAL and not self.rival:
                self.release(name, RIVAL, token)
        self.kernel.at(self.kernel.time + TRY, self._try_as_rival)


class SimulatedHelper:
    """What all helpers have in common."""

    pid = start_at = None
    memory: LeaseMemory

    def __init__(self, kernel: Clock) -> None:
        self.kernel = kernel
        self.started = self.ended = False
        self.on_message: Callable[[dict[str, Any]], None] = lambda message: None
        self.on_start: Callable[[], None] = lambda: None

    def start(self) -> None:
        if not self.started:
            self.started = True
            self.on_start()

    def tick(self, now: float) -> None:
        """It does not end by itself."""

    def reaped(self, pid: int, status: int) -> bool:
        return False

    def descriptors(self) -> list[int]:
        return []

    def end(self) -> None:
        """Also after its manager was killed."""
        self.ended = True


class SimulatedKeeper(SimulatedHelper):
    """Asks the store, which takes a moment. While it hangs it does nothing."""

    serials = itertools.count(1)

    def __init__(self, kernel: Clock, store: Store) -> None:
        super().__init__(kernel)
        self.store = store
        self.owner = f"this server (pid 2) {next(self.serials)}"
        self.hangs = False
        self.down = False
        self.wants: dict[int, dict[str, Any]] = {}
        # What is told of others; a want that is sent again is attended to again.
        self.told: dict[int, str] = {}
        self.rounds: dict[int, int] = {}

    def kill(self) -> None:
        """Another one follows at once, and does not hang."""
        self.hangs = self.down = False
        self.wants.clear()
        self.told.clear()
        self.on_start()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if "want" in message:
            serial = message["want"]
            self.wants[serial] = {**message}
            self._later(serial, TAKES)
        elif "note" in message and message["note"] in self.wants:
            self.wants[message["note"]]["note"] = message["text"]
            self._later(message["note"], TAKES)
        elif "give" in message:
            want = self.wants.pop(message["give"], None)
            if want is not None and not self.hangs and want["token"]:
                self._store_note(want)
                self.memory.slot(want["slot"]).until = 0.0
                self.store.release(want["name"], self.owner, want["token"])

    def _later(self, serial: int, seconds: float) -> None:
        number = self.rounds[serial] = self.rounds.get(serial, 0) + 1
        self.kernel.at(self.kernel.time + seconds, lambda: self._attend(serial, number))

    def _attend(self, serial: int, number: int) -> None:
        want = self.wants.get(serial)
        if want is None or self.ended or number != self.rounds[serial]:
            return
        if self.hangs:
            self._later(serial, 1.0)
            return
        words, now = self.memory.slot(want["slot"]), self.kernel.time
        words.asked = now
        if self.down is self.store.up:
            self.down = not self.store.up
            self.on_message({"down": want["store"], "why": "no"} if self.down else {"up": want["store"]})
        if self.down:
            self._later(serial, 0.3)
        elif want["token"]:
            self._renew(serial, want, words, now)
        else:
            self._acquire(serial, want, words, now)

    def _store_note(self, want: dict[str, Any]) -> bool:
        """Whether *want* had a note to store."""
        note = want.pop("note", None)
        if note is not None:
            self.store.notes[want["name"]] = note
        return note is not None

    def _renew(self, serial: int, want: dict[str, Any], words: Any, now: float) -> None:
        if self.store.renew(want["name"], self.owner, want["token"], want["ttl"]):
            words.until = now + want["ttl"]
            if self._store_note(want):
                self.on_message({"noted": serial})
            self._later(serial, want["ttl"] / 3)
            return
        words.until = 0.0
        want["above"], want["token"] = want["token"], 0
        self.on_message({"lost": serial})
        self._later(serial, 0.0)

    def _acquire(self, serial: int, want: dict[str, Any], words: Any, now: float) -> None:
        mine, owner, token, left = self.store.acquire(want["name"], self.owner, want["ttl"])
        if mine and token <= want["above"]:
            self.store.release(want["name"], self.owner, token)
            mine, owner, token, left = self.store.acquire(want["name"], self.owner, want["ttl"])
        if mine:
            want["token"] = words.token = token
            words.until, words.other = now + left, 0.0
            before = {"before": self.told.pop(serial, ""), "expired": False}
            note = self.store.notes.get(want["name"], "")
            self.on_message({"held": serial, "token": token, "note": note, **before})
            self._later(serial, want["ttl"] / 3)
            return
        words.other = now + left
        if self.told.get(serial) != owner:
            self.told[serial] = owner
            self.on_message({"refused": serial, "owner": owner})
        self._later(serial, min(0.5, left))


class SimulatedGuard(SimulatedHelper):
    """Kills at its time, also when its manager is gone."""

    def __init__(self, kernel: Clock) -> None:
        super().__init__(kernel)
        self.watched: dict[int, list[Any]] = {}

    def kill(self) -> None:
        raise AssertionError("the guard does not hang")

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if "watch" in message:
            self.watched[message["watch"][0]] = message["watch"]
            self._look(message["watch"][0])
        elif "drop" in message:
            self.watched.pop(message["drop"], None)

    def _look(self, pid: int) -> None:
        if pid not in self.watched:
            return
        _, _, slot, token, early = self.watched[pid]
        words, now = self.memory.slot(slot), self.kernel.time
        end = words.until - early if words.token == token else 0.0
        if now < end:
            self.kernel.at(end, lambda: self._look(pid))
            return
        self.watched.pop(pid)
        life = self.kernel.life(pid)
        for each in () if life is None else (life.pid, life.rest):
            self.kernel.send_by_others(each, signal.SIGKILL)


def alive(lives: Iterable[Any], names: Iterable[str]) -> list[Any]:
    """Those of *lives* that are of one of *names* and have not had their SIGKILL."""
    wanted = set(names)
    return [life for life in lives if life.name in wanted and not life.empty and not life.doomed]
