# SPDX-License-Identifier: MIT
"""A companion with a lease runs on one server at a time, whatever happens to the servers.

Many more faults by ``-m matrix``; for longer: ``LEASE_FAULTS=1000 LEASE_SEED=7 pytest -m matrix -k faults``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from harness import Server, is_alive, wait_until
from leasefleet import Faults, Fleet

from gunicorn.unix import boottime

COUNT = int(os.environ.get("LEASE_FAULTS", "300"))
SEED = int(os.environ.get("LEASE_SEED", "1"))


@pytest.fixture
def fleet() -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(count: int, **options: Any) -> Fleet:
        made.append(Fleet(count, **options))
        for server in made[-1].servers:
            server.start()
        return made[-1]

    yield make
    for each in made:
        print(each.describe())
        each.end()


def standby_behind(server: Server) -> re.Pattern[str]:
    return re.compile(rf"standby: held by \S+ \(pid {server.pid}\) for another [0-4] s")


def test_two_servers(fleet: Callable[..., Fleet]) -> None:
    both = fleet(2, companion_lease_ttl=4.5, companion_lease_margin=0.9)
    one, other = both.servers
    first = both.wait_life()
    if both.holder() is other:
        one, other = other, one
    wait_until(
        lambda: standby_behind(one).fullmatch(other.companion("one")["description"]), 10, "it stands by"
    )
    lease = other.companion("one")["lease"]
    assert lease["holder"] and not lease["held"] and lease["unheld_for"] is None

    # A keeper that is killed is no loss, nor is a reload that changes nothing.
    keeper = both.signal(one, "lease keeper", signal.SIGKILL)
    wait_until(lambda: both.process(one, "lease keeper") not in (None, keeper), 10, "another keeper")
    guard = both.signal(one, "lease guard", signal.SIGKILL)
    wait_until(lambda: both.process(one, "lease guard") not in (None, guard), 10, "another guard")
    one.signal(signal.SIGHUP)
    one.wait_log("Companions reread: 1 unchanged")
    assert one.companion("one")["pid"] == first.pid

    # A restart brings another token.
    one.ask("restart", "one")
    second = both.wait_life(first)
    one, other = (one, other) if both.holder() is one else (other, one)

    # Nobody renews it, and nobody but the guard is there to end it.
    stopped = [both.signal(one, kind, signal.SIGSTOP) for kind in ("manager", "lease keeper")]
    third = both.wait_life(second)
    assert not is_alive(second.pid)
    assert both.holder() is other
    for pid in stopped:
        os.kill(pid or 0, signal.SIGCONT)
    gone = one.wait_companion("one", "STARTING")
    assert gone["last_exit_cause"] == "lease"

    # It is given away on purpose; then a graceful stop gives it up.
    refused = one.ask("lease", release="one")["error"]
    assert re.match(r"lease shop is not held by this server: held by .* \(pid \d+\) for another", refused), (
        refused
    )
    assert other.ask("lease")["leases"][0]["held"]
    other.ask("lease", release="one")
    fourth = both.wait_life(third)
    assert both.holder() is one
    given = other.companion("one")
    assert given["state"] == "STARTING" and given["description"].startswith("standby: given away by command")
    one, other, third = other, one, fourth
    wait_until(
        lambda: standby_behind(other).fullmatch(one.companion("one")["description"]), 10, "it stands by"
    )
    other.stop()
    fourth = both.wait_life(third)
    assert one.companion("one")["lease"]["token"] == fourth.token
    both.check()
    assert [life.token for life in both.lives()] == sorted({life.token for life in both.lives()})
    ends = [entry["reason"] for entry in one.ask("history")["history"] if entry["event"] == "lease"]
    assert any("took lease shop" in text for text in ends)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.matrix
def test_without_margin_and_guard_there_would_be_two(fleet: Callable[..., Fleet], safe: bool) -> None:
    """Shows that the checks above find what they look for."""
    both = fleet(2, guard=safe, companion_lease_ttl=4, companion_lease_margin=0.6 if safe else 0)
    first = both.wait_life()
    holder = both.holder()
    assert holder is not None
    for kind in ("manager", "lease keeper"):
        both.signal(holder, kind, signal.SIGSTOP)
    both.wait_life(first)
    wait_until(lambda: boottime.now() > both.lives()[-1].begin + 0.5, 5, "a moment")
    if safe:
        both.check()
    else:
        with pytest.raises(AssertionError, match="began before"):
            both.check()


@pytest.mark.matrix
@pytest.mark.timeout(120 + 8 * COUNT)
def test_faults_of_files() -> None:
    run_faults(lambda faults: [hold_the_lock(faults)])


def hold_the_lock(faults: Faults) -> Callable[[], Callable[[], object]]:
    """The file of the lease is locked: the file system hangs."""

    def lock() -> Callable[[], object]:
        fd = os.open(faults.urls[0].removeprefix("file://") + "/shop.lease", os.O_RDWR)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lambda: os.close(fd)

    return lock


def run_faults(
    store_faults: Callable[[Faults], Any],
    url: str | Sequence[str] = "",
    *,
    within: float = 2.0,
    **settings: Any,
) -> None:
    faults = Faults(3, url, SEED, **settings)
    faults.store_faults = store_faults(faults)
    try:
        seconds = faults.run(COUNT)
        print(f"{len(faults.lives())} lives; one ran {seconds:.2f} s after the last fault")
        assert len(faults.lives()) > COUNT // 12
        assert seconds < faults.ttl + within
    except BaseException:
        print(faults.describe())
        raise
    finally:
        faults.end()
