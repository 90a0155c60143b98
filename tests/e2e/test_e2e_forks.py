# SPDX-License-Identifier: MIT
"""A process that forks has one thread: a fork copies the locks that others hold, and nobody releases them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from e2e_companions import companion_server, entry
from harness import QUICK_RELOADS, free_port, kill_quietly, wait_until

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's list of threads")

# The file is read again at a reload, and by the manager. Python itself warns of such forks, from 3.12 on, but
# counts wrongly in a process whose title has a space.
COUNTS_THREADS = """
import os

def count_threads():
    with open("forks", "a") as file:
        file.write(f"{os.getpid()} {len(os.listdir('/proc/self/task'))}\\n")

if not hasattr(os, "counts_threads"):
    os.counts_threads = True
    os.register_at_fork(before=count_threads)
"""


@pytest.mark.parametrize("develop", [False, True], ids=["preload", "reload"])
def test_every_process_that_forks_has_one_thread(develop: bool, tmp_path: Path) -> None:
    program = {"name": "program", "command": ["sleep", "1000"], "probe": {"command": ["true"], "every": 0.2}}
    with companion_server(
        entry("target", "idle", stdout="target.log", lease="target"),
        program,
        extra=COUNTS_THREADS + QUICK_RELOADS,
        companion_lease_store=f"file://{tmp_path}",
        # What might have a thread: all that sends, watches or answers besides serving.
        preload_app=not develop,
        reload=develop,
        statsd_host=f"127.0.0.1:{free_port()}",
        syslog=True,
        syslog_addr=f"udp://127.0.0.1:{free_port()}",
        errorlog="-",
        accesslog="-",
        monitor=f"127.0.0.1:{free_port()}",
        monitor_token="secret",
        workers=2,
        workers_max=3,
        max_requests=1000,
        enable_backlog_metric=True,
    ) as server:
        server.notes_starts = False
        pids = server.wait_workers(2)
        manager = server.wait_manager()
        for name in ("target", "program", "monitor"):
            server.wait_companion(name)
        kill_quietly(pids[0])
        server.wait_workers(2, without=pids[:1])
        server.signal(signal.SIGHUP)
        server.wait_workers(2, without=pids)
        if not develop:
            new = server.upgrade()
            wait_until(new.workers, 10, "workers of the new master")
            new.signal(signal.SIGTERM)
            wait_until(lambda: not server.new_master(), 10, "the end of the new master")
        forks = [tuple(map(int, line.split())) for line in server.log("forks").splitlines()]
    assert [fork for fork in forks if fork[1] != 1] == []
    counts = {pid: [forker for forker, _ in forks].count(pid) for pid, _ in forks}
    # Two workers, one in the place of the killed one, two after the reload; the manager.
    assert counts[server.pid] >= 6 + (not develop)
    # Three companions, the log keeper, the prober, the keeper and the guard of leases.
    assert counts[manager] >= 7
    # The prober, too, and the new master.
    assert len(counts) >= 3 + (not develop)
