# SPDX-License-Identifier: MIT
"""Leases through faults of the store and of the network to it, without a server around them."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from faultproxy import DOWN, UP, FaultProxy
from harness import wait_until
from storeservers import SERVERS, ForgetfulRedis, StoreServer

from gunicorn.companion.leasing import store
from gunicorn.companion.leasing.store import StoreError

pytestmark = pytest.mark.matrix

A, B = "web-1 (pid 1) aa", "web-2 (pid 2) bb"
TTL = 60.0


@pytest.fixture
def server(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[StoreServer]:
    with request.param(short_dir) as server:
        yield server


@pytest.fixture
def proxy(server: StoreServer) -> Iterator[FaultProxy]:
    proxy = FaultProxy(server.port)
    yield proxy
    proxy.close()


every_store = pytest.mark.parametrize("server", SERVERS.values(), indirect=True, ids=list(SERVERS))


@every_store
def test_a_release_that_the_network_delays_frees_nothing(server: StoreServer, proxy: FaultProxy) -> None:
    one, other = store.connect(server.url(proxy.port), 0.5), store.connect(server.url(), 10)
    first = one.acquire("a", A, TTL)
    proxy.delay(1.5, UP)
    with pytest.raises(StoreError, match="no answer within"):
        one.release("a", A, first.token, None)
    proxy.heal()
    second = one.acquire("a", A, TTL)
    assert second.mine
    wait_until(lambda: proxy.late, 10, "it arrives")
    assert one.renew("a", A, second.token, TTL, None)
    assert other.acquire("a", B, TTL).owner == A
    one.close()
    other.close()


@every_store
def test_an_answer_that_is_lost_does_not_lock_anybody_out(server: StoreServer, proxy: FaultProxy) -> None:
    one = store.connect(server.url(proxy.port), 0.5)
    # Another lease, for the connection to be there.
    one.acquire("b", A, TTL)
    proxy.drop(DOWN)
    with pytest.raises(StoreError):
        one.acquire("a", A, TTL)
    proxy.heal()
    answer = one.acquire("a", A, TTL)
    assert answer.mine
    assert one.renew("a", A, answer.token, TTL, None)
    one.close()


class Interval(NamedTuple):
    start: float
    end: float
    token: int
    owner: str


class Contender(threading.Thread):
    """Takes the lease, keeps it for a while and gives it up, again and again; notes when it held it."""

    def __init__(self, name: str, url: str, ttl: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.owner, self.url, self.ttl = name, url, ttl
        self.random = random.Random(seed)
        self.held: list[Interval] = []
        self.ended = threading.Event()

    def run(self) -> None:
        client = store.connect(self.url, 0.4)
        while not self.ended.is_set():
            asked = time.monotonic()
            try:
                answer = client.acquire("a", self.owner, self.ttl)
            except StoreError:
                self.ended.wait(0.05)
                continue
            if answer.mine and time.monotonic() < asked + self.ttl:
                self.hold(client, answer.token, time.monotonic(), asked + self.ttl)
            self.ended.wait(self.random.uniform(0, 0.1))
        client.close()

    def hold(self, client: store.Store, token: int, start: float, end: float) -> None:
        """As a server does: it trusts nothing but the end that it has computed before it asked."""
        give_up = start + self.random.choice([0, self.ttl, 4 * self.ttl])
        while (now := time.monotonic()) < min(end, give_up) and not self.ended.is_set():
            self.held.append(Interval(start, now, token, self.owner))
            self.ended.wait(min(self.ttl / 3, max(0.0, end - now)))
            asked = time.monotonic()
            if asked >= end:
                break
            try:
                if not client.renew("a", self.owner, token, self.ttl, None):
                    break
                # It held it until now if the answer came in time.
                end = asked + self.ttl
                if time.monotonic() < end:
                    self.held.append(Interval(start, asked, token, self.owner))
            except StoreError:
                continue
        try:
            client.release("a", self.owner, token, None)
        except StoreError:
            pass


@every_store
def test_nobody_holds_it_beside_another(server: StoreServer, request: pytest.FixtureRequest) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    proxies = [FaultProxy(server.port) for _ in range(3)]
    # That of etcd and Kubernetes is in whole seconds.
    contenders = [
        Contender(f"web-{number}", server.url(proxy.port), 1.0, seed + number)
        for number, proxy in enumerate(proxies)
    ]
    for contender in contenders:
        contender.start()
    for _ in range(40):
        proxy = chance.choice(proxies)
        fault = chance.choice(["drop", "delay", "delay", "refuse", "pause", "stop", "kill"])
        if fault == "drop":
            proxy.drop(chance.choice([UP, DOWN]))
        elif fault == "delay":
            proxy.delay(chance.uniform(0.1, 2.0), chance.choice([UP, DOWN]))
        elif fault == "refuse":
            proxy.refuse()
        elif fault == "pause":
            server.pause()
        else:
            server.stop(signal.SIGTERM if fault == "stop" else signal.SIGKILL)
        time.sleep(chance.uniform(0.05, 1.0))
        if not server.processes:
            server.start()
        server.resume()
        if chance.random() < 0.7:
            proxy.heal()
        time.sleep(chance.uniform(0.0, 0.3))
    for proxy in proxies:
        proxy.heal()
    healed = time.monotonic()

    def last() -> float:
        return max((each.end for contender in contenders for each in contender.held), default=0.0)

    wait_until(lambda: last() > healed, 10, "somebody holds it after the last fault")
    for contender in contenders:
        contender.ended.set()
    for contender in contenders:
        contender.join()
    for proxy in proxies:
        proxy.close()
    whole: dict[tuple[int, str], Interval] = {}
    for each in (each for contender in contenders for each in contender.held):
        key = each.token, each.owner
        whole[key] = each._replace(end=max(each.end, whole[key].end if key in whole else 0))
    found = sorted(whole.values())
    assert len(found) > 10
    for before, after in pairwise(found):
        assert before.end <= after.start, (before, after)
        assert before.token < after.token, (before, after)


@pytest.fixture
def forgetful(short_dir: Path) -> Iterator[StoreServer]:
    with ForgetfulRedis(short_dir) as server:
        yield server


def test_a_redis_that_forgets_gives_nothing_away(forgetful: StoreServer) -> None:
    url = forgetful.url()
    one, other = store.connect(url, 10), store.connect(url, 10)
    began = time.monotonic()
    ttl = 6.0
    first = wait_until(lambda: (answer := one.acquire("a", A, ttl)).mine and answer, 20, "up for a ttl")
    assert time.monotonic() > began + ttl - 2
    one.acquire("b", A, ttl)
    forgetful.stop()
    forgetful.start()
    began = time.monotonic()
    refused = other.acquire("a", B, ttl)
    assert not refused.mine
    assert refused.owner.startswith("unknown (the store has just started) ")
    assert 0 < refused.expires_in <= ttl + 1
    # Who has it brings it back.
    assert one.renew("a", A, first.token, ttl, None)
    assert other.acquire("a", B, ttl).owner == A
    # And the server knows again that it is free when it is released.
    one.release("a", A, first.token, None)
    second = other.acquire("a", B, ttl)
    assert second.mine
    assert second.token > first.token
    # The other one is free when its holder has had time to renew.
    wait_until(lambda: other.acquire("b", B, ttl).mine, 20, "it is up for a ttl")
    assert time.monotonic() > began + ttl - 1
    one.close()
    other.close()
