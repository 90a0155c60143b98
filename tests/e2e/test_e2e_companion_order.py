# SPDX-License-Identifier: MIT
"""The order of starts (`after`) and the hooks around them: companion_pre_fork, companion_exit."""

from __future__ import annotations

import itertools
import os
import re
import signal
import textwrap

from e2e_apps import JOBS
from e2e_companions import companion_server, entry, reconfigure, starts
from harness import ROOT, Server, wait_until

TARGETS = (
    JOBS
    + '''
from gunicorn.companion import notify

def until_told():
    """Is ready once the file <name>.go is there."""
    begin()
    while not os.path.exists(os.path.join(HERE, f"{name()}.go")):
        time.sleep(0.02)
    notify(ready=True)
    sleep_forever()

def until_told_and_done():
    """A job: it is done once the file <name>.go is there."""
    begin()
    while not os.path.exists(os.path.join(HERE, f"{name()}.go")):
        time.sleep(0.02)
'''
)
FILES = {"jobs.py": TARGETS}


def go(server: Server, name: str) -> None:
    server.write(f"{name}.go", "")


def names_waited_for(server: Server, name: str) -> list[str]:
    found = server.companion(name)
    assert found["pid"] is None or not found["after"]
    after: list[str] = found["after"]
    return after


# -- the order --


def test_a_companion_starts_when_those_it_comes_after_run() -> None:
    """A chain that is configured backwards: the last first, and copies in the middle."""
    server = companion_server(
        entry("mail", "idle", after=["rq", "db"]),
        entry("rq", "until_told", ready="notify", numprocs=2, after=["db"]),
        entry("db", "until_told", ready="notify"),
        entry("alone", "idle"),
        files_option=FILES,
    )
    with server:
        server.wait_companion("alone")
        found = server.companions()
        assert found["db"]["state"] == "STARTING" and found["db"]["pid"]
        for name, after in (("rq:0", ["db"]), ("rq:1", ["db"]), ("mail", ["rq", "db"])):
            assert (found[name]["state"], found[name]["pid"]) == ("STARTING", None)
            assert found[name]["after"] == after
            assert found[name]["description"] == f"waiting for {', '.join(after)}"
        # The wait blocks nothing.
        assert server.get("/").status == 200
        assert starts(server, "rq:0") == []

        go(server, "db")
        server.wait_companion("db")
        wait_until(lambda: starts(server, "rq:0") and starts(server, "rq:1"), 10, "the copies start")
        assert names_waited_for(server, "mail") == ["rq"]
        go(server, "rq:1")
        server.wait_companion("rq:1")
        # One copy is not all of them.
        assert names_waited_for(server, "mail") == ["rq"]
        go(server, "rq:0")
        server.wait_companion("mail")
        times = [starts(server, name)[0][1] for name in ("db", "rq:0", "mail")]
        assert times == sorted(times)

        # The order concerns starts alone: `mail` runs on when `db` stops.
        mail = server.companion("mail")["pid"]
        server.ask("stop", "db")
        server.wait_companion("db", "STOPPED")
        assert server.companion("mail")["pid"] == mail
        assert server.companion("rq:0")["state"] == "RUNNING"
        server.ask("restart", "rq:0")
        wait_until(lambda: names_waited_for(server, "rq:0") == ["db"], 10, "rq:0 waits anew")
        server.ask("start", "db")
        server.wait_companion("rq:0")


def test_a_companion_that_never_runs_holds_up_only_those_after_it() -> None:
    server = companion_server(
        entry("db", "exit3", startsecs=5, restart_delay=0.1),
        entry("a", "idle", after=["db"]),
        entry("b", "idle"),
        files_option=FILES,
    )
    with server:
        server.wait_companion("b")
        wait_until(lambda: len(starts(server, "db")) >= 4, 10, "four starts of db")
        # The reason is shown too if `db` is between two processes.
        assert server.companion("a")["description"].startswith("waiting for db")
        assert starts(server, "a") == []
        assert server.get("/").status == 200
        # Stopped, it waits for no companion; started, it waits again.
        server.ask("stop", "a")
        found = server.wait_companion("a", "STOPPED")
        assert (found["description"], found["after"]) == ("stopped manually", [])
        server.ask("start", "a")
        assert names_waited_for(server, "a") == ["db"]
        reconfigure(
            server,
            entry("db", "idle", startsecs=0.1),
            entry("a", "idle", after=["db"]),
            entry("b", "idle"),
        )
        assert server.ask("reread")["ok"]
        server.wait_companion("a")
        assert len(starts(server, "a")) == 1


def test_a_companion_starts_after_a_job_that_is_done() -> None:
    """Migrations first; they are done once, also for a manager that takes over."""
    server = companion_server(
        entry("migrate", "until_told_and_done", autorestart="on-failure", startsecs=60),
        entry("a", "idle", after=["migrate"]),
        files_option=FILES,
    )
    with server:
        wait_until(lambda: starts(server, "migrate"), 10, "migrate starts")
        assert names_waited_for(server, "a") == ["migrate"]
        go(server, "migrate")
        before = server.wait_companion("a")
        done = server.wait_companion("migrate", "STOPPED")
        assert (done["reason"], done["description"]) == ("exited", "done, exited with status 0")

        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(without=manager)
        server.wait_companion("a", without=[before["pid"]])
        after = server.companion("migrate")
        for key in ("state", "reason", "description", "last_exit_code"):
            assert after[key] == done[key]
        assert len(starts(server, "migrate")) == 1


# -- hooks --

HOOKS = """
def _note(hook, manager, companion):
    import os
    with open("hooks", "a") as f:
        f.write(f"{hook} {os.getpid()} {manager.pid} {type(manager).__name__} {companion.name}"
                f" {companion.state.value} {companion.pid} {companion.last_exit_code}\\n")

def companion_pre_fork(manager, companion):
    _note("pre_fork", manager, companion)

def companion_post_fork(manager, companion):
    _note("post_fork", manager, companion)

def companion_exit(manager, companion):
    _note("exit", manager, companion)
"""


def notes(server: Server, name: str) -> list[list[str]]:
    """What the hooks noted of one companion, without the manager's type."""
    lines = [line.split() for line in server.log("hooks").splitlines()]
    assert {line[3] for line in lines} <= {"CompanionManager"}
    return [[*line[:3], *line[5:]] for line in lines if line[4] == name]


def test_hooks_run_in_the_right_process_with_the_right_arguments() -> None:
    server = companion_server(
        entry("a", "idle"), entry("job", "exit3", restart_delay=60), extra=HOOKS, files_option=FILES
    )
    with server:
        manager = str(server.wait_manager())
        wait_until(lambda: len(notes(server, "job")) == 3, 10, lambda: server.log("hooks"))
        (job,) = {pid for pid, _time in starts(server, "job")}
        assert notes(server, "job") == [
            ["pre_fork", manager, manager, "STARTING", "None", "None"],
            ["post_fork", str(job), manager, "STARTING", "None", "None"],
            # The exit is recorded by then.
            ["exit", manager, manager, "BACKOFF", "None", "3"],
        ]
        pid = server.wait_companion("a")["pid"]
        server.ask("restart", "a")
        new = server.wait_companion("a", without=[pid])["pid"]
        wait_until(lambda: len(notes(server, "a")) == 5, 10, lambda: server.log("hooks"))
        assert [(line[0], line[1]) for line in notes(server, "a")] == [
            ("pre_fork", manager),
            ("post_fork", str(pid)),
            ("exit", manager),
            ("pre_fork", manager),
            ("post_fork", str(new)),
        ]
        assert notes(server, "a")[2][3:] == ["STOPPING", "None", "None"]
        assert server.stop() == 0
        assert notes(server, "a")[-1][0] == "exit"
        assert len(notes(server, "job")) == 3


def test_the_hook_of_the_manual_reports_failures_and_no_ordinary_stops() -> None:
    page = (ROOT / "docs/companions.rst").read_text()
    (hook,) = re.findall(r"^   (def companion_exit\(.*\n(?:    .*\n)+)", page, re.MULTILINE)
    retries = entry("hopeless", "exit3", startsecs=60, start_retries=1, restart_delay=0.1)
    server = companion_server(
        entry("a", "idle"), retries, extra=textwrap.dedent(f"   {hook}"), files_option=FILES
    )
    with server:
        pid = server.wait_companion("a")["pid"]
        server.ask("restart", "a")
        pid = server.wait_companion("a", without=[pid])["pid"]
        server.ask("stop", "a")
        server.wait_companion("a", "STOPPED")
        server.ask("start", "a")
        pid = server.wait_companion("a", without=[pid])["pid"]
        os.kill(pid, signal.SIGKILL)
        server.wait_log("[ERROR] a: killed by SIGKILL")
        server.wait_log("[ERROR] hopeless: exited with status 3")
        server.wait_companion("a", without=[pid])
        assert server.stop() == 0
        assert server.log().count("[ERROR] a: ") == 1


def test_a_hook_that_raises_changes_nothing_else() -> None:
    """Not even if it raises SystemExit."""
    hooks = "\n".join(
        f"def companion_{hook}(manager, companion):\n    raise SystemExit(5)\n"
        for hook in ("pre_fork", "exit")
    )
    with companion_server(entry("a", "idle"), entry("b", "idle"), extra=hooks) as server:
        manager = server.wait_manager()
        pids = [server.wait_companion("a")["pid"]]
        for _ in range(2):
            os.kill(pids[-1], signal.SIGKILL)
            pids.append(server.wait_companion("a", without=pids)["pid"])
        server.wait_companion("b")
        assert server.manager() == manager
        log = server.log()
        for hook, count in (("companion_pre_fork", 4), ("companion_exit", 2)):
            found = [line for line in log.splitlines() if hook in line and "companion a" in line]
            assert len(found) >= count - 1, log
        for (_, earlier), (_, later) in itertools.pairwise(starts(server, "a")):
            assert earlier < later
