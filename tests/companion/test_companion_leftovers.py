# SPDX-License-Identifier: MIT
"""What a killed manager leaves: which processes get a record again, and which end with the server."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from companiontools import make_cfg, record
from harness import is_alive, wait_until

from gunicorn.companion import runfile
from gunicorn.companion.child.mark import VARIABLE, Mark
from gunicorn.companion.config import build_companion_configs
from gunicorn.companion.server.leftovers import Leftovers
from gunicorn.unix import session

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="marks are read in /proc")

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with a mark; its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def start(mark: Mark | None = None, *, leads: bool = True) -> int:
        env = {**os.environ, VARIABLE: str(mark)} if mark is not None else None
        started.append(subprocess.Popen(["sleep", "1000"], env=env, start_new_session=leads))
        pid = started[-1].pid
        wait_until(lambda: session.command_name(pid) == "sleep")
        return pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_leftovers_of_a_killed_manager(tmp_path: Path, start: Start) -> None:
    run_dir, target = str(tmp_path), "os:getpid"
    configs = build_companion_configs(
        make_cfg(
            {"name": "lost", "target": target, "stop_timeout": 7},
            {"name": "recorded", "target": target},
            {"name": "dead", "target": target},
            {"name": "many", "target": target, "singleton": False},
        )
    )
    arbiter = SimpleNamespace(cfg=SimpleNamespace(uid=os.geteuid()), log=logging.getLogger("leftovers"))
    places = SimpleNamespace(run_dir=run_dir, shared=lambda: True)
    leftovers = Leftovers(arbiter, places)  # type: ignore[arg-type]
    ours, theirs = start(), start()
    leftovers.note_manager(ours)
    identity = session.identity(ours)
    assert identity is not None

    lost = start(Mark.of(run_dir, "lost", ours))
    recorded = start(Mark.of(run_dir, "recorded", ours))
    others = {
        "a daemon of one that is recorded": start(Mark.of(run_dir, "recorded", ours)),
        "a child whose leader is gone": start(Mark.of(run_dir, "dead", ours), leads=False),
        "one that needs no record": start(Mark.of(None, "many", ours)),
        "one that was removed from the configuration": start(Mark.of(run_dir, "removed", ours)),
    }
    stranger = start(Mark.of(run_dir, "lost", theirs))
    known = record(
        name="recorded",
        pid=recorded,
        started=session.identity(recorded),
        session=recorded,
        supervisor=ours,
        supervisor_started=identity,
        stop_timeout=0,
    )
    (tmp_path / "recorded.run").write_bytes(known.to_bytes())
    for pid in (ours, theirs):
        os.kill(pid, 9)
        wait_until(lambda pid=pid: session.identity(pid) is None)

    leftovers.record_again(configs)
    assert set(runfile.records(run_dir)) == {"recorded"}, "nobody has told it of a killed manager"
    leftovers.some_killed = True
    leftovers.record_again(configs)
    found = runfile.records(run_dir)
    assert found["recorded"] == known
    assert (found["lost"].pid, found["lost"].session, found["lost"].stop_timeout) == (lost, lost, 7)
    assert (found["lost"].supervisor, found["lost"].supervisor_started) == (ours, identity)
    assert set(found) == {"recorded", "lost"}

    wait_until(lambda: leftovers.step(time.monotonic(), configs, 0.0))
    for what, pid in {**others, "lost": lost, "recorded": recorded}.items():
        wait_until(lambda pid=pid: session.identity(pid) is None, 5, what)
    assert is_alive(stranger)
