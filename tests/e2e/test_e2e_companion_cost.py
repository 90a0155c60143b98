# SPDX-License-Identifier: MIT
"""What companions cost: they share the master's memory, and an idle manager sleeps."""

from __future__ import annotations

import time
from pathlib import Path

from e2e_apps import JOBS, WEB
from e2e_companions import CHECKS_OFTEN, companion_server, entry
from harness import status_field, wait_until

#: 60 MB of small objects that a collection visits (a dict of plain values it would not).
BIG = WEB + "\nTABLE = [[n, [str(n)]] for n in range(300_000)]\n"

COLLECTS = (
    JOBS
    + """
def collects():
    import gc
    begin()
    gc.collect()
    mark("collected", os.getpid())
    sleep_forever()
"""
)


def private_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))


def measure(freeze: bool) -> tuple[int, int]:
    server = companion_server(
        entry("collects"),
        app_option=BIG,
        files_option={"jobs.py": COLLECTS},
        preload_app=True,
        gc_freeze=freeze,
    )
    with server:
        server.wait_companion("collects")
        pid = int(wait_until(lambda: server.log("collects.collected").strip()))
        size = int(status_field(server.pid, "VmRSS").split()[0])
        return private_kb(pid), size


def test_a_companion_shares_the_preloaded_memory() -> None:
    """Under 10 MB private after a full collection, with 50 MB or more preloaded."""
    private, size = measure(freeze=True)
    assert size > 50_000, f"only {size} kB preloaded"
    assert private < 10_000, f"{private} kB private of {size} kB"


def test_without_gc_freeze_a_companion_shares_less() -> None:
    """Without this the test above would show nothing."""
    private, _size = measure(freeze=False)
    assert private > 20_000


def test_an_idle_manager_is_not_scheduled() -> None:
    """20 running companions, and not one context switch.

    For longer than the longest of the master's and the manager's intervals.
    """
    names = [f"c{number}" for number in range(20)]
    with companion_server(*(entry(name, "idle") for name in names), extra=CHECKS_OFTEN) as server:
        for name in names:
            server.wait_companion(name)
        manager = server.wait_manager()

        def switches() -> int:
            return int(status_field(manager, "voluntary_ctxt_switches"))

        # The last answer, the last promotion and the first two checks of the run files are over when nothing
        # happens for longer than the longest interval.
        last, since = switches(), time.monotonic()

        def quiet() -> bool:
            nonlocal last, since
            now = switches()
            if now != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since > 1.5

        wait_until(quiet, 25, "no context switch in 1.5 s", interval=0.1)
