# SPDX-License-Identifier: MIT
"""The master's side of the order between web workers and companions.

The messages on the link: while web workers wait for the companions in `web_after`, the manager tells
``web_held_by``, and then ``web_may_start`` or ``web_cannot_start``. The master tells ``web_ready``: whether
all workers have booted. At a stop it tells ``web_stopping``; the manager answers ``web_may_stop`` when no
companion needs the workers; when they are gone, ``web_stopping`` is false. If one of the two dies, the other
goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.companion.checks import WEB
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.graph import concerns_web
from gunicorn.companion.server import limits
from gunicorn.companion.server.run_directory import ArbitersPart

Configs = list[CompanionConfig]


class WebOrder(ArbitersPart):
    """*tell* sends a message, its kind and its value, to the manager."""

    def __init__(self, arbiter: Any, tell: Callable[[str, Any], None]) -> None:
        self.arbiter = arbiter
        self.tell = tell
        # What web workers wait for before the first of them starts; and why that is in vain.
        self.held_by = ""
        self.cannot_start = ""
        self._logged: set[str] = set()
        self._told_ready: bool | None = None
        # At a stop: whether the manager was told, and until when workers wait for its answer.
        self._stop_told = False
        self._wait_until: float | None = None

    # -- the start -----------------------------------------------------------

    def on_message(self, message: dict[str, Any]) -> None:
        held = self.arbiter.web_is_held
        if held and "web_held_by" in message:
            self.held_by, self.cannot_start = str(message["web_held_by"]), ""
            # Once: a companion that fails again and again would fill the log.
            if self.held_by not in self._logged:
                self._logged.add(self.held_by)
                self.log.info("Web workers wait for %s", self.held_by)
        # A reload may have changed what they wait for.
        if held and message.get("web_may_start") == self.cfg.web_after:
            self.held_by = self.cannot_start = ""
            self.arbiter.web_released = True
            self.log.info("Web workers start: all that they wait for is there")
        if "web_cannot_start" in message:
            self.cannot_start = str(message["web_cannot_start"])
        if "web_may_stop" in message:
            self._wait_until = None

    def release(self, why: str) -> None:
        """Have web workers start without waiting."""
        self.arbiter.web_released = True
        self.log.warning("Web workers do not wait for %s: %s", ", ".join(self.cfg.web_after), why)

    def new_manager(self) -> None:
        """The next manager knows nothing yet."""
        self._told_ready = None
        self._stop_told = False

    def step(self, configs: Iterable[CompanionConfig]) -> None:
        """Tell whether all wanted workers have booted, if a companion comes after them."""
        if self.arbiter.stopping or not any(WEB in config.after for config in configs):
            self._told_ready = None
            return
        ready = self.arbiter.web_is_ready()
        if ready != self._told_ready:
            self._told_ready = ready
            self.tell("web_ready", ready)

    @property
    def watches_boot(self) -> bool:
        """Whether a companion waits for workers to boot, which the master sees only if it looks."""
        return self._told_ready is False

    # -- the stop --------------------------------------------------------------

    def begin_stop(self, now: float, configs: Configs, *, wait: bool) -> None:
        """Tell that workers stop too. With *wait* companions that come after them stop first."""
        if self.cfg.companion_stop_order != "reverse" or not concerns_web(configs, self.cfg.web_after):
            return
        self._stop_told = True
        self.tell("web_stopping", True)
        seconds = limits.web_wait(self.cfg, configs) if wait else 0.0
        # A manager that works ends the companions in their time, and answers.
        self._wait_until = now + seconds + limits.buffer(self.cfg) if seconds else None

    def may_stop(self, now: float) -> bool:
        """Whether workers need not wait for companions any longer."""
        return self._wait_until is None or now >= self._wait_until

    def gone(self) -> None:
        """Tell, once, that no worker is left."""
        if self._stop_told:
            self._stop_told = False
            self.tell("web_stopping", False)
