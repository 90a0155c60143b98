# SPDX-License-Identifier: MIT
"""Companions over USR2: each changes hands as soon as its older process is gone, and none runs twice."""

from __future__ import annotations

import os
import pwd
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from e2e_companions import companion_server, entry, overlaps, pids_in, reconfigure, starts, wait_waiting
from e2e_users import reachable_for_all
from harness import Control, Server, is_alive, read_proc, status_field, wait_until


def take_over(server: Server, new: Server) -> None:
    """End the old master and go on with the new one."""
    assert server.stop() == 0
    server.adopt(new.pid)


def manager_of(new: Server) -> int:
    return wait_until(new.manager, 20, "a manager of the new master") or 0


def test_each_changes_hands_as_soon_as_its_older_process_is_gone() -> None:
    server = companion_server(
        entry("quick", "idle"),
        entry("slow", "drain", env={"UNTIL": "done"}, stop_timeout=20),
        pidfile="g.pid",
    )
    with server:
        old = {name: server.wait_companion(name)["pid"] for name in ("quick", "slow")}
        new = server.upgrade()
        for name in old:
            wait_waiting(new, name, old[name])
            assert server.companion(name)["pid"] == old[name]
        # WINCH ends the workers of the old master and none of its companions.
        server.signal(signal.SIGWINCH)
        server.wait_log("SIGWINCH")
        assert {name: server.companion(name)["pid"] for name in old} == old
        server.signal(signal.SIGTERM)
        quick = wait_until(lambda: new.companion("quick")["pid"], 20, "quick runs in the new master")
        assert is_alive(old["slow"]) and not is_alive(old["quick"])
        assert new.companion("slow")["description"] == f"waiting for pid {old['slow']}"
        server.write("done", "")
        assert server.wait_exit() == 0
        server.adopt(new.pid)
        slow = server.wait_companion("slow", without=[old["slow"]])["pid"]
        assert server.companion("quick")["pid"] == quick
        assert pids_in(server, "slow.drained") == [old["slow"]]
        assert [pid for pid, _ in starts(server, "slow")] == [old["slow"], slow]
        assert overlaps(server) == []


def settled(server: Server, *names: str) -> dict[str, int]:
    return {name: server.wait_companion(name)["pid"] for name in names}


def has_state(server: Server, name: str, state: str) -> None:
    wait_until(
        lambda: (found := server.companions().get(name)) is not None and found["state"] == state,
        10,
        lambda: f"{name} {state}: {server.companions().get(name)}",
    )


def test_commands_during_an_upgrade_hold_for_the_new_master() -> None:
    server = companion_server(
        entry("stopped", "idle"),
        entry("started", "idle"),
        entry("by-hand", "idle", autostart=False),
        entry("rq", "idle", numprocs=3),
        pidfile="g.pid",
    )
    with server:
        old = settled(server, "stopped", "started", "rq:0", "rq:1", "rq:2")
        assert server.ask("stop", "started")["ok"]
        server.wait_companion("started", "STOPPED")
        new = server.upgrade()
        wait_waiting(new, "rq:2", old["rq:2"])
        assert new.companion("started")["description"] == "stopped manually"
        with server.control() as control:
            for command, name in (("stop", "stopped"), ("start", "started"), ("start", "by-hand")):
                assert control.ask(command, name)["ok"]
            assert control.ask("scale", "rq", numprocs=1)["ok"]
        has_state(new, "stopped", "STOPPED")
        wait_until(lambda: set(new.companions()) & {"rq:1", "rq:2"} == set(), 10, "scaled")
        for name in ("started", "by-hand"):
            wait_waiting(new, name, server.wait_companion(name)["pid"])
        assert {len(starts(server, name)) for name in ("stopped", "rq:1", "rq:2")} == {1}
        take_over(server, new)
        for name in ("started", "by-hand", "rq:0"):
            server.wait_companion(name)
        assert server.companion("stopped")["description"] == "stopped manually"
        # It outlives the manager, and goes on to the next upgrade.
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(20, without=manager)
        running = settled(server, "by-hand", "started", "rq:0")
        third = server.upgrade()
        wait_waiting(third, "rq:0", running["rq:0"])
        assert third.companion("stopped")["description"] == "stopped manually"
        assert not {"rq:1", "rq:2"} & set(third.companions()), "scaled before the upgrade"
        with server.control() as control:
            assert control.ask("start", "stopped")["ok"]
            assert control.ask("stop", "by-hand")["ok"]
            assert control.ask("scale", "rq", numprocs=3)["ok"]
        take_over(server, third)
        for name in ("stopped", "started", "rq:0", "rq:1", "rq:2"):
            server.wait_companion(name)
        assert server.companion("by-hand")["description"] == "stopped manually"
        assert overlaps(server) == []


def test_the_new_master_rereads_when_the_old_one_does() -> None:
    with companion_server(entry("gone", "idle"), entry("a", "idle"), pidfile="g.pid") as server:
        old = settled(server, "gone", "a")
        new = server.upgrade()
        for name in old:
            wait_waiting(new, name, old[name])
        reconfigure(server, entry("a", "idle"), entry("b", "idle"), pidfile="g.pid")
        assert server.ask("reread")["removed"] == ["gone"]
        wait_until(lambda: set(new.companions()) == {"a", "b"}, 10, "reread")
        wait_waiting(new, "b", server.wait_companion("b")["pid"])
        assert len(starts(server, "gone")) == 1
        # A mistake changes neither.
        server.write("gunicorn.conf.py", "1/0")
        assert not server.ask("reread")["ok"]
        reconfigure(server, entry("a", "idle"), entry("b", "idle"), pidfile="g.pid")
        take_over(server, new)
        for name in "ab":
            server.wait_companion(name)
        # The new master knows of it too.
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(20, without=manager)
        assert set(server.companions()) == {"a", "b"}
        assert len(starts(server, "gone")) == 1


@pytest.mark.parametrize("whose", ["old", "new"])
def test_commands_survive_the_death_of_a_manager(whose: str) -> None:
    with companion_server(entry("a", "idle"), entry("b", "idle"), pidfile="g.pid") as server:
        old = settled(server, "a", "b")
        assert server.ask("stop", "b")["ok"]
        server.wait_companion("b", "STOPPED")
        new = server.upgrade()
        wait_waiting(new, "a", old["a"])
        manager = server.wait_manager() if whose == "old" else manager_of(new)
        if whose == "new":
            # It never reads the command.
            os.kill(manager, signal.SIGSTOP)
        with server.control() as control:
            assert control.ask("stop", "a")["ok"]
            assert control.ask("start", "b")["ok"]
        os.kill(manager, signal.SIGKILL)
        wait_until(lambda: not is_alive(manager))
        (server if whose == "old" else new).wait_manager(20, without=manager)
        has_state(new, "a", "STOPPED")
        wait_until(lambda: new.companion("b")["state"] != "STOPPED")
        take_over(server, new)
        server.wait_companion("b")
        assert server.companion("a")["description"] == "stopped manually"
        assert len(starts(server, "a")) == 1
        assert overlaps(server) == []


def test_companions_that_are_no_singletons_run_stop_and_start_in_both_masters() -> None:
    both = entry("a", "report", singleton=False), entry("rq", "report", numprocs=1, singleton=False)
    with companion_server(*both, entry("one", "idle"), pidfile="g.pid") as server:
        old = settled(server, "a", "rq:0", "one")
        new = server.upgrade()
        for name in ("a", "rq:0"):
            has_state(new, name, "RUNNING")
        wait_waiting(new, "one", old["one"])
        first, theirs = new.companion("a")["pid"], new.companion("rq:0")["pid"]
        assert theirs != old["rq:0"] and is_alive(old["rq:0"])
        assert server.ask("restart", "a")["ok"]
        server.wait_companion("a")
        assert server.ask("stop", "a")["ok"]
        has_state(new, "a", "STOPPED")
        assert not is_alive(first)
        assert server.ask("scale", "rq", numprocs=2)["ok"]
        has_state(new, "rq:1", "RUNNING")
        assert server.ask("start", "a")["ok"]
        has_state(new, "a", "RUNNING")
        # A command to the new master concerns the new master alone, because it may be rolled back.
        assert new.ask("stop", "a")["ok"]
        has_state(new, "a", "STOPPED")
        assert server.companion("a")["state"] in ("STARTING", "RUNNING")
        take_over(server, new)
        assert server.companion("a")["description"] == "stopped manually"
        server.wait_companion("rq:1")
        assert server.wait_companion("rq:0")["pid"] == theirs and not is_alive(old["rq:0"])
        server.wait_companion("one", without=[old["one"]])


def test_commands_reach_the_new_master_without_run_files() -> None:
    """Without them the new master starts its manager only when the old master is gone."""
    server = companion_server(
        entry("a", "idle"), entry("b", "idle"), companion_control_socket="ctl.sock", pidfile="g.pid"
    )
    server.env.update(HOME="/nonexistent", XDG_RUNTIME_DIR="")
    server.configured_control = server.dir / "ctl.sock"
    with server:
        settled(server, "a", "b")
        assert server.ask("stop", "b")["ok"]
        server.wait_companion("b", "STOPPED")
        new = server.upgrade()
        server.wait_log("Companions will start when the old master is gone")
        wait_until(new.workers, 10, "the new master serves")
        assert new.manager() is None
        assert server.ask("stop", "a")["ok"]
        assert server.ask("start", "b")["ok"]
        server.wait_companion("b")
        take_over(server, new)
        server.wait_companion("b")
        assert server.companion("a")["description"] == "stopped manually"
        assert overlaps(server) == []


def test_copies_change_hands_one_by_one_and_share_the_socket(tmp_path: Path) -> None:
    copies = entry(
        "rq",
        "drain",
        numprocs=2,
        bind=f"unix:{tmp_path}/s",
        env={"UNTIL": "done"},
        stop_timeout=20,
        start_retries=1,
    )
    with companion_server(copies, pidfile="g.pid") as server:
        old = [server.wait_companion(name)["pid"] for name in ("rq:0", "rq:1")]
        new = server.upgrade()
        wait_waiting(new, "rq:0", old[0])
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.companion("rq:0")["state"] == "STOPPING")
        os.kill(old[0], signal.SIGKILL)
        # The new master has got the socket from the old one.
        assert new.wait_companion("rq:0", without=old)["failed_starts"] == 0
        assert is_alive(old[1])
        server.write("done", "")
        assert server.wait_exit() == 0
        server.adopt(new.pid)
        for name in ("rq:0", "rq:1"):
            assert server.wait_companion(name, without=old)["failed_starts"] == 0
        assert overlaps(server) == []


@pytest.mark.parametrize("name", ["page", "renamed"])
def test_an_address_changes_hands_without_a_record(tmp_path: Path, name: str) -> None:
    def companion(name: str) -> dict[str, Any]:
        bind = f"unix:{tmp_path}/s"
        return entry(name, "report", bind=bind, singleton=False, start_retries=1, on_give_up="shutdown")

    with companion_server(companion("page"), pidfile="g.pid") as server:
        server.wait_companion("page")
        reconfigure(server, companion(name), pidfile="g.pid")
        new = server.upgrade()
        has_state(new, name, "STARTING")
        assert new.companion(name)["failed_starts"] == 0
        # And the other way round: the old master's next manager waits.
        manager = server.wait_manager()
        server.signal(signal.SIGKILL, manager)
        server.signal(signal.SIGKILL, manager_of(new))
        server.wait_manager(20, without=manager)
        wait_until(
            lambda: {server.companion("page")["state"], new.companion(name)["state"]} >= {"RUNNING"}, 20
        )
        take_over(server, new)
        assert server.wait_companion(name)["failed_starts"] == 0


def test_a_rollback_leaves_them_where_they_are() -> None:
    with companion_server(entry("a", "idle"), entry("b", "stubborn")) as server:
        old = {name: server.wait_companion(name)["pid"] for name in "ab"}
        manager = server.manager()
        for sig in (signal.SIGTERM, signal.SIGKILL):
            new = server.upgrade()
            for name in old:
                wait_waiting(new, name, old[name])
            theirs = manager_of(new)
            server.signal(sig, new.pid)
            wait_until(lambda new=new: not is_alive(new.pid), 10, "the new master gone")
            wait_until(lambda theirs=theirs: not is_alive(theirs), 10, "its manager gone")
            assert {name: server.companion(name)["pid"] for name in old} == old
            assert server.manager() == manager
            wait_until(lambda: server.new_master() is None, 10, "reaped")
        for name in old:
            assert len(starts(server, name)) == 1
        server.signal(signal.SIGINT)
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0


def test_a_companion_that_dies_during_an_upgrade_is_started_once() -> None:
    """Both managers wait for it; one of them starts it."""
    with companion_server(entry("a", "idle"), companion_restart_delay=0.5) as server:
        old = server.wait_companion("a")["pid"]
        new = server.upgrade()
        wait_waiting(new, "a", old)
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: len(starts(server, "a")) == 2)
        pid = starts(server, "a")[1][0]
        theirs = read_proc(pid)
        assert theirs is not None and theirs.ppid in (manager_of(new), server.manager())
        # After a rollback the old master runs it.
        server.signal(signal.SIGTERM, new.pid)
        wait_until(lambda: not is_alive(new.pid), 10, "the new master gone")
        back = server.wait_companion("a", without=[old])
        assert read_proc(back["pid"]).ppid == server.manager()  # type: ignore[union-attr]
        assert overlaps(server) == []


def test_the_old_manager_dies_meanwhile() -> None:
    with companion_server(entry("a", "drain", env={"DRAIN": "0.3"})) as server:
        old = server.wait_companion("a")["pid"]
        new = server.upgrade()
        wait_waiting(new, "a", old)
        os.kill(server.wait_manager(), signal.SIGKILL)
        wait_until(lambda: len(starts(server, "a")) == 2)
        assert pids_in(server, "a.drained") == [old]
        take_over(server, new)
        server.wait_companion("a", without=[old])
        assert overlaps(server) == []


def test_the_old_master_is_killed() -> None:
    with companion_server(entry("a", "drain", env={"DRAIN": "0.3"})) as server:
        old = server.wait_companion("a")["pid"]
        new = server.upgrade()
        wait_waiting(new, "a", old)
        server.signal(signal.SIGKILL)
        assert server.wait_exit() == -signal.SIGKILL
        server.adopt(new.pid)
        server.wait_companion("a", without=[old])
        assert pids_in(server, "a.drained") == [old]
        assert overlaps(server) == []


def test_added_companions_start_at_once_and_removed_ones_end_with_the_old_master() -> None:
    with companion_server(entry("a", "idle"), entry("gone", "idle")) as server:
        old = {name: server.wait_companion(name)["pid"] for name in ("a", "gone")}
        reconfigure(server, entry("a", "idle"), entry("fresh", "idle"))
        new = server.upgrade()
        wait_waiting(new, "a", old["a"])
        fresh = wait_until(lambda: new.companion("fresh")["pid"], 10, "fresh runs")
        assert is_alive(old["gone"])
        take_over(server, new)
        server.wait_companion("a", without=[old["a"]])
        assert server.companion("fresh")["pid"] == fresh
        assert not is_alive(old["gone"]) and set(server.companions()) == {"a", "fresh"}


@pytest.mark.parametrize("changed", ["bind", "companion_run_dir"])
def test_a_configuration_that_would_name_another_run_directory(changed: str) -> None:
    server = companion_server(entry("a", "idle"), companion_run_dir=None if changed == "bind" else "run/one")
    with server:
        old = server.wait_companion("a")["pid"]
        directory = next(server.run_dir.rglob("a.run")).parent
        more = {"bind": ["127.0.0.1:1"]} if changed == "bind" else {"companion_run_dir": "run/two"}
        if changed == "bind":
            server.args[:2] = []
        reconfigure(server, entry("a", "idle"), **more)
        new = server.upgrade()
        wait_waiting(new, "a", old)
        take_over(server, new)
        server.wait_companion("a", without=[old])
        assert next(server.run_dir.rglob("a.run")).parent == directory
        assert overlaps(server) == []
        # Again: the inherited directory is handed on.
        old = server.companion("a")["pid"]
        new = server.upgrade()
        wait_waiting(new, "a", old)
        take_over(server, new)
        server.wait_companion("a", without=[old])
    assert not directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_upgrade_may_change_the_user() -> None:
    companions = (entry("a", "idle"),)
    settings = {"companion_run_dir": "run/files", "companion_control_socket": "c.sock", "user": "nobody"}
    server = companion_server(*companions, prefix_option=reachable_for_all(), **settings)
    server.dir.chmod(0o777)
    server.run_dir.chmod(0o711)
    server.configured_control = server.dir / "c.sock"
    with server:
        old = server.wait_companion("a")["pid"]
        new = server.upgrade()
        server.wait_log(f"another server runs it (pid {old})")
        take_over(server, new)
        old = server.wait_companion("a", without=[old])["pid"]
        files = next(server.dir.rglob("a.run")).parent
        assert files.owner() == "nobody"
        # The next user may not read these.
        for name in ("a.starts", "a.lock"):
            (server.dir / name).chmod(0o666)
        reconfigure(server, *companions, **{**settings, "user": "daemon"})
        new = server.upgrade()
        server.wait_log("Companions will start when the old master is gone")
        assert new.manager() is None and is_alive(old)
        take_over(server, new)
        found = server.wait_companion("a", without=[old])
        assert next(server.dir.rglob("a.run")).owner() == "daemon"
        assert status_field(found["pid"], "Uid").split()[0] == str(pwd.getpwnam("daemon").pw_uid)
        assert "No run files" not in server.log()
        assert overlaps(server) == []


def test_a_control_socket_of_a_configured_path_changes_hands() -> None:
    server = companion_server(entry("a", "idle"), companion_control_socket="c.sock")
    server.configured_control = server.dir / "c.sock"
    with server:
        old = server.wait_companion("a")["pid"]
        manager = server.wait_manager()
        new = server.upgrade()
        theirs = manager_of(new)
        # The old manager has it; that is no warning.
        server.wait_log("another server is listening there")
        with Control(server.configured_control) as control:
            assert control.peer_pid() == manager
        lines = server.log().splitlines()
        assert [line for line in lines if "is listening there" in line and "WARNING" in line] == []
        # A rollback leaves it to the old one.
        server.signal(signal.SIGTERM, new.pid)
        wait_until(lambda: not is_alive(new.pid), 10, "the new master gone")
        assert server.companion("a")["pid"] == old
        new = server.upgrade()
        theirs = manager_of(new)
        assert server.stop() == 0
        gone_at = time.monotonic()
        server.adopt(new.pid)
        assert server.wait_manager() == theirs
        assert time.monotonic() - gone_at < 5
        server.wait_companion("a", without=[old])


def test_reload_and_stop_beside_another_master_touch_only_their_own() -> None:
    """HUP to both masters, and managers that must be killed: the companions of the other run on."""
    server = companion_server(
        entry("a", "stubborn"), entry("b", "idle"), companion_manager_stop_timeout=1, pidfile="g.pid"
    )
    with server:
        old = {name: server.wait_companion(name)["pid"] for name in "ab"}
        new = server.upgrade()
        for name in old:
            wait_waiting(new, name, old[name])
        server.signal(signal.SIGHUP, new.pid)
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.log().count("Companions reread") >= 2, 20, "both reread")
        assert {name: server.companion(name)["pid"] for name in old} == old
        # The new master's manager hangs, and is killed with its own processes.
        os.kill(manager_of(new), signal.SIGSTOP)
        server.signal(signal.SIGTERM, new.pid)
        wait_until(lambda: not is_alive(new.pid), 20, "the new master gone")
        assert {name: server.companion(name)["pid"] for name in old} == old
        new = server.upgrade()
        wait_waiting(new, "a", old["a"])
        # Then the old master's: its companions die with it, and the new master starts them.
        os.kill(server.wait_manager(), signal.SIGSTOP)
        take_over(server, new)
        for name in old:
            server.wait_companion(name, without=[old[name]])
        assert overlaps(server) == []
        server.signal(signal.SIGINT)
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0


def test_a_new_master_that_fails_leaves_all_as_it_was() -> None:
    """Whether its workers do not boot, it does not load itself, or it is killed."""
    server = companion_server(
        entry("one", "idle"), entry("site", "idle", bind=["unix:site.socket"]), pidfile="g.pid", workers=2
    )
    with server:
        names = ("one", "site")
        good = (server.dir / "app.py").read_text()

        def state() -> list[object]:
            companions = [server.wait_companion(name)["pid"] for name in names]
            socket_file = (server.dir / "site.socket").stat().st_ino
            return [server.wait_workers(2), companions, socket_file, server.read_int("g.pid")]

        def fails(said: str) -> None:
            wait_until(lambda: not server.new_master(), 20, "the new master gone")
            server.wait_log(said)
            wait_until(lambda: not (server.dir / "g.pid.2").exists(), 10)
            assert state() == before and server.get().status == 200
            assert os.listdir(server.run_dir) == files

        before, files = state(), os.listdir(server.run_dir)
        server.write("app.py", "raise RuntimeError('broken')")
        server.signal(signal.SIGUSR2)
        fails("The new master exited with status 3; this one keeps running")
        reconfigure(server, pidfile="g.pid", preload_app=True)
        server.signal(signal.SIGUSR2)
        fails("The new master exited with status 1; this one keeps running")
        server.write("app.py", good)
        reconfigure(server, *(entry(name, "idle") for name in (*names, "more")), pidfile="g.pid")
        new = server.upgrade()
        more = new.wait_companion("more")["pid"]
        os.kill(new.pid, signal.SIGKILL)
        fails("The new master was killed by SIGKILL; this one keeps running")
        wait_until(lambda: not is_alive(more), 10, "its companion gone")
        new = server.upgrade()
        new.wait_companion("more", without=[more])
        take_over(server, new)
        settled(server, *names, "more")
        assert overlaps(server) == []
