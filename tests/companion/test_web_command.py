# SPDX-License-Identifier: MIT
"""``gunicorn-companion web`` against a socket whose answers the test gives."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from companiontools import python_env
from test_companion_client import Fake

from gunicorn.companion.client.web import show_span
from gunicorn.companion.control import error

NOW = 1_800_000_000.0
MIB = 2**20


def worker(pid: int, age: int, state: str = "idle", **more: Any) -> dict[str, Any]:
    return {
        "pid": pid,
        "age": age,
        "state": state,
        "started": NOW - 750,
        "requests": 0,
        "running": 0,
        "oldest": None,
        "cpu": 0.2,
        "memory": {"private": 12 * MIB, "pss": 30 * MIB},
        **more,
    }


class Web:
    """The state that the fake server tells of, and what its master does."""

    def __init__(self, server: Fake) -> None:
        self.server = server
        self.asked: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {"ok": True, "message": "it will be so", "newest": 2}
        self.master: Callable[[], None] = lambda: None
        self.found: dict[str, Any] = {
            "class": "gthread",
            "wanted": 2,
            "threads": 8,
            "now": NOW,
            "master": {"pid": 1, "beat_age": 0.4},
            "workers": [worker(11, 1), worker(12, 2)],
            "listeners": [],
            "totals": {
                "requests": 0,
                "running": 0,
                "connections": 0,
                "answers": {"2xx": 0, "5xx": 0},
                "ends": {"reload": 0, "boot": 0},
            },
        }
        server.on["web"] = self.dispatch

    def dispatch(self, request: dict[str, Any]) -> dict[str, Any]:
        if "do" not in request:
            return {"ok": True, "web": self.found}
        self.asked.append(request)
        if self.answer["ok"]:
            self.master()
        return dict(self.answer)

    def later(self, seconds: float, **more: Any) -> None:
        """Have the server's facts change after some time."""
        from threading import Timer

        timer = Timer(seconds, self.server.todo.put, [lambda: self.found.update(more)])
        timer.daemon = True
        timer.start()


@pytest.fixture
def web(short_dir) -> Iterator[Web]:
    server = Fake(short_dir / "c.sock")
    yield Web(server)
    server.close()


@pytest.fixture
def ask(run, short_dir) -> Callable[..., tuple[int, str, str]]:
    return lambda *words: run("-s", short_dir / "c.sock", *words)


BUSY = {
    "requests": 1234,
    "running": 3,
    "cpu": 75.5,
    "oldest": {"method": "GET", "path": "/reports/of/the/whole/year", "since": NOW - 12.4},
}


def test_the_table(web, ask):
    found = web.found
    found["workers"] = [
        worker(12, 2, "booting", cpu=None, memory=None, started=NOW - 3.21),
        worker(4194303, 1, "busy", **BUSY),
    ]
    found["listeners"] = [
        {"address": "http://127.0.0.1:8000", "waiting": 17, "backlog": 2048},
        {"address": "unix:/run/x", "waiting": None, "backlog": None},
    ]
    found["totals"].update(
        requests=1300, running=3, connections=9, answers={"2xx": 1290, "3xx": 0, "5xx": 10}
    )
    found["totals"]["ends"].update(reload=4, timeout=1)
    code, out, err = ask("web")
    assert (code, err) == (3, "")
    assert out.splitlines() == [
        "    PID  STATE     AGE  REQUESTS  RUNNING  CPU   PRIVATE  OLDEST REQUEST",
        "4194303  busy      12m      1234        3  76s  12.0 MiB  12s GET /reports/of/the/whole/year",
        "     12  booting  3.2s         0        0    -         -  -",
        "",
        "workers      1 of 2 serve; class gthread, 8 threads each",
        "requests     1300 since the start: 1290 2xx, 10 5xx",
        "now          requests running: 3, connections open: 9",
        "backlog      17 of 2048 at http://127.0.0.1:8000",
        "ended        4 reload, 1 timeout",
    ]
    assert web.server.requests[-1] == {"cmd": "web", "memory": True}
    assert json.loads(ask("web", "--json")[1]) == {"ok": True, "web": found}


def test_the_exit_status(web, ask):
    assert ask("web")[0] == 0
    # One more than wanted, which is about to end.
    web.found["workers"].append(worker(13, 3, "retiring"))
    assert ask("web")[0] == 0
    web.found["master"]["beat_age"] = 12.4
    code, out, _ = ask("web")
    assert code == 3 and out.endswith("master       process 1 hangs: no sign of life for 12s\n")
    web.found.update(master={"pid": 1, "beat_age": 0.1}, workers=[], held_by="migrate")
    assert "\nwaiting      they wait for migrate\n" in ask("web")[1]
    code, out, _ = ask("web", "--json")
    assert code == 3 and json.loads(out)["web"]["workers"] == []
    web.server.on["web"] = lambda request: error("unknown command web")
    assert ask("web") == (1, "", "gunicorn-companion: unknown command web\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.1, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (99, "99s"),
        (101, "2m"),
        (5999, "100m"),
        (6000, "2h"),
        (172799, "48h"),
        (172800, "2d"),
        (4e7, "463d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert show_span(seconds) == text


def on_terminal(web: Web, columns: int, **env: str) -> str:
    """What the command writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    words = [sys.executable, "-m", "gunicorn.companion.ctl", "-s", str(web.server.path), "web"]
    environ = {"TERM": "xterm", **{k: v for k, v in python_env().items() if k not in ("NO_COLOR", "COLUMNS")}}
    subprocess.run(words, stdout=theirs, env={**environ, **env}, timeout=20, check=False)
    os.close(theirs)
    found = b""
    try:
        while data := os.read(ours, 65536):
            found += data
    except OSError:
        pass  # the end, on Linux
    os.close(ours)
    return found.decode().replace("\r\n", "\n")


def test_a_terminal_is_coloured_and_no_line_of_the_table_is_wider(web):
    oldest = {"method": "GET", "path": "/" + "x" * 300, "since": NOW - 99}
    web.found["workers"] = [worker(11, 1, "busy", **{**BUSY, "oldest": oldest}), worker(12, 2)]
    shown = on_terminal(web, 80)
    assert "\x1b[32mbusy" in shown and "\x1b[31m99s GET /xx" in shown
    plain = re.sub("\x1b\\[[0-9]+m", "", shown)
    table = plain.split("\n\n")[0].splitlines()
    assert max(map(len, table)) == 80 and table[1].endswith("xx..")
    assert table[2].split() == ["12", "idle", "12m", "0", "0", "0.2s", "12.0", "MiB", "-"]
    assert "\x1b" not in on_terminal(web, 80, NO_COLOR="1")
    oldest["path"] = "/\x1b[2J"  # no server of ours sends that
    plain = on_terminal(web, 80, TERM="dumb")
    assert "\x1b" not in plain and "GET /\\x1b[2J" in plain
    for columns in (1, 6, 20):
        narrow = on_terminal(web, 80, NO_COLOR="1", COLUMNS=str(columns)).split("\n\n")[0]
        assert max(map(len, narrow.splitlines())) <= columns


# -- commands ----------------------------------------------------------------------------


def test_more_workers(web, ask):
    web.master = lambda: (
        web.found.update(wanted=3),
        web.later(0.2, workers=[*web.found["workers"], worker(13, 3)]),
    )
    assert ask("web", "add") == (0, "3 workers serve\n", "")
    assert web.asked == [{"cmd": "web", "do": "add"}]


def test_fewer_workers(web, ask):
    retiring = [worker(11, 1, "retiring"), worker(12, 2)]
    web.master = lambda: (
        web.found.update(wanted=1, workers=retiring),
        web.later(0.2, workers=retiring[1:]),
    )
    assert ask("web", "remove", "1") == (0, "1 worker serves\n", "")
    assert web.asked == [{"cmd": "web", "do": "remove", "count": 1}]


def test_new_workers(web, ask):
    web.master = lambda: web.later(0.2, workers=[worker(13, 3), worker(14, 4)])
    code, out, err = ask("web", "reload", "--json")
    assert (code, json.loads(out), err) == (0, web.answer, "")
    assert web.found["workers"][0]["pid"] == 13


def test_the_end_of_one(web, ask):
    web.master = lambda: web.later(0.2, workers=[worker(11, 1), worker(13, 3)])
    assert ask("web", "kill", "12") == (0, "12: killed\n", "")
    assert web.asked == [{"cmd": "web", "do": "kill", "pid": 12}]


def test_not_waiting(web, ask):
    assert ask("web", "reload", "--no-wait") == (0, "it will be so\n", "")


def test_what_never_comes(web, ask):
    web.found["wanted"] = 3
    text = "gunicorn-companion: not done in time: 2 of 3 workers serve, 2 are there\n"
    assert ask("web", "add", "--timeout", "0.3") == (2, "", text)
    totals = {**web.found["totals"], "ends": {"boot": 1}}
    web.master = lambda: web.later(0.1, totals=totals)
    web.found["totals"] = {**totals, "ends": {"boot": 0}}
    text = (
        "a new worker did not start: see the server's log; 2 of 3 workers serve, and the server tries again"
    )
    assert ask("web", "add") == (1, "", f"gunicorn-companion: {text}\n")
    # A reload is over when it is refused; another one's result is none of this one's.
    web.answer["number"] = 4
    last = {"number": 4, "at": 0, "result": "refused", "reason": "no such module"}
    shown = iter([{**last, "number": 3}, None, last])
    web.server.on["status"] = lambda request: {
        "ok": True,
        "companions": [],
        "server": {"reload": next(shown)},
    }
    code, out, err = ask("web", "reload")
    assert (code, out) == (1, "") and err.endswith(": no such module; 2 of 3 workers serve\n")
    assert list(shown) == []


def test_refusals(web, ask):
    web.answer = error("process 1 is not a worker of this server")
    text = "gunicorn-companion: process 1 is not a worker of this server\n"
    assert ask("web", "kill", "1") == (1, "", text)
    code, out, err = ask("web", "kill", "1", "--json")
    assert (code, json.loads(out), err) == (1, web.answer, text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["kill"], "the PID of the worker is missing"),
        (["reload", "2"], "reload takes no number"),
        (["kill", "-1"], "'-1' is not a number of 1 or more"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_wrong_usage(web, ask, words: list[str], text: str) -> None:
    code, _, err = ask("web", *words)
    assert code == 2 and text in err and not web.asked


@pytest.mark.parametrize(
    ("word", "hint"), [("kill", "web kill PID"), ("add", "web add"), ("ttin", "use web")]
)
def test_words_of_others(ask, word: str, hint: str) -> None:
    code, _, err = ask(word)
    assert code == 2 and hint in err
