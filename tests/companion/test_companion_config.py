# SPDX-License-Identifier: MIT
"""What a companion may be configured to be, what is refused, and what a change means."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import signal
import time

import pytest
from companiontools import answer_of, make_cfg

from gunicorn.companion.checks import StartLimit, describe_target, did_you_mean, parse_signal
from gunicorn.companion.config import CompanionConfig, build_companion_configs, unknown_key
from gunicorn.companion.keys import FIELDS, KNOWN_KEYS
from gunicorn.companion.probe import Probe
from gunicorn.settings import foreign


def work():
    pass


def needs_one(queue):
    pass


class Job:
    def __call__(self):
        pass

    def run(self):
        pass

    @classmethod
    def main(cls):
        pass

    def with_argument(self, queue):
        pass


def rq(**values):
    return {"name": "rq", "target": "app:run", **values}


def leased(**keys):
    return rq(**{"lease": True, "lease_store": "file:///leases", **keys})


def problems(*workers, **settings) -> list[str]:
    with pytest.raises(ValueError) as caught:
        build_companion_configs(make_cfg(*workers, **settings))
    head, _, rest = str(caught.value).partition(": ")
    assert head == "invalid companion configuration"
    count, *lines = rest.split("\n  ")
    if not lines:
        return [rest]
    assert count == f"{len(lines)} mistakes:"
    return lines


def build(**values) -> CompanionConfig:
    (config,) = build_companion_configs(make_cfg(rq(**values)))
    return config


# -- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        ({"target": "a:b"}, "companion #0: name: missing"),
        ({"name": None, "target": "a:b"}, "companion #0: name: missing"),
        ({"name": "rq"}, "companion 'rq': target: missing"),
        ({"name": "rq", "target": None}, "companion 'rq': target: missing"),
        ("app:run", "companion #0: not a dict but str"),
        (rq(name=""), "companion '': name: '' may only contain letters, digits, '.', '_' and '-'"),
        (rq(name="a b"), "companion 'a b': name: 'a b' may only contain letters, digits, '.', '_' and '-'"),
        (rq(name="a/b"), "companion 'a/b': name: 'a/b' may only contain letters, digits, '.', '_' and '-'"),
        (rq(name="rq\n"), "companion 'rq\\n': name: 'rq\\n' may only contain letters"),
        (rq(name="rq:1"), "companion 'rq:1': name: 'rq:1' may only contain letters"),
        (rq(name="-x"), "name: '-x' begins with '-', which commands would read as an option"),
        (rq(name="--json"), "name: '--json' begins with '-'"),
        (rq(name="r" * 201), "name: it has 201 characters, and at most 200 fit into a file name"),
        (rq(name=7), "companion #0: name: 7 may only contain letters"),
        (rq(name="all"), "companion 'all': name: 'all' is reserved for commands"),
        (rq(target="app"), "companion 'rq': target: 'app' is not of the form 'module:callable'"),
        (rq(target="app:"), "companion 'rq': target: 'app:' is not of the form"),
        (rq(target=":run"), "companion 'rq': target: ':run' is not of the form"),
        (rq(target="app:run()"), "target: 'app:run()' is called by the companion itself: leave '()' away"),
        (rq(target="app:run(x)"), "target: the arguments in 'run(x)' must be literals"),
        (rq(target="app:run(1"), "target: cannot read 'run(1' in 'app:run(1'"),
        (rq(target="a b:run(1)"), "target: 'a b:run(1)' is not of the form"),
        (rq(target="app:a:b"), "companion 'rq': target: 'app:a:b' is not of the form"),
        (rq(target="app..x:a"), "companion 'rq': target: 'app..x:a' is not of the form"),
        (rq(target=7), "companion 'rq': target: 7 is neither a callable nor 'module:callable'"),
        (rq(target=needs_one), f"target: {__name__}:needs_one is called without arguments, but: missing"),
        (rq(target=Job().with_argument), f"{__name__}:Job.with_argument is called without arguments, but"),
        (rq(target=functools.partial(needs_one)), "is called without arguments, but: missing"),
        (rq(stop_sigal="TERM"), "companion 'rq': unknown key stop_sigal: did you mean stop_signal?"),
        (rq(comand=["node"]), "companion 'rq': unknown key comand: did you mean command?"),
        (rq(index=2), "companion 'rq': unknown key index"),
        (rq(command=["node"]), "companion 'rq': target: give either target or command, not both"),
        (
            {"name": "js", "command": "node a.js"},
            "but there is no shell: write it as a list, ['node', 'a.js']",
        ),
        ({"name": "js", "command": []}, "command: [] is not a list of strings"),
        ({"name": "js", "command": [""]}, "command: its first word, the program, is empty"),
        ({"name": "js", "command": ["a", 7]}, "command: 7 cannot be an argument of a program"),
        ({"name": "js", "command": ["a\0b"]}, "cannot be an argument of a program"),
        (
            rq(numprocs=0),
            "companion 'rq': numprocs: 0 is not a number of 1 or more: to run none, stop it",
        ),
        (rq(numprocs=True), "numprocs: True is not a number of 1 or more"),
        (rq(numprocs=1.5), "numprocs: 1.5 is not a number of 1 or more"),
        (rq(numprocs=10_001), "numprocs: 10001 is more than 10000"),
        (rq(autorestart="sometimes"), "autorestart: 'sometimes' is none of always, on-failure, never"),
        (rq(autorestart="no"), "autorestart: 'no': here it is 'never'"),
        (rq(autorestart=True), "autorestart: True: here it is 'always'"),
        (rq(autorestart=False), "autorestart: False: here it is 'never'"),
        (rq(autorestart="unexpected"), "autorestart: 'unexpected': here it is 'on-failure'"),
        (rq(restart_delay_max=1), "restart_delay_max: 1 is less than restart_delay, 5"),
        (rq(restart_delay_max=0), "restart_delay_max: 0 leaves no time (None turns it off)"),
        (rq(start_retries=0), "start_retries: 0 is not a number of 1 or more"),
        (rq(on_give_up="stop"), "on_give_up: 'stop' is none of ignore, shutdown"),
        (rq(on_give_up="shutdown"), "on_give_up: has no effect without start_retries or start_limit"),
        (rq(retry_after=60), "retry_after: has no effect without start_retries or start_limit"),
        (rq(retry_after=0), "retry_after: 0 leaves no time (None turns it off)"),
        (
            rq(start_limit="5"),
            "start_limit: '5' is not like '5/60s', which allows 5 starts within 60 seconds",
        ),
        (rq(start_limit="5/60d"), "start_limit: '5/60d' is not like '5/60s'"),
        (rq(start_limit=5), "start_limit: 5 is not like '5/60s'"),
        (rq(start_limit="0/60s"), "start_limit: '0/60s': 0 is not a number of starts from 1 to 1000"),
        (rq(start_limit="1001/1h"), "start_limit: '1001/1h': 1001 is not a number of starts from 1 to 1000"),
        (rq(start_limit="5/0s"), "start_limit: '5/0s' leaves no time (None turns the limit off)"),
        (rq(success_exit_codes=[]), "success_exit_codes: it is empty"),
        (rq(success_exit_codes=[0, 256]), "success_exit_codes: 256 is not an exit code from 0 to 255"),
        (rq(success_exit_codes="0"), "success_exit_codes: '0' is not an exit code from 0 to 255"),
        (rq(success_exit_codes=True), "success_exit_codes: True is not an exit code"),
        (
            rq(schedule="every 5s", schedule_jitter=5),
            "schedule_jitter: 5 seconds leave nothing of 'every 5s'",
        ),
        (rq(schedule="@daily", schedule_jitter=10**9), "schedule_jitter: it is more than a year"),
        (
            rq(schedule="@daily", schedule_retries=-1),
            "schedule_retries: -1 is not a whole number from 0 to 999",
        ),
        (rq(schedule="@daily", schedule_overlap="allow"), "schedule_overlap: 'allow' is none of skip, queue"),
        (rq(schedule="@daily", schedule_catch_up=1), "schedule_catch_up: 1 is neither True nor False"),
        (rq(schedule_retries=3), "companion 'rq': schedule_retries: has no effect without schedule"),
        (rq(schedule_timezone="UTC"), "schedule_timezone: has no effect without schedule"),
        (rq(schedule="@daily", autorestart="always"), "autorestart: not with schedule: each time is a run"),
        (rq(schedule="@daily", start_limit="5/1h"), "start_limit: not with schedule: schedule_retries says"),
        (rq(schedule="@daily", max_memory="9M"), "max_memory: not with schedule: it would begin a run anew"),
        (rq(schedule="@daily", max_lifetime=9), "max_lifetime: not with schedule"),
        (rq(schedule="@daily", ready="notify"), "ready: not with schedule: a run is over when it exits"),
        (rq(schedule="@daily", probe={"tcp": "[::1]:7"}), "probe: not with schedule: a run is over"),
        (
            rq(schedule="@daily", singleton=False),
            "singleton: not with schedule: no run begins beside another",
        ),
        (rq(max_runtime=0), "max_runtime: 0 leaves no time (None turns it off)"),
        (
            rq(stop_signals=[]),
            "stop_signals: [] is not a list of signals, each with seconds, as in [['SIGTERM'",
        ),
        (rq(stop_signals="TERM"), "stop_signals: 'TERM' is not a list of signals"),
        (rq(stop_signals=["TERM", "QUIT"]), "stop_signals: 'TERM' is not a signal with seconds, as in"),
        (rq(stop_signals=[["TREM", 5]]), "stop_signals: unknown signal 'TREM'"),
        (rq(stop_signals=[["TERM", 0]]), "stop_signals: 0 leaves no time"),
        (
            rq(stop_signals=[["TERM", 5]], stop_signal="INT"),
            "stop_signal: stop_signals has the signals and their times, remove one",
        ),
        (rq(stop_signals=[["TERM", 5]], stop_timeout=5), "stop_timeout: stop_signals has the signals"),
        (rq(ready="yes"), "ready: 'yes' is none of startsecs, notify"),
        (rq(start_timeout=-1), "start_timeout: -1 is not a time of 0 or more seconds"),
        (rq(start_timeout=0), "start_timeout: 0 leaves no time"),
        (rq(watchdog=0), "watchdog: 0 leaves no time (None turns it off)"),
        (rq(max_lifetime="1h"), "max_lifetime: '1h' is not a number of seconds"),
        (rq(max_memory="lots"), "max_memory: 'lots' is not a size: a number of bytes, or text like '300M'"),
        (rq(max_memory=0), "max_memory: 0 leaves no memory"),
        (
            rq(max_memory=300),
            "max_memory: 300 is 300 bytes, but every process uses more than 1M: write '300M'",
        ),
        (rq(max_memory="300"), "max_memory: '300' is 300 bytes, but every process uses more than 1M: write"),
        (rq(max_memory="300K"), "max_memory: '300K' is 307200 bytes, but every process uses more than 1M"),
        (rq(max_memory=2**20 - 1), "max_memory: 1048575 is 1048575 bytes, but every process uses more than"),
        (rq(bind="fd://3"), "bind: 'fd://3': a descriptor cannot be used here"),
        (rq(bind="127.0.0.1"), "bind: '127.0.0.1' has no port"),
        (rq(bind="[::1]"), "bind: '[::1]' has no port"),
        (rq(bind="::1"), "bind: '::1' has no port"),
        ({"name": "js", "command": "it's"}, "write it as a list"),
        (rq(bind="unix:"), "bind: 'unix:' has no path: write unix:/path/to/socket"),
        (rq(bind="unix:" + 54 * "é"), "bind: the path of a Unix socket has at most 107 bytes, not 108"),
        (rq(bind=9000), "bind: 9000 is not a list of addresses"),
        (rq(after=["db"]), "companion 'rq': after: no companion named db"),
        (rq(after="rq"), "companion 'rq': after: they wait for each other: rq -> rq"),
        (rq(after=[7]), "after: [7] is not a list of companions' names"),
        (rq(singleton="no"), "singleton: 'no' is neither True nor False"),
        (rq(nice=20), "companion 'rq': nice: 20 is not a whole number from -20 to 19"),
        (rq(nice=-21), "nice: -21 is not a whole number from -20 to 19"),
        (rq(nice="5"), "nice: '5' is not a whole number from -20 to 19"),
        (rq(nice=True), "nice: True is not a whole number from -20 to 19"),
        (rq(nice=1.0), "nice: 1.0 is not a whole number from -20 to 19"),
        (rq(**{"qqq": 1}), "companion 'rq': unknown key qqq"),
        ({**rq(), 5: 1}, "companion 'rq': unknown key 5"),
        (rq(stop_signal="SIGFOO"), "companion 'rq': stop_signal: unknown signal 'SIGFOO'"),
        (rq(stop_signal=0), "companion 'rq': stop_signal: unknown signal 0"),
        (rq(stop_signal=999), "companion 'rq': stop_signal: unknown signal 999"),
        (rq(stop_signal="999"), "companion 'rq': stop_signal: unknown signal '999'"),
        (rq(stop_signal=None), "companion 'rq': stop_signal: None is not a signal"),
        (rq(stop_signal=True), "companion 'rq': stop_signal: True is not a signal"),
        (rq(stop_signal=15.5), "companion 'rq': stop_signal: unknown signal 15.5"),
        (rq(stop_signal=[15]), "companion 'rq': stop_signal: [15] is not a signal"),
        (rq(stop_timeout=-1), "companion 'rq': stop_timeout: -1 is not a time of 0 or more seconds"),
        (rq(stop_timeout=float("nan")), "stop_timeout: nan is not a time of 0 or more seconds"),
        (rq(stop_timeout=float("inf")), "stop_timeout: it is more than 10000000000 seconds"),
        (rq(reload_timeout="60"), "companion 'rq': reload_timeout: '60' is not a number of seconds"),
        (rq(startsecs=True), "companion 'rq': startsecs: True is not a number of seconds"),
        (rq(startsecs=10**400), "companion 'rq': startsecs: it is more than 10000000000 seconds"),
        (rq(watchdog=1e308), "companion 'rq': watchdog: it is more than 10000000000 seconds"),
        (rq(startsecs=float("nan")), "companion 'rq': startsecs: nan is not a time of 0 or more seconds"),
        (rq(stop_signal=10**400), "companion 'rq': stop_signal: unknown signal 1000"),
        (rq(start_retries=10**400), "companion 'rq': start_retries: the number is too large"),
        (rq(max_memory="9" * 400 + "G"), "companion 'rq': max_memory: the size is more than a system"),
        (rq(rlimits={"core": 2**63}), "companion 'rq': rlimits: core: 9223372036854775808 is not a number"),
        (rq(umask=True), "companion 'rq': umask: True is no mask of permissions"),
        (rq(env_file="\ud800"), "companion 'rq': env_file: '\\ud800' is not a path"),
        (rq(stdout="\ud800"), "companion 'rq': stdout: '\\ud800' is not a path"),
        (rq(env={"A": "\ud800"}), "companion 'rq': env: 'A' cannot be an environment variable"),
        (
            {"name": "rq", "command": ["a", "\ud800"]},
            "companion 'rq': command: '\\ud800' cannot be an argument of a program",
        ),
        (
            rq(probe={"file": "x", "delay": 60}),
            "companion 'rq': probe: delay: 60 is not less than start_timeout, 60",
        ),
        (rq(lease=" "), "companion 'rq': lease: ' ' is no name of a lease: give a text, or True"),
        (rq(lease="a" * 201), "lease: a name of a lease has at most 200 bytes"),
        (rq(lease=True), "companion 'rq': lease: needs a store of leases: set companion_lease_store"),
        (rq(lease_ttl=5), "companion 'rq': lease_ttl: has no effect without lease"),
        (rq(lease="a", lease_store="redis"), "lease_store: 'redis' is no store of leases: expected file://"),
        (leased(singleton=False), "lease: contradicts singleton, which is False: remove one of them"),
        (leased(lease_ttl=0), "lease_ttl: 0 leaves no time"),
        (leased(lease_on_loss="go"), "lease_on_loss: 'go' is none of stop, keep"),
        (
            leased(lease_ttl=4),
            "companion 'rq': lease_ttl, 4, must be more than a third of it until a renewal (1.33) "
            "+ lease_margin (1) + 2 for the renewal: set lease_ttl to more than 4.5, or a smaller",
        ),
        (leased(lease_ttl=30, lease_margin=20), "set lease_ttl to more than 33"),
        (rq(restart_delay=None), "companion 'rq': restart_delay: None is not a number of seconds"),
        (rq(autostart=0), "companion 'rq': autostart: 0 is neither True nor False"),
        (rq(autostart=None), "companion 'rq': autostart: None is neither True nor False"),
        (rq(stop_as_group="yes"), "companion 'rq': stop_as_group: 'yes' is neither True nor False"),
        (rq(cwd=5), "companion 'rq': cwd: 5 is not a path"),
        (rq(cwd=""), "companion 'rq': cwd: '' is not a path"),
        (rq(cwd="/a\0b"), "companion 'rq': cwd: '/a\\x00b' is not a path"),
        (rq(env="A=b"), "companion 'rq': env: 'A=b' is not a dict of strings to strings"),
        (rq(env={"A": 1}), "companion 'rq': env: 'A': 1 is not a string to a string"),
        (rq(env={1: "A"}), "companion 'rq': env: 1: 'A' is not a string to a string"),
        (rq(env={"A=B": "c"}), "companion 'rq': env: 'A=B' cannot be an environment variable"),
        (rq(env={"": "c"}), "companion 'rq': env: '' cannot be an environment variable"),
        (rq(env={"A": "b\0c"}), "companion 'rq': env: 'A' cannot be an environment variable"),
        (rq(stdout="stdout"), "companion 'rq': stdout: 'stdout' is not a file"),
        (rq(stdout="stderr"), "companion 'rq': stdout: 'stderr' is not a file"),
        (rq(stdout=1), "companion 'rq': stdout: 1 is not a path"),
        (rq(stderr="/nonexistent/a.log"), "stderr: directory /nonexistent does not exist"),
        (rq(stdout="/dev/null/a.log"), "companion 'rq': stdout: /dev/null/a.log: Not a directory"),
        (rq(stdout="/tmp"), "companion 'rq': stdout: /tmp is a directory"),
        (rq(cwd="/nonexistent", stdout="a.log"), "stdout: directory /nonexistent does not exist"),
    ],
)
def test_a_mistake_is_named(worker, message):
    (found,) = problems(worker)
    assert message in found, found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_signal": "FOO"}, "companion_stop_signal: unknown signal 'FOO'"),
        ({"stop_timeout": -1}, "companion_stop_timeout: -1 is not a time of 0 or more seconds"),
        ({"startsecs": None}, "companion_startsecs: None is not a number of seconds"),
        ({"env": {"A": 1}}, "companion_env: 'A': 1 is not a string to a string"),
        ({"stop_as_group": None}, "companion_stop_as_group: None is neither True nor False"),
        ({"cwd": 3}, "companion_cwd: 3 is not a path"),
        ({"stdout": "stderr"}, "companion_stdout: 'stderr' is not a file"),
    ],
    ids=repr,
)
def test_a_mistake_in_a_global_setting_is_named_once_and_hides_no_other(settings, message):
    first, second = problems(rq(), {"name": "b", "target": "b"}, **settings)
    assert first.startswith(message)
    assert second == "companion 'b': target: 'b' is not of the form 'module:callable'"


def test_a_long_value_is_shown_in_part():
    (found,) = problems(rq(startsecs="x" * 100_000))
    assert len(found) < 2000
    assert found.startswith("companion 'rq': startsecs: 'xxx")
    assert found.endswith("xxx' is not a number of seconds")


def test_a_value_that_cannot_be_shown_is_a_mistake_too():
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    found = problems(rq(startsecs=deep, stop_as_group=deep))
    assert [line.split(": ")[1] for line in found] == ["startsecs", "stop_as_group"]


def test_every_mistake_is_in_one_error():
    found = problems(
        rq(stop_timeout=-1, stdout="/nonexistent/x", port=1),
        rq(env=3),
        {"name": "b"},
        "c",
        reload_timeout="x",
    )
    assert [text.rsplit(": ", 1)[0] for text in found] == [
        "companion_reload_timeout",
        "companion 'rq': stop_timeout",
        "companion 'rq'",
        "companion 'rq': stdout",
        "companion 'rq': env",
        "companion 'rq': name",
        "companion 'b': target",
        "companion #3",
    ]
    assert "used by entries 0 and 1" in found[5]


def test_a_relative_output_below_a_wrong_cwd_is_no_second_mistake():
    (found,) = problems(rq(cwd=5, stdout="a.log"))
    assert found.startswith("companion 'rq': cwd")
    assert len(problems(rq(cwd=5, stdout="/nonexistent/a.log"))) == 2


def test_a_name_counts_once():
    (found,) = problems(rq(), {"name": "x", "target": "a:b"}, rq())
    assert found == "companion 'rq': name: used by entries 0 and 2"


def test_nothing_configured_is_nothing():
    assert build_companion_configs(make_cfg()) == []
    # Defaults of companions that there are not are nobody's mistake.
    assert build_companion_configs(make_cfg(stop_signal="FOO")) == []
    assert build_companion_configs(make_cfg(companion_workers=None)) == []


@pytest.mark.parametrize(
    ("word", "text"),
    [("stop_sigal", "stop_sigal: did you mean stop_signal?"), ("taget", "taget: did you mean target?")],
)
def test_the_nearest_name_is_told(word, text):
    assert did_you_mean(word, KNOWN_KEYS) == text
    assert did_you_mean("zzz", KNOWN_KEYS) == "zzz"


# The keys of supervisord's [program:x] that are not keys here.
SUPERVISORD = [
    "directory",
    "environment",
    "exitcodes",
    "killasgroup",
    "numprocs_start",
    "priority",
    "process_name",
    "redirect_stderr",
    "serverurl",
    "startretries",
    "stopasgroup",
    "stopsignal",
    "stopwaitsecs",
    "user",
    "stdout_logfile",
    "stdout_logfile_maxbytes",
    "stdout_logfile_backups",
    "stdout_capture_maxbytes",
    "stdout_events_enabled",
    "stdout_syslog",
    "stderr_logfile",
    "stderr_logfile_maxbytes",
    "stderr_logfile_backups",
    "stderr_capture_maxbytes",
    "stderr_events_enabled",
    "stderr_syslog",
]


@pytest.mark.parametrize("key", SUPERVISORD)
def test_a_key_of_supervisord_is_told_what_it_is_here(key):
    (found,) = problems(rq(**{key: "x"}))
    assert found.startswith(f"companion 'rq': unknown key {key}: ")
    assert "did you mean" not in found


def test_what_other_programs_keys_are_here_exists():
    assert set(foreign.RENAMED_KEYS.values()) <= set(KNOWN_KEYS)
    assert not set(KNOWN_KEYS) & (set(foreign.RENAMED_KEYS) | set(foreign.OTHER_KEYS))
    assert unknown_key("stopwaitsecs") == "stopwaitsecs: here it is stop_timeout"
    assert unknown_key("WorkingDirectory") == "WorkingDirectory: here it is cwd"


# -- what is built -----------------------------------------------------------------


def test_defaults():
    config = CompanionConfig("rq", work)
    assert dataclasses.asdict(config) == {
        "name": "rq",
        "target": work,
        "cwd": None,
        "env": {},
        "stop_signal": signal.SIGTERM,
        "stop_timeout": 60,
        "stop_as_group": False,
        "reload_timeout": 60,
        "startsecs": 1,
        "restart_delay": 5,
        "autostart": True,
        "stdout": None,
        "stderr": None,
        "command": None,
        "numprocs": None,
        "index": None,
        "autorestart": "always",
        "restart_delay_max": 60,
        "start_retries": None,
        "on_give_up": "ignore",
        "ready": "startsecs",
        "start_timeout": 60,
        "watchdog": None,
        "bind": (),
        "after": (),
        "stop_after": (),
        "max_memory": None,
        "max_lifetime": None,
        "max_lifetime_jitter": 0,
        "singleton": True,
        "nice": None,
        "index_start": 0,
        "groups": (),
        "env_file": (),
        "umask": None,
        "oom_score_adj": None,
        "rlimits": {},
        "cpu_affinity": None,
        "template": None,
        "probe": None,
        "liveness": None,
        "success_exit_codes": (0,),
        "start_limit": None,
        "retry_after": None,
        "max_runtime": None,
        "stop_signals": None,
        "lease": None,
        "lease_store": None,
        "lease_ttl": 15,
        "lease_margin": None,
        "lease_on_loss": "stop",
        "schedule": None,
        "schedule_timezone": None,
        "schedule_overlap": "skip",
        "schedule_catch_up": False,
        "schedule_jitter": 0,
        "schedule_retries": 0,
    }
    assert build() == CompanionConfig("rq", "app:run")
    assert CompanionConfig("rq", work, stop_signal="INT").stop_signal == signal.SIGINT


def test_a_config_is_not_to_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompanionConfig("rq", work).name = "other"


def test_omitted_keys_come_from_the_global_settings(tmp_path):
    own = {
        "cwd": str(tmp_path),
        "stop_signal": "HUP",
        "stop_timeout": 1.5,
        "stop_as_group": True,
        "reload_timeout": 2,
        "startsecs": 3,
        "restart_delay": 0,
        "stdout": str(tmp_path / "out"),
        "stderr": "stdout",
    }
    general, special = build_companion_configs(
        make_cfg(rq(name="a"), rq(name="b", cwd="/", stop_signal=2, stdout=None, stderr=None), **own)
    )
    for key, value in own.items():
        assert getattr(general, key) == (signal.SIGHUP if key == "stop_signal" else value)
    assert (special.cwd, special.stop_signal, special.stdout, special.stderr) == (
        "/",
        signal.SIGINT,
        None,
        None,
    )
    assert special.stop_timeout == 1.5
    assert special.autostart is True


def test_the_environment_is_merged():
    one, two, three = build_companion_configs(
        make_cfg(
            rq(name="one"),
            rq(name="two", env={"A": "2", "B": "2"}),
            rq(name="three", env=None),
            env={"A": "1"},
        )
    )
    assert (one.env, two.env, three.env) == ({"A": "1"}, {"A": "2", "B": "2"}, {"A": "1"})


@pytest.mark.parametrize("value", [None, "inherit"])
def test_inherited_output(value):
    assert build(stdout=value, stderr=value).stdout is None


def test_paths_may_be_path_objects(tmp_path):
    config = build(cwd=tmp_path, stdout=tmp_path / "a.log")
    assert (config.cwd, config.stdout) == (str(tmp_path), str(tmp_path / "a.log"))


@pytest.mark.parametrize(
    "target",
    [
        work,
        Job(),
        Job().run,
        Job.main,
        Job,
        functools.partial(needs_one, 1),
        lambda: None,
        lambda *a, **k: None,
        lambda queue="q": None,
        signal.pause,
        "app:run",
        "shop.jobs:Worker.main",
        "shop.jobs:Worker.of('slow', count=3)",
    ],
)
def test_targets_that_may_be(target):
    assert build(target=target).target is target


@pytest.mark.parametrize("name", ["a", "A-1", "rq.default_2", "_-", "..", "r" * 200])
def test_names_that_may_be(name):
    assert build(name=name).name == name


# -- signals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("term", 15),
        (" sigint ", 2),
        ("9", 9),
        (1, 1),
        (signal.SIGUSR1, signal.SIGUSR1),
        (15.0, 15),
    ],
)
def test_a_signal_by_name_or_number(value, number):
    found = parse_signal(value)
    assert found == number
    assert type(found) is int


@pytest.mark.parametrize(
    "value", ["", "SIG", "SIGSIGTERM", "SIG_IGN", "²", "-15", b"15", False, object(), {}]
)
def test_what_is_no_signal(value):
    with pytest.raises(ValueError, match="signal"):
        parse_signal(value)


@pytest.mark.parametrize(
    ("text", "found"),
    [("5/60s", (5, 60)), ("1/0.5", (1, 0.5)), (" 5 / 10m ", (5, 600)), ("3/1h", (3, 3600))],
)
def test_a_start_limit(text, found):
    config = build(start_limit=text)
    assert config.start_limit == found
    assert build(start_limit=None).start_limit is None


def test_a_longer_restart_delay_raises_the_default_limit_alone():
    assert build(restart_delay=300).restart_delay_max == 60
    assert "restart_delay_max: 30 is less" in problems(rq(restart_delay=300), restart_delay_max=30)[0]
    assert "restart_delay_max: 60 is less" in problems(rq(restart_delay=300, restart_delay_max=60))[0]


def test_one_setting_is_about_those_that_can_give_up():
    general, special = build_companion_configs(
        make_cfg(rq(name="a"), rq(name="b", start_retries=1), on_give_up="shutdown", retry_after=9)
    )
    assert general.on_give_up == special.on_give_up == "shutdown"
    assert general.retry_after == special.retry_after == 9


def test_stop_signals_take_the_place_of_the_signal_and_its_time():
    config = build(stop_signals=[["TERM", 60], [3, 1.5]])
    assert config.rungs == config.stop_signals == ((15, 60), (3, 1.5))
    assert (config.stop_signal, config.stop_timeout) == (15, 61.5)
    assert config.later_signals == ((3, 1.5),)
    assert build(stop_signals=[[1, 1], [2, 2], [3, 3]]).later_signals == ((2, 5), (3, 3))
    assert build(stop_signal="INT", stop_timeout=5).rungs == ((2, 5),)
    assert build().later_signals == ()


def test_each_schedule_has_a_lease_for_itself():
    store = {"companion_lease_store": "file:///tmp"}
    nightly = rq(schedule="@daily", lease="nightly", numprocs=2)
    assert problems(nightly, **store) == [
        "companion 'rq:1': lease: nightly is also that of 'rq:0', and a schedule needs one for itself: "
        "write %(index)d into it"
    ]
    build_companion_configs(make_cfg(rq(schedule="@daily", lease="n-%(index)d", numprocs=2), **store))
    (found,) = problems(rq(lease="x"), rq(name="b", schedule="@daily", lease="x"), **store)
    assert found.endswith("is also that of 'rq', and a schedule needs one for itself: give it another name")


def test_a_schedule_needs_a_time_zone_that_python_knows(monkeypatch):
    monkeypatch.setenv("TZ", "UTC+25")
    time.tzset()
    try:
        (found,) = problems(rq(schedule="@daily"))
        build_companion_configs(make_cfg(rq(schedule="@daily", schedule_timezone="UTC")))
        build_companion_configs(make_cfg(rq(schedule="every 15m")))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "TZ='UTC+25', is a day or more from UTC: set schedule_timezone" in found
    build_companion_configs(make_cfg(rq(schedule="@daily")))


def test_a_lease_has_a_name_that_its_store_can_have():
    files, cluster = {"companion_lease_store": "file:///tmp"}, {"companion_lease_store": "kubernetes://shop"}
    (found,) = problems(rq(lease="/" * 100), **files)
    assert found.endswith("is too long for the name of a file: give the lease a shorter name")
    build_companion_configs(make_cfg(rq(lease="Shop_1"), **files))
    build_companion_configs(make_cfg(rq(lease="shop-%(index)d", numprocs=2), **cluster))
    assert problems(rq(lease="Shop_1"), **cluster) == [
        "companion 'rq': lease: 'Shop_1' can't be the name of a lease in Kubernetes: "
        "use at most 63 small letters, digits and hyphens"
    ]


def test_settings_for_all_companions_leave_a_schedule_alone():
    settings = {"autorestart": "on-failure", "start_retries": 3, "max_memory": "90M", "max_lifetime": 60}
    (config,) = build_companion_configs(
        make_cfg(
            rq(schedule=" @daily ", autorestart="never"),
            **{f"companion_{key}": value for key, value in settings.items()},
        )
    )
    assert config.schedule == "0 0 * * *"
    assert [getattr(config, key) for key in settings] == ["never", None, None, None]
    assert config.is_job


# -- hashes ------------------------------------------------------------------------

OTHER_VALUES = {
    "name": "other",
    "target": "app:other",
    "command": ("node", "live.js"),
    "restart_delay_max": 61,
    "autorestart": "never",
    "start_retries": 3,
    "on_give_up": "shutdown",
    "ready": "notify",
    "start_timeout": 61,
    "watchdog": 30,
    "bind": ("127.0.0.1:9000",),
    "after": ("db",),
    "stop_after": ("db",),
    "max_memory": 2**20,
    "max_lifetime": 3600,
    "max_lifetime_jitter": 60,
    "singleton": False,
    "nice": 10,
    "index_start": 1,
    "group": ("workers",),
    "env_file": ("rq.env",),
    "umask": 0o027,
    "oom_score_adj": 500,
    "rlimits": {"core": (0, None)},
    "cpu_affinity": (0,),
    "probe": Probe("tcp", "127.0.0.1:9001"),
    "liveness": Probe("file", "beat", every=60),
    "numprocs": 2,
    "cwd": "/",
    "env": {"A": "b"},
    "stop_signal": signal.SIGINT,
    "stop_timeout": 61,
    "stop_as_group": True,
    "reload_timeout": 61,
    "startsecs": 2,
    "restart_delay": 6,
    "autostart": False,
    "stdout": "/dev/null",
    "stderr": "/dev/null",
    "success_exit_codes": (0, 75),
    "start_limit": StartLimit(5, 60.0),
    "retry_after": 300,
    "max_runtime": 3600,
    "stop_signals": ((15, 60.0), (3, 10.0)),
    "lease": "shop",
    "lease_store": "file:///leases",
    "lease_ttl": 30,
    "lease_margin": 3,
    "lease_on_loss": "keep",
    "schedule": "30 3 * * *",
    "schedule_timezone": "UTC",
    "schedule_overlap": "queue",
    "schedule_catch_up": True,
    "schedule_jitter": 60,
    "schedule_retries": 3,
}
SHAPE = {"target", "command", "cwd", "env", "stdout", "stderr", "bind", "watchdog", "nice"}
SHAPE |= {"lease", "lease_store"}
SHAPE |= {"env_file", "umask", "oom_score_adj", "rlimits", "cpu_affinity"}
# On which no copy depends.
ONLY_OF_SETS = {"numprocs", "index_start"}


def test_the_table_of_other_values_is_whole():
    assert set(OTHER_VALUES) == set(KNOWN_KEYS)


@pytest.mark.parametrize("key", KNOWN_KEYS)
def test_every_key_of_a_copy_counts(key):
    before = CompanionConfig("rq", "app:run")
    after = dataclasses.replace(before, **{FIELDS[key]: OTHER_VALUES[key]})
    assert (before.shape_hash != after.shape_hash) is (key in SHAPE)
    assert (before.fingerprint != after.fingerprint) is (key not in ONLY_OF_SETS)


# -- copies, order, addresses ----------------------------------------------------------


def test_copies():
    before, *rq_copies, after = build_companion_configs(
        make_cfg(rq(name="a"), rq(numprocs=3, env={"A": "1"}), rq(name="z", numprocs=None))
    )
    assert [config.name for config in rq_copies] == ["rq:0", "rq:1", "rq:2"]
    assert [config.index for config in rq_copies] == [0, 1, 2]
    assert {config.group for config in rq_copies} == {"rq"}
    assert all(config.env == {"A": "1"} and config.numprocs == 3 for config in rq_copies)
    assert (before.group, before.index, after.name) == ("a", None, "z")


def test_another_number_of_copies_changes_none_of_them():
    two = build_companion_configs(make_cfg(rq(numprocs=2)))
    three = build_companion_configs(make_cfg(rq(numprocs=3)))
    assert [config.fingerprint for config in two] == [config.fingerprint for config in three[:2]]


@pytest.mark.parametrize(
    ("companions", "web_after", "expected"),
    [
        ({"a": {}}, ["a"], None),
        ({"a": {"after": ["web"]}, "b": {"stop_after": ["web", "a"]}}, [], None),
        (
            {"a": {"group": "jobs"}, "b": {"after": ["@jobs"], "stop_after": ["@jobs"]}},
            ["@jobs"],
            "companion 'b': stop_after: each is stopped after the next one: b -> a -> b",
        ),
        ({"a": {"group": "jobs"}, "b": {"after": ["@jobs"]}}, ["@jobs"], None),
        ({"a": {"schedule": "@daily", "after": ["b", "web"]}, "b": {"stop_after": ["a"]}}, [], None),
        (
            {"a": {"group": "jobs", "schedule": "@daily"}, "b": {"after": ["@jobs"]}},
            [],
            "companion 'b': after: 'a' runs only at the times of its schedule, and nothing can wait",
        ),
        ({"a": {"schedule": "@daily"}}, ["a"], "web_after: 'a' runs only at the times of its schedule"),
        ({}, ["migrate"], "web_after: no companion named migrate"),
        ({"migrate": {}}, ["migrat"], "web_after: no companion named migrat: did you mean migrate?"),
        ({"a": {}}, ["web"], "web_after: no companion named web"),
        ({"a": {"stop_after": ["b"]}}, [], "companion 'a': stop_after: no companion named b"),
        (
            {"a": {"autostart": False}},
            ["a"],
            "web_after: web workers would wait for 'a' for ever, because its autostart is False",
        ),
        ({"a": {"after": ["web"]}}, ["a"], "web_after: they wait for each other: web -> a -> web"),
        (
            {"a": {"after": ["b"]}, "b": {"after": ["web"]}},
            ["a"],
            "web_after: they wait for each other: web -> a -> b -> web",
        ),
        (
            {"a": {"after": ["b"], "stop_after": ["b"]}, "b": {}},
            [],
            "companion 'a': stop_after: each is stopped after the next one: a -> b -> a",
        ),
        (
            {"a": {"stop_after": ["a"]}},
            [],
            "companion 'a': stop_after: each is stopped after the next one: a -> a",
        ),
        (
            {"a": {"after": ["web"], "stop_after": ["web"]}},
            [],
            "companion 'a': stop_after: each is stopped after the next one: a -> web -> a",
        ),
        ({"web": {}}, [], "companion 'web': name: 'web' means the web workers, in commands and in after: "),
    ],
)
def test_order_with_the_web_workers(companions, web_after, expected):
    workers = [rq(name=name, **values) for name, values in companions.items()]
    if expected is None:
        build_companion_configs(make_cfg(*workers, web_after=web_after))
        return
    (found,) = problems(*workers, web_after=web_after)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("after", "circle"),
    [
        ({"a": [], "b": ["a"], "c": ["b", "a"]}, None),
        ({"a": ["b"], "b": ["a"], "c": []}, "a -> b -> a"),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, "b -> c -> b"),
        ({"a": ["c:1"], "b": [], "c": ["a"]}, "a -> c -> a"),
        ({"a": ["c"], "b": ["c:0"], "c": []}, None),
    ],
)
def test_order(after, circle):
    workers = [
        rq(name=name, after=names, numprocs=2 if name == "c" else None) for name, names in after.items()
    ]
    if circle is None:
        build_companion_configs(make_cfg(*workers))
        return
    (problem,) = problems(*workers)
    assert problem.endswith(f"after: they wait for each other: {circle}")


def test_a_long_order_is_no_recursion():
    workers = [rq(name=f"n{i}", after=[f"n{i + 1}"] if i < 3000 else []) for i in range(3001)]
    assert len(build_companion_configs(make_cfg(*workers))) == 3001


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("127.0.0.1:9000", ("127.0.0.1:9000",)),
        (":9000", ("0.0.0.0:9000",)),
        ("tcp://LOCALHOST:1", ("localhost:1",)),
        ("[::1]:0", ("[::1]:0",)),
        ("unix:/run/x", ("unix:/run/x",)),
        ("unix://run/x", ("unix:run/x",)),
        (["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:1"], ("127.0.0.1:1", "127.0.0.1:2")),
        (None, ()),
    ],
)
def test_addresses(given, addresses):
    assert build(bind=given).bind == addresses


def test_an_address_has_one_companion():
    assert problems(rq(bind=":9000"), rq(name="b", bind="0.0.0.0:9000")) == [
        "companion 'b': bind: 0.0.0.0:9000 is already used by 'rq'"
    ]


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("300M", 300 * 2**20),
        ("1.5G", 3 * 2**29),
        ("2048 kb", 2**21),
        ("1024KiB", 2**20),
        (2**20, 2**20),
        ("2000000", 2_000_000),
    ],
)
def test_sizes(given, size):
    assert build(max_memory=given).max_memory == size


@pytest.mark.parametrize("value", [None, -20, 0, 19])
def test_nice_values(value):
    assert build(nice=value).nice == value


def test_a_command_has_no_target():
    (config,) = build_companion_configs(make_cfg({"name": "js", "command": ["node", "-e", "a b"]}))
    assert config.target is None and config.command == ("node", "-e", "a b")


def test_a_hash_is_a_sha256_and_the_same_in_every_process(tmp_path):
    text = """
        import json
        from gunicorn.companion.config import CompanionConfig
        config = CompanionConfig("rq", "app:run", env={%s}, stop_timeout=%s)
        print(json.dumps([config.fingerprint, config.shape_hash]))
    """
    hashes = answer_of(text % ("'A': '1', 'B': '2'", "60"))
    assert hashes == answer_of(text % ("'B': '2', 'A': '1'", "60.0"))
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)


def test_the_order_of_variables_and_the_kind_of_number_do_not_count():
    one = CompanionConfig("rq", "a:b", env={"A": "1", "B": "2"}, stop_timeout=60, startsecs=0)
    two = CompanionConfig("rq", "a:b", env={"B": "2", "A": "1"}, stop_timeout=60.0, startsecs=0.0)
    assert one.fingerprint == two.fingerprint


def test_a_callable_counts_by_its_name():
    by_name = CompanionConfig("rq", f"{__name__}:work")
    assert CompanionConfig("rq", work).fingerprint == by_name.fingerprint
    # A config file that is read again makes new functions.
    again = type(work)(work.__code__, globals(), "work")
    assert CompanionConfig("rq", again).fingerprint == by_name.fingerprint


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("a.b:c.d", "a.b:c.d"),
        (work, f"{__name__}:work"),
        (Job.main, f"{__name__}:Job.main"),
        (Job().run, f"{__name__}:Job.run"),
        (Job(), f"{__name__}:Job"),
        (functools.partial(needs_one, 1), f"{__name__}:needs_one(*(1,), **{{}})"),
        (functools.partial(needs_one, queue="q"), f"{__name__}:needs_one(*(), **{{'queue': 'q'}})"),
    ],
)
def test_the_name_of_a_target(target, name):
    assert describe_target(target) == name


def test_where_an_argument_lies_in_memory_does_not_count():
    one, two = (
        CompanionConfig("rq", functools.partial(needs_one, argument)) for argument in (object(), object())
    )
    assert one.fingerprint == two.fingerprint


# -- outputs -----------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="asks for what another user may do")
NOBODY = 65534


def output_problem(path, uid, gid, initgroups=False) -> str:
    cfg = make_cfg(rq(stdout=str(path)), uid=uid, gid=gid, initgroups=initgroups)
    try:
        build_companion_configs(cfg)
    except ValueError as exc:
        return str(exc).rpartition("stdout: ")[2]
    return ""


def test_an_output_that_can_be_written(tmp_path):
    assert output_problem(tmp_path / "new.log", os.geteuid(), os.getegid()) == ""
    (tmp_path / "old.log").touch()
    assert output_problem(tmp_path / "old.log", os.geteuid(), os.getegid()) == ""
    assert output_problem("/dev/null", os.geteuid(), os.getegid()) == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "old.log"]


def test_an_output_is_looked_for_below_cwd(tmp_path):
    (tmp_path / "logs").mkdir()
    assert build(cwd=str(tmp_path), stdout="logs/a.log").stdout == "logs/a.log"


@as_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "allowed"),
    [
        (NOBODY, 0, 0o700, True),
        (NOBODY, 0, 0o500, False),
        (NOBODY, 0, 0o200, False),
        (0, NOBODY, 0o070, True),
        (0, NOBODY, 0o707, False),
        (0, 0, 0o755, False),
        (0, 0, 0o777, True),
        # Nearer bits rank above those for others, even where they allow less.
        (NOBODY, 0, 0o077, False),
    ],
)
def test_a_new_output_is_checked_for_the_user_that_will_write_it(short_dir, owner, group, mode, allowed):
    # Outside of tmp_path, whose parents are closed to other users.
    where = short_dir / "logs"
    where.mkdir()
    os.chown(where, owner, group)
    where.chmod(mode)
    found = output_problem(where / "a.log", NOBODY, NOBODY)
    assert bool(found) is not allowed, found
    assert output_problem(where / "a.log", 0, 0) == ""


@as_root
def test_an_existing_output_and_the_way_to_it_are_checked_for_that_user(short_dir):
    log = short_dir / "a.log"
    log.touch()
    assert output_problem(log, NOBODY, NOBODY) == f"{log} is not writable for nobody"
    log.chmod(0o666)
    assert output_problem(log, NOBODY, NOBODY) == ""
    short_dir.chmod(0o700)
    assert output_problem(log, NOBODY, NOBODY) == f"{log}: nobody may not enter {short_dir}"


@as_root
def test_the_groups_that_the_writer_will_have_count(short_dir):
    code = """
        import json, os, sys
        os.setgroups([4242])
        from test_companion_config import output_problem
        print(json.dumps([output_problem(sys.argv[1], 65534, 65534, own) for own in (False, True)]))
    """
    where = short_dir / "logs"
    where.mkdir()
    os.chown(where, 0, 4242)
    where.chmod(0o770)
    # A change of user keeps the groups that there are, unless initgroups replaces them.
    kept, replaced = answer_of(code, str(where / "a.log"))
    assert kept == ""
    assert "may not enter" in replaced or "is not writable" in replaced


# -- leases ------------------------------------------------------------------------


def test_the_name_of_a_lease():
    store = {"lease_store": "file:///leases"}
    names = [
        copy.lease_name for copy in build_companion_configs(make_cfg(rq(numprocs=2, lease=True, **store)))
    ]
    assert names == ["rq", "rq"]
    shards = rq(numprocs=2, lease="shard-%(index)d", **store)
    assert [copy.lease_name for copy in build_companion_configs(make_cfg(shards))] == ["shard-0", "shard-1"]
    assert build(lease=False).lease_name is None


def test_a_shared_lease_has_one_ttl():
    found = problems(leased(name="a", lease="shop"), leased(name="b", lease="shop", lease_ttl=30))
    assert found == [
        "companion 'b': lease: shop of file:///leases is also that of 'a': give both the same lease_ttl and "
        "lease_margin"
    ]
    build_companion_configs(make_cfg(leased(name="a", lease="shop"), leased(name="b", lease="shop")))


def test_web_workers_cannot_come_after_a_lease():
    cfg = make_cfg(leased())
    cfg.web_after = ["rq"]
    with pytest.raises(ValueError, match="web_after: rq needs a lease, and web workers would wait for it on"):
        build_companion_configs(cfg)


def test_the_password_of_a_store_is_not_shown():
    found = problems(rq(lease=True, lease_store="mysql://user:secret@host/"))
    assert "secret" not in str(found)
    found = problems(
        rq(name="a", lease="shop", lease_store="redis://:secret@host/"),
        rq(name="b", lease="shop", lease_store="redis://:secret@host/", lease_ttl=30),
    )
    assert found and "secret" not in str(found)
