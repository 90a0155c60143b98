# SPDX-License-Identifier: MIT
"""Whether requests wait: what is measured of a thread, and what samples say."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from typing import NamedTuple

import pytest
from harness import Server
from workertools import Client, conf, get

from gunicorn.workers.threads import waits
from gunicorn.workers.threads.waits import SAMPLE, WORTH, Samples, Stretch


def in_child(seconds: float, sleeps: bool) -> tuple[float, int]:
    """Sleep or compute for so long in a process of its own, which no other thread disturbs."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        stretch = Stretch()
        if sleeps:
            time.sleep(seconds)
        else:
            end = time.thread_time() + seconds
            while time.thread_time() < end:
                pass
        lost, often = stretch.end()
        os.write(writer, f"{lost} {often}".encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        lost, often = pipe.read().split()
    os.waitpid(pid, 0)
    return float(lost), int(often)


@pytest.mark.skipif(waits._THREAD is None, reason="the system does not count the waits of a thread")
def test_a_thread_that_sleeps_waits_and_one_that_computes_does_not() -> None:
    lost, often = in_child(0.05, sleeps=True)
    assert lost > 0.04 and often == 1
    _, often = in_child(0.05, sleeps=False)
    assert often == 0


def test_without_a_count_each_stretch_has_many_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "_THREAD", None)
    stretch = Stretch()
    time.sleep(0.01)
    lost, often = stretch.end()
    assert lost > 0.005
    assert often > SAMPLE


class Row(NamedTuple):
    requests: int
    lost: float
    waits: int
    found: bool


@pytest.mark.parametrize(
    "row",
    [
        Row(SAMPLE, SAMPLE * WORTH, SAMPLE, True),
        Row(SAMPLE, SAMPLE * WORTH, SAMPLE // 4, True),
        Row(SAMPLE, 1.0, SAMPLE // 4 - 1, False),  # few have waited, if for long
        Row(SAMPLE, SAMPLE * WORTH * 0.9, SAMPLE, False),  # not long enough to be worth it
        Row(SAMPLE - 1, 1.0, SAMPLE, False),  # too few to tell
    ],
)
def test_samples(row: Row) -> None:
    assert Samples().add(0, row.requests, row.lost, row.waits) is row.found


def test_samples_add_up() -> None:
    samples = Samples()
    assert not any(samples.add(n, 1, WORTH, 1) for n in range(SAMPLE - 1))
    assert samples.add(SAMPLE, 1, WORTH, 1)
    # And begin anew.
    assert not samples.add(SAMPLE + 1, 1, WORTH, 1)


def test_samples_become_rarer_until_requests_wait() -> None:
    samples, count, distances = Samples(), 0, []
    for _ in range(10):
        samples.add(count, SAMPLE, 0, 0)
        start = count
        while not samples.is_due(count):
            count += 1
        distances.append(count - start)
    assert distances[:3] == [SAMPLE, 2 * SAMPLE, 4 * SAMPLE]
    assert distances[-1] == distances[-2] < 1000
    assert samples.add(count, SAMPLE, 1.0, SAMPLE)
    assert samples.is_due(count)


def test_a_stretch_on_a_busy_machine_does_not_count() -> None:
    samples = Samples()
    samples.spoil()
    assert not samples.add(0, SAMPLE, 1.0, SAMPLE)
    assert samples.is_due(0)
    assert samples.add(0, SAMPLE, 1.0, SAMPLE)


APP = """
import threading, time

lock, running = threading.Lock(), 0

def app(environ, start_response):
    global running
    with lock:
        running += 1
        seen = running
    time.sleep(0.0003)
    with lock:
        running -= 1
    body = str(seen).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_views_that_wait_a_little_are_served_in_parallel() -> None:
    with Server(APP, conf("gthread", threads=8)) as server, contextlib.ExitStack() as stack:
        clients = [Client(stack.enter_context(server.connect())) for _ in range(16)]
        deadline, at_once = time.monotonic() + 20, 0.0
        while at_once < 4:
            assert time.monotonic() < deadline, f"{at_once} at once"
            seen: list[int] = []
            for _ in range(8):
                for client in clients:
                    client.send(get("/"))
                seen += [int(client.answer().body) for client in clients]
            at_once = statistics.mean(seen)
