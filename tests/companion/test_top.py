# SPDX-License-Identifier: MIT
"""``gunicorn-companion top``: its rows, and its screen in a real terminal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from companiontools import python_env
from harness import ROOT, wait_until
from terminaltools import Terminal, terminal
from test_companion_client import Fake

from gunicorn.companion.client import rows
from gunicorn.companion.client.bindings import KEYS, show_keys
from gunicorn.companion.client.top import plain_lines

BUCKETS = [0.001, 0.01, 0.1, 1.0]
COMPANION = {"manual_stop": False, "autostart": True, "memory": None, "description": "as it is"}


def companion(name: str, state: str = "RUNNING", pid: int | None = 7, **more: Any) -> dict[str, Any]:
    return {**COMPANION, "name": name, "state": state, "pid": pid, **more}


def worker(pid: int, state: str = "idle", **more: Any) -> dict[str, Any]:
    answers = {"1xx": 0, "2xx": 0, "3xx": 0, "4xx": 0, "5xx": 0}
    plain = {
        "age": pid,
        "started": time.time() - 90,
        "oldest": None,
        "cpu": 1.0,
        "memory": None,
        "requests": 0,
    }
    return {"pid": pid, "state": state, **plain, "answers": answers, **more}


def web(*workers: dict[str, Any], requests: int = 0, errors: int = 0, **more: Any) -> dict[str, Any]:
    totals = {"requests": requests, "answers": {"5xx": errors}, "histogram": [0, requests, 0, 0, 0]}
    plain = {"wanted": len(workers), "master": {"pid": 1, "beat_age": 0.1}, "listeners": []}
    return {**plain, "workers": list(workers), "totals": totals, "buckets": BUCKETS, **more}


def look(at: float, *companions: dict[str, Any], web: dict[str, Any] | None = None) -> rows.Look:
    server = {"application": "shop:app", "addresses": ["http://127.0.0.1:8000"], "pid": 1, "uptime": 60.0}
    return rows.Look(at, 1000.0 + at, {**server, "version": "1"}, companions, web)


# -- rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "level"),
    [
        ({"state": "RUNNING"}, rows.FINE),
        ({"state": "RUNNING", "flapping": True}, rows.BAD),
        # It has failed, and runs again: for 59 seconds, or for 61.
        ({"state": "RUNNING", "failures": 1, "exited_at": 941.0}, rows.MOVING),
        ({"state": "RUNNING", "failures": 1, "exited_at": 939.0}, rows.FINE),
        ({"state": "RUNNING", "failures": 0, "exited_at": 999.0}, rows.FINE),
        ({"state": "STARTING"}, rows.MOVING),
        ({"state": "STARTING", "stuck": "db, which gave up"}, rows.BAD),
        ({"state": "STARTING", "flapping": True}, rows.BAD),
        ({"state": "STOPPING"}, rows.MOVING),
        ({"state": "STOPPING", "manual_stop": True}, rows.MOVING),
        ({"state": "BACKOFF"}, rows.BAD),
        ({"state": "STOPPED", "manual_stop": True}, rows.FINE),
        ({"state": "STOPPED", "reason": "gave up"}, rows.BAD),
        ({"state": "STOPPED", "reason": "exited", "done": True}, rows.FINE),
        ({"state": "STOPPED", "reason": "exited", "done": False}, rows.BAD),
    ],
)
def test_what_is_wrong_is_marked(more: dict[str, Any], level: int):
    assert rows.companion_level(companion("rq", **more), 1000.0) == level


@pytest.mark.parametrize(
    ("description", "shown"),
    [
        ("pid 7, uptime 00:00:02", ""),
        ("pid 7, uptime 2 days, 03:12:44, 14 restarts, last: oom 8s ago", "14 restarts, last: oom 8s ago"),
        ("pid 7, SIGKILL in 42s", "SIGKILL in 42s"),
        ("waiting for pid 4713", "waiting for pid 4713"),
        ("exited with status 1 (KeyError: 'price'), retrying in 3s", None),
    ],
)
def test_pid_and_uptime_have_columns_of_their_own(description: str, shown: str | None):
    assert rows.what(companion("rq", description=description)) == (description if shown is None else shown)


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (rows.show_age, None, "-"),
        (rows.show_age, -1, "0s"),
        (rows.show_age, 59.9, "59s"),
        (rows.show_age, 728, "12m08s"),
        (rows.show_age, 11100, "3h05m"),
        (rows.show_age, 184000, "2d03h"),
        (rows.show_size, 512 * 1024, "512K"),
        (rows.show_size, 12.34 * 2**20, "12.3M"),
        (rows.show_size, 1010 * 2**20, "1010M"),
        (rows.show_size, 1.25 * 2**30, "1.2G"),
        (rows.show_time, 0.0004, "0.4 ms"),
        (rows.show_time, 0.0123, "12 ms"),
        (rows.show_time, 0.9996, "1.0 s"),
        (rows.show_number, 99.94, "99.9"),
        (rows.show_number, 120.4, "120"),
        (rows.show_percent, 0.614, "61%"),
    ],
)
def test_figures_are_short(show: Callable[[Any], str], value: float | None, text: str):
    assert show(value) == text


def test_bars_are_relative_to_the_highest_one():
    assert rows.sparkline([5, 0, 1, 2, 4, 8], 5) == "▁▂▃▅█"
    assert rows.sparkline([0, 0], 5) == "▁▁"
    assert rows.sparkline([1], 0) == rows.sparkline([], 5) == ""


def test_rates_are_differences_of_counters():
    rates = rows.Rates()
    for at in (0.0, 1.0, 2.0, 3.0, 4.0):
        one = companion("rq", counters={"cpu": at / 4})
        if at == 3.0:
            # Not every look measures it.
            del one["counters"]
        rates.add(look(at, one, web=web(worker(12, requests=int(10 * at)), requests=int(10 * at))))
    assert rates.of("requests", 12) == rates.of("requests") == 10.0
    assert rates.of("cpu", "rq") == 0.25
    assert rates.of("requests", 13) is None
    assert list(rates.load) == [10.0, 10.0]
    # A counter that begins anew has no rate.
    rates.add(look(5.0, web=web(worker(12, requests=1), requests=1)))
    assert rates.of("requests", 12) is None


def test_the_rate_is_not_that_of_two_close_looks():
    rates = rows.Rates()
    for at, count in ((0.0, 0), (2.0, 20), (2.1, 40)):
        rates.add(look(at, web=web(worker(12, requests=count), requests=count)))
    assert rates.of("requests", 12) == pytest.approx(40 / 2.1)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0, 0, 0], 0.5, None),
        ([10, 0, 0, 0, 0], 0.5, 0.0005),
        ([0, 10, 0, 0, 0], 0.5, 0.0055),
        ([5, 0, 0, 5, 0], 0.95, 0.1 + 0.9 * 0.9),
        # Longer than all buckets.
        ([0, 0, 0, 0, 3], 0.5, 1.0),
    ],
)
def test_quantiles(counts: list[int], share: float, expected: float | None):
    found = rows.quantile(counts, BUCKETS, share)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("order", "backwards", "expected"),
    [
        ("problems", False, "cadb"),
        ("problems", True, "dbac"),
        ("name", False, "abcd"),
        ("name", True, "dcba"),
        # The largest first; those without the figure are last, either way.
        ("mem", False, "bdac"),
        ("mem", True, "adbc"),
    ],
)
def test_rows_are_sorted(order: str, backwards: bool, expected: str):
    def one(name: str, size: int | None, **more: Any) -> dict[str, Any]:
        return companion(name, memory=None if size is None else {"private": size, "saved": 0}, **more)

    found = rows.companion_rows(
        look(
            0.0,
            one("d", 2),
            one("b", 3),
            one("c", None, state="BACKOFF"),
            one("a", 1, state="STARTING"),
        ),
        rows.Rates(),
    )
    ordered = rows.in_order(found, rows.COMPANION_COLUMNS, order, backwards)
    assert "".join(row.key for row in ordered) == expected


def test_each_word_of_a_filter_must_be_there():
    found = rows.companion_rows(
        look(0.0, companion("rq:0"), companion("rq:1", "BACKOFF"), companion("db")), rows.Rates()
    )
    for text, keys in (("", ["rq:0", "rq:1", "db"]), ("RQ", ["rq:0", "rq:1"]), ("back rq", ["rq:1"])):
        assert [row.key for row in rows.matching(found, text)] == keys


@pytest.mark.parametrize("width", [20, 80, 200])
def test_lines_fill_the_width_and_no_more(width: int):
    seen = look(0.0, companion("rq:0", description="x" * 300), web=web(worker(12)))
    lines = plain_lines(seen, rows.Rates(), width)
    assert max(map(len, lines[3:])) <= max(width, 65)
    assert ("SAVED" in "".join(lines)) == (width == 200)


@pytest.mark.parametrize("height", [8, 14, 40])
def test_the_plain_tables_have_room_for_each_other(height: int):
    companions = [companion(f"rq:{number}") for number in range(30)]
    seen = look(0.0, *companions, web=web(*(worker(12 + number) for number in range(9))))
    lines = plain_lines(seen, rows.Rates(), 80, height)
    assert len(lines) <= max(height, 11)
    assert ("more" in lines[-1]) == (height < 40) and any("rq:0" in line for line in lines)


def test_nothing_acts_on_the_terminal():
    text = "\x1b[31mred\x1b[0m\ta \x1b]0;title\x07 \x9b2J \u202e"
    assert rows.clean(text) == "red a \\x1b]0;title\\x07 \\x9b2J \\x202e"


# -- the screen ------------------------------------------------------------------------------


@pytest.fixture
def fake(short_dir: Path) -> Iterator[Callable[..., Fake]]:
    started: list[Fake] = []

    def start(*names: str) -> Fake:
        started.append(Fake(short_dir / "c.sock", *names))
        server = started[-1]
        status = server.status

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            reply = status(request.get("name"))
            about = {
                "application": "shop:app",
                "addresses": ["http://127.0.0.1:8000"],
                "uptime": 5,
                "version": "1",
            }
            return {**reply, "server": {"pid": 1, **about}} if reply["ok"] else reply

        server.on["status"] = answer
        return server

    yield start
    for each in started:
        each.close()


@pytest.fixture
def top(short_dir: Path) -> Callable[..., AbstractContextManager[Terminal]]:
    """Starts the command in a terminal."""

    def start(columns: int = 80, lines: int = 24, *words: str, **env: str) -> Any:
        command = [sys.executable, "-m", "gunicorn.companion.ctl", "-s", short_dir / "c.sock", "top", *words]
        return terminal(command, columns, lines, **{**python_env(TERM="xterm-256color"), **env})

    return start


def sent(server: Fake, command: str, **wanted: Any) -> Callable[[], bool]:
    """Whether the server was asked for that."""

    def found() -> bool:
        return any(
            request["cmd"] == command and wanted.items() <= request.items() for request in [*server.requests]
        )

    return found


def test_keys_for_companions(fake, top):
    server = fake("db", "rq:0", "rq:1", "prices")
    server.companions["prices"].update(state="BACKOFF", pid=None, description="exited with status 1")
    for command in ("restart", "stop", "start"):
        server.on[command] = lambda request: {
            "ok": True,
            "message": f"{request['name']}: {request['cmd']} it is",
        }
    server.on["scale"] = lambda request: {"ok": True, "added": ["rq:2"], "removed": []}
    server.on["dump"] = lambda request: {
        "ok": True,
        "dumps": [{"name": "rq:0", "pid": 101, "stacks": 'File "jobs.py", line 3', "error": None}],
    }
    with top() as screen:
        # What is wrong comes first, is marked, and selected.
        screen.wait("q Quit", "rq:1")
        assert screen.line("prices").startswith("! prices BACKOFF")
        screen.wait_selected("! prices")
        screen.press("down", "down")
        screen.wait_selected("  rq:0")

        screen.press("r")
        screen.wait("Restart rq:0?", "Yes (y)")
        screen.press("n")
        screen.wait_gone("Restart rq:0?")
        assert not sent(server, "restart")()
        for key, question, answer, command in (
            ("r", "Restart rq:0?", "y", "restart"),
            ("s", "Stop rq:0,", "enter", "stop"),
            ("a", None, None, "start"),
        ):
            screen.press(key)
            if question:
                screen.wait(question)
                screen.press(answer)
            screen.wait(f"rq:0: {command} it is")
            assert sent(server, command, name="rq:0")()
        screen.press("+")
        wait_until(sent(server, "scale", name="rq", numprocs=3), 5, "one copy more")
        screen.press("-")
        screen.wait("Stop the last copy of rq?")
        screen.press("y")
        wait_until(sent(server, "scale", name="rq", numprocs=1), 5, "one copy fewer")
        screen.wait_gone("Stop the last copy of rq?")
        screen.press("k")
        screen.wait("k kills a web worker")

        screen.press("d")
        screen.wait("stacks of rq:0", 'File "jobs.py", line 3')
        screen.press("?")
        screen.wait("this help")
        screen.press("x")
        screen.wait("stacks of rq:0", 'File "jobs.py", line 3')
        screen.press("escape")
        screen.wait_gone("jobs.py")

        screen.press("/", "pri")
        screen.wait_gone("rq:1")
        screen.press("enter")
        screen.wait_selected("! prices")
        screen.press("escape")
        screen.wait("rq:1")
        screen.press("/", "no/thing", "enter")
        screen.wait("nothing is selected")
        screen.press("r", "d", "+", "escape")
        screen.wait("rq:1")

        screen.press("o")
        screen.wait("sorted by name")
        assert screen.lines[3].startswith("  db")
        screen.press("i")
        wait_until(lambda: screen.lines[3].startswith("  rq:1"), 5, "the last name first")
        screen.click(6, 2)
        wait_until(lambda: screen.lines[3].startswith("  db"), 5, "a click on the title turns it round")
        screen.click(6, 4)
        screen.wait_selected("! prices")

        screen.press("?")
        screen.wait("restart the companion;", "this help")
        for key in KEYS:
            assert key.help[:40] in screen.text, f"{key} does not fit"
        screen.press("x")
        screen.wait_gone("this help")
        screen.press("enter")
        screen.wait_gone("RESTARTS")
        screen.press("escape")
        screen.wait("RESTARTS")
        screen.press("tab", "up", "tab", "q")
        assert screen.wait_end() == 0
        screen.assert_as_before()


def test_keys_for_web_workers(fake, top):
    server = fake("rq")
    slow = {"method": "GET", "path": "/slow", "since": time.time() - 60}
    workers = [worker(12), worker(13, "busy", running=1, oldest=slow), worker(14)]
    done = {"ok": True, "message": "as you say"}
    server.on["web"] = lambda request: done if "do" in request else {"ok": True, "web": web(*workers)}
    server.on["dump"] = lambda request: {
        "ok": True,
        "dumps": [{"name": "worker", "pid": 13, "stacks": None, "error": "it is gone"}],
    }
    with top(200, 50) as screen:
        screen.wait("3 of 3 workers", "OLDEST REQUEST", "s GET /slow")
        screen.press("tab")
        screen.wait("web worker 13", "oldest request: GET /slow, for ")
        screen.wait_selected("!      13 busy")
        for key, question, wanted in (
            ("r", "Reload the web workers?", {"do": "reload"}),
            ("k", "Kill web worker 13?", {"do": "kill", "pid": 13}),
            ("-", "Run one web worker fewer?", {"do": "remove", "count": 1}),
            ("+", None, {"do": "add", "count": 1}),
        ):
            screen.press(key)
            if question:
                screen.wait(question)
                screen.press("y")
            wait_until(sent(server, "web", **wanted), 5, f"{wanted} asked for")
        screen.press("s")
        screen.wait("web workers are not stopped")
        screen.press("d")
        screen.wait("stacks of 13", "it is gone")
        assert sent(server, "dump", what=13)()
        screen.resize(80, 24)
        screen.wait("q Quit", "stacks of 13")
        assert len(screen.line("OLDEST REQUEST")) <= 80
        # Back to the companions, by the output.
        screen.press("tab", "tab")
        screen.wait_gone("stacks of 13")
        screen.wait_selected("  rq")
        screen.press("ctrl-c")
        assert screen.wait_end() == 0
        screen.assert_as_before()


def test_no_colour_is_sent_where_none_is_wanted(fake, top):
    server = fake("db", "prices")
    server.companions["prices"].update(state="BACKOFF", pid=None)
    with top(NO_COLOR="1") as screen:
        screen.wait("q Quit", "! prices")
        screen.wait_selected("! prices")
        colours = re.findall(rb"\x1b\[[0-9;]*m", screen.raw)
        codes = {int(code) for found in colours for code in found[2:-1].split(b";") if code}
        assert codes and not codes & {*range(30, 39), *range(40, 49), *range(90, 108)}
        screen.proc.send_signal(signal.SIGTERM)
        assert screen.wait_end() == 128 + signal.SIGTERM
        screen.assert_as_before()


def test_hundreds_of_companions(fake, top):
    server = fake(*(f"job-{number:03}" for number in range(500)))
    with top(80, 24, "--interval", "600") as screen:
        screen.wait("500 RUNNING", "job-000")
        screen.press("end")
        screen.wait_selected("  job-499")
        # It is shown when the server tells it, and the cursor stays on its row.
        server.todo.put(lambda: server.now("job-250", "BACKOFF", pid=None))
        screen.wait("1 BACKOFF")
        screen.wait_selected("  job-499")
        screen.press("home")
        screen.wait_selected("! job-250")
        screen.press(*["pagedown"] * 100)
        screen.wait_selected("  job-499")
        screen.press("q")
        assert screen.wait_end() == 0


def test_a_server_that_goes_and_comes_back(fake, top, short_dir):
    server = fake("rq")
    with top() as screen:
        screen.wait("1 RUNNING")
        server.close()
        screen.wait("No answer since", "No such file or")
        again = fake("rq", "db")
        screen.wait("2 RUNNING")
        screen.wait_gone("No answer")
        assert again.count("status") >= 1
        # The terminal is gone.
        screen.proc.send_signal(signal.SIGHUP)
        assert screen.wait_end() == 128 + signal.SIGHUP
        screen.assert_as_before()


# -- without a screen ------------------------------------------------------------------------


def test_a_dumb_terminal_gets_plain_tables(fake, top):
    fake("rq")
    with top(80, 24, "--interval", "0.3", TERM="dumb") as screen:
        screen.wait("NAME", "rq")
        wait_until(lambda: screen.raw.count(b"NAME") > 1, 5, "the tables again")
        assert b"\x1b" not in screen.raw
        screen.proc.send_signal(signal.SIGINT)
        assert screen.wait_end() == 130


def test_without_the_library_it_says_how_to_get_the_screen(fake, short_dir):
    fake("rq")
    code = (
        "import sys; sys.modules['textual'] = None; from gunicorn.companion import ctl; sys.exit(ctl.main())"
    )
    words = [sys.executable, "-c", code, "-s", short_dir / "c.sock", "top", "--interval", "0.2"]
    with terminal([*words], **python_env(TERM="xterm")) as screen:
        screen.wait("1 RUNNING", "pip install textual")
        assert screen.raw.count(b"\x1b[H\x1b[2J") >= 1
        screen.press("ctrl-c")
        screen.proc.send_signal(signal.SIGINT)
        assert screen.wait_end() == 130


def test_a_pipe_gets_whole_tables(fake, short_dir):
    fake(*(f"rq-{number}" for number in range(60)))
    words = [sys.executable, "-m", "gunicorn.companion.ctl", "-s", short_dir / "c.sock", "top"]
    env = python_env(PYTHONIOENCODING="ascii")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(65)]
        process.terminate()
    assert sum(line.startswith("  rq-") for line in lines) >= 60
    assert "Companions  60 RUNNING\n" in lines


# -- the manual ------------------------------------------------------------------------------


def test_the_manual_has_the_keys():
    text = (ROOT / "docs" / "top.rst").read_text()
    for key in KEYS:
        keys = ", ".join(f"``{one}``" for one in show_keys(key.keys).split(", "))
        assert re.search(rf"^{re.escape(keys)} +{re.escape(key.help)}$", text, re.M), f"{keys}  {key.help}"
