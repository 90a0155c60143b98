# SPDX-License-Identifier: MIT
"""The arbiter's companion methods as embedders call them, one by one, without a running server."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.companion.config import build_companion_configs
from gunicorn.companion.server.link import Link
from gunicorn.errors import HaltServer
from gunicorn.master.handoff import Inherited


class Embedded(BaseApplication):
    def load_config(self) -> None:
        pass

    def load(self) -> Callable[..., Any]:
        return lambda environ, start_response: []


COMPANIONS = [
    {"name": "quick", "target": "no_such_module:run"},
    {"name": "slow", "target": "no_such_module:run", "stop_timeout": 100, "reload_timeout": 20},
]


CHAIN = [
    {"name": "store", "target": "no_such_module:run", "stop_timeout": 50},
    {"name": "rq", "target": "no_such_module:run", "stop_timeout": 100, "numprocs": 2, "after": ["store"]},
    {"name": "alone", "target": "no_such_module:run", "stop_timeout": 90},
]


@pytest.fixture
def arbiter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arbiter]:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    made = Arbiter(Embedded())
    yield made
    if made.companions is not None:
        made.companions.drop_link()


def test_without_companions_nothing_is_imported_or_spawned(arbiter: Arbiter) -> None:
    with mock.patch.object(arbiter, "spawn_companion_manager") as spawn:
        arbiter.manage_companion_manager()
        arbiter.reload_companion_manager()
    spawn.assert_not_called()
    assert arbiter.companions is None
    assert arbiter.companion_manager_stop_timeout() == 0


def test_a_manager_is_spawned_where_there_is_none(arbiter: Arbiter) -> None:
    arbiter.cfg.set("companion_workers", COMPANIONS)
    with mock.patch.object(arbiter, "spawn_companion_manager") as spawn:
        arbiter.manage_companion_manager()
        spawn.assert_called_once_with()
        arbiter.companion_manager_pid = 5
        arbiter.manage_companion_manager()
        spawn.assert_called_once_with()
    assert "no_such_module" not in sys.modules


def test_while_a_reload_is_on_trial_no_new_companion_comes(arbiter: Arbiter) -> None:
    arbiter.cfg.set("companion_workers", COMPANIONS[:1])
    arbiter.replace_workers()
    with mock.patch.object(arbiter, "spawn_companion_manager") as spawn:
        arbiter.manage_companion_manager()
        assert not spawn.called
    # A manager that dies meanwhile is replaced by one with the companions from before.
    assert arbiter.companions is not None
    arbiter.companions.configs = before = build_companion_configs(arbiter.cfg)
    arbiter.cfg.set("companion_workers", COMPANIONS)
    with mock.patch("os.fork", return_value=5):
        arbiter.manage_companion_manager()
    assert arbiter.companion_manager_pid == 5 and arbiter.companions.configs is before
    arbiter.companions.pid = 0


@pytest.mark.parametrize(
    ("run_dir", "spawned"),
    [
        pytest.param(None, True, id="the old master has no companions"),
        pytest.param("{tmp}/run", True, id="its run directory is ours"),
        pytest.param("{tmp}/not-yet", True, id="it is not there yet"),
        pytest.param("", False, id="its companions leave no records"),
        pytest.param("{tmp}/others", False, id="they are not for us"),
        pytest.param("{tmp}/file/run", False, id="they cannot be there"),
    ],
)
def test_beside_an_old_master_there_is_a_manager_where_each_sees_the_other_s_records(
    arbiter: Arbiter, short_dir: Path, run_dir: str | None, spawned: bool
) -> None:
    (short_dir / "run").mkdir(mode=0o700)
    (short_dir / "others").mkdir(mode=0o500)
    (short_dir / "file").touch()
    if os.geteuid() == 0:
        os.chown(short_dir / "others", 12345, 12345)
        arbiter.cfg.set("user", 54321)
        os.chown(short_dir / "run", 54321, 0)
    arbiter.cfg.set("companion_workers", COMPANIONS)
    arbiter.master_pid = os.getppid()
    arbiter.given = Inherited(companion_run_dir=run_dir and run_dir.format(tmp=short_dir))
    with mock.patch.object(arbiter, "spawn_companion_manager") as spawn:
        arbiter.manage_companion_manager()
        assert spawn.called is spawned
        arbiter.master_pid = 0
        arbiter.manage_companion_manager()
        assert spawn.called


def test_web_workers_do_not_wait_for_companions_that_wait_for_the_old_master(arbiter: Arbiter) -> None:
    """It ends when the new workers serve."""
    arbiter.cfg.set("companion_workers", COMPANIONS)
    arbiter.cfg.set("web_after", ["quick"])
    arbiter.master_pid = os.getppid()
    arbiter.given = Inherited(companion_run_dir="")
    assert arbiter.web_is_held
    with mock.patch.object(arbiter, "spawn_companion_manager") as spawn:
        arbiter.manage_companion_manager()
        assert not arbiter.web_is_held
        spawn.assert_not_called()


def test_web_workers_wait_until_the_manager_says_so(arbiter: Arbiter) -> None:
    arbiter.cfg.set("companion_workers", COMPANIONS)
    arbiter.cfg.set("web_after", ["quick", "slow"])
    handle = arbiter._companion_handle()
    assert arbiter._plan(0.0).spawn == 0 and not arbiter.web_is_ready()
    handle._on_message({"web_held_by": "quick"})
    assert arbiter.situation(0.0).held_by == "quick"
    # Of a configuration that a reload has replaced.
    handle._on_message({"web_may_start": ["quick"]})
    assert arbiter.web_is_held
    handle._on_message({"web_cannot_start": "quick, which gave up"})
    with (
        mock.patch.object(arbiter, "spawn_companion_manager"),
        pytest.raises(HaltServer, match="web workers cannot start, they wait for quick, which gave up"),
    ):
        arbiter.manage_companion_manager()
    handle._on_message({"web_may_start": ["quick", "slow"]})
    assert not arbiter.web_is_held
    assert arbiter._plan(0.0).spawn == arbiter.num_workers


@pytest.mark.parametrize(
    "message",
    [
        {"keep": 7},
        {"keep": {}},
        {"let_go": {"group": []}},
        {"ask": {"cmd": "reload"}},
        {"gave_up": "a", "pong": None, "let_go": 1},
    ],
    ids=str,
)
def test_a_message_that_makes_no_sense_ends_nothing(arbiter: Arbiter, message: dict[str, Any]) -> None:
    handle = arbiter._companion_handle()
    with mock.patch.object(handle.log, "exception") as log:
        handle._on_message(message)
    assert "makes no sense" in log.call_args.args[0]


def test_the_parent_s_side_of_the_fork(arbiter: Arbiter) -> None:
    arbiter.cfg.set("companion_workers", COMPANIONS)
    with mock.patch("os.fork", return_value=4321):
        arbiter.spawn_companion_manager()
    assert arbiter.companion_manager_pid == 4321
    # The next one, should this one die at once, is a second away.
    arbiter.companion_manager_pid = 0
    with mock.patch.object(arbiter, "spawn_companion_manager") as spawn:
        arbiter.manage_companion_manager()
    spawn.assert_not_called()


def test_a_refused_fork_is_no_end_of_the_server(arbiter: Arbiter) -> None:
    arbiter.cfg.set("companion_workers", COMPANIONS)
    with mock.patch("os.fork", side_effect=BlockingIOError(11, "no more processes")):
        arbiter.spawn_companion_manager()
    assert arbiter.companion_manager_pid == 0


def test_reaping_clears_the_pid(arbiter: Arbiter) -> None:
    arbiter.companion_manager_pid = 77
    with mock.patch("os.waitpid", side_effect=[(77, 0), (0, 0)]):
        arbiter.reap_workers()
    assert arbiter.companion_manager_pid == 0


def test_stop_signals_the_manager_and_forgets_one_that_is_gone(arbiter: Arbiter) -> None:
    with mock.patch("os.kill") as kill:
        arbiter.stop_companion_manager(signal.SIGTERM)
        kill.assert_not_called()
        arbiter.companion_manager_pid = 5
        arbiter.stop_companion_manager(signal.SIGTERM)
        kill.assert_called_once_with(5, signal.SIGTERM)
        kill.side_effect = ProcessLookupError
        arbiter.stop_companion_manager(signal.SIGTERM)
    assert arbiter.companion_manager_pid == 0


def test_a_manager_that_nobody_prepared_is_told_to_reread(arbiter: Arbiter) -> None:
    arbiter.cfg.set("companion_workers", COMPANIONS)
    arbiter.companion_manager_pid = 5
    with mock.patch("os.kill") as kill:
        arbiter.reload_companion_manager()
    kill.assert_called_once_with(5, signal.SIGHUP)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 110),
        ({"companion_manager_shutdown_buffer": 1}, 101),
        ({"companion_manager_stop_timeout": 7}, 7),
        ({"companion_manager_stop_timeout": 0}, 0),
        ({"companion_workers": []}, 0),
        ({"companion_workers": CHAIN}, 160),
        ({"companion_workers": CHAIN, "companion_stop_order": "together"}, 110),
        # Web workers have 30 s.
        ({"companion_workers": CHAIN, "web_after": ["rq"]}, 190),
        ({"companion_workers": CHAIN, "web_after": ["rq"], "companion_stop_order": "together"}, 110),
    ],
)
def test_stop_timeout(arbiter: Arbiter, settings: dict[str, Any], expected: float) -> None:
    for name, value in {"companion_workers": COMPANIONS, **settings}.items():
        arbiter.cfg.set(name, value)
    assert arbiter.companion_manager_stop_timeout() == expected


def test_a_log_directory_that_is_gone_ends_nothing_but_a_start(arbiter: Arbiter, tmp_path: Path) -> None:
    arbiter.cfg.set("companion_workers", [{**COMPANIONS[1], "stdout": str(tmp_path / "gone" / "out.log")}])
    assert arbiter.companion_manager_stop_timeout() == 110
    handle = arbiter._companion_handle()
    handle.reload()
    theirs, _ = handle._prepare()
    theirs.close()
    assert [config.name for config in handle.configs] == ["slow"]


def test_a_stop_survives_companions_that_cannot_be_stopped(arbiter: Arbiter) -> None:
    arbiter.companion_manager_pid = 5
    arbiter.inbox = mock.Mock()
    too_many = OSError(24, "Too many open files")
    with (
        mock.patch.object(arbiter.companions, "begin_stop"),
        mock.patch.object(arbiter.companions, "stopped", side_effect=too_many),
        mock.patch("os.kill") as kill,
        mock.patch("os.waitpid", side_effect=ChildProcessError),
        pytest.raises(SystemExit) as left,
    ):
        arbiter.end(True, 0)
    kill.assert_called_once_with(5, signal.SIGKILL)
    assert left.value.code == 0


def test_a_stop_that_fails_ends_all_the_same(arbiter: Arbiter) -> None:
    arbiter.WORKERS = {42: mock.Mock()}
    with (
        mock.patch.object(arbiter, "stop", side_effect=OSError),
        mock.patch("os.kill") as kill,
        pytest.raises(SystemExit) as left,
    ):
        arbiter.end(True, 3)
    kill.assert_called_once_with(42, signal.SIGKILL)
    assert left.value.code == 3


def test_managers_without_a_record_are_forgotten(arbiter: Arbiter) -> None:
    leftovers = arbiter._companion_handle().leftovers
    for pid in range(100, 200):
        leftovers.note_manager(pid)
    assert len(leftovers.managers) <= 20 and any(pid == 199 for pid, _ in leftovers.managers)


@pytest.fixture
def other_end(arbiter: Arbiter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """The manager's end of the link to an arbiter that believes to have forked process 5."""
    ours, theirs = Link.pair()
    kept = Link(theirs.sock.dup())
    monkeypatch.setattr(Link, "pair", lambda: (ours, theirs))
    arbiter.cfg.set("companion_workers", COMPANIONS)
    with mock.patch("os.fork", return_value=5):
        arbiter.spawn_companion_manager()
    yield kept
    kept.close()


@pytest.mark.parametrize(
    ("reload", "companions", "settings", "expected"),
    [
        ("changed", COMPANIONS, {}, ["reload", "ping"]),
        ("all", COMPANIONS, {}, {"replace": "beside this one"}),
        # One of another user or mask cannot be beside the old one.
        ("all", COMPANIONS, {"umask": 0o027}, {"replace": "after this one"}),
        ("changed", [], {}, signal.SIGTERM),
        ("all", [], {}, signal.SIGTERM),
    ],
)
def test_reload(
    arbiter: Arbiter,
    other_end: Link,
    reload: str,
    companions: list[dict[str, Any]],
    settings: dict[str, Any],
    expected: Any,
) -> None:
    settings = {"companion_workers": companions, "companion_reload": reload, **settings}
    for name, value in settings.items():
        arbiter.cfg.set(name, value)
    with mock.patch("os.kill") as kill:
        arbiter.reload_companion_manager()
    messages = list(other_end.receive())
    if isinstance(expected, int):
        kill.assert_called_once_with(5, expected)
        assert messages == []
    else:
        kill.assert_not_called()
        assert messages == [expected] or [kind for message in messages for kind in message] == expected


def test_what_the_master_asks_for_goes_over_the_link(arbiter: Arbiter, other_end: Link) -> None:
    assert arbiter.companions is not None
    with mock.patch("os.kill") as kill:
        arbiter.handle_usr1()
        arbiter.companions.promoted()
    kill.assert_not_called()
    assert list(other_end.receive()) == [{"reopen": True}, {"promoted": True}]


def test_the_manager_is_asked_after_what_may_hang_it(arbiter: Arbiter, other_end: Link) -> None:
    assert arbiter.companions is not None
    arbiter.manage_companion_manager()
    assert list(other_end.receive()) == []

    arbiter.reload_companion_manager()
    # An answer must say that the reload has been dealt with.
    reload, ping = other_end.receive()
    assert [*reload, *reload["reload"]] == ["reload", "server", "files", "surroundings", "web_is_held"]
    assert ping == {"ping": 1}
    # It says itself that it rereads, by command: another question, once this one is answered.
    other_end.send({"pong": 1})
    other_end.send({"rereading": True})
    arbiter.manage_companion_manager()
    assert list(other_end.receive()) == [{"ping": 2}]
    other_end.send({"rereading": True})
    arbiter.manage_companion_manager()
    assert list(other_end.receive()) == []
    other_end.send({"pong": 2})
    arbiter.manage_companion_manager()
    assert list(other_end.receive()) == [{"ping": 3}]


def test_a_manager_beside_another_has_the_same_run_directory(arbiter: Arbiter, other_end: Link) -> None:
    assert arbiter.companions is not None
    run_dir = arbiter.companions.places.run_dir
    arbiter.cfg.set("companion_reload", "all")
    # From which the name of the directory is derived.
    arbiter.cfg.set("bind", "127.0.0.1:9")
    arbiter.reload_companion_manager()
    other_end.send({"made_room": True})
    arbiter.manage_companion_manager()
    assert arbiter.companion_manager_pid == 0 and [each.pid for each in arbiter.companions.leaving] == [5]
    pair = tuple(map(Link, socket.socketpair()))
    with mock.patch.object(Link, "pair", return_value=pair), mock.patch("os.fork", return_value=6):
        arbiter.spawn_companion_manager()
    assert arbiter.companion_manager_pid == 6
    assert arbiter.companions.places.run_dir == run_dir
    assert arbiter.companions.bury(5, 0) and not arbiter.companions.bury(5, 0)


def test_a_command_that_fails_ends_nothing(arbiter: Arbiter, other_end: Link) -> None:
    with mock.patch.object(arbiter, "reexec", side_effect=RuntimeError("a mistake")):
        other_end.send({"ask": {"cmd": "upgrade", "ticket": 1}})
        arbiter.manage_companion_manager()
    [message] = other_end.receive()
    answer = message["answer"]
    assert (answer["ticket"], answer["ok"]) == (1, False) and answer["error"].startswith(
        "RuntimeError: a mistake"
    )


@pytest.mark.parametrize(("preload", "text"), [(False, ""), (True, ", but its preloaded application stays")])
def test_a_reload_says_what_it_leaves(arbiter: Arbiter, preload: bool, text: str) -> None:
    arbiter.preloaded = preload
    assert arbiter.command("reload")["message"].partition(": ")[0] == "the server reloads" + text


@pytest.mark.parametrize("successor", [0, 7])
def test_at_the_end_of_an_upgrade_the_manager_knows_it_before_it_is_told_to_stop(
    arbiter: Arbiter, other_end: Link, successor: int
) -> None:
    arbiter.reexec_pid = successor
    before: list[dict[str, Any]] = []
    with mock.patch("os.kill", side_effect=lambda pid, sig: before.extend(other_end.receive())) as kill:
        assert arbiter.companions is not None
        arbiter.companions.begin_stop(True)
    kill.assert_called_once_with(5, signal.SIGTERM)
    assert before == ([{"handing_over": True}] if successor else [])
    assert list(other_end.receive()) == [{"ping": 1}]


def test_a_child_that_was_stopped_may_be_the_manager(arbiter: Arbiter, other_end: Link) -> None:
    with mock.patch("os.waitpid", side_effect=[(99, 0), (0, 0)]):
        arbiter.handle_chld(signal.SIGCHLD, None)
    assert list(other_end.receive()) == []
    with mock.patch("os.waitpid", return_value=(0, 0)):
        arbiter.handle_chld(signal.SIGCHLD, None)
    assert list(other_end.receive()) == [{"ping": 1}]


def test_one_that_has_given_up_halts_the_server_unless_it_stops_already(
    arbiter: Arbiter, other_end: Link
) -> None:
    other_end.send({"gave_up": "vital"})
    other_end.send({"gave_up": "other"})
    arbiter.manage_companion_manager()
    with pytest.raises(HaltServer, match="the companion vital has given up") as caught:
        arbiter.manage_companion_manager()
    assert caught.value.exit_status == 1


def test_during_a_stop_it_halts_nothing(arbiter: Arbiter, other_end: Link) -> None:
    arbiter.stopping = True
    other_end.send({"gave_up": "vital"})
    for _ in range(2):
        arbiter.manage_companion_manager()
