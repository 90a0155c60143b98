# SPDX-License-Identifier: MIT
"""The base class: a worker of one's own, in a process of its own, as a master would run it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import kill_quietly, wait_until

from gunicorn.config import Config
from gunicorn.errors import AppImportError
from gunicorn.glogging import Logger
from gunicorn.sock import TCPSocket
from gunicorn.workers.base import Stopped, Worker


class App:
    """What a master hands to its workers."""

    def __init__(self, load: Callable[[], Any] = lambda: "the application") -> None:
        self.load = load

    def wsgi(self) -> Any:
        return self.load()


class Noting(Worker):
    """A worker as others write them: it looks at ``alive`` and calls ``notify()``."""

    notes: Path

    def note(self, text: str) -> None:
        with open(self.notes, "a") as file:
            file.write(text + "\n")

    def run(self) -> None:
        self.note("runs")
        while self.alive:
            self.notify()
            if select.select([self.PIPE[0]], [], [], 0.5)[0]:
                self.drain_pipe()
            if not self.is_parent_alive():
                self.note("orphan")
                return
        self.note("ends")


def config(**settings: Any) -> Config:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


class Child:
    """A worker in its process."""

    def __init__(self, directory: Path, worker: Worker) -> None:
        self.notes = directory / "notes"
        self.worker = worker
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                worker.pid = os.getpid()
                worker.init_process()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 98
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def text(self) -> str:
        return self.notes.read_text() if self.notes.exists() else ""

    def wait_note(self, text: str) -> None:
        wait_until(lambda: text in self.text(), 10, lambda: f"{text} in {self.text()!r}")

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def exit_code(self, timeout: float = 10) -> int:
        def ended() -> bool:
            if self.status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.status = status if pid else None
            return self.status is not None

        wait_until(ended, timeout, "the worker's end")
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(
        kind: type[Noting] = Noting,
        app: App | None = None,
        sockets: Any = (),
        ppid: int | None = None,
        **settings: Any,
    ) -> Child:
        cfg = config(errorlog=str(tmp_path / "error.log"), **settings)
        log = Logger(cfg)
        parent = os.getpid() if ppid is None else ppid
        worker = kind(1, parent, list(sockets), app or App(), 15.0, cfg, log)
        worker.notes = tmp_path / "notes"
        child = Child(tmp_path, worker)
        children.append(child)
        return child

    yield start
    for child in children:
        if child.status is None:
            kill_quietly(child.pid)
            os.waitpid(child.pid, 0)
        child.worker.tmp.close()
    Logger(Config())


# -- the start -----------------------------------------------------------------------------------


def test_what_is_ready_when_it_runs(spawn: Callable[..., Child]) -> None:
    class Looking(Noting):
        def run(self) -> None:
            self.note(f"wsgi {self.wsgi}")
            self.note(f"env {os.environ['SHOP']}")
            self.note(f"booted {self.booted}")
            self.note(f"inheritable {[os.get_inheritable(fd) for fd in self.PIPE]}")
            self.note(f"listener {os.get_inheritable(self.sockets[0].fileno())}")

    listener = TCPSocket(("127.0.0.1", 0), config(), None)
    try:
        hook: list[int] = []
        child = spawn(
            Looking,
            sockets=[listener],
            raw_env=["SHOP=open=all day"],
            post_worker_init=lambda worker: worker.note(f"hook {worker.booted}{hook}"),
        )
        assert child.exit_code() == 0
    finally:
        listener.close()
    assert child.text().splitlines() == [
        "hook False[]",
        "wsgi the application",
        "env open=all day",
        "booted False",
        "inheritable [False, False]",
        "listener False",
    ]


def test_each_process_has_random_numbers_of_its_own(spawn: Callable[..., Child]) -> None:
    class Drawing(Noting):
        def run(self) -> None:
            import random

            self.note(str(random.random()))

    first, second = spawn(Drawing), spawn(Drawing)
    assert first.exit_code() == second.exit_code() == 0
    assert len(set(first.text().split())) == 2


def test_the_first_beat_in_the_process_says_that_it_has_booted(spawn: Callable[..., Child]) -> None:
    child = spawn()
    first = child.worker.tmp.last_update()
    wait_until(lambda: child.worker.tmp.last_update() > first)
    child.wait_note("runs")


def test_an_application_that_does_not_load_ends_the_worker(spawn: Callable[..., Child]) -> None:
    def load() -> Any:
        raise ImportError("no such thing")

    assert spawn(app=App(load)).exit_code() == 99


def test_an_application_that_asks_to_exit_does_not_load(spawn: Callable[..., Child]) -> None:
    class Telling(Noting):
        def init_process(self) -> None:
            try:
                super().init_process()
            except AppImportError as error:
                self.note(str(error))

    child = spawn(Telling, app=App(lambda: sys.exit("no database")))
    assert child.exit_code() == 0
    assert child.text().startswith("it asked to exit, with 'no database', in ")


def test_one_that_fails_before_its_loop_has_not_booted(spawn: Callable[..., Child]) -> None:
    class Failing(Noting):
        def run(self) -> None:
            raise RuntimeError(f"no context for TLS, booted {self.booted}")

    child = spawn(Failing)
    first = child.worker.tmp.last_update()
    assert child.exit_code() == 99
    assert child.worker.tmp.last_update() == first


def test_with_reload_it_is_shown_instead(spawn: Callable[..., Child]) -> None:
    def load() -> Any:
        raise ImportError("no such thing")

    class Showing(Noting):
        def run(self) -> None:
            seen: list[Any] = []
            body = b"".join(self.wsgi({}, lambda *args: seen.extend(args)))
            self.note(f"{seen[0]}: {body.decode().splitlines()[-1]}")

    child = spawn(Showing, app=App(load), reload=True)
    assert child.exit_code() == 0
    assert child.text() == "500 Internal Server Error: ImportError: no such thing\n"


@pytest.mark.parametrize(("wanted", "jitter"), [(0, 0), (0, 5), (10, 0), (10, 5)])
def test_max_requests(wanted: int, jitter: int) -> None:
    cfg = config(max_requests=wanted, max_requests_jitter=jitter)
    found = set()
    for _ in range(60):
        worker = Worker(1, os.getpid(), [], App(), 15.0, cfg, Logger(cfg))
        found.add(worker.max_requests)
        worker.tmp.close()
    assert found == ({sys.maxsize} if not wanted else set(range(wanted, wanted + jitter + 1)))


# -- signals -------------------------------------------------------------------------------------


def test_term_ends_the_loop(spawn: Callable[..., Child]) -> None:
    child = spawn()
    child.wait_note("runs")
    started = time.monotonic()
    child.signal(signal.SIGTERM)
    assert child.exit_code() == 0 and child.text() == "runs\nends\n"
    assert time.monotonic() - started < 0.45, "woken, not found at the next turn"


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_end_at_once(spawn: Callable[..., Child], sig: int) -> None:
    child = spawn(worker_int=lambda worker: worker.note(f"hook {worker.alive}"))
    child.wait_note("runs")
    child.signal(sig)
    assert child.exit_code() == 0 and child.text() == "runs\nhook False\n"


def test_abrt_calls_its_hook_where_the_worker_hangs(spawn: Callable[..., Child]) -> None:
    class Hanging(Noting):
        def run(self) -> None:
            self.note("runs")
            self.hang()

        def hang(self) -> None:
            while True:
                time.sleep(1000)

    def hook(worker: Any) -> None:
        worker.note("".join(traceback.format_stack()))

    child = spawn(Hanging, worker_abort=hook)
    child.wait_note("runs")
    child.signal(signal.SIGABRT)
    assert child.exit_code() == 1 and "self.hang()" in child.text()


@pytest.mark.parametrize("sig", [signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH])
def test_signals_of_the_master_do_nothing(spawn: Callable[..., Child], sig: int) -> None:
    child = spawn()
    child.wait_note("runs")
    child.signal(sig)
    child.signal(signal.SIGTERM)
    assert child.exit_code() == 0 and child.text() == "runs\nends\n"


def test_usr1_opens_the_logs_again(spawn: Callable[..., Child], tmp_path: Path) -> None:
    child = spawn()
    child.wait_note("runs")
    (tmp_path / "error.log").rename(tmp_path / "old.log")
    child.signal(signal.SIGUSR1)
    wait_until((tmp_path / "error.log").exists)
    child.signal(signal.SIGTERM)
    assert child.exit_code() == 0


def test_a_program_of_the_application_ignores_nothing(spawn: Callable[..., Child]) -> None:
    class Starting(Noting):
        def run(self) -> None:
            import subprocess

            done = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, check=True)
            self.note(done.stdout.decode())

    child = spawn(Starting)
    assert child.exit_code() == 0
    ignored = int(child.text().split()[1], 16)
    for sig in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    ):
        assert not ignored & (1 << (sig - 1))


def test_term_while_the_application_loads_ends_at_once(spawn: Callable[..., Child], tmp_path: Path) -> None:
    def load() -> Any:
        (tmp_path / "notes").write_text("loads")
        while True:
            time.sleep(1000)

    child = spawn(app=App(load))
    child.wait_note("loads")
    child.signal(signal.SIGTERM)
    assert child.exit_code(3) == 0


# -- the parent ----------------------------------------------------------------------------------


def test_it_notices_that_its_master_has_gone(spawn: Callable[..., Child]) -> None:
    assert spawn(ppid=os.getpid() + 1).exit_code() == 0


@pytest.mark.parametrize("ppid", [0, 1])
def test_process_0_or_1_may_be_the_master(monkeypatch: pytest.MonkeyPatch, ppid: int) -> None:
    cfg = config()
    worker = Worker(1, ppid, [], App(), 15.0, cfg, Logger(cfg))
    try:
        monkeypatch.setattr(os, "getppid", lambda: ppid)
        assert worker.is_parent_alive()
    finally:
        worker.tmp.close()


def test_stopped_is_a_system_exit_with_its_code() -> None:
    assert issubclass(Stopped, SystemExit) and Stopped(1).code == 1


def test_the_class_can_be_subclassed_with_its_attributes() -> None:
    cfg = config()
    log = Logger(cfg)
    worker = Worker(7, 4711, ["socket"], "app", 2.5, cfg, log)  # type: ignore[list-item]
    try:
        found = {name: getattr(worker, name) for name in ("age", "ppid", "sockets", "app", "timeout", "nr")}
        assert found == {"age": 7, "ppid": 4711, "sockets": ["socket"], "app": "app", "timeout": 2.5, "nr": 0}
        assert (worker.booted, worker.aborted, worker.alive, worker.reloader) == (False, False, True, None)
        assert worker.pid == "[booting]" and str(worker) == "<Worker [booting]>"
        with pytest.raises(NotImplementedError):
            worker.run()
    finally:
        worker.tmp.close()
