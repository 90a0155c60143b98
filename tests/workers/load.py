# SPDX-License-Identifier: MIT
"""Clients that ask a server all the time, and count what is lost."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator

from harness import Server, children_of, wait_until
from workertools import Client, connect


class Load:
    """Clients that ask all the time: on new connections, and on one kept until the server closes it."""

    def __init__(self, server: Server, fresh: int = 2, kept: int = 2) -> None:
        self.server = server
        self.problems: list[str] = []
        self.answers = 0
        self.pids: set[bytes] = set()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(self._fresh,)) for _ in range(fresh)]
        self._threads += [threading.Thread(target=self._run, args=(self._kept,)) for _ in range(kept)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, turn: object) -> None:
        assert callable(turn)
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
