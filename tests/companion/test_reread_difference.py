# SPDX-License-Identifier: MIT
"""What another configuration means for each companion, and how a number asked for by command holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from processtools import T0, backoff, make, running, starting, stopping

from gunicorn.companion.checks import StartLimit
from gunicorn.companion.config import CompanionConfig, copies
from gunicorn.companion.keys import SHAPE_KEYS
from gunicorn.companion.probe import Probe
from gunicorn.companion.process import CompanionProcess, Event
from gunicorn.companion.supervise.changes import difference, scale
from gunicorn.companion.supervise.overrides import Scaled

KINDS = ("added", "removed", "restarted", "updated", "unchanged")

# For each key another value than the default.
OTHERS = {
    "target": "app:other",
    "command": ("sleep", "1"),
    "cwd": "/",
    "env": {"A": "1"},
    "stop_signal": "SIGINT",
    "stop_timeout": 7,
    "stop_as_group": True,
    "reload_timeout": 7,
    "startsecs": 7,
    "restart_delay": 7,
    "restart_delay_max": 70,
    "autorestart": "never",
    "autostart": False,
    "stdout": "/tmp/out",
    "stderr": "stdout",
    "start_retries": 7,
    "on_give_up": "shutdown",
    "ready": "notify",
    "start_timeout": 7,
    "watchdog": 7,
    "bind": ("127.0.0.1:7",),
    "after": ("db",),
    "stop_after": ("db",),
    "max_memory": 7,
    "max_lifetime": 7,
    "max_lifetime_jitter": 7,
    "singleton": False,
    "nice": 7,
    "groups": ("workers",),
    "env_file": ("a.env",),
    "umask": 0o7,
    "oom_score_adj": 7,
    "rlimits": {"core": (7, None)},
    "cpu_affinity": (7,),
    "probe": Probe("tcp", "127.0.0.1:7"),
    "liveness": Probe("log", "alive", every=7),
    "success_exit_codes": (7,),
    "start_limit": StartLimit(7, 7),
    "retry_after": 7,
    "max_runtime": 7,
    "stop_signals": ((7, 7),),
    "lease": "shop",
    "lease_store": "file:///leases",
    "lease_ttl": 7,
    "lease_margin": 7,
    "lease_on_loss": "keep",
    "schedule": "every 7s",
    "schedule_timezone": "UTC",
    "schedule_overlap": "queue",
    "schedule_catch_up": True,
    "schedule_jitter": 7,
    "schedule_retries": 7,
}


def kinds(processes: list[CompanionProcess], configs: list[CompanionConfig]) -> dict[str, list[str]]:
    found = difference({process.name: process for process in processes}, configs).as_dict()
    return {kind: names for kind, names in found.items() if names}


def settled() -> CompanionProcess:
    process = running(autorestart="never")
    process.handle(Event.EXITED, T0 + 5, status=0)
    process.handle(Event.EMPTY, T0 + 5)
    return process


def waiting() -> CompanionProcess:
    process = make()
    process.handle(Event.START, T0)
    return process


def test_every_key_is_tried_here():
    keys = set(CompanionConfig.__dataclass_fields__)
    assert keys - {"name", "index", "numprocs", "index_start", "template"} == set(OTHERS)


@pytest.mark.parametrize("key", OTHERS)
def test_only_what_shapes_the_process_brings_another_one(key):
    process = running()
    other = replace(process.config, **{key: OTHERS[key]})
    another = key in SHAPE_KEYS or key == "schedule"
    assert kinds([process], [other]) == {"restarted" if another else "updated": ["rq"]}
    assert kinds([process], [replace(process.config)]) == {"unchanged": ["rq"]}


@pytest.mark.parametrize(
    ("process", "kind"),
    [
        (make(), "updated"),
        (stopping(), "updated"),
        (waiting(), "updated"),
        (starting(), "restarted"),
        (running(), "restarted"),
        (backoff(), "restarted"),
        # What has ended by itself did so in its old shape.
        (settled(), "restarted"),
    ],
    ids=["STOPPED", "STOPPING", "about to start", "STARTING", "RUNNING", "BACKOFF", "settled"],
)
def test_another_shape_in_each_state(process, kind):
    assert kinds([process], [replace(process.config, target="app:other")]) == {kind: ["rq"]}


def test_a_name_that_comes_back_while_the_old_process_ends_is_added():
    process = running()
    process.handle(Event.STOP, T0 + 5)
    process.removed = True
    assert kinds([process], []) == {}
    assert kinds([process], [process.config]) == {"added": ["rq"]}


def test_the_words_are_sorted_and_the_copies_are_in_their_order():
    processes = {name: CompanionProcess(CompanionConfig(name, "app:run")) for name in ("b", "a", "c")}
    found = difference(processes, [CompanionConfig("d", "app:run"), CompanionConfig("a", "app:run")])
    assert found.as_dict() == {
        "added": ["d"],
        "removed": ["b", "c"],
        "restarted": [],
        "updated": [],
        "unchanged": ["a"],
    }
    assert str(found) == "1 added, 2 removed, 1 unchanged"


# -- numbers of copies -------------------------------------------------------


def group(numprocs: int | None, name: str = "rq", **values) -> list[CompanionConfig]:
    return copies(CompanionConfig(name, **{"target": "app:run", "numprocs": numprocs, **values}), numprocs)


def names(configs: list[CompanionConfig]) -> list[str]:
    return [config.name for config in configs]


def test_without_a_command_the_configured_number_counts():
    scaled: Scaled = {}
    configs = [*group(2), *group(None, "cron")]
    assert scale(configs, scaled) == configs
    assert scaled == {}


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_number_asked_for_holds_until_the_configured_one_changes(number):
    scaled: Scaled = {"rq": (number, 2)}
    expected = [f"rq:{index}" for index in range(number)]
    for _ in range(3):
        assert names(scale(group(2), scaled)) == expected
        assert scaled == {"rq": (number, 2)}
    # Other changes change nothing about it.
    changed = scale(group(2, target="app:other"), scaled)
    assert names(changed) == expected
    assert {config.target for config in changed} == {"app:other"}
    # This one does, and for good.
    assert names(scale(group(3), scaled)) == ["rq:0", "rq:1", "rq:2"]
    assert scaled == {}
    assert names(scale(group(2), scaled)) == ["rq:0", "rq:1"]


@pytest.mark.parametrize("configs", [[], group(None)], ids=["gone", "no copies any more"])
def test_a_number_for_what_has_no_copies_any_more_is_forgotten(configs):
    scaled: Scaled = {"rq": (4, 2)}
    assert scale(configs, scaled) == configs
    assert scaled == {}


def test_the_copies_of_a_number_asked_for_are_like_the_others():
    (*_, last) = scale(group(2, env={"A": "1"}), {"rq": (3, 2)})
    assert (last.name, last.index, last.group, last.env) == ("rq:2", 2, "rq", {"A": "1"})
    (first, *_) = group(2, env={"A": "1"})
    assert first.shape_hash == last.shape_hash


def test_another_number_moves_only_the_difference():
    processes = [CompanionProcess(config) for config in group(3)]
    assert kinds(processes, group(5)) == {"added": ["rq:3", "rq:4"], "unchanged": ["rq:0", "rq:1", "rq:2"]}
    assert kinds(processes, group(1)) == {"removed": ["rq:1", "rq:2"], "unchanged": ["rq:0"]}
    assert kinds(processes, group(None)) == {"added": ["rq"], "removed": ["rq:0", "rq:1", "rq:2"]}


@pytest.mark.parametrize(
    ("process", "values", "kind"),
    [
        # A run goes on with what it began with.
        (running(schedule="@daily"), {"env": {"A": "1"}}, "updated"),
        (running(schedule="@daily"), {"schedule": "@hourly"}, "updated"),
        (make(schedule="@daily"), {"schedule": None}, "restarted"),
        (make(schedule="@daily", autostart=False), {"schedule": None}, "updated"),
        (running(schedule="@daily"), {"schedule": None}, "restarted"),
        (make(), {"schedule": "@daily"}, "updated"),
        (running(), {"schedule": "@daily"}, "restarted"),
        (stopping(schedule="@daily"), {"schedule": None}, "updated"),
    ],
)
def test_a_schedule_that_comes_changes_or_goes(process, values, kind):
    assert kinds([process], [replace(process.config, **values)]) == {kind: ["rq"]}
