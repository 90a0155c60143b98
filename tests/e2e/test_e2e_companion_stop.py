# SPDX-License-Identifier: MIT
"""Stop a server that has companions: how long it waits for them, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import time

import pytest
from e2e_companions import companion_server, entry, pids_in, signals
from harness import Background, is_alive, wait_until


def test_a_companion_may_drain_for_longer_than_graceful_timeout() -> None:
    """The workers are gone before, and the pid file stays to the end."""
    companions = [entry("drain", env={"UNTIL": "done"}), entry("a", "idle")]
    with companion_server(*companions, graceful_timeout=1, pidfile="g.pid") as server:
        pid = server.wait_companion("drain")["pid"]
        server.wait_companion("a")
        Background(server, "/slow?30")
        wait_until(lambda: server.log("slow.started"))
        server.signal(signal.SIGTERM)
        wait_until(lambda: not server.workers(), 2.5, "workers killed at graceful_timeout")
        assert is_alive(pid) and server.companion("drain")["state"] == "STOPPING"
        assert server.read_int("g.pid") == server.pid
        server.write("done", "")
        assert server.wait_exit() == 0
        assert pids_in(server, "drain.drained") == [pid]
        assert [sig for _, sig, _ in signals(server, "drain")] == [signal.SIGTERM]


def test_term_to_every_process_at_once_is_as_graceful_as_to_the_master() -> None:
    with companion_server(entry("drain", env={"UNTIL": "done"}), graceful_timeout=10, workers=2) as server:
        pid = server.wait_companion("drain")["pid"]
        request = Background(server, "/wait?go")
        wait_until(lambda: server.log("wait.started"))
        for victim in server.tree():
            os.kill(victim, signal.SIGTERM)
        wait_until(lambda: len(server.workers()) == 1 and signals(server, "drain"), 5, "told to end")
        server.write("go", "")
        assert request.result().text == "waited"
        wait_until(lambda: not server.workers(), 5, "the web tier gone")
        assert is_alive(pid) and is_alive(server.pid)
        server.write("done", "")
        assert server.wait_exit() == 0
        assert pids_in(server, "drain.drained") == [pid]


def test_a_quick_stop_caps_each_timeout_at_graceful_timeout() -> None:
    server = companion_server(entry("stubborn", stop_timeout=60), entry("a", "idle"), graceful_timeout=1)
    with server:
        server.wait_companion("stubborn")
        started = time.monotonic()
        assert server.stop(signal.SIGQUIT) == 0
        assert 0.8 < time.monotonic() - started < 4
        assert len(signals(server, "stubborn")) == 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=lambda sig: sig.name)
def test_int_during_a_stop_ends_everything_now(first: signal.Signals) -> None:
    server = companion_server(entry("stubborn_family", stop_timeout=60), graceful_timeout=60)
    with server:
        server.wait_companion("stubborn_family")
        wait_until(lambda: len(pids_in(server, "stubborn_family.child")) == 2)
        server.signal(first)
        wait_until(lambda: server.companion("stubborn_family")["state"] == "STOPPING", 5, "stopping")
        started = time.monotonic()
        server.signal(signal.SIGINT)
        server.expected_code = None
        server.wait_exit(5)
        assert time.monotonic() - started < 3


def test_ctrl_c_in_a_terminal_is_one_quick_stop() -> None:
    """The kernel sends SIGINT to the whole foreground group: companions must not be in it."""
    controller, terminal = pty.openpty()

    def own_the_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    companions = [entry("drain", env={"DRAIN": "0.5"}), entry("a", "idle")]
    options = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": False}
    server = companion_server(
        *companions,
        workers=2,
        errorlog="error.log",
        popen_option={**options, "preexec_fn": own_the_terminal, "pass_fds": [terminal]},
    )
    try:
        with server:
            server.wait_companion("drain")
            server.wait_companion("a")
            server.wait_workers(2)
            started = time.monotonic()
            os.write(controller, b"\x03")
            assert server.wait_exit(10) == 0
            assert time.monotonic() - started < 4
            assert len(signals(server, "drain")) == 1, "one stop signal, not the terminal's besides"
            assert len(pids_in(server, "drain.drained")) == 1
            assert "Traceback" not in server.log("error.log")
    finally:
        os.close(terminal)
        os.close(controller)


def test_a_manager_that_somebody_else_stops_is_replaced_when_it_has_drained() -> None:
    with companion_server(entry("drain", env={"DRAIN": "0.5"})) as server:
        pid = server.wait_companion("drain")["pid"]
        manager = server.wait_manager()
        os.kill(manager, signal.SIGTERM)
        server.wait_manager(5, without=manager)
        server.wait_companion("drain", without=[pid])
        assert pids_in(server, "drain.drained") == [pid]
        assert server.get("/").status == 200


def test_stop_with_one_companion_stopped_one_in_backoff_one_starting() -> None:
    companions = [entry("a", "idle"), entry("exit3", restart_delay=60), entry("b", "idle", startsecs=60)]
    with companion_server(*companions) as server:
        server.wait_companion("a")
        server.ask("stop", "a")
        server.wait_companion("a", "STOPPED")
        server.wait_companion("exit3", "BACKOFF")
        server.wait_companion("b", "STARTING")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 3


def test_companions_stop_as_the_workers_fail_to_boot() -> None:
    """Exit status 3; companions have graceful_timeout to stop, and nothing is left."""
    app = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nraise RuntimeError('no boot')"
    server = companion_server(
        entry("stubborn", stop_timeout=60),
        entry("family"),
        app_option=app,
        ready_option=None,
        graceful_timeout=1,
    )
    with server:
        server.wait_companion("stubborn")
        server.wait_companion("family")
        started = time.monotonic()
        server.write("go", "")
        assert server.wait_exit(10) == 3
        assert time.monotonic() - started < 4
        server.assert_nothing_left()


def test_an_application_that_does_not_load_halts_with_4() -> None:
    server = companion_server(entry("a", "idle"), target_option="app:missing", ready_option=None)
    with server:
        assert server.wait_exit(15) == 4
        server.assert_nothing_left()


def test_a_stop_at_any_moment_of_the_start_leaves_nothing() -> None:
    drain = entry("b", "drain", env={"DRAIN": "0.1"})
    for moment in ("", "Workers: 2", "The companion manager is", "Starting companion b", "b is RUNNING"):
        with companion_server(entry("a", "idle"), drain, ready_option=None, workers=2) as server:
            wait_until(lambda moment=moment: moment in server.log(), 10, moment, interval=0.001)
            code = server.stop()
            assert code in (0, -signal.SIGTERM), code
            server.assert_nothing_left()


def test_a_companion_that_exits_during_the_stop_is_not_started_again() -> None:
    with companion_server(
        entry("drain", env={"UNTIL": "done"}), entry("a", "idle"), companion_restart_delay=0
    ) as server:
        server.wait_companion("drain")
        a = server.wait_companion("a")["pid"]
        server.signal(signal.SIGTERM)
        # Only once the manager knows of the stop: before, it would start the companion again.
        server.wait_companion("drain", "STOPPING")
        with contextlib.suppress(ProcessLookupError):
            os.kill(a, signal.SIGKILL)
        server.wait_companion("a", "STOPPED")
        assert not is_alive(a)
        server.write("done", "")
        assert server.wait_exit(8) == 0
        assert len(server.log("a.starts").splitlines()) == 1


def test_a_manager_that_is_killed_during_the_stop_leaves_no_run_files() -> None:
    """Neither of a companion that drains nor of one in BACKOFF."""
    companions = [entry("drain", env={"UNTIL": "done"}), entry("exit3", restart_delay=60)]
    with companion_server(*companions, companion_run_dir="run/files") as server:
        server.wait_companion("drain")
        server.wait_companion("exit3", "BACKOFF")
        manager = server.wait_manager()
        files = server.run_dir / "files"
        assert sorted(path.name for path in files.iterdir()) == ["drain.run", "exit3.run"]
        os.kill(manager, signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        os.kill(manager, signal.SIGKILL)
        wait_until(lambda: not is_alive(manager))
        server.write("done", "")
        assert server.wait_exit() == 0
        assert not files.exists()


def test_a_manager_that_hangs_is_killed_at_its_limit_with_all_it_ran() -> None:
    server = companion_server(
        entry("stubborn_family", stop_timeout=1), companion_manager_stop_timeout=1.5, graceful_timeout=1
    )
    with server:
        server.wait_companion("stubborn_family")
        wait_until(lambda: len(pids_in(server, "stubborn_family.child")) == 2)
        os.kill(server.wait_manager(), signal.SIGSTOP)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_exit(10) == 0
        assert 1.4 < time.monotonic() - started < 5
        server.assert_nothing_left()
