# SPDX-License-Identifier: MIT
"""Signals to the manager, the death of its master, its own death, and two on one run directory."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from harness import is_alive, read_proc, session_of, wait_until
from managertools import Managed, gone

from gunicorn.unix import session

pytestmark = pytest.mark.skipif(not session.HAVE_PROC, reason="looks at processes by /proc")


# -- signals -----------------------------------------------------------------------------


def test_term_stops_all_at_once_each_within_its_own_time(managed):
    server = managed("""
        workers = [
            dict(name="a", target=T.ignore, stop_timeout=0.8),
            dict(name="b", target=T.ignore, stop_timeout=0.8),
            dict(name="c", target=T.ignore, stop_timeout=0.8),
            dict(name="obeys", target=T.obey),
        ]
    """)
    pids = [server.pid(name) for name in "abc"]
    for name in "abc":
        server.wait_told(name, "runs")
    obeys = server.pid("obeys")
    begun = time.monotonic()
    server.signal(signal.SIGTERM)
    gone(obeys)
    assert all(map(is_alive, pids))
    server.wait_end()
    # The longest and not the sum.
    assert 0.8 <= time.monotonic() - begun < 2.4
    assert not any(session_of(pid) for pid in pids)


CHAIN = """
    workers = [
        dict(name="store", target=T.obey),
        dict(name="rq", target=T.drain, after=["store"], numprocs=2),
        dict(name="alone", target=T.obey),
    ]
"""


@pytest.mark.parametrize("way", ["TERM", "INT", "no master", "stop all", "reread"])
def test_stops_after_the_companions_that_come_after_it(managed, way):
    server = managed(CHAIN)
    pids = {name: server.pid(name) for name in ("store", "rq:0", "rq:1", "alone")}
    for name in ("rq:0", "rq:1"):
        server.wait_told(name, "runs")
    if way == "no master":
        os.kill(server.master, signal.SIGKILL)
    elif way == "stop all":
        reply = server.ok("stop", "store", names=["store", "rq", "alone"])
        assert "store is stopped after rq:0, rq:1" in reply["message"]
        assert sorted(reply["names"]) == sorted(pids)
    elif way == "reread":
        server.configure("workers = [dict(name='alone', target=T.obey)]")
        server.ok("reread")
    else:
        server.signal(signal.Signals[f"SIG{way}"])
    for name in ("rq:0", "rq:1"):
        server.wait_told(name, "SIGTERM")
    if way != "reread":
        gone(pids["alone"])
    assert is_alive(pids["store"])
    if way != "no master":
        assert server.status()["store"]["state"] == "RUNNING"
        assert server.status()["store"]["stops_after"] == ["rq:0", "rq:1"]
    server.go_on()
    gone(pids["rq:0"], pids["rq:1"], pids["store"])
    if way == "stop all":
        assert all(server.wait(name, "STOPPED")["manual_stop"] for name in pids)
    elif way in ("TERM", "INT"):
        server.wait_end()


@pytest.mark.parametrize("why", ["setting", "second INT", "handed over", "replaced"])
def test_all_companions_get_their_signal_together(managed, why):
    server = managed(CHAIN, stop_order="together" if why == "setting" else "reverse")
    store, rq = server.pid("store"), server.pid("rq:0")
    for name in ("rq:0", "rq:1"):
        server.wait_told(name, "runs")
    if why == "handed over":
        server.order(send={"handing_over": True, "ping": 1})
        wait_until(lambda: {"pong": 1} in server.events("message"))
    server.signal(signal.SIGUSR2 if why == "replaced" else signal.SIGTERM)
    server.wait_told("rq:0", "SIGTERM")
    if why == "second INT":
        assert is_alive(store)
        server.signal(signal.SIGINT)
        gone(store, rq)
    else:
        gone(store)
        assert is_alive(rq)
    server.go_on()
    server.wait_end()


def test_a_start_cancels_a_waiting_stop(managed):
    server = managed(CHAIN)
    store = server.pid("store")
    server.wait_told("rq:0", "runs")
    server.pid("rq:1")
    server.ok("stop", "store", names=["store", "rq:0"])
    assert server.ok("start", "store")["message"] == "store is already running"
    server.go_on()
    server.wait("rq:0", "STOPPED")
    assert server.pid("store") == store
    assert not server.status()["store"]["manual_stop"]


def test_a_stop_that_waits_survives_the_manager(managed):
    server = managed(CHAIN)
    server.wait_told("rq:0", "runs")
    server.ok("stop", "store", names=["store", "rq"])
    server.go_on()
    server.kill_manager()
    server.respawn()
    assert server.wait("store", "STOPPED")["manual_stop"]


def test_term_again_changes_nothing(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    pid = server.pid("rq")
    server.wait_told("rq", "runs")
    server.signal(signal.SIGTERM)
    server.wait_told("rq", "SIGTERM")
    deadline = server.status()["rq"]["stop_deadline"]
    for _ in range(3):
        server.signal(signal.SIGTERM)
    assert abs(server.status()["rq"]["stop_deadline"] - deadline) < 1
    for command in ("start", "restart", "reread"):
        assert server.ask(command, "rq")["error"] == "the server is stopping"
    server.go_on()
    server.wait_end()
    assert [line.split()[0] for line in server.told("rq")] == ["runs", "SIGTERM", "finished"]
    assert not is_alive(pid)
    assert f"Companion rq (pid {pid}) stopped, cause: server\n" in server.log()


def test_a_manager_tells_that_the_next_may_start(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    server.wait_told("rq", "runs")
    server.signal(signal.SIGUSR2)
    server.wait_told("rq", "SIGTERM")
    for command in ("start", "restart", "reread", "scale"):
        reply = server.ask(command, "rq", numprocs=2)
        assert reply["error"] == "all companions are restarting with their manager; retry later"
    assert server.status()["rq"]["last_exit_reason"] == "its manager is replaced"
    # The server itself stops meanwhile.
    server.signal(signal.SIGTERM)
    wait_until(lambda: server.ask("start", "rq")["error"] == "the server is stopping")
    server.go_on()
    server.wait_end()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_cap_the_time(managed, signum):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=60)]", graceful_timeout=0.3)
    pid = server.pid("rq")
    server.wait_told("rq", "runs")
    begun = time.monotonic()
    server.signal(signum)
    server.wait_end()
    assert 0.3 <= time.monotonic() - begun < 20
    assert not session_of(pid)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_int_during_a_stop_ends_everything_now(managed, first):
    server = managed("workers = [dict(name='rq', target=T.drain, stop_timeout=60)]", graceful_timeout=60)
    pid = server.pid("rq")
    server.wait_told("rq", "runs")
    server.signal(first)
    # INT to the manager, too, is the stop signal for the companion.
    server.wait_told("rq", "SIGTERM")
    server.signal(signal.SIGINT)
    server.wait_end()
    assert not session_of(pid)
    assert "finished" not in server.read("rq.told")


def ask(server, way, signum, **message):
    """Ask the manager for something by signal, as people do, or on the link, as the master does."""
    if way == "link":
        server.order(send=message)
    else:
        server.signal(signum)


@pytest.mark.parametrize("way", ["signal", "link"])
def test_usr2_ends_it_within_the_reload_timeout(managed, way):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=60, reload_timeout=0.3)]")
    server.pid("rq")
    server.wait_told("rq", "runs")
    ask(server, way, signal.SIGUSR2, replace="after this one")
    server.wait_end()


@pytest.mark.parametrize("way", ["signal", "link"])
def test_usr1_reopens_logs_and_makes_the_socket_file_again(managed, way):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    pid = server.pid("rq")
    server.wait_told("rq", "runs")
    server.socket.unlink()
    ask(server, way, signal.SIGUSR1, reopen=True)
    # It would have killed the companion.
    assert server.pid("rq") == pid
    assert server.socket.stat().st_mode & 0o777 == 0o600
    assert "files reopened" in server.log()


def test_the_socket_file_alone_is_made_again(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    server.pid("rq")
    for message in ("check_socket", "promoted"):
        server.socket.unlink()
        server.order(send={message: True})
        wait_until(server.socket.exists)
    assert "files reopened" not in server.log()


def test_terminal_signals_do_nothing(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    pid = server.pid("rq")
    for signum in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGPIPE, signal.SIGCHLD):
        server.signal(signum)
    assert server.pid("rq") == pid
    assert server.peer() == server.manager


@pytest.mark.parametrize("way", ["signal", "link"])
def test_hup_rereads(managed, way):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    pid = server.pid("rq")
    server.configure("workers = [dict(name='rq', target=T.obey), dict(name='b', target=T.obey)]")
    ask(server, way, signal.SIGHUP, reload={})
    wait_until(lambda: "b" in server.status())
    server.wait("b")
    assert server.pid("rq") == pid
    server.configure("syntax error")
    ask(server, way, signal.SIGHUP, reload={})
    wait_until(lambda: "companions keep their configuration: invalid syntax" in server.log())
    assert set(server.status()) == {"rq", "b"}


# -- the death of the master ---------------------------------------------------------------


def test_the_death_of_the_master_ends_everything_and_frees_the_address_first(managed):
    server = managed("workers = [dict(name='rq', target=T.drain), dict(name='b', target=T.obey)]")
    pid, b = server.pid("rq"), server.pid("b")
    server.wait_told("rq", "runs")
    os.kill(server.master, signal.SIGKILL)
    wait_until(lambda: not server.socket.exists())
    server.wait_told("rq", "SIGTERM")
    gone(b)
    assert is_alive(pid) and is_alive(server.manager)
    server.go_on()
    gone(server.manager, pid)
    assert not session_of(pid)
    assert [line.split()[0] for line in server.told("rq")] == ["runs", "SIGTERM", "finished"]
    assert list(server.run_dir.iterdir()) == []


# -- the death of the manager ----------------------------------------------------------------


def test_a_successor_waits_for_draining_companions_only(managed):
    server = managed("workers = [dict(name='rq', target=T.drain), dict(name='b', target=T.obey)]")
    old, b = server.pid("rq"), server.pid("b")
    child = int(server.wait_told("rq", f"runs {old} with"))
    server.kill_manager()
    server.respawn()
    server.pid("b", without=[b])
    waiting = server.status()["rq"]
    assert (waiting["state"], waiting["pid"]) == ("STARTING", None)
    assert waiting["description"] == f"waiting for pid {old}"
    assert waiting["waiting_for"] == old
    assert is_alive(old) and is_alive(child)
    server.go_on()
    new = server.pid("rq", without=[None])
    server.wait_told("rq", f"runs {new}")
    # The old one had its signal once, and was gone before the new one began.
    words = [line.split()[:2] for line in server.told("rq")]
    assert words == [
        ["runs", str(old)],
        ["SIGTERM", str(old)],
        ["finished", str(old)],
        ["runs", str(new)],
    ]
    assert not is_alive(child)


def test_a_successor_kills_orphans_at_their_stop_timeout(managed):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=0.5)]")
    old = server.pid("rq")
    child = int(server.wait_told("rq", f"runs {old} with"))
    server.kill_manager()
    begun = time.monotonic()
    server.respawn()
    server.pid("rq", without=[None, old])
    assert time.monotonic() - begun >= 0.4
    assert not is_alive(old) and not is_alive(child)


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_successor_lets_a_group_finish_whose_leader_is_gone(managed, asked_before):
    server = managed("workers = [dict(name='rq', target=T.leaves_at_once, stop_as_group=True)]")
    old = server.pid("rq")
    child = int(server.wait_told("rq", "child"))
    if asked_before:
        server.ok("restart", "rq")
        server.wait_told("rq", "asked")
    server.kill_manager()
    gone(old)
    server.respawn()
    # The kernel has asked the leader alone.
    server.wait_told("rq", "asked")
    assert server.status()["rq"]["waiting_for"] == old
    assert is_alive(child)
    server.go_on()
    server.pid("rq", without=[None, old])
    assert server.told("rq").count("asked") == 1
    assert "finished" in server.told("rq")
    assert not is_alive(child)


def test_a_successor_kills_at_the_stop_timeout_a_group_that_does_not_finish(managed):
    server = managed(
        "workers = [dict(name='rq', target=T.leaves_at_once, stop_as_group=True, stop_timeout=0.5)]"
    )
    old = server.pid("rq")
    child = int(server.wait_told("rq", "child"))
    server.kill_manager()
    server.respawn()
    server.pid("rq", without=[None, old])
    assert not is_alive(child)
    assert "finished" not in server.told("rq")


def test_a_successor_ends_detached_processes_of_a_dead_manager(managed):
    server = managed("""
        workers = [
            dict(name="rq", target=T.has_helpers),
            dict(name="stopped", target=T.has_helpers),
            dict(name="drains", target=T.has_helpers),
        ]
    """)
    names = ("rq", "stopped", "drains")
    helpers = {name: [int(server.wait_told(name, "helper", n)) for n in (1, 2)] for name in names}
    server.configure("""
        workers = [dict(name="rq", target=T.has_helpers), dict(name="stopped", target=T.has_helpers)]
    """)
    server.kill_manager()
    server.respawn()
    for name in names:
        gone(*helpers[name])
    assert "Companions of a dead manager left behind " in server.log()
    # The new ones have theirs.
    fresh = [int(server.wait_told(name, "helper", n)) for name in ("rq", "stopped") for n in (3, 4)]
    server.pid("rq")
    assert all(map(is_alive, fresh))


def test_detached_processes_of_a_draining_orphan_are_left_alone(managed):
    server = managed("workers = [dict(name='rq', target=T.drains_with_helper)]")
    old = server.pid("rq")
    helper = int(server.wait_told("rq", "helper"))
    # Until then it does not drain, but dies of the signal that comes with the manager's death.
    server.wait_told("rq", "runs")
    server.kill_manager()
    server.respawn()
    wait_until(lambda: server.status()["rq"]["waiting_for"] == old, 20, "the wait for its old self")
    assert is_alive(helper)
    server.go_on()
    server.pid("rq", without=[None, old])
    assert not is_alive(helper)
    # One that is being forked just when the server is killed would be left behind.
    server.wait_told("rq", "helper", 2)


def test_a_reread_stop_timeout_applies_in_the_successor(managed):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=60)]")
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.configure("workers = [dict(name='rq', target=T.ignore, stop_timeout=0.2)]")
    assert server.ok("reread")["updated"] == ["rq"]
    server.kill_manager()
    server.respawn()
    server.pid("rq", without=[None, old])


def test_a_stop_while_it_waits_for_its_older_process(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.kill_manager()
    server.respawn()
    server.wait("rq", "STARTING")
    server.ok("stop", "rq")
    assert server.wait("rq", "STOPPING")["description"] == f"waiting for the processes of pid {old}"
    server.go_on()
    server.wait("rq", "STOPPED")
    assert not session_of(old)
    assert list(server.run_dir.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_successor_waits_for_older_processes(managed, signum):
    server = managed("workers = [dict(name='rq', target=T.drain, stop_timeout=60)]", graceful_timeout=0.2)
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.kill_manager()
    server.respawn()
    server.wait("rq", "STARTING")
    server.signal(signum)
    if signum == signal.SIGTERM:
        wait_until(lambda: server.status()["rq"]["state"] == "STOPPING")
        assert is_alive(old)
        server.go_on()
    server.wait_end()
    assert not session_of(old)


def test_an_orphan_without_a_configuration_ends(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.kill_manager()
    server.configure("workers = [dict(name='b', target=T.obey)]")
    server.respawn()
    assert set(server.status()) == {"b"}
    assert is_alive(old)
    # It comes back meanwhile: not beside its old self.
    server.configure("workers = [dict(name='rq', target=T.drain), dict(name='b', target=T.obey)]")
    assert server.ok("reread")["added"] == ["rq"]
    assert server.status()["rq"]["description"] == f"waiting for pid {old}"
    server.go_on()
    server.pid("rq", without=[None])
    assert not is_alive(old)


def test_an_orphan_ends_and_its_record_goes(managed):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=0.2)]")
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.kill_manager()
    server.configure("workers = []")
    server.respawn()
    gone(old)
    wait_until(lambda: list(server.run_dir.iterdir()) == [])
    # And an idle manager is idle again.
    server.signal(signal.SIGTERM)
    server.wait_end()


def test_a_stopping_companion_stays_stopping_in_the_successor(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.ok("stop", "rq")
    server.wait_told("rq", "SIGTERM")
    server.kill_manager()
    server.respawn()
    found = server.status()["rq"]
    assert (found["state"], found["manual_stop"]) == ("STOPPING", True)
    server.go_on()
    assert server.wait("rq", "STOPPED")["manual_stop"]
    assert not session_of(old)


def test_garbage_in_the_run_directory_is_ignored(managed, short_dir):
    run = short_dir / "run"
    run.mkdir()
    (run / "rq.run").write_bytes(b"\0garbage")
    (run / "old.run").write_bytes(b"[]")
    (run / "pid.run").write_text(json.dumps({"pid": -1, "name": "pid"}))
    (run / "subdirectory.run").mkdir()
    server = managed("workers = [dict(name='rq', target=T.obey)]", run_dir=str(run))
    server.wait("rq")


def test_records_of_another_boot_or_of_strangers_are_ignored(managed, short_dir):
    run = short_dir / "run"
    run.mkdir()
    record = {
        "name": "rq",
        "pid": os.getpid(),
        "started": "another boot/1",
        # Not getsid(0): it is 0, and no record, where the session's leader is outside of the container.
        "session": os.getpid(),
        "supervisor": 4_000_000,
        "supervisor_started": "x",
        "stop_signal": 9,
        "stop_timeout": 0,
        "signalled": False,
        "error": None,
    }
    (run / "rq.run").write_text(json.dumps(record))
    (run / "other.run").write_text(json.dumps({**record, "name": "other"}))
    server = managed("workers = [dict(name='rq', target=T.obey)]", run_dir=str(run))
    server.wait("rq")
    wait_until(lambda: [path.name for path in run.iterdir()] == ["rq.run"])


# -- two on one run directory --------------------------------------------------------------------


def test_a_second_server_waits_and_kills_nothing(managed, masters):
    first = managed("workers = [dict(name='rq', target=T.obey), dict(name='b', target=T.obey)]")
    pids = [first.pid("rq"), first.pid("b")]
    second = managed(
        "workers = [dict(name='rq', target=T.obey), dict(name='own', target=T.obey)]",
        run_dir=str(first.run_dir),
    )
    second.wait("own")
    wait_until(lambda: second.status()["rq"]["description"] == f"waiting for pid {pids[0]}")
    assert second.status()["rq"]["state"] == "STARTING"
    assert second.log().count("another server runs it") == 1
    # Ended by command it does not wait on, and starts to wait again when told.
    second.ok("stop", "rq")
    second.wait("rq", "STOPPED")
    second.ok("start", "rq")
    second.wait("rq", "STARTING")
    assert [first.pid("rq"), first.pid("b")] == pids
    # As soon as the first has let go of it, it changes hands.
    first.ok("stop", "rq")
    first.wait("rq", "STOPPED")
    rq = second.pid("rq", without=[None])
    assert read_proc(rq).ppid == second.manager
    first.ok("start", "rq")
    wait_until(lambda: first.status()["rq"]["description"] == f"waiting for pid {rq}")
    # And when one of them dies by violence, too.
    second.kill_manager()
    assert first.pid("rq", without=[None, rq]) == int(first.wait_told("rq", "runs", 2))
    assert not is_alive(rq)


def test_a_wait_for_a_lock_without_a_record_is_logged_once(managed: type[Managed], short_dir):
    from gunicorn.companion.runfile import RunFile

    run_dir = short_dir / "run"
    run_dir.mkdir()
    held = RunFile.claim(str(run_dir), "rq")
    try:
        server = managed("workers = [dict(name='rq', target=T.obey)]", run_dir=str(run_dir))
        found = server.wait("rq", "STARTING")
        assert found["description"] == "waiting for another server"
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 0.3 and server.ok("status"))
        assert server.log().count("another server runs it") == 1
    finally:
        held.release()
    server.wait("rq")
