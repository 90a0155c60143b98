# SPDX-License-Identifier: MIT
"""A master and its workers, from the first hook to the last: real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from harness import Server, children_of, conf, descriptors, is_alive, status_field, wait_until
from tinyserver import HOOKS, TinyServer


def test_hooks_run_in_their_process_and_order() -> None:
    with TinyServer(HOOKS, workers=1) as server:
        [worker] = server.running(1)
        server.stop()
        events = [(words[0], int(words[1])) for words in server.events() if words[0] not in ("run", "term")]
    master = server.pid
    assert events == [
        ("nworkers_changed", master),
        ("on_starting", master),
        ("when_ready", master),
        ("pre_fork", master),
        ("post_fork", worker),
        ("post_worker_init", worker),
        ("worker_exit", worker),
        ("child_exit", master),
        ("on_exit", master),
    ]


def test_a_killed_worker_is_replaced_at_once() -> None:
    with TinyServer(workers=2) as server:
        first = server.running(2)
        os.kill(first[0], signal.SIGKILL)
        killed_at = time.monotonic()
        server.running(2, without=[first[0]])
        assert time.monotonic() - killed_at < 2
        server.wait_log("SIGKILL")


def test_more_and_fewer_workers() -> None:
    with TinyServer(HOOKS, workers=1) as server:
        [oldest] = server.running(1)
        server.signal(signal.SIGTTIN)
        server.running(2)
        server.signal(signal.SIGTTIN)
        server.running(3)
        server.signal(signal.SIGTTOU)
        server.running(2, without=[oldest])
        server.signal(signal.SIGTTOU)
        server.running(1)
        # The last one stays.
        server.signal(signal.SIGTTOU)
        wait_until(lambda: server.log().count("Received SIGTTOU") == 3, 5)
        server.running(1)
        changes = [words[1:] for words in server.events("nworkers_changed")]
        assert changes == [["1", "None"], ["2", "1"], ["3", "2"], ["2", "3"], ["1", "2"]]


@pytest.mark.parametrize("mode, code", [("boot", 3), ("exit:3", 3), ("exit:4", 4)])
def test_a_worker_that_cannot_boot_halts_the_server(mode: str, code: int) -> None:
    with TinyServer(HOOKS, mode=mode, workers=2, ready=None, pidfile="x.pid", expected_code=code) as server:
        assert server.wait_exit(10) == code
        assert len(server.events("on_exit")) == 1
        assert "The server stops" in server.log()


def test_an_application_that_is_not_there_halts_the_server() -> None:
    with TinyServer(target="app:nothing", ready=None, expected_code=4) as server:
        assert server.wait_exit(10) == 4
        assert "nothing" in server.log()


@pytest.mark.parametrize("code", [3, 4])
def test_the_same_exit_code_after_serving_halts_nothing(code: int) -> None:
    with TinyServer(mode=f"late:{code}", workers=1, ready="listen") as server:
        served = {int(server.get().text) for _ in range(3)}
        assert len(served) == 3


def test_workers_that_die_at_once_are_not_started_in_a_tight_loop() -> None:
    with TinyServer(HOOKS, mode="exit:1", workers=2, ready=None) as server:
        server.wait_events("pre_fork", 4)
        before = len(server.events("pre_fork"))
        time.sleep(2)
        # A loop without a pause would start hundreds.
        assert len(server.events("pre_fork")) - before < 16
        assert server.stop() == 0


def test_a_frozen_worker_is_aborted_and_replaced() -> None:
    with TinyServer(mode="frozen", workers=1, timeout=1, graceful_timeout=1) as server:
        [[pid]] = server.wait_events("abort", timeout=10)
        server.wait_events("run", 2)
        wait_until(lambda: not is_alive(int(pid)), 5, "the frozen worker gone")
        assert f"{pid}" in server.log()


def test_a_frozen_worker_that_ignores_the_abort_is_killed() -> None:
    with TinyServer(mode="undead", workers=1, timeout=1, graceful_timeout=1) as server:
        [[pid]] = server.wait_events("abort", timeout=10)
        wait_until(lambda: not is_alive(int(pid)), 4, "the undead worker gone")
        assert server.events("abort").count([pid]) == 1


def test_a_stop_is_graceful_and_then_is_not() -> None:
    with TinyServer(mode="deaf", workers=2, graceful_timeout=2) as server:
        server.running(2)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_events("term", 2)
        for _ in range(3):
            server.signal(signal.SIGTERM)
            time.sleep(0.1)
        assert server.wait_exit(10) == 0
        assert 1.9 < time.monotonic() - started < 4
        assert len(server.events("term")) == 2


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGQUIT])
def test_a_second_interrupt_ends_everything_now(first: int, second: int) -> None:
    with TinyServer(mode="deaf", workers=2, graceful_timeout=30) as server:
        server.running(2)
        started = time.monotonic()
        server.signal(first)
        server.wait_events("term" if first == signal.SIGTERM else "quit", 2)
        server.signal(second)
        assert server.wait_exit(10) == 0
        assert time.monotonic() - started < 5


def test_logs_reopen_everywhere() -> None:
    with TinyServer(workers=2, errorlog="error.log") as server:
        pids = server.running(2)
        os.rename(server.dir / "error.log", server.dir / "error.log.1")
        server.signal(signal.SIGUSR1)
        wait_until(lambda: (server.dir / "error.log").exists(), 5, "the log made again")
        told = {int(pid) for [pid] in server.wait_events("usr1", 2)}
        assert told == set(pids)


def test_a_signal_in_the_first_moment_of_a_worker() -> None:
    """What is sent between the fork and the worker's own handlers reaches the worker, and only it."""
    hook = """
    import os, signal, time
    def post_fork(server, worker):
        # Of the master's, nothing is left: no handler, no mask, no pipe.
        handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]
        note("handlers", *[h.name for h in handlers])
        note("mask", len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        note("pipe", *server.PIPE)
        note("wakeup", signal.set_wakeup_fd(-1))
        note("forked", os.getpid())
        time.sleep(0.5)
    """
    with TinyServer(hook, workers=1, ready=None) as server:
        [[pid]] = server.wait_events("forked")
        server.signal(signal.SIGUSR1)
        assert server.wait_events("usr1") == [[pid]]
        assert server.events("handlers") == [["SIG_DFL", "SIG_DFL", "SIG_DFL"]]
        assert server.events("mask") == [["0"]]
        assert server.events("wakeup") == [["-1"]]
        server.running(1)


def test_a_worker_holds_nothing_of_the_master_or_its_siblings() -> None:
    with TinyServer(workers=3) as server:
        pipes = [target for target in descriptors(server.pid).values() if "pipe:" in target]
        for pid in server.running(3):
            held = descriptors(pid)
            inbox = {target for target in held.values() if "pipe:" in target and pipes.count(target) > 1}
            assert not inbox, held


def test_a_resize_of_the_terminal_is_no_stop() -> None:
    with TinyServer(workers=1) as server:
        pids = server.running(1)
        server.signal(signal.SIGWINCH)
        server.signal(signal.SIGTTIN)
        assert set(pids) < set(server.running(2))
        assert not server.events("term")


def test_a_daemon_ends_its_workers_on_winch_and_takes_them_back() -> None:
    with TinyServer(workers=2, daemon=True, pidfile="x.pid", errorlog="error.log") as server:
        server.adopt(server.read_int("x.pid"))
        server.running(2)
        assert status_field(server.pid, "NSsid") != status_field(os.getpid(), "NSsid")
        server.signal(signal.SIGWINCH)
        server.wait_workers(0)
        server.signal(signal.SIGHUP)
        server.running(2)
        assert server.stop() == 0


def test_a_pid_file_that_names_a_living_process() -> None:
    living = {"x.pid": f"{os.getpid()}\n"}
    with TinyServer(pidfile="x.pid", files=living, ready=None, expected_code=1) as server:
        assert server.wait_exit(10) == 1
        assert "x.pid" in server.log() and str(os.getpid()) in server.log()
        assert "Traceback" not in server.log()
        assert server.read_int("x.pid") == os.getpid()
        (server.dir / "x.pid").unlink()


def test_a_stale_pid_file_is_replaced() -> None:
    with TinyServer(pidfile="x.pid", files={"x.pid": "999999999\n"}) as server:
        assert server.read_int("x.pid") == server.pid


def test_an_address_in_use_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        impatient = "import gunicorn.sock\ngunicorn.sock.RETRY_DELAY = 0.05"
        with TinyServer(
            HOOKS, impatient, bind=None, args=["-b", address], ready=None, pidfile="x.pid", expected_code=1
        ) as server:
            assert server.wait_exit(15) == 1
            assert address in server.log()
            assert "Traceback" not in server.log()


def test_port_zero() -> None:
    with TinyServer(bind=None, args=["-b", "127.0.0.1:0"], ready=None) as server:
        log = server.wait_log("Listening on http://127.0.0.1:")
        server.host = "127.0.0.1"
        server.port = int(log.split("Listening on http://127.0.0.1:")[1].split()[0])
        wait_until(lambda: server.get().status == 200, 5)


def test_threads_in_the_master_are_named_once() -> None:
    hook = """
    import threading, time
    def when_ready(server):
        threading.Thread(target=time.sleep, args=(3600,), name="metrics-sender", daemon=True).start()
    """
    # Python may warn of the same.
    with TinyServer(hook, workers=2, env={"PYTHONWARNINGS": None}) as server:
        server.running(2)
        warnings = [line for line in server.log().splitlines() if "metrics-sender" in line]
        assert len(warnings) == 1 and "WARNING" in warnings[0]


@pytest.mark.parametrize(
    "settings, frozen",
    [({"preload_app": True}, True), ({"preload_app": True, "gc_freeze": False}, False), ({}, False)],
)
def test_the_heap_is_frozen_before_the_first_fork(settings: dict[str, bool], frozen: bool) -> None:
    hook = """
    import gc
    def when_ready(server): note("ready", gc.get_freeze_count())
    def post_fork(server, worker): note("frozen", gc.get_freeze_count() > 0)
    """
    with TinyServer(hook, workers=1, **settings) as server:
        assert server.wait_events("frozen") == [[str(frozen)]]
        assert server.events("ready") == [["0"]]


def test_what_an_application_imports_lazily_is_loaded_before_the_first_fork() -> None:
    # Before Python 3.15, each import loads at once.
    app = """
        import sys
        lazy = hasattr(sys, "set_lazy_imports")
        if lazy:
            sys.set_lazy_imports("all")
            import for_type_checkers_alone
        import part
        def app(environ, start_response):
            start_response("200 OK", [])
            return [f"{part.PID} {part.further.PID}".encode()]
    """
    files = {
        "part.py": "import os\nimport further\nPID = os.getpid()",
        "further.py": "import os\nPID = os.getpid()",
    }
    with Server(app, conf(preload_app=True, loglevel="debug"), files=files) as server:
        assert server.get().text == f"{server.pid} {server.pid}"
        lazy = hasattr(sys, "set_lazy_imports")
        assert ("for_type_checkers_alone in app: No module named" in server.log()) == lazy


def test_a_hook_that_raises_costs_only_itself() -> None:
    hook = """
    def child_exit(server, worker): raise ValueError("child_exit is broken")
    def pre_fork(server, worker): raise ValueError("pre_fork is broken")
    def on_reload(server): raise ValueError("on_reload is broken")
    def on_exit(server): raise ValueError("on_exit is broken")
    """
    with TinyServer(hook, workers=1) as server:
        first = server.running(1)
        server.signal(signal.SIGHUP)
        server.running(1, without=first)
        assert server.stop() == 0
        for name in ("child_exit", "pre_fork", "on_reload", "on_exit"):
            assert f"{name} is broken" in server.log()


@pytest.mark.parametrize("name", ["on_starting", "when_ready"])
def test_a_start_hook_that_raises_ends_the_start(name: str) -> None:
    hook = f"def {name}(server): raise ValueError('not today')"
    with TinyServer(hook, ready=None, pidfile="x.pid", expected_code=1) as server:
        assert server.wait_exit(10) == 1
        assert "not today" in server.log()


def test_a_hook_may_ask_to_exit() -> None:
    hook = "def when_ready(server): raise SystemExit(7)"
    with TinyServer(hook, HOOKS.split("def when_ready")[0], ready=None, expected_code=7) as server:
        assert server.wait_exit(10) == 7


@pytest.mark.parametrize(
    "name, signum",
    [
        ("on_starting", signal.SIGTERM),
        ("on_starting", signal.SIGINT),
        ("when_ready", signal.SIGQUIT),
    ],
)
def test_a_stop_does_not_wait_for_a_hook_of_the_start(name: str, signum: signal.Signals) -> None:
    hook = f"""
    import time
    def {name}(server):
        note("waits")
        time.sleep(60)
    """
    with TinyServer(HOOKS, hook, ready=None, pidfile="x.pid") as server:
        server.wait_events("waits")
        assert server.stop(signum, timeout=10) == 0
        assert not server.events("pre_fork") and not (server.dir / "x.pid").exists()
        assert f"Received {signum.name}" in server.log()


def test_a_stop_does_not_wait_for_an_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with TinyServer(bind=None, bind_to=f"127.0.0.1:{taken.getsockname()[1]}", ready=None) as server:
            server.wait_log("trying again in 1 s")
            assert server.stop(timeout=10) == 0
            assert server.log().count("trying again") == 1


def test_a_stop_iteration_of_a_hook_is_an_error() -> None:
    hook = "def when_ready(server): next(iter(()))"
    with TinyServer(hook, ready=None, expected_code=1) as server:
        assert server.wait_exit(10) == 1
        assert "StopIteration" in server.log()


@pytest.mark.parametrize("name", ["child_exit", "on_exit"])
def test_what_is_no_exception_by_name_costs_only_the_hook(name: str) -> None:
    hook = f"import asyncio\ndef {name}(*args): raise asyncio.CancelledError('broken')"
    with TinyServer(hook, workers=1, pidfile="x.pid") as server:
        [first] = server.running(1)
        os.kill(first, signal.SIGKILL)
        server.running(1, without=[first])
        assert server.stop() == 0
        assert f"The hook {name} failed" in server.log()


def test_signals_that_the_parent_has_blocked_are_heard() -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    with TinyServer(workers=1, popen={"preexec_fn": block}) as server:
        first = server.running(1)
        for pid in (server.pid, *first):
            # They are blocked for a moment around each fork.
            wait_until(lambda pid=pid: int(status_field(pid, "SigBlk"), 16) == 0, 5)
        server.signal(signal.SIGHUP)
        server.running(1, without=first)
        assert server.stop() == 0


def test_workers_notice_that_the_master_is_gone() -> None:
    with TinyServer(workers=2) as server:
        pids = server.running(2)
        server.kill()
        wait_until(lambda: not any(map(is_alive, pids)), 5, "the orphans gone")


def test_a_term_to_every_process_at_once_is_one_stop() -> None:
    with TinyServer(HOOKS, workers=2) as server:
        for pid in [server.pid, *server.running(2)]:
            os.kill(pid, signal.SIGTERM)
        assert server.wait_exit(10) == 0
        assert len(server.events("on_exit")) == 1
        assert "ERROR" not in server.log()


def test_as_process_one() -> None:
    """In a container of its own: strangers' orphans are reaped, and a stop is a stop."""
    unshare = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no namespaces here")
    orphan = """
    import os, subprocess
    def when_ready(server):
        note("pid", os.getpid())
        # The shell is gone at once; what it leaves behind ends as a worker that cannot boot would.
        subprocess.run(["sh", "-c", "(sleep 0.3; echo orphan >> events; exit 3) &"])
    """
    with TinyServer(orphan, workers=1, prefix=unshare) as server:
        assert server.wait_events("pid") == [["1"]]
        server.wait_events("orphan")
        [master] = children_of(server.pid)
        wait_until(lambda: len(children_of(master)) == 1, 5, "the orphan reaped")
        assert server.get().status == 200
        os.kill(master, signal.SIGTERM)
        assert server.wait_exit(10) == 0


def test_reloads_leave_nothing_open() -> None:
    with TinyServer(workers=2) as server:
        known: list[int] = []
        counts = []
        for _ in range(8):
            pids = server.running(2, without=known)
            counts.append(len(descriptors(server.pid)))
            known += pids
            server.signal(signal.SIGHUP)
        assert counts[1] == counts[-1]
