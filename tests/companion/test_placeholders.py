# SPDX-License-Identifier: MIT
"""What is filled into the texts of copies, and what stands there by mistake."""

from __future__ import annotations

import re
import resource
from typing import Any

import pytest
from companiontools import make_cfg
from test_companion_config import problems, rq

from gunicorn.companion.checks import OutputFile
from gunicorn.companion.config import CompanionConfig, build_companion_configs, copies
from gunicorn.companion.placeholders import fill
from gunicorn.companion.supervise.changes import scale


def build_all(*workers: Any, **settings: Any) -> list[CompanionConfig]:
    return build_companion_configs(make_cfg(*workers, **settings), outputs=False)


THIRD = {"name": "app:3", "group": "app", "index": 3}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("%(name)s.log", "app:3.log"),
        ("%(group)s-%(index)s", "app-3"),
        ("81%(index)02d", "8103"),
        ("%(index)3d", "  3"),
        ("100%%", "100%"),
        ("%%(index)d", "%(index)d"),
        ("date +%%s %(index)d", "date +%s 3"),
        (("a", "%(index)d"), ("a", "3")),
        ({"PORT": "81%(index)02d", "GONE": None}, {"PORT": "8103", "GONE": None}),
        ({"command": ["check", "%(name)s"], "every": 10}, {"command": ["check", "app:3"], "every": 10}),
        (OutputFile("%(index)d.log", 5), OutputFile("3.log", 5)),
        (None, None),
        (7, 7),
    ],
)
def test_what_is_filled_in(text: Any, filled: Any) -> None:
    assert fill(text, THIRD) == filled
    assert type(fill(text, THIRD)) is type(text)


@pytest.mark.parametrize(
    ("text", "stray"),
    [
        ("date +%s", "%s"),
        ("100%", "%"),
        ("100% sure", "% "),
        ("%%%", "%"),
        ("%(pid)s", "%(pid)s"),
        ("%(name)d", "%(name)d"),
        ("%(index)f", "%(index)f"),
        ("%(index)", "%(index)"),
        ("%(name)s %d", "%d"),
        ("%(name", "%(name"),
        ("%ü", "%ü"),
    ],
)
def test_a_stray_percent_sign(text: str, stray: str) -> None:
    expected = f"{text!r}: {stray!r} is no placeholder: %(name)s, %(group)s and %(index)d are filled in, and"
    with pytest.raises(ValueError, match=re.escape(expected)):
        fill([text], THIRD)
    assert fill(text.replace("%", "%%"), THIRD) == text


def test_an_error_shows_no_secret() -> None:
    with pytest.raises(ValueError, match=r"\ADATABASE_URL: it has a '%'.*'%%'") as caught:
        fill({"DATABASE_URL": "host/XYZZY%40"}, THIRD)
    assert "XYZZY" not in str(caught.value)
    with pytest.raises(ValueError, match="begins no placeholder") as caught:
        fill(("--url", "postgres://shop:XYZZY%40@db/shop"), THIRD)
    assert "XYZZY" not in str(caught.value)
    with pytest.raises(ValueError, match=r"\A'\*\*\*': it has a '%' that begins no placeholder"):
        fill(("--password", "XYZZY%40"), THIRD)


def test_each_key_is_filled_for_each_copy() -> None:
    (only, *four) = build_all(
        {"name": "one", "command": ["one", "%(name)s", "%(index)d", "100%%"], "cwd": "/%(group)s"},
        {
            "name": "app",
            "command": ["daphne", "--port", "80%(index)02d"],
            "numprocs": 4,
            "index_start": 1,
            "cwd": "/srv/%(group)s/%(index)d",
            "env": {"NUMBER": "%(index)d"},
            "env_file": "/etc/%(name)s.env",
            "stdout": "%(group)s-%(index)d.log",
            "stderr": {"file": "/tmp/%(index)d.err"},
            "bind": ["127.0.0.1:81%(index)02d", "unix:/run/%(name)s"],
        },
    )
    assert (only.command, only.cwd) == (("one", "one", "0", "100%"), "/one")
    assert [config.name for config in four] == ["app:1", "app:2", "app:3", "app:4"]
    last = four[-1]
    assert last.command == ("daphne", "--port", "8004")
    assert (last.cwd, last.env, last.env_file) == ("/srv/app/4", {"NUMBER": "4"}, ("/etc/app:4.env",))
    assert (last.output("stdout"), last.output("stderr")) == (
        OutputFile("app-4.log"),
        OutputFile("/tmp/4.err"),
    )
    assert last.bind == ("127.0.0.1:8104", "unix:/run/app:4")
    assert (last.socket_owner, only.socket_owner, last.group, last.index) == ("app:4", "one", "app", 4)
    # Any of them is as good as another to make more from.
    assert [config.bind[0] for config in copies(four[2], 6)] == [f"127.0.0.1:810{n}" for n in range(1, 7)]
    assert [config.name for config in scale(four, {"app": (2, 4)})] == ["app:1", "app:2"]


def test_what_no_copy_differs_in_does_not_depend_on_the_template() -> None:
    (before, _) = build_all(rq(numprocs=2, cwd="/srv", env={"A": "100%%"}))
    (after, _) = build_all(rq(numprocs=2, cwd="/srv", env={"A": "%(index)d00%%"}))
    assert before.env == {"A": "100%"}
    assert before.shape_hash != after.shape_hash
    (plain,) = build_all(rq(cwd="/%(group)s"))
    assert plain.shape_hash == CompanionConfig("rq", "app:run", cwd="/rq").shape_hash


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"cwd": "/srv/%s"}, "companion 'rq': cwd: '/srv/%s': '%s' is no placeholder"),
        ({"env": {"URL": "a%40"}}, "companion 'rq': env: URL: it has a '%' that begins no placeholder"),
        ({"stdout": "%(pid)d.log"}, "companion 'rq': stdout: '%(pid)d.log': '%(pid)d' is no placeholder"),
        ({"stdout": {"file": "100%"}}, "stdout: '100%': '%' is no placeholder"),
        (
            {"bind": "127.0.0.1:81%(index)02d", "numprocs": 101},
            "companion 'rq:100': bind: port '81100' is not a number from 0 to 65535",
        ),
        (
            {"bind": ["127.0.0.1:81%(index)02d", "127.0.0.1:80"], "numprocs": 3},
            "companion 'rq': bind: 127.0.0.1:80 is the same for all copies: write %(index)d into each",
        ),
        ({"index_start": 8000}, "companion 'rq': index_start: has no effect without numprocs"),
        ({"index_start": -1, "numprocs": 2}, "index_start: -1 is not a whole number"),
        ({"group": "a b"}, "group: 'a b' may only contain letters"),
        ({"umask": 0o1000}, "umask: 512 is no mask of permissions: write it in octal"),
        ({"umask": "99"}, "umask: expected a mask in octal"),
        ({"oom_score_adj": 1001}, "oom_score_adj: 1001 is not a whole number from -1000 to 1000"),
        ({"rlimits": {"nofiles": 1}}, "rlimits: no limit nofiles: did you mean nofile?"),
        ({"rlimits": {"nofile": [2, 1]}}, "rlimits: nofile: [2, 1]: the soft limit is above the hard one"),
        ({"rlimits": {"nofile": ["unlimited", 1]}}, "the soft limit is above the hard one"),
        ({"rlimits": {"nofile": [1, 2, 3]}}, "nofile: [1, 2, 3] is neither one limit nor [soft, hard]"),
        ({"rlimits": {"core": "much"}}, "core: 'much' is not a number, a size like '512M' or 'unlimited'"),
        ({"rlimits": {"core": -1}}, "core: -1 is not a number"),
        ({"rlimits": 1}, 'rlimits: 1 is not a dict of limits, such as {"nofile": 4096}'),
        ({"cpu_affinity": "0-"}, "cpu_affinity: '0-' is not a list of CPUs"),
        ({"cpu_affinity": "3-1"}, "cpu_affinity: '3-1' is not a list of CPUs"),
        ({"cpu_affinity": []}, "cpu_affinity: [] is not a list of CPUs"),
        ({"cpu_affinity": [True]}, "cpu_affinity: [True] is not a list of CPUs"),
        ({"env_file": [""]}, "env_file: '' is not a path"),
    ],
)
def test_mistakes(keys: dict[str, Any], mistake: str) -> None:
    (problem,) = problems(rq(**keys))
    assert mistake in problem


def test_what_other_systems_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "freebsd14")
    monkeypatch.delattr("os.sched_setaffinity")
    assert problems(rq(oom_score_adj=1, cpu_affinity=[0])) == [
        "companion 'rq': oom_score_adj: it needs Linux",
        "companion 'rq': cpu_affinity: this system has no such call (it needs Linux)",
    ]


def test_a_number_of_copies_that_a_change_leaves_no_room_for() -> None:
    scaled = {"rq": (200, 2)}
    room = build_all(rq(numprocs=2, bind="127.0.0.1:8%(index)03d"))
    assert len(scale(room, scaled)) == 200
    little = build_all(rq(numprocs=2, bind="127.0.0.1:81%(index)02d"))
    assert [config.name for config in scale(little, scaled)] == ["rq:0", "rq:1"]
    assert scaled == {}


def test_an_address_that_two_sets_want() -> None:
    (problem,) = problems(
        rq(name="a", bind="127.0.0.1:810%(index)d", numprocs=4), rq(name="b", bind="127.0.0.1:8102")
    )
    assert problem == "companion 'b': bind: 127.0.0.1:8102 is already used by 'a'"


@pytest.mark.parametrize(
    ("key", "given", "found"),
    [
        ("umask", "027", 0o27),
        ("umask", "27", 0o27),
        ("umask", 0o27, 0o27),
        (
            "rlimits",
            {"nofile": 9, "core": [0, "unlimited"]},
            {"nofile": (9, None), "core": (0, resource.RLIM_INFINITY)},
        ),
        ("rlimits", {"as": "1G"}, {"as": (2**30, None)}),
        ("cpu_affinity", "0-2,6, 1", (0, 1, 2, 6)),
        ("cpu_affinity", [3, 1], (1, 3)),
        ("groups", "workers", ("workers",)),
        ("groups", ["workers", "night"], ("workers", "night")),
        ("env_file", "a.env", ("a.env",)),
        ("env", {"A": None}, {"A": None}),
    ],
)
def test_final_forms(key: str, given: Any, found: Any) -> None:
    (config,) = build_all(rq(**{key.replace("groups", "group"): given}))
    assert getattr(config, key) == found


def test_none_in_env_removes_a_variable_of_all_companions() -> None:
    (config,) = build_all(rq(env={"A": None}), companion_env={"A": "1", "B": "2"})
    assert config.env == {"A": None, "B": "2"}
