# SPDX-License-Identifier: MIT
"""The event loop of an asgi worker: how it is made, and how it ends with what still runs in it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

# How long tasks have to end once they are cancelled.
CANCEL_SECONDS = 0.25


def loop_factory(name: str) -> Any:
    """Return what makes a loop of the kind that ``asgi_loop`` names."""
    if name != "asyncio":
        try:
            import uvloop

            return uvloop.new_event_loop
        except ImportError as error:
            if name == "uvloop":
                raise RuntimeError(f"asgi_loop is uvloop, which is not installed ({error})") from error
    return asyncio.SelectorEventLoop


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs in *loop*, and close it."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=CANCEL_SECONDS))
    loop.run_until_complete(loop.shutdown_asyncgens())
    asyncio.set_event_loop(None)
    loop.close()


def exit_within(seconds: float, status: Any) -> None:
    """End the process after *seconds*, if by then it still waits for threads of the application.

    Python waits for those of executors without a limit, and they cannot be cancelled.
    """

    def end() -> None:
        time.sleep(seconds)
        os._exit(status if isinstance(status, int) else 0)

    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        threading.Thread(target=end, daemon=True).start()
