# SPDX-License-Identifier: MIT
"""Clients that ask a server all the time, and count what is lost."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from harness import Server, children_of, wait_until
from workertools import Client, connect

if TYPE_CHECKING:
    from typing_extensions import Self


class Clients:
    """Threads that each run one of *works* until the end."""

    def __init__(self, server: Server, works: Iterable[Callable[[], object]]) -> None:
        self.server = server
        self.problems: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=work) for work in works]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)


class Load(Clients):
    """Clients that ask all the time: on new connections, and on one kept until the server closes it."""

    def __init__(self, server: Server, fresh: int = 2, kept: int = 2) -> None:
        self.answers = 0
        self.pids: set[bytes] = set()
        turns = [self._fresh] * fresh + [self._kept] * kept
        super().__init__(server, [partial(self._run, turn) for turn in turns])

    def _run(self, turn: Callable[[], None]) -> None:
        while not self._done.is_set():
            try:
                turn()
            except (OSError, EOFError) as error:
                self.problems.append(f"new connection: {error!r}")
            time.sleep(0.003)

    def _ask(self, client: Client, close: bool, kept: bool = False) -> bool:
        try:
            answer = client.ask(close=close)
        except (OSError, EOFError) as error:
            self.problems.append(f"{'kept' if kept else 'new'} connection: {error!r}")
            return False
        self.answers += 1
        self.pids.add(answer.body)
        if answer.status != 200 or not answer.body:
            self.problems.append(f"{answer.status} {answer.body!r}")
        return not answer.closes

    def _fresh(self) -> None:
        with connect(self.server) as client:
            self._ask(client, close=True)

    def _kept(self) -> None:
        with connect(self.server) as client:
            kept = False
            while not self._done.is_set() and self._ask(client, close=False, kept=kept):
                kept = True
                time.sleep(random.random() * 0.01)


@contextlib.contextmanager
def under_load(server: Server) -> Iterator[Load]:
    with Load(server) as load:
        wait_until(lambda: load.answers > 20)
        yield load
        before = load.answers
        wait_until(lambda: load.answers > before + 20)
    assert load.problems == []


def pids_below(master: int) -> set[bytes]:
    return {str(pid).encode() for pid in children_of(master)}


def upgrade(server: Server, load: Load) -> None:
    """Start a new master on the same sockets, end the old one, and go on with the new one."""
    server.signal(signal.SIGUSR2)
    new = wait_until(server.new_master, 20, "a new master")
    assert new is not None
    wait_until(lambda: load.pids & pids_below(new), 20, "it serves")
    assert server.stop() == 0
    server.adopt(new)
    wait_until(lambda: server.log("g.pid").strip() == str(new), 10, "promoted")
