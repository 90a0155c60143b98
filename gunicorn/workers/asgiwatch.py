# SPDX-License-Identifier: MIT
"""Log where an event loop is blocked, from a thread beside it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

# A callback that takes longer is slow; as in asyncio's own debug mode.
SLOW = 0.1

# How often the loop shows that it turns, if slow callbacks are to be found.
_BEAT = 0.05


def frames_of(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of a task that waits, the innermost first."""
    frames = []
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        # Of a coroutine, a generator, or an asynchronous generator.
        for prefix in ("cr", "gi", "ag"):
            frame = getattr(coroutine, f"{prefix}_frame", None)
            if frame is not None:
                frames.append(frame)
                coroutine = getattr(coroutine, f"{prefix}_await", None) or getattr(
                    coroutine, "gi_yieldfrom", None
                )
                break
        else:
            break
    return frames[::-1]


def stack_of(task: asyncio.Task[Any]) -> traceback.StackSummary:
    """Return where a task waits, the innermost frame last."""
    return traceback.StackSummary.extract((frame, frame.f_lineno) for frame in reversed(frames_of(task)))


class LoopWatch:
    """Watches *loop*, which runs in this thread.

    *hung*: the seconds after which a blocked loop is an error; 0: never. *slow*: whether to log, for
    debugging, each callback that takes longer than SLOW.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Any, hung: float, slow: bool) -> None:
        self._loop = loop
        self._log = log
        self._hung = hung
        self._slow = slow
        self._interval = _BEAT if slow else min(1.0, hung / 8)
        self._beat_at = time.monotonic()
        self._ended = threading.Event()
        self._ident = threading.get_ident()
        if hung or slow:
            self._beat()
            threading.Thread(target=self._watch, name="gunicorn-loop-watch", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        if not self._ended.is_set():
            self._loop.call_later(self._interval, self._beat)

    def _watch(self) -> None:
        told_slow = told_hung = 0.0
        while not self._ended.wait(self._interval):
            beat_at = self._beat_at
            late = time.monotonic() - beat_at - self._interval
            if self._slow and late > SLOW and told_slow != beat_at:
                told_slow = beat_at
                self._log.debug("The event loop is blocked for more than %g s:\n%s", SLOW, self._stack())
            if self._hung and late > self._hung and told_hung != beat_at:
                told_hung = beat_at
                self._log.error("The event loop hangs for %.3g s:\n%s", late, self._stack())

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._ident)
        return "".join(traceback.format_stack(frame)) if frame is not None else "it has just ended"
