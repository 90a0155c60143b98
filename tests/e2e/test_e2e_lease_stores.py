# SPDX-License-Identifier: MIT
"""Leases on real servers, through faults of these, of the network to them, and of the hosts."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultproxy import DOWN, UP, FaultProxy
from leasefleet import FAKETIME, Faults, Fleet
from storeservers import SERVERS, ForgetfulRedis, StoreServer
from test_e2e_leases import COUNT, run_faults

from gunicorn.unix import boottime

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300 + 8 * COUNT)]


@pytest.fixture
def store(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[StoreServer]:
    with request.param(short_dir) as server:
        yield server


every_store = pytest.mark.parametrize("store", SERVERS.values(), indirect=True, ids=list(SERVERS))


def faults_of(store: StoreServer, proxies: list[FaultProxy]) -> Callable[[Faults], object]:
    def of(faults: Faults) -> list[Callable[[], Callable[[], object]]]:
        def paused() -> Callable[[], object]:
            store.pause()
            return store.resume

        def stopped(sig: int) -> Callable[[], object]:
            if store.processes:
                store.stop(sig)
            return lambda: store.processes or store.start()

        def disturbed(disturb: Callable[[FaultProxy], object]) -> Callable[[], object]:
            server = faults.some_server()
            proxy = proxies[faults.servers.index(server)]
            disturb(proxy)
            return proxy.heal

        def terminated() -> Callable[[], object]:
            return stopped(signal.SIGTERM)

        def killed() -> Callable[[], object]:
            return stopped(signal.SIGKILL)

        def dropped() -> Callable[[], object]:
            return disturbed(lambda proxy: proxy.drop(faults.draw.choice([UP, DOWN])))

        def delayed() -> Callable[[], object]:
            seconds = faults.draw.uniform(0.1, 1.5) * faults.ttl
            return disturbed(lambda proxy: proxy.delay(seconds, faults.draw.choice([UP, DOWN])))

        def refused() -> Callable[[], object]:
            return disturbed(FaultProxy.refuse)

        return [paused, terminated, killed, dropped, delayed, refused]

    return of


@pytest.mark.parametrize(
    "store", [*SERVERS.values(), ForgetfulRedis], indirect=True, ids=[*SERVERS, "redis without a disk"]
)
def test_faults_of(store: StoreServer) -> None:
    proxies = [FaultProxy(store.port) for _ in range(3)]
    # libfaketime knows one of these clocks.
    same = abs(time.monotonic() - boottime.now()) < 0.1
    try:
        run_faults(
            faults_of(store, proxies),
            [store.url(proxy.port) for proxy in proxies],
            # It gives nothing away before it has been up for a ttl, by whole seconds.
            within=4 if isinstance(store, ForgetfulRedis) else 2,
            steps=same and os.path.exists(FAKETIME),
        )
    finally:
        for proxy in proxies:
            proxy.close()


@every_store
def test_a_server_that_stops_hands_over(store: StoreServer) -> None:
    fleet = Fleet(3, store.url())
    took = []
    try:
        for server in fleet.servers:
            server.start()
        for _ in range(10):
            before = fleet.wait_life(timeout=30)
            holder = fleet.holder()
            assert holder is not None
            holder.stop()
            after = fleet.wait_life(before)
            took.append(after.begin - fleet.lives()[-2].end)
            holder.exit_code = None
            holder.start()
        fleet.check()
        print("seconds from the last step to the first:", " ".join(f"{each:.2f}" for each in sorted(took)))
        assert statistics.median(took) < 1
    except BaseException:
        print(fleet.describe())
        raise
    finally:
        fleet.end()
