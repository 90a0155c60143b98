# SPDX-License-Identifier: MIT
"""Look at the server as long as somebody watches, once for all who do."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any

from gunicorn.monitor import inherited, timeline
from gunicorn.monitor.collect import QUIET, Channel, Refused, Source, Unavailable
from gunicorn.monitor.stream import STILL_HERE, event

# Seconds from one look to the next: after an event, without one, and with memory figures.
SOON = 0.2
USUAL = 1.0
MEMORY = 2.0
# Looks take at most this part of the time, however many companions there are.
SHARE = 0.05

# A viewer that is further behind misses some.
_NEWS_KEPT = 256


class Live:
    """The news of *source*. Its thread runs while there are viewers."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._changed = threading.Condition()
        self._viewers = 0
        self._thread: threading.Thread | None = None
        self._news: deque[tuple[int, bytes]] = deque(maxlen=_NEWS_KEPT)
        self._count = 0
        # The latest status, or why there is none, for those who come later.
        self._status: bytes | None = None

    def watch(self) -> Iterator[bytes]:
        """Yield server-sent events from now on."""
        with self._changed:
            self._viewers += 1
            seen = self._count
            first = self._status
            if self._thread is None:
                first = None
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()
        try:
            yield first or STILL_HERE
            while True:
                with self._changed:
                    if self._count == seen:
                        self._changed.wait(QUIET)
                    news = [data for number, data in self._news if number > seen]
                    seen = self._count
                yield b"".join(news) or STILL_HERE
        finally:
            with self._changed:
                self._viewers -= 1

    def _tell(self, name: str, value: Any) -> None:
        data = event(name, value)
        with self._changed:
            self._count += 1
            self._news.append((self._count, data))
            if name in ("status", "unavailable"):
                self._status = data
            self._changed.notify_all()

    # -- the thread ------------------------------------------------------------------------

    def _look(self) -> None:
        look = _Looks(self.source, self._tell)
        with contextlib.closing(look):
            while True:
                try:
                    look.once()
                except Exception:
                    # A fault here must not leave viewers waiting for ever.
                    traceback.print_exc()
                    self._tell("unavailable", {"error": "The monitor has failed; see its output."})
                    time.sleep(USUAL)
                with self._changed:
                    if not self._viewers:
                        self._thread = self._status = None
                        return


class _Looks:
    """The looks of one thread: at the status, at events, at new samples."""

    def __init__(self, source: Source, tell: Any) -> None:
        self.source = source
        self.tell = tell
        self._events: Channel | None = None
        self._next = self._next_memory = 0.0
        self._latest: dict[str, Any] = {}
        self._sampled = 0.0 if inherited.timeline is None else inherited.timeline.latest()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def once(self) -> None:
        """Look at the status, and wait for an event or until the next look."""
        started = time.monotonic()
        try:
            # Before the status is read: what happens after it must not be missed.
            if self._events is None:
                self._events = self.source.open(cmd="events")
            self._look_at_status(started)
            self._look_at_samples()
        except (Unavailable, Refused) as error:
            self.tell("unavailable", {"error": str(error)})
            self.close()
        took = time.monotonic() - started
        self._next = started + max(USUAL, took / SHARE)
        self._wait(started + max(SOON, took / SHARE))

    def _look_at_status(self, now: float) -> None:
        with_memory = now >= self._next_memory
        status = self.source.status(memory=with_memory)
        if with_memory:
            self._next_memory = now + max(MEMORY, (time.monotonic() - now) / SHARE)
        else:
            _keep_memory(status, self._latest)
        self._latest = status
        self.tell("status", status)

    def _look_at_samples(self) -> None:
        if inherited.timeline is None or inherited.timeline.latest() <= self._sampled:
            return
        for sample in self.source.history(timeline.INTERVAL * 3)["samples"]:
            if sample["time"] > self._sampled:
                self._sampled = sample["time"]
                self.tell("sample", sample)

    def _wait(self, soon: float) -> None:
        """Wait for an event until the next look, but at least until *soon*."""
        while (left := self._next - time.monotonic()) > 0:
            if self._events is None:
                time.sleep(left)
                return
            lines = self._events.wait(left)
            if lines is None:
                self.close()
            for line in lines or ():
                self.tell("event", line)
            if lines:
                self._next = min(self._next, soon)


def _keep_memory(status: dict[str, Any], before: dict[str, Any]) -> None:
    """Put the memory figures of the look *before* into *status*, which has none."""
    status["memory"] = before.get("memory")
    for part in ("companions", "web"):
        new, old = _processes(status, part), _processes(before, part)
        for pid, one in new.items():
            for name in ("memory", "counters"):
                if one.get(name) is None and pid in old:
                    one[name] = old[pid].get(name)


def _processes(status: dict[str, Any], part: str) -> dict[int, dict[str, Any]]:
    found = status.get(part) or []
    entries = found.get("workers", []) if isinstance(found, dict) else found
    return {entry["pid"]: entry for entry in entries if entry.get("pid")}
