# SPDX-License-Identifier: MIT
"""The lease keeper's process: it does all the waiting for stores, so that a slow one holds up nothing.

It is a child of the companion manager and ends with it, without giving anything up: it cannot know whether
the companions have ended. If it is killed, the manager starts another one, which goes on with what is held.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import random
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

from gunicorn.companion.helpers.child import fork_helper
from gunicorn.companion.helpers.wire import Message, Wire
from gunicorn.companion.leasing import store as stores
from gunicorn.companion.leasing.store import LeaseError, Store, StoreError
from gunicorn.companion.leasing.words import LeaseMemory
from gunicorn.unix import boottime
from gunicorn.unix.poller import READABLE, WRITABLE, Poller

# A renewal comes up to this part of its time early, at random: leases that were taken together must not be
# renewed together for ever.
JITTER = 0.1

# A call may take this part of the shortest ttl, within these seconds: two must fit between a renewal that
# fails and the stop of the companion.
TIMEOUT_PART, SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 1 / 15, 0.25, 5.0

# Seconds from a call that fails to the next one, at most; and between two tries for one lease, at least.
PAUSE = 1.0
SHORTEST_PAUSE = 0.05

# Seconds between two looks at what is due, at most.
_LONGEST_WAIT = 3600.0

# Seconds for what is still to be given up at the end.
_END = 1.5


class Want:
    """A lease that is to be held. ``due`` is of the boot-time clock."""

    def __init__(self, message: Message, memory: LeaseMemory) -> None:
        self.serial: int = message["want"]
        self.name: str = message["name"]
        self.words = memory.slot(message["slot"])
        # What is held; 0: nothing.
        self.token: int = message["token"]
        # The token must be larger: it was used by processes of before.
        self.above: int = message["above"]
        self.ttl = 0.0
        # To be stored with the next call.
        self.note: str | None = None
        self.due = 0.0
        # Who else has it, as the manager was told; None: it was told nothing.
        self.told: str | None = None
        # Whether the manager was told that the store refuses this one.
        self.refused = False


class Desk:
    """Does what is to be done with one store, in a thread of its own.

    *tell* sends the manager a message; *on_end* is called when all is done that was to be done at the end.
    """

    def __init__(self, url: str, owner: str, memory: LeaseMemory, tell: Any, on_end: Any) -> None:
        self.url = url
        self.owner = owner
        self.memory = memory
        self.tell = tell
        self.on_end = on_end
        self.inbox: deque[Message] = deque()
        self.wants: dict[int, Want] = {}
        # What is to be given up: each with the time at which it ends by itself.
        self.given: list[tuple[float, Want]] = []
        self.ending = False
        self._store: Store | None = None
        self._timeout = LONGEST_TIMEOUT
        # Why the store cannot be asked, as the manager was told; "" if it can.
        self._down = ""
        self._retry_at = 0.0
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)

    # -- in the main thread ----------------------------------------------------

    def put(self, message: Message) -> None:
        self.inbox.append(message)
        os.write(self._wake, b"x")

    # -- in its own ------------------------------------------------------------

    def run(self) -> None:
        try:
            while not (self.ending and not self.given):
                self._take_messages()
                self._work()
                self._wait()
        except BaseException:
            self.tell({"failed": traceback.format_exc()})
        self._disconnect()
        self.on_end()

    def _take_messages(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 65536)
        while self.inbox:
            message = self.inbox.popleft()
            if "want" in message:
                want = self.wants.get(message["want"])
                if want is None:
                    want = self.wants[message["want"]] = Want(message, self.memory)
                    if self._down:
                        self.tell({"down": self.url, "why": self._down})
                want.ttl = message["ttl"]
                want.due = 0.0
                self._use_timeout(want.ttl)
            elif "give" in message:
                self._give(message["give"])
            elif "note" in message and message["note"] in self.wants:
                self.wants[message["note"]].note = message["text"]
                self.wants[message["note"]].due = 0.0
            elif "end" in message:
                self.ending = True

    def _give(self, serial: int) -> None:
        want = self.wants.pop(serial, None)
        if want is not None and want.token:
            end = want.words.until
            want.words.until = want.due = 0.0
            self.given.append((end, want))

    def _use_timeout(self, ttl: float) -> None:
        timeout = min(LONGEST_TIMEOUT, max(SHORTEST_TIMEOUT, ttl * TIMEOUT_PART))
        if timeout < self._timeout:
            self._timeout = timeout
            self._disconnect()

    def _disconnect(self) -> None:
        if self._store is not None:
            with contextlib.suppress(Exception):
                self._store.close()
            self._store = None

    def _work(self) -> None:
        """Make the calls that are due; after one that fails, the others wait too."""
        now = boottime.now()
        self.given = [(end, want) for end, want in self.given if now < end]
        given = [(end, want) for end, want in self.given if now >= want.due]
        due = [want for want in self.wants.values() if now >= want.due]
        if now < self._retry_at or not (due or given):
            return
        try:
            if self._store is None:
                self._store = stores.connect(self.url, self._timeout)
            for end, want in given:
                if self._call(self._release, self._store, want):
                    self.given.remove((end, want))
            # First what would be lost. What was refused may take its time, as a lock does: one in each round.
            usual = sorted((want for want in due if not want.refused), key=lambda want: not want.token)
            refused = sorted((want for want in due if want.refused), key=lambda want: want.due)
            for want in [*usual, *refused[:1]]:
                self._call(self._renew if want.token else self._acquire, self._store, want)
        except StoreError as exc:
            self._fail(str(exc))
        else:
            if self._down:
                self._down = ""
                self.tell({"up": self.url})

    def _call(self, function: Callable[[Store, Want], None], store: Store, want: Want) -> bool:
        """Whether the store did it. What is wrong with one lease holds up no other."""
        try:
            function(store, want)
        except LeaseError as exc:
            want.due = self._next_try()
            if not want.refused:
                want.refused = True
                self.tell({"wrong": want.serial, "why": stores.shorten(str(exc))})
            return False
        if want.refused:
            want.refused = False
            self.tell({"right": want.serial})
        return True

    def _next_try(self) -> float:
        """When to try again what has failed."""
        shortest = min((want.ttl for want in self.wants.values()), default=PAUSE)
        return boottime.now() + min(PAUSE, shortest / 15) * (1 - JITTER * random.random())

    def _fail(self, why: str) -> None:
        now = boottime.now()
        for want in self.wants.values():
            want.words.asked = now
            # When the store is up again, nothing is known of each.
            want.refused = False
        self._retry_at = self._next_try()
        if not self._down:
            self._down = stores.shorten(why) or "?"
            self.tell({"down": self.url, "why": self._down})

    def _release(self, store: Store, want: Want) -> None:
        store.release(want.name, self.owner, want.token, want.note)

    def _renew(self, store: Store, want: Want) -> None:
        # Counted from before the call: the store may have got it at once, and the answer may take its time.
        began = want.words.asked = boottime.now()
        if store.renew(want.name, self.owner, want.token, want.ttl, want.note):
            if want.note is not None:
                self.tell({"noted": want.serial})
            want.note = None
            want.words.until = began + want.ttl
            want.due = began + want.ttl / 3 * (1 - JITTER * random.random())
        else:
            want.words.until = 0.0
            want.above, want.token, want.due = want.token, 0, 0.0
            self.tell({"lost": want.serial})

    def _acquire(self, store: Store, want: Want) -> None:
        began = want.words.asked = boottime.now()
        answer = stores.checked(store.acquire(want.name, self.owner, want.ttl), 0)
        if answer.mine and answer.token <= want.above:
            # It is still ours from before. What starts now must be told from what may still run.
            store.release(want.name, self.owner, answer.token, None)
            began = boottime.now()
            answer = stores.checked(store.acquire(want.name, self.owner, want.ttl), want.above)
        left = want.ttl if answer.expires_in is None else answer.expires_in
        if answer.mine:
            want.token = want.words.token = answer.token
            want.words.until = began + min(want.ttl, left)
            want.due = began + min(want.ttl, left) / 3 * (1 - JITTER * random.random())
            expired = bool(want.told) and began >= want.words.other
            before = {"before": want.told or "", "expired": expired, "note": answer.note}
            self.tell({"held": want.serial, "token": answer.token, **before})
            want.words.other, want.told = 0.0, None
            return
        want.words.other = began + left if answer.owner else 0.0
        want.due = began + max(SHORTEST_PAUSE, min(want.ttl / 3, left))
        if want.told != answer.owner:
            want.told = answer.owner
            self.tell({"refused": want.serial, "owner": answer.owner})

    def _wait(self) -> None:
        """Wait for the next call that is due, a message, or a lease of another one that becomes free."""
        if self.ending and not self.given:
            return
        now = boottime.now()
        wants = [*self.wants.values(), *(want for _, want in self.given)]
        times = [max(self._retry_at, want.due) for want in wants]
        # poll(2) has a longest time.
        seconds = max(0.0, min([*times, now + _LONGEST_WAIT]) - now)
        others = [want for want in self.wants.values() if not (want.token or want.refused)]
        if not others or self._down or self._store is None:
            stores.sleep(seconds, self._woken)
            return
        try:
            self._store.wait([want.name for want in others], seconds, self._woken)
        except StoreError as exc:
            self._fail(str(exc))
            return
        if boottime.now() < now + seconds:
            for want in others:
                want.due = min(want.due, want.words.asked + SHORTEST_PAUSE)
            # A store may find one free again and again.
            stores.sleep(now + SHORTEST_PAUSE - boottime.now(), self._woken)


class Keeper:
    """The loop of the main thread, between the manager and the desks."""

    def __init__(self, wire: Wire, memory: LeaseMemory, owner: str) -> None:
        self.wire = wire
        self.memory = memory
        self.owner = owner
        self.poller = Poller()
        self.desks: dict[str, Desk] = {}
        self.open_desks = 0
        # The desk of each lease.
        self._desk_of: dict[int, Desk] = {}
        self._outbox: deque[Message | None] = deque()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        self._end_at: float | None = None
        self.poller.add(self._woken, lambda events: self._on_wake())
        self.poller.add(wire.fileno(), lambda events: self._on_message())

    def run(self) -> None:
        """Until the manager is gone, or says that it ends."""
        while not self.wire.ended:
            if self._end_at is not None and (not self.open_desks or time.monotonic() >= self._end_at):
                return
            self.poller.wait(None if self._end_at is None else max(0.0, self._end_at - time.monotonic()))
            if not self.wire.ended:
                self.wire.flush()
                self.poller.modify(self.wire.fileno(), READABLE | (WRITABLE if self.wire.has_unsent else 0))

    def _post(self, message: Message | None) -> None:
        """Called by the threads of desks; None: one has ended."""
        self._outbox.append(message)
        os.write(self._wake, b"x")

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 65536)
        while self._outbox:
            message = self._outbox.popleft()
            if message is not None:
                self.wire.send(message)
                continue
            self.open_desks -= 1
            if self._end_at is None:
                # It has failed, and the leases of its store with it: the next keeper takes them up.
                self.wire.flush()
                os._exit(1)

    def _on_message(self) -> None:
        for message, _ in self.wire.receive():
            if "want" in message:
                self._desk_of[message["want"]] = self._desk(message["store"])
                self._desk_of[message["want"]].put(message)
            elif "give" in message and message["give"] in self._desk_of:
                self._desk_of.pop(message["give"]).put(message)
            elif "note" in message and message["note"] in self._desk_of:
                self._desk_of[message["note"]].put(message)
            elif "end" in message:
                self._end_at = time.monotonic() + _END
                for desk in self.desks.values():
                    desk.put(message)

    def _desk(self, url: str) -> Desk:
        desk = self.desks.get(url)
        if desk is None:
            # Two URLs may name one store, where nobody may take what this server holds by the other one.
            owner = f"{self.owner}.{zlib.crc32(url.encode()):x}"
            desk = self.desks[url] = Desk(url, owner, self.memory, self._post, lambda: self._post(None))
            self.open_desks += 1
            # Not with threading.Thread: gevent, in a configuration file, may have replaced what that needs.
            _thread.start_new_thread(desk.run, ())
        return desk


def start_lease_keeper(wire: Wire, memory: LeaseMemory, owner: str) -> int:
    """Fork the lease keeper at the other end of *wire*; return its pid. Raises OSError."""

    def life() -> None:
        # What it makes from here on may have cycles; the manager's objects are frozen.
        gc.enable()
        Keeper(wire, memory, owner).run()

    return fork_helper("companion lease keeper", wire, life)
