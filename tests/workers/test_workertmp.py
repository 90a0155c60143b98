# SPDX-License-Identifier: MIT
"""The heartbeat file: what the worker writes, the master reads."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from gunicorn.config import Config
from gunicorn.workers.workertmp import WorkerTmp


def config(**settings: Any) -> Config:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def test_last_words_are_read_by_the_parent_and_are_no_heartbeat() -> None:
    tmp = WorkerTmp(config())
    beat = tmp.last_update()
    assert tmp.reported is None and not tmp.ending
    pid = os.fork()
    if pid == 0:
        # The end of a trace that is too long is what matters.
        tmp.report("ImportError: é " + "x" * 2000, "first\n" + "y" * 9000 + "\nlast")
        os._exit(0)
    os.waitpid(pid, 0)
    assert tmp.reported is not None and tmp.ending and tmp.last_update() == beat
    reason, trace = tmp.reported
    assert reason.startswith("ImportError: é xxx") and len(reason) < 1001
    assert trace.endswith("y\nlast") and "first" not in trace and len(trace) > 6000
    tmp.close()


def test_a_beat_is_a_moment_of_the_monotonic_clock() -> None:
    before = time.monotonic()
    tmp = WorkerTmp(config())
    try:
        first = tmp.last_update()
        assert before <= first <= time.monotonic()
        tmp.notify()
        assert first < tmp.last_update() <= time.monotonic()
    finally:
        tmp.close()


def test_a_beat_of_the_child_is_seen_by_the_parent() -> None:
    tmp = WorkerTmp(config())
    first = tmp.last_update()
    pid = os.fork()
    if pid == 0:
        tmp.notify()
        tmp.leave()
        os._exit(0)
    os.waitpid(pid, 0)
    assert tmp.last_update() > first and tmp.leaving
    tmp.close()


def test_leaving_is_said_once_and_beats_go_on() -> None:
    tmp = WorkerTmp(config())
    assert not tmp.leaving
    tmp.leave()
    beat = tmp.last_update()
    tmp.notify()
    assert tmp.leaving and tmp.last_update() > beat
    tmp.close()


def test_an_end_in_order_is_no_leaving() -> None:
    tmp = WorkerTmp(config())
    assert not tmp.ended
    tmp.end()
    assert tmp.ended and not tmp.leaving
    tmp.leave()
    tmp.end()
    assert tmp.ended and tmp.leaving
    tmp.close()


def test_it_has_no_name(tmp_path: Path) -> None:
    tmp = WorkerTmp(config(worker_tmp_dir=str(tmp_path)))
    assert os.fstat(tmp.fileno()).st_nlink == 0 and list(tmp_path.iterdir()) == []
    assert not os.get_inheritable(tmp.fileno())
    tmp.close()


def test_it_is_made_in_worker_tmp_dir(tmp_path: Path) -> None:
    tmp = WorkerTmp(config(worker_tmp_dir=str(tmp_path)))
    assert os.fstat(tmp.fileno()).st_dev == tmp_path.stat().st_dev
    assert os.readlink(f"/proc/self/fd/{tmp.fileno()}").startswith(str(tmp_path))
    tmp.close()
    with pytest.raises(OSError):
        WorkerTmp(config(worker_tmp_dir=str(tmp_path / "missing")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_it_belongs_to_the_user_of_the_worker() -> None:
    tmp = WorkerTmp(config(user=65534, group=65534))
    assert os.fstat(tmp.fileno()).st_uid == 65534
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            tmp.notify()
            tmp.leave()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    tmp.close()


def test_closing_twice_closes_no_other_file() -> None:
    tmp = WorkerTmp(config())
    fd = tmp.fileno()
    tmp.close()
    other = os.open("/dev/null", os.O_RDONLY)
    try:
        assert other == fd
        tmp.close()
        os.fstat(other)
        with pytest.raises(ValueError):
            tmp.fileno()
        with pytest.raises(ValueError):
            tmp.notify()
    finally:
        os.close(other)
