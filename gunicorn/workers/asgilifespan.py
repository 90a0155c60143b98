# SPDX-License-Identifier: MIT
"""The lifespan of an ASGI application: what it runs at the start and at the end of a worker."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

from gunicorn.errors import AppImportError
from gunicorn.workers.asgiwatch import stack_of
from gunicorn.workers.cycle import Stopped


class Lifespan:
    """Runs the lifespan of *app*; *mode* is the setting ``asgi_lifespan``."""

    def __init__(self, app: Any, mode: str, log: Any) -> None:
        #: What the application has put there at its start; each request gets a copy.
        self.state: dict[str, Any] = {}
        self._app = app
        self._mode = mode
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._started = False
        self._answer: dict[str, Any] | None = None

    async def startup(self, patience: float) -> None:
        """Run the application up to the end of its startup. Raises AppImportError if that fails.

        If it takes longer than *patience* seconds (0: any time), log where it waits.
        """
        if self._mode == "off":
            return
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answered = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run())
        warning = loop.call_later(patience, self._log_slow, "startup", patience) if patience else None
        answer = await self._ask("startup")
        if warning is not None:
            warning.cancel()
        if answer.get("type") == "lifespan.startup.complete":
            self._started = True
            return
        if answer:
            reason = str(answer.get("message") or "").strip() or "the application gives no reason"
            # Starlette sends a whole traceback, whose last line says what is wrong.
            *trace, last = reason.splitlines()
            failed = AppImportError(f"the lifespan startup failed: {last}")
            failed.trace = "\n".join(trace)
            raise failed from self._error
        reason = _reason(self._error)
        if self._mode == "on":
            raise AppImportError(f"the application has no lifespan, and asgi_lifespan is on: {reason}")
        self._log.debug("The application has no lifespan: %s", reason)
        self._task = None

    async def shutdown(self, patience: float) -> None:
        """Run the application's code for the end, if its startup was complete.

        If it takes longer than *patience* seconds, log where it waits, and return.
        """
        if self._task is None or self._task.done():
            return
        try:
            answer = await asyncio.wait_for(self._ask("shutdown"), patience)
        except asyncio.TimeoutError:
            self._log_slow("shutdown", patience)
            return
        if answer.get("type") == "lifespan.shutdown.failed":
            self._log.error("The lifespan shutdown failed: %s", answer.get("message") or "no reason given")

    async def _ask(self, what: str) -> dict[str, Any]:
        """Return the application's answer; an empty one if it has ended without."""
        self._answer = None
        self._answered.clear()
        self._messages.put_nowait({"type": f"lifespan.{what}"})
        await self._answered.wait()
        return self._answer or {}

    def _log_slow(self, what: str, seconds: float) -> None:
        assert self._task is not None
        stack = "".join(traceback.format_list(stack_of(self._task)))
        self._log.error(
            "The lifespan %s has not ended after %.3g s; it waits here:\n%s", what, seconds, stack
        )

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._messages.get, self._send)
        except Stopped:
            raise
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._error = error
            # It may have answered that it failed, and why, before it raised the error.
            if self._started and not str(self._answer).count(".failed"):
                self._log.error("The lifespan of the application failed", exc_info=error)
        finally:
            self._answered.set()

    async def _send(self, message: dict[str, Any]) -> None:
        if not str(message.get("type")).startswith("lifespan."):
            raise RuntimeError(f"in a lifespan there is no message {message.get('type')!r}")
        self._answer = message
        self._answered.set()


def _reason(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if error is not None else "it returned without an answer"
