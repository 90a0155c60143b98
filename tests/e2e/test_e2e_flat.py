# SPDX-License-Identifier: MIT
"""No process has more descriptors, threads, objects or memory after many reloads.

A few reloads here; ``FLAT_HUPS`` and ``FLAT_CLASSES`` in the environment ask for more.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from e2e_companions import companion_server, entry
from harness import QUICK_RELOADS, Server, descriptors, status_field, wait_until

HUPS = int(os.environ.get("FLAT_HUPS", "20"))
CLASSES = os.environ.get("FLAT_CLASSES", "gthread").split(",")
#: Measure from this reload on: what is made once is made by then.
FIRST = 4

#: Counts the master's objects, frozen ones included.
COUNTING = """
def on_reload(server):
    import gc
    gc.collect()
    with open("objects", "a") as notes:
        notes.write(f"{len(gc.get_objects()) + gc.get_freeze_count()}\\n")
"""


def kinds_of_descriptors(pid: int) -> dict[str, int]:
    """How many descriptors *pid* has of each kind; of files, each by its name."""
    found: dict[str, int] = {}
    for target in descriptors(pid).values():
        kind = target.partition("[")[0]
        found[kind] = found.get(kind, 0) + 1
    return found


def shape(pid: int) -> tuple[dict[str, int], str]:
    return kinds_of_descriptors(pid), status_field(pid, "Threads")


def own_memory(pid: int) -> int:
    """kB of memory without files, whoever it is shared with: forks come and go."""
    return int(status_field(pid, "RssAnon").split()[0])


def private_memory(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))


def measured_worker(server: Server) -> int:
    (worker,) = server.workers()
    for _ in range(3):
        assert server.get("/").text == str(worker)
    return worker


@pytest.mark.timeout(max(120, 5 * HUPS))
@pytest.mark.parametrize("kind", CLASSES)
def test_reloads_leave_nothing_behind(kind: str) -> None:
    server = companion_server(
        entry("a", "idle"), worker_class=kind, threads=2, extra=QUICK_RELOADS + COUNTING
    )
    with server:
        companion = server.wait_companion("a")["pid"]
        manager = server.wait_manager()

        def hup() -> None:
            old = server.workers()
            server.signal(signal.SIGHUP)
            server.wait_workers(1, 20, without=old)

        for _ in range(FIRST):
            hup()
        worker = measured_worker(server)
        shapes = [wait_steady(pid) for pid in (server.pid, manager, worker)]
        before = [own_memory(server.pid), own_memory(manager), private_memory(worker)]
        for _ in range(HUPS - FIRST):
            hup()
        worker = measured_worker(server)
        for pid, was in zip((server.pid, manager, worker), shapes, strict=True):
            wait_until(lambda pid=pid, was=was: shape(pid) == was, 10, lambda pid=pid: f"{shape(pid)}")  # type: ignore[misc]
        after = [own_memory(server.pid), own_memory(manager), private_memory(worker)]
        # The allocator needs time to settle. A leak that matters is a hundred times as large.
        for name, was, now in zip(("master", "manager", "worker"), before, after, strict=True):
            assert now - was < 1500, f"the {name} has {was} kB, and {now} kB {HUPS - FIRST} reloads later"
        objects = [int(line) for line in server.log("objects").split()]
        assert len(objects) == HUPS
        # A worker that has ended, but is not reaped at that reload, counts with its whole configuration.
        grown = min(objects[-3:]) - min(objects[FIRST - 1 : FIRST + 2])
        assert grown < 10 * (HUPS - FIRST), objects
        assert (server.manager(), server.companion("a")["pid"]) == (manager, companion)


def wait_steady(pid: int) -> tuple[dict[str, int], str]:
    """The shape of *pid* once it no longer changes: a connection may be about to be closed."""
    last: tuple[dict[str, int], str] | None = None

    def steady() -> bool:
        nonlocal last
        before, last = last, shape(pid)
        return before == last

    wait_until(steady, 10, "steady", interval=0.2)
    assert last is not None
    return last
