# SPDX-License-Identifier: MIT
"""SIGHUP and ``reread``: the difference is applied, the rest not touched, a mistake changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from e2e_apps import WEB
from e2e_companions import (
    companion_server,
    config_text,
    entry,
    overlaps,
    pids,
    pids_in,
    reconfigure,
    signals,
    starts,
    wait_waiting,
)
from e2e_users import reachable_for_all
from harness import Server, is_alive, load, wait_until

TWO = [entry("a", "idle"), entry("b", "idle")]


def hup(server: Server, workers: int = 1) -> list[int]:
    """SIGHUP; the new workers, once they are there."""
    old = server.workers()
    server.signal(signal.SIGHUP)
    return server.wait_workers(workers, without=old)


def settled(server: Server, *names: str) -> dict[str, int | None]:
    for name in names:
        server.wait_companion(name)
    return pids(server)


# -- SIGHUP --


def test_hup_leaves_unchanged_companions_alone() -> None:
    with companion_server(*TWO, workers=2) as server:
        before = settled(server, "a", "b")
        manager = server.wait_manager()
        with load(server) as problems:
            for _ in range(3):
                hup(server, 2)
        assert problems == []
        assert pids(server) == before
        assert server.manager() == manager
        assert [found["restart_count"] for found in server.companions().values()] == [0, 0]


def test_hup_with_an_application_that_does_not_load_changes_nothing() -> None:
    with companion_server(*TWO, workers=2, worker_class="gthread") as server:
        before, old = settled(server, "a", "b"), server.wait_workers(2)
        server.write("app.py", "import not_there")
        reconfigure(server, TWO[0], entry("c", "idle"), workers=3, worker_class="gthread")
        server.signal(signal.SIGHUP)
        server.wait_log("the old configuration stays: ModuleNotFoundError: No module named")
        assert "No module named 'not_there'" in server.log()
        server.wait_workers(2)
        assert server.workers() == old and pids(server) == before
        assert server.get("/").status == 200
        server.write("app.py", WEB)
        hup(server, 3)
        server.wait_companion("c")
        assert pids(server).keys() == {"a", "c"} and pids(server)["a"] == before["a"]


def test_hup_restarts_only_what_is_shaped_otherwise() -> None:
    with companion_server(*TWO) as server:
        before = settled(server, "a", "b")
        manager = server.wait_manager()
        reconfigure(server, entry("a", "report", env={"NEW": "1"}), entry("b", "idle", stop_timeout=3))
        hup(server)
        server.wait_companion("a", without=[before["a"] or 0])
        wait_until(lambda: server.log("a.json"))
        assert pids(server)["b"] == before["b"]
        assert server.manager() == manager
        assert overlaps(server) == []


def test_hup_replaces_copies_one_after_the_other_and_stops_at_one_that_gives_up() -> None:
    names = ["w:0", "w:1", "w:2"]
    keys = {"numprocs": 3, "start_retries": 1, "restart_delay": 0.1}
    with companion_server(entry("w", "idle", **keys)) as server:
        first = settled(server, *names)
        reconfigure(server, entry("w", "idle", env={"NEW": "1"}, **keys))
        hup(server)
        for name in names:
            server.wait_companion(name, without=[first[name] or 0])
        second = pids(server)
        # Each in its turn: the next one goes when the one before is there.
        said = [f"Companion {name} is RUNNING" for name in names]
        order = [server.log().rindex(text) for text in said]
        asked = [server.log().index(f"Restarting companion {name}: ") for name in names]
        assert asked[0] < order[0] < asked[1] < order[1] < asked[2] < order[2]
        reconfigure(server, entry("w", "not_there", **keys))
        hup(server)
        server.wait_companion("w:0", "STOPPED")
        server.wait_log("The change of companion w stops: w:0 gave up after 1 failed start: ")
        assert server.log().count("With the old configuration stay: w:1, w:2") == 1
        stopped_by = [server.companion(name)["change_stopped_by"] for name in names]
        assert stopped_by == [None, "w:0", "w:0"]
        assert [pids(server)[name] for name in names[1:]] == [second[name] for name in names[1:]]
        # They still have it after a crash; and a version that works reaches all of them.
        os.kill(second["w:2"] or 0, signal.SIGKILL)
        third = server.wait_companion("w:2", without=[second["w:2"] or 0])["pid"]
        reconfigure(server, entry("w", "idle", env={"NEW": "2"}, **keys))
        hup(server)
        for name, old in zip(names, (0, second["w:1"], third), strict=True):
            server.wait_companion(name, without=[old or 0])
        assert overlaps(server) == []


def test_hup_adds_and_removes_without_waiting_for_a_drain() -> None:
    with companion_server(entry("a", "idle"), entry("drain", env={"UNTIL": "done"})) as server:
        before = settled(server, "a", "drain")
        manager = server.wait_manager()
        reconfigure(server, entry("a", "idle"), entry("c", "idle"))
        (worker,) = hup(server)
        server.wait_companion("c", timeout=3)
        leaving = server.companion("drain")
        assert (leaving["state"], leaving["pid"]) == ("STOPPING", before["drain"])
        # The workers are supervised during the drain.
        os.kill(worker, signal.SIGKILL)
        server.wait_workers(1, timeout=2, without=[worker])
        assert server.companion("drain")["state"] == "STOPPING"
        server.write("done", "")
        wait_until(lambda: "drain" not in server.companions(), 6, "gone from the table")
        assert pids_in(server, "drain.drained") == [before["drain"]]
        assert pids(server)["a"] == before["a"] and server.manager() == manager


def test_the_manager_leaves_with_the_last_companion_and_comes_with_the_first() -> None:
    with companion_server() as server:
        assert server.manager() is None
        assert not server.control_path().exists()
        reconfigure(server, entry("drain", env={"DRAIN": "0.5"}))
        hup(server)
        pid = server.wait_companion("drain")["pid"]
        reconfigure(server)
        hup(server)
        wait_until(lambda: server.manager() is None, 6, "the manager gone")
        assert pids_in(server, "drain.drained") == [pid]
        assert not server.control_path().exists()
        assert server.get("/").status == 200
        reconfigure(server, entry("drain", env={"DRAIN": "0"}))
        hup(server)
        server.wait_companion("drain", without=[pid])


INVALID = {
    "syntax error": ("companion_workers = = []", "gunicorn.conf.py"),
    "system exit": ("import sys\nsys.exit(9)", "gunicorn.conf.py"),
    "unknown key": (config_text({"name": "a", "target": "jobs:idle", "stop_sigal": "TERM"}), "stop_signal"),
    "unknown setting": (config_text(*TWO, companion_restart_delai=1), "companion_restart_delay"),
}


@pytest.mark.parametrize("how", ["hup", "reread"])
def test_an_invalid_configuration_changes_nothing(how: str) -> None:
    with companion_server(*TWO, workers=2) as server:
        before = settled(server, "a", "b")
        manager, workers = server.wait_manager(), server.wait_workers(2)
        for case, (text, names) in INVALID.items():
            log = server.log()
            server.write("gunicorn.conf.py", text)
            if how == "hup":
                server.signal(signal.SIGHUP)
                wait_until(lambda log=log, names=names: names in server.log()[len(log) :], 5, case)  # type: ignore[misc]
            else:
                reply = server.ask("reread")
                assert (reply["ok"], reply["kept_old_config"]) == (False, True), case
                assert names in reply["error"], case
            new = server.log()[len(log) :]
            errors = [line for line in new.splitlines() if "[ERROR]" in line]
            assert len(errors) == 1, (case, new)
            assert "Traceback" not in new, case
            assert pids(server) == before, case
            assert (server.manager(), server.workers()) == (manager, workers), case
        # A new manager gets the old configuration too.
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(3, without=manager)
        assert sorted(settled(server, "a", "b")) == ["a", "b"]
        # The next valid one is applied.
        reconfigure(server, *TWO, entry("c", "idle"), workers=1)
        hup(server, 1)
        server.wait_companion("c")


def test_hup_with_broken_code_keeps_running_companions() -> None:
    """Without preload HUP loads new code in workers; an unchanged companion keeps its process."""
    with companion_server(entry("a", "idle")) as server:
        before = settled(server, "a")
        server.write("jobs.py", "raise RuntimeError('new code is broken')")
        hup(server)
        assert pids(server) == before
        assert server.ask("restart", "a")["ok"]
        server.wait_companion("a", "BACKOFF")
        assert "new code is broken" in server.log()
        assert server.get("/").status == 200


def test_companion_reload_all_replaces_the_manager_without_holding_up_the_rest() -> None:
    settings = {"companion_reload": "all", "workers": 2}
    with companion_server(entry("a", "idle"), entry("drain", env={"UNTIL": "done"}), **settings) as server:
        before = settled(server, "a", "drain")
        manager = server.wait_manager()
        workers = hup(server, 2)
        assert is_alive(before["drain"] or 0)
        os.kill(workers[0], signal.SIGKILL)
        server.wait_workers(2, timeout=2, without=[workers[0]])
        assert is_alive(before["drain"] or 0), "all of that during the drain"
        server.signal(signal.SIGTTIN)
        server.wait_workers(3, timeout=2)
        assert server.get("/").status == 200
        server.write("done", "")
        server.wait_manager(10, without=manager)
        after = settled(server, "a", "drain")
        assert after["a"] != before["a"] and after["drain"] != before["drain"]
        assert pids_in(server, "drain.drained") == [before["drain"]]
        assert len([s for s in signals(server, "drain") if s[0] == before["drain"]]) == 1
        assert overlaps(server) == []


def all_at_once(*more: dict[str, Any], **settings: Any) -> Server:
    companions = [entry("quick", "idle"), entry("drain", env={"UNTIL": "done"}), *more]
    return companion_server(*companions, companion_reload="all", **settings)


def replace_manager(server: Server) -> int:
    """SIGHUP; the old manager, once there is another."""
    old = server.wait_manager()
    server.signal(signal.SIGHUP)
    server.wait_manager(10, without=old)
    return old


def test_with_reload_all_a_quick_companion_is_back_while_a_slow_one_drains() -> None:
    others = entry("off", "idle"), entry("failed", "nothing", start_retries=1)
    with all_at_once(*others, entry("beside", "idle", singleton=False)) as server:
        before = settled(server, "quick", "drain", "beside", "off")
        assert server.ask("stop", "off")["ok"]
        wait_until(lambda: server.companion("failed")["state"] == "STOPPED")
        old = replace_manager(server)
        wait_waiting(server, "drain", before["drain"])
        quick = server.wait_companion("quick", without=[before["quick"] or 0])["pid"]
        assert server.companion("off")["description"] == "stopped manually"
        wait_until(lambda: "Companion failed" in server.log().partition("waits: another")[2])
        assert is_alive(old) and is_alive(before["drain"] or 0)
        # The new manager answers commands, and they hold.
        assert server.ask("restart", "quick")["ok"]
        quick = server.wait_companion("quick", without=[quick])["pid"]
        assert server.ask("stop", "drain")["ok"]
        assert server.ask("start", "drain")["ok"]
        server.write("done", "")
        wait_until(lambda: not is_alive(old), 10, "the old manager gone")
        after = server.wait_companion("drain", without=[before["drain"] or 0])
        assert len([s for s in signals(server, "drain") if s[0] == before["drain"]]) == 1
        assert pids_in(server, "drain.drained")[0] == before["drain"] != after["pid"]
        assert server.companion("quick")["pid"] == quick
        assert server.wait_manager() != old
        assert {path.name for path in server.dir.glob("*.overlap")} <= {"beside.overlap"}


@pytest.mark.parametrize("whose", ["old", "new", "both"])
def test_a_manager_that_dies_while_it_is_replaced(whose: str) -> None:
    with all_at_once(companion_stop_timeout=5) as server:
        before = settled(server, "quick", "drain")
        old = replace_manager(server)
        wait_waiting(server, "drain", before["drain"])
        new = server.wait_manager()
        if whose in ("old", "both"):
            os.kill(old, signal.SIGKILL)
        if whose in ("new", "both"):
            os.kill(new, signal.SIGKILL)
            server.wait_manager(10, without=new)
        assert is_alive(before["drain"] or 0)
        wait_waiting(server, "drain", before["drain"])
        server.write("done", "")
        for name in ("quick", "drain"):
            server.wait_companion(name, without=[before[name] or 0])
        assert overlaps(server) == []


def test_a_removed_companion_ends_though_its_manager_dies() -> None:
    with all_at_once(companion_stop_timeout=1) as server:
        before = settled(server, "quick", "drain")
        reconfigure(server, entry("quick", "idle"), companion_reload="all")
        old = replace_manager(server)
        server.wait_companion("quick", without=[before["quick"] or 0])
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: not is_alive(before["drain"] or 0), 10, "ended")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_server_ends_while_a_manager_is_replaced(sig: int) -> None:
    with all_at_once(entry("stubborn", stop_timeout=1, reload_timeout=1)) as server:
        before = settled(server, "quick", "drain", "stubborn")
        old = replace_manager(server)
        wait_waiting(server, "drain", before["drain"])
        wait_waiting(server, "stubborn", before["stubborn"])
        server.write("done", "")
        if sig == signal.SIGKILL:
            server.kill()
        else:
            server.signal(sig)
            assert server.wait_exit(15) == 0
        wait_until(lambda: not is_alive(old), 15)
        assert overlaps(server) == []
        server.kill_tree()


def test_a_killed_worker_is_replaced_during_a_drain_on_hup() -> None:
    """The drain may take longer than a stop: its limit is reload_timeout."""
    server = companion_server(
        entry("drain", env={"UNTIL": "done"}),
        companion_reload_timeout=30,
        companion_stop_timeout=1,
        workers=2,
    )
    with server:
        before = settled(server, "drain")
        reconfigure(server, entry("drain", env={"DRAIN": "0"}), workers=2, companion_reload_timeout=30)
        hup(server, 2)
        asked = wait_until(lambda: signals(server, "drain"))[0][2]
        for _ in range(3):
            victim = server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            server.wait_workers(2, timeout=2, without=[victim])
        wait_until(lambda: time.time() > asked + 1.3)
        assert server.companion("drain")["state"] == "STOPPING"
        server.write("done", "")
        server.wait_companion("drain", without=[before["drain"] or 0])
        assert pids_in(server, "drain.drained") == [before["drain"]]


# -- reread --


# Fails in the master alone, as long as there is a file "broken".
BROKEN_FOR_THE_MASTER = """
import os
if os.path.exists("broken") and open("g.pid").read().strip() == str(os.getpid()):
    1/0
"""


def test_the_master_reads_again_for_the_next_manager_what_it_could_not_read() -> None:
    with companion_server(*TWO, extra=BROKEN_FOR_THE_MASTER, pidfile="g.pid") as server:
        settled(server, "a", "b")
        reconfigure(
            server, entry("b", "idle"), entry("c", "idle"), extra=BROKEN_FOR_THE_MASTER, pidfile="g.pid"
        )
        broken = server.write("broken", "")
        assert server.ask("reread")["removed"] == ["a"]
        server.wait_log("Cannot save the companions' new configuration for the next manager")
        broken.unlink()
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(20, without=manager)
        settled(server, "b", "c")
        assert len(starts(server, "a")) == 1


def test_reread_from_a_companion_config_file() -> None:

    def text_of(*companions: dict[str, Any]) -> str:
        return f"companion_startsecs = 0.1\ncompanion_workers = {list(companions)!r}\n"

    files = {"companions.py": text_of(entry("a", "idle"))}
    text = "companion_config_file = 'companions.py'\ncompanion_startsecs = 5\n"
    from e2e_apps import JOBS, WEB

    with Server(WEB, text, files={"jobs.py": JOBS, **files}) as server:
        pid = server.wait_companion("a", timeout=4)["pid"]
        server.write("companions.py", text_of(entry("a", "idle"), entry("b", "idle")))
        assert server.ask("reread")["added"] == ["b"]
        server.wait_companion("b")
        server.write("companions.py", "1/0")
        reply = server.ask("reread")
        assert (reply["ok"], reply["kept_old_config"]) == (False, True)
        assert "companions.py" in reply["error"]
        server.write("companions.py", "workers = 3\n")
        reply = server.ask("reread")
        assert reply["ok"] is False, "only companion settings belong there"
        server.write("companions.py", text_of(entry("a", "idle")))
        assert server.ask("reread")["removed"] == ["b"]
        assert server.companion("a")["pid"] == pid


def test_a_stop_uses_the_reread_stop_timeout() -> None:
    """A reread that lengthens stop_timeout lengthens the arbiter's wait for the manager, too."""
    settings = {"companion_stop_timeout": 0.5, "companion_manager_shutdown_buffer": 0.5}
    with companion_server(entry("drain", env={"DRAIN": "1.5"}), **settings) as server:
        pid = server.wait_companion("drain")["pid"]
        settings["companion_stop_timeout"] = 20
        reconfigure(server, entry("drain", env={"DRAIN": "1.5"}), **settings)
        assert server.ask("reread")["updated"] == ["drain"]
        started = time.monotonic()
        assert server.stop() == 0
        assert 1.4 < time.monotonic() - started < 4
        assert pids_in(server, "drain.drained") == [pid]


def test_rereads_and_hups_in_a_row() -> None:
    with companion_server(*TWO) as server:
        before = settled(server, "a", "b")
        for turn in range(4):
            extra = [entry("c", "idle")] if turn % 2 == 0 else []
            reconfigure(server, *TWO, *extra)
            if turn < 2:
                assert server.ask("reread")["ok"]
            server.signal(signal.SIGHUP)
            want = {"a", "b", *(item["name"] for item in extra)}
            wait_until(lambda want=want: set(server.companions()) == want, 8, f"{want}")
        assert {name: pid for name, pid in pids(server).items() if name in before} == before


def test_an_address_moves_from_one_companion_to_another(tmp_path: Path) -> None:
    one, two = f"unix:{tmp_path}/1", f"unix:{tmp_path}/2"

    def slow(name: str, bind: str, **keys: Any) -> dict[str, Any]:
        return entry(name, "drain", bind=bind, start_retries=1, env={"UNTIL": f"{name}.end"}, **keys)

    with companion_server(slow("old", one), slow("swap", two)) as server:
        before = settled(server, "old", "swap")
        # `new` takes the address of a removed companion, `heir` that of one that is restarted elsewhere.
        reconfigure(server, slow("new", one), slow("swap", f"unix:{tmp_path}/3"), slow("heir", two))
        assert server.ask("reread")["ok"]
        for name, pid in (("new", before["old"]), ("heir", before["swap"])):
            wait_until(lambda name=name: server.companion(name)["state"] == "STARTING")  # type: ignore[misc]
            wait_until(lambda name=name, pid=pid: server.companion(name)["waiting_for"] == pid)  # type: ignore[misc]
            assert server.companion(name)["failed_starts"] == 0
        for name in ("old", "swap"):
            server.write(f"{name}.end", "")
        for name in ("new", "heir"):
            server.wait_companion(name)
            server.write(f"{name}.end", "")
        server.write("swap.end", "")


# -- a release behind a symbolic link --

JOB = """
import json, os, time
from pathlib import Path

import lib

def run():
    here = Path(os.environ["NOTES"]) / os.environ["GUNICORN_COMPANION_NAME"]
    note = {"release": RELEASE, "cwd": os.getcwd(), "lib": lib.NAME,
            "raw": os.environ.get("RAW"), "file": os.environ.get("FROM_FILE")}
    here.with_suffix(".new").write_text(json.dumps(note))
    here.with_suffix(".new").rename(here.with_suffix(".note"))
    while True:
        time.sleep(1000)

if __name__ == "__main__":
    run()
"""


def release_server(*more: dict[str, Any], **settings: Any) -> Server:
    server = Server("", "", ["--chdir", "current"])
    web = "import os\ndef app(environ, start):\n    start('200 OK', [])\n    return [os.getcwd().encode()]\n"
    for release in ("r1", "r2"):
        server.write(f"{release}/app.py", web)
        server.write(f"{release}/job.py", f"RELEASE = {release!r}\n{JOB}")
        server.write(f"{release}/lib/lib.py", f"NAME = {release!r}\n")
    switch(server, "r1", *more, **settings)
    return server


def switch(server: Server, release: str, *more: dict[str, Any], **settings: Any) -> None:
    link = server.dir / "link"
    link.symlink_to(release)
    link.rename(server.dir / "current")
    library = str(server.dir / release / "lib")
    companions = [
        {"name": "t", "target": "job:run"},
        {"name": "c", "command": ["python3", "job.py"], "env": {"PYTHONPATH": library}},
        *more,
    ]
    extra = f"import os\nos.environ['FROM_FILE'] = {release!r}\n"
    raw_env = [f"RAW={release}", f"NOTES={server.dir}"]
    options: dict[str, Any] = {"raw_env": raw_env, "pythonpath": library, **settings}
    server.write("gunicorn.conf.py", config_text(*companions, extra=extra, **options))


def note_of(server: Server, name: str, command: str = "") -> dict[str, Any]:
    """What the companion *name* sees; with *command*, after that."""
    path = server.dir / f"{name}.note"
    if command:
        path.unlink(missing_ok=True)
        assert server.ask(command, name)["ok"]
    wait_until(path.exists, 10, f"{name} has started")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def seen(server: Server, release: str) -> dict[str, Any]:
    return {
        "release": release,
        "cwd": str(server.dir / release),
        "lib": release,
        "raw": release,
        "file": release,
    }


def test_after_a_hup_companions_start_in_the_new_release() -> None:
    with release_server() as server:
        for name in ("t", "c"):
            assert note_of(server, name) == seen(server, "r1")
        manager = server.wait_manager()
        switch(server, "r2", {"name": "new", "target": "job:run"})
        hup(server)
        assert server.get("/").text == str(server.dir / "r2")
        shutil.rmtree(server.dir / "r1")
        assert note_of(server, "new") == seen(server, "r2")
        for name in ("t", "new"):
            assert note_of(server, name, "restart") == seen(server, "r2")
        # A change of `env` restarts by itself.
        wait_until(lambda: note_of(server, "c") == seen(server, "r2"), 10, lambda: f"{note_of(server, 'c')}")
        (server.dir / "t.note").unlink()
        os.kill(server.companion("t")["pid"], signal.SIGKILL)
        assert note_of(server, "t") == seen(server, "r2")
        assert server.manager() == manager
        # The next manager has it from the master.
        (server.dir / "t.note").unlink()
        os.kill(manager, signal.SIGKILL)
        assert note_of(server, "t") == seen(server, "r2")
        assert "keep the old" not in server.log()


def test_a_variable_that_is_set_no_more_is_gone() -> None:
    with release_server() as server:
        note_of(server, "t")
        switch(server, "r2", raw_env=[f"NOTES={server.dir}"])
        hup(server)
        assert note_of(server, "t", "restart") == {**seen(server, "r2"), "raw": None}


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")
def test_a_directory_that_companions_may_not_enter_is_logged() -> None:
    where = {"name": "where", "command": ["sh", "-c", "echo in $PWD; exec sleep 1000"]}
    settings = {"user": "nobody", "preload_app": True}
    server = companion_server(where, **settings, prefix_option=reachable_for_all())
    server.notes_starts = False
    server.run_dir.chmod(0o755)
    with server:
        server.wait_log(f"in {server.dir}")
        closed = server.dir / "closed"
        closed.mkdir(mode=0o700)
        reconfigure(server, where, **settings, chdir=str(closed))
        hup(server)
        server.wait_log(f"cannot enter {closed}: Permission denied")
        pid = server.companion("where")["pid"]
        assert server.ask("restart", "where")["ok"]
        server.wait_companion("where", without=[pid])
        assert f"in {closed}" not in server.log()


def test_a_dry_run_changes_nothing() -> None:
    hook = "def companion_exit(manager, companion):\n    manager.log.info('hook {}')\n"
    with companion_server(*TWO, extra=hook.format("one")) as server:
        settled(server, "a", "b")
        reconfigure(server, *TWO, extra=hook.format("two"))
        assert server.ask("reread", dry_run=True)["ok"]
        assert server.ask("restart", "a")["ok"]
        server.wait_log("hook one")
        assert server.ask("reread")["ok"]
        assert server.ask("restart", "a")["ok"]
        server.wait_log("hook two")
