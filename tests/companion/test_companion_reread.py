# SPDX-License-Identifier: MIT
"""reread: a transaction that touches only what differs."""

from __future__ import annotations

import time

import pytest
from harness import is_alive, wait_until
from managertools import gone

from gunicorn.unix import session

pytestmark = pytest.mark.skipif(not session.HAVE_PROC, reason="looks at processes by /proc")

EMPTY = {"ok": True, "added": [], "removed": [], "restarted": [], "updated": [], "unchanged": []}


def test_all_kinds_of_change_at_once(managed):
    server = managed("""
        names = ("same", "same2", "gone", "shaped", "limits", "delay")
        workers = [dict(name=name, target=T.obey) for name in names]
    """)
    before = {name: server.pid(name) for name in server.status()}
    server.configure("""
        workers = [
            dict(name="new", target=T.obey),
            dict(name="off", target=T.obey, autostart=False),
            dict(name="same2", target=T.obey),
            dict(name="same", target=T.obey),
            dict(name="shaped", target=T.obey, env={"A": "b"}),
            dict(name="limits", target=T.obey, stop_timeout=7, stop_signal="INT"),
            dict(name="delay", target=T.obey, restart_delay=3),
        ]
    """)
    assert server.ok("reread") == {
        "ok": True,
        "added": ["new", "off"],
        "removed": ["gone"],
        "restarted": ["shaped"],
        "updated": ["delay", "limits"],
        "unchanged": ["same", "same2"],
    }
    gone(before["gone"])
    wait_until(lambda: set(server.status()) == {"new", "off", "same", "same2", "shaped", "limits", "delay"})
    server.wait("new")
    server.pid("shaped", without=[before["shaped"], None])
    after = server.status()
    assert {name: after[name]["pid"] for name in ("same", "same2", "limits", "delay")} == {
        name: before[name] for name in ("same", "same2", "limits", "delay")
    }
    assert after["off"]["state"] == "STOPPED"
    assert after["delay"]["restart_delay"] == 3
    assert after["shaped"]["last_exit_signal"] == "SIGTERM"
    # What applies to what runs does so.
    server.ok("stop", "limits")
    assert server.wait("limits", "STOPPED")["last_exit_signal"] == "SIGINT"


def test_nothing_changed(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    pid = server.pid("rq")
    assert server.ok("reread") == {**EMPTY, "unchanged": ["rq"]}
    # A function that is made anew by the configuration file is still that function.
    server.configure("def run(): T.obey()\nworkers = [dict(name='rq', target=run)]")
    assert server.ok("reread") == {**EMPTY, "restarted": ["rq"]}
    pid = server.pid("rq", without=[pid, None])
    assert server.ok("reread") == {**EMPTY, "unchanged": ["rq"]}
    assert server.pid("rq") == pid


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("workers = [", "'[' was never closed (conf.py, line 2)"),
        ("raise SystemExit(3)", "the configuration calls sys.exit(3)"),
        ("raise ValueError", "ValueError"),
        ("1 / 0", "division by zero"),
        ("from nosuchmodule import workers", "No module named 'nosuchmodule'"),
        (
            "workers = [dict(name='rq', target=T.obey, stop_timeout=-1), dict(name='b')]",
            "invalid companion configuration: 2 mistakes:\n"
            "  companion 'rq': stop_timeout: -1 is not a time of 0 or more seconds\n"
            "  companion 'b': target: missing",
        ),
    ],
)
def test_a_wrong_configuration_changes_nothing(managed, config, error):
    server = managed(
        "workers = [dict(name='rq', target=T.obey), dict(name='off', target=T.obey, autostart=False)]"
    )
    pid = server.pid("rq")
    server.configure(config)
    reply = server.ask("reread")
    assert reply == {"ok": False, "error": reply["error"], "kept_old_config": True}
    assert reply["error"] == error
    # Together on one line of the log.
    line = error.replace(":\n  ", ": ").replace("\n  ", "; ")
    assert f"companions keep their configuration: {line}" in server.log()
    assert server.pid("rq") == pid
    assert set(server.status()) == {"rq", "off"}
    assert server.events("message") == []
    # And the next one that is right is applied.
    server.configure("workers = [dict(name='rq', target=T.obey)]")
    assert server.ok("reread")["removed"] == ["off"]


def test_a_manager_that_may_not_read_the_file_says_so(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    server.configure("raise ConfigUnreadable('conf.py: Permission denied')")
    reply = server.ask("reread")
    assert reply["error"] == ("conf.py: Permission denied; send SIGHUP to the master, which may read it")
    assert reply["kept_old_config"]
    wait_until(lambda: server.events("message") == [{"unreadable": True}])


def test_a_manager_without_a_loader_says_so(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]", reread=False)
    assert server.ask("reread")["error"] == "this manager has no configuration to read"


def test_the_master_is_told_what_was_applied(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    server.ok("reread")
    wait_until(lambda: server.events("message"))
    (message,) = server.events("message")
    assert set(message["reread"]) == {"rq"}
    before = message["reread"]["rq"]
    # What needs no restart is no less a change, for the next manager.
    server.configure("workers = [dict(name='rq', target=T.obey, restart_delay=77)]")
    assert server.ok("reread")["updated"] == ["rq"]
    wait_until(lambda: server.events("message")[1:])
    assert server.events("message")[1]["reread"]["rq"] != before


def test_a_removed_companion_stays_in_the_table_while_it_drains(managed):
    server = managed("workers = [dict(name='rq', target=T.drain), dict(name='b', target=T.obey)]")
    pid = server.pid("rq")
    server.wait_told("rq", "runs")
    server.configure("workers = [dict(name='b', target=T.obey)]")
    assert server.ok("reread")["removed"] == ["rq"]
    assert server.status()["rq"]["state"] == "STOPPING"
    server.wait_told("rq", "SIGTERM")
    # A second reread says nothing more of it, and does not signal it again.
    assert server.ok("reread") == {**EMPTY, "unchanged": ["b"]}
    server.go_on()
    wait_until(lambda: set(server.status()) == {"b"})
    assert not is_alive(pid)
    assert server.read("rq.told").count("SIGTERM") == 1
    assert "no companion named rq" in server.ask("start", "rq")["error"]


def test_a_removed_companion_is_killed_at_its_deadline(managed):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=0.3)]")
    server.pid("rq")
    server.wait_told("rq", "runs")
    server.configure("workers = []")
    begun = time.monotonic()
    server.ok("reread")
    wait_until(lambda: server.status() == {})
    assert time.monotonic() - begun >= 0.3


def test_a_name_that_comes_back_waits_for_the_old_process(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.configure("workers = []")
    server.ok("reread")
    server.wait_told("rq", "SIGTERM")
    server.configure("workers = [dict(name='rq', target=T.drain, env={'A': 'b'})]")
    assert server.ok("reread") == {**EMPTY, "added": ["rq"]}
    found = server.status()["rq"]
    assert (found["state"], found["pid"], found["restart_pending"]) == ("STOPPING", old, True)
    server.go_on()
    new = server.pid("rq", without=[old, None])
    server.wait_told("rq", f"runs {new}")
    words = [line.split()[0] for line in server.told("rq")]
    assert words == ["runs", "SIGTERM", "finished", "runs"]


def test_a_removed_companion_without_a_process_is_gone_at_once(managed):
    server = managed("""
        settings = dict(restart_delay=60)
        workers = [dict(name="off", target=T.obey, autostart=False), dict(name="failed", target=T.exit_3)]
    """)
    server.wait("failed", "BACKOFF")
    server.configure("workers = []")
    server.ok("reread")
    wait_until(lambda: server.status() == {})


def test_a_restart_has_the_new_reload_timeout(managed):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=60, reload_timeout=60)]")
    old = server.pid("rq")
    server.wait_told("rq", "runs")
    server.configure("workers = [dict(name='rq', target=T.obey, stop_timeout=60, reload_timeout=0.2)]")
    assert server.ok("reread")["restarted"] == ["rq"]
    server.pid("rq", without=[old, None])
    assert not is_alive(old)


def test_a_stopped_companion_takes_its_configuration_without_a_start(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    server.pid("rq")
    server.ok("stop", "rq")
    server.wait("rq", "STOPPED")
    server.configure("workers = [dict(name='rq', target=T.exit_4, restart_delay=60)]")
    assert server.ok("reread") == {**EMPTY, "updated": ["rq"]}
    found = server.status()["rq"]
    assert (found["state"], found["manual_stop"]) == ("STOPPED", True)
    server.ok("start", "rq")
    assert server.wait("rq", "BACKOFF")["last_exit_code"] == 4


def test_a_changed_companion_in_backoff_starts_at_once(managed):
    server = managed("workers = [dict(name='rq', target=T.exit_3, restart_delay=60)]")
    server.wait("rq", "BACKOFF")
    server.configure("workers = [dict(name='rq', target=T.exit_3, restart_delay=60, stop_timeout=1)]")
    assert server.ok("reread")["updated"] == ["rq"]
    assert server.status()["rq"]["exit_count"] == 1
    server.configure("workers = [dict(name='rq', target=T.obey, restart_delay=60)]")
    assert server.ok("reread")["restarted"] == ["rq"]
    server.wait("rq")


def test_a_hook_of_the_new_configuration_counts(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    server.pid("rq")
    server.configure("""
        settings = dict(restart_delay=60)
        workers = [dict(name='rq', target=T.obey), dict(name='b', target=T.obey)]
        def hook(manager, companion):
            raise ValueError(f"hook of {companion.name} in {companion.config.name}")
    """)
    server.ok("reread")
    assert "hook of b in b" in server.wait("b", "BACKOFF")["description"]


@pytest.mark.parametrize(("before", "after"), [(None, 2), (2, None)])
def test_a_set_waits_for_the_single_companion_that_it_replaces(managed, before, after):
    def config(numprocs: int | None) -> str:
        return f"workers = [dict(name='rq', target=T.drain, numprocs={numprocs})]"

    def names(numprocs: int | None) -> list[str]:
        return ["rq"] if numprocs is None else [f"rq:{n}" for n in range(numprocs)]

    server = managed(config(before))
    old = [server.pid(name) for name in names(before)]
    for name in names(before):
        server.wait_told(name, "runs")
    server.configure(config(after))
    assert server.ok("reread")["added"] == names(after)
    for name in names(after):
        wait_until(lambda name=name: server.status()[name]["waiting_for"] in old)
        assert server.status()[name]["state"] == "STARTING"
    assert all(map(is_alive, old))
    server.go_on()
    for name in names(after):
        server.pid(name, without=[None])
    assert not any(map(is_alive, old))
