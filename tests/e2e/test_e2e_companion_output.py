# SPDX-License-Identifier: MIT
"""Captured output of companions: followed, kept through kills, rotated; and outputs that nobody reads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from e2e_companions import companion_server, entry, keeper_of
from harness import Server, is_alive, status_field, wait_until

OUTPUT = '''
import os, signal, sys, time

def fails():
    """Ends with a traceback."""
    time.sleep(0.2)
    {}["price"]

def last_words():
    print("begins", flush=True)
    sys.stderr.write("my last words")
    sys.stderr.flush()
    time.sleep(1000)

def counts():
    """Writes numbered lines, on stdout, until it is asked to stop; says then how many."""
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    number, pause = 0, float(os.environ.get("PAUSE", "0.001"))
    while not asked:
        print(f"line {number} {'.' * (number % 90)}", flush=number % 7 == 0)
        number += 1
        if number % 200 == 0:
            time.sleep(pause)
    print(f"total {number}", flush=True)

def floods():
    """Writes as fast as it can, without end."""
    data = (b"x" * 99 + b"\\n") * 600
    while True:
        os.write(1, data)

def ticks():
    while True:
        print(f"tick {time.time()}", flush=True)
        time.sleep(0.05)

def noise():
    """One line of 8 MiB, then bytes that are no text, without newline."""
    os.write(1, b"begin ")
    for _ in range(128):
        os.write(1, b"y" * 65536)
    os.write(1, b"\\n\\xff\\x00\\xfe")
    time.sleep(1000)
'''


def output_server(*companions: dict[str, Any], **settings: Any) -> Server:
    server = companion_server(*companions, files_option={"output.py": OUTPUT}, **settings)
    server.notes_starts = False
    return server


def job(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "target": f"output:{name.partition('-')[0]}", **keys}


def logs(server: Server, *words: str) -> list[dict[str, Any]]:
    """What ``gunicorn-companion logs --json`` prints."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "gunicorn.companion.ctl",
            "-s",
            str(server.control_path()),
            "logs",
            "--json",
            *words,
        ],
        env=server.env,
        capture_output=True,
        timeout=20,
        check=True,
    )
    return [json.loads(line) for line in found.stdout.splitlines()]


@contextmanager
def following(server: Server, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """``gunicorn-companion logs -f``."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gunicorn.companion.ctl",
            "-s",
            str(server.control_path()),
            "logs",
            "-f",
            *words,
        ],
        env=server.env,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# -- with nothing configured ------------------------------------------------------------------------------


def test_a_traceback_is_whole_and_has_its_owner_s_name() -> None:
    with output_server(job("fails", restart_delay=100), job("counts")) as server:
        server.wait_manager()
        log = server.wait_log("KeyError: 'price'")
        lines = [line for line in log.splitlines() if line.startswith("fails | ")]
        assert lines[0] == "fails | Traceback (most recent call last):"
        assert lines[-1] == "fails | KeyError: 'price'"
        kept = [each["line"] for each in logs(server, "fails")]
        assert [f"fails | {line}" for line in kept] == lines
        assert logs(server, "fails", "--stdout") == []


def test_last_words_before_a_kill_are_there_afterwards() -> None:
    with output_server(job("last_words", restart_delay=0.1)) as server:
        pid = server.wait_companion("last_words")["pid"]
        server.wait_log("last_words | begins")
        os.kill(pid, signal.SIGKILL)
        server.wait_companion("last_words", without=[pid])
        found = wait_until(lambda: [each for each in logs(server) if each["pid"] == pid], 5, "its lines")
        assert [(each["stream"], each["line"]) for each in found] == [
            ("stdout", "begins"),
            ("stderr", "my last words"),
        ]
        server.wait_log("last_words | my last words\n")


def test_one_who_follows_gets_the_lines_of_all_through_a_kill_of_the_keeper() -> None:
    slow = {"env": {"PAUSE": "0.05"}}
    with output_server(job("counts-a", **slow), job("counts-b", **slow)) as server:
        server.wait_companion("counts-b")
        with following(server, "-n", "5") as process:
            check_nothing_is_missing(server, process)


def test_logs_of_more_lines_than_a_machine_can_count() -> None:
    with output_server(job("counts")) as server:
        server.wait_companion("counts")
        keeper = keeper_of(server)
        wait_until(lambda: logs(server, "-n", str(10**30)), 5, "lines")
        assert keeper_of(server) == keeper


def test_a_master_that_gevent_has_patched() -> None:
    pytest.importorskip("gevent")
    with output_server(
        job("ticks"), extra="from gevent import monkey; monkey.patch_all()", worker_class="gevent"
    ) as server:
        server.wait_companion("ticks")
        keeper = keeper_of(server)
        server.wait_log("ticks | tick ")
        wait_until(lambda: logs(server, "-n", "1"), 5, "lines")
        assert keeper_of(server) == keeper
        assert server.stop() == 0
        assert "log keeper" not in server.log()


def check_nothing_is_missing(server: Server, process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    seen: dict[str, int] = {}

    def read(count: int) -> None:
        for _ in range(count):
            line = process.stdout.readline().decode()  # type: ignore[union-attr]
            name, number = re.fullmatch(r"(counts-.) \| line (\d+) \.*\n", line).groups()  # type: ignore[union-attr]
            assert int(number) == seen.get(name, int(number) - 1) + 1, "none is missing"
            seen[name] = int(number)

    read(2000)
    assert len(seen) == 2
    keeper = keeper_of(server)
    os.kill(keeper, signal.SIGKILL)
    seen.clear()
    keeper_of(server, without=keeper)
    read(2000)
    assert len(seen) == 2


def test_long_lines_and_bytes_that_are_no_text_are_kept_as_they_are() -> None:
    with output_server(job("noise", stdout="noise.out"), job("ticks")) as server:
        server.wait_companion("noise")
        expected = b"begin " + b"y" * (128 * 65536) + b"\n"
        wait_until(lambda: (server.dir / "noise.out").read_bytes() == expected, 10, "the long line")
        assert server.stop() == 0
        assert (server.dir / "noise.out").read_bytes() == expected + b"\xff\x00\xfe"


# -- nothing is lost -----------------------------------------------------------------------------------------


def missing(lines: list[str]) -> set[int]:
    """The numbers that are missing in the output of one process of ``counts``. Fails on a torn line."""
    numbers, total = set(), None
    for line in lines:
        found = re.fullmatch(r"(line|total) (\d+)( \.*)?", line)
        assert found, line
        if found[1] == "total":
            total = int(found[2])
        else:
            number = int(found[2])
            assert found[3] == " " + "." * (number % 90), line
            numbers.add(number)
    assert total is not None, lines[-1:]
    return set(range(total)) - numbers


def wait_for_more(server: Server, names: str) -> None:
    """Wait until companions have written some more."""

    def size() -> int:
        return sum(path.stat().st_size for path in server.dir.glob(names))

    before = size()
    wait_until(lambda: size() > before + 10_000, 10, "more output")


def test_no_line_is_lost_through_kills_of_keeper_and_manager() -> None:
    """Companions whose manager is killed are asked to stop by the kernel, and say their last."""
    with output_server(
        job("counts", numprocs=2, restart_delay=0.1),
        companion_log_format="%(name)s %(pid)d | %(message)s",
    ) as server:
        for round_ in range(8):
            if round_ % 4 == 3:
                manager = server.wait_manager()
                os.kill(manager, signal.SIGKILL)
                server.wait_manager(without=manager)
                server.wait_companion("counts:0")
            else:
                os.kill(keeper_of(server), signal.SIGKILL)
                server.signal(signal.SIGUSR1)
            wait_for_more(server, "server.log")
        assert server.stop() == 0
        by_process: dict[str, list[str]] = {}
        for line in server.log().splitlines():
            if found := re.fullmatch(r"(counts:\d \d+) \| (.*)", line):
                by_process.setdefault(found[1], []).append(found[2])
        assert len(by_process) >= 6
        assert {name: lost for name, lines in by_process.items() if (lost := missing(lines))} == {}


def test_rotated_files_have_every_line_once() -> None:
    rotated = {"file": "out-%(index)s", "max_bytes": 50_000, "backups": 900}
    with output_server(job("counts", numprocs=2, stdout=rotated)) as server:
        for _ in range(5):
            wait_for_more(server, "out-*")
            os.kill(keeper_of(server), signal.SIGKILL)
        assert server.stop() == 0
        for index in (0, 1):
            files = sorted(server.dir.glob(f"out-{index}.*"), key=lambda path: -int(path.suffix[1:]))
            assert all(path.stat().st_size <= 50_000 for path in files)
            lines = "".join(path.read_text() for path in [*files, server.dir / f"out-{index}"]).splitlines()
            assert missing(lines) == set()
            assert len(set(lines)) == len(lines) > 1000


def test_a_keeper_that_is_killed_just_before_a_stop_loses_no_line() -> None:
    with output_server(job("counts", stdout="counts.out")) as server:
        wait_for_more(server, "counts.out")
        first = keeper_of(server)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: keeper_of(server) != first, 5, "another keeper")
        # The next one starts a second after this one.
        os.kill(keeper_of(server), signal.SIGKILL)
        assert server.stop() == 0
        assert missing((server.dir / "counts.out").read_text().splitlines()) == set()


def test_usr1_begins_new_files() -> None:
    with output_server(job("ticks", stdout="ticks.out")) as server:
        server.wait_log("tick", name="ticks.out")
        (server.dir / "ticks.out").rename(server.dir / "ticks.old")
        server.signal(signal.SIGUSR1)
        server.wait_log("tick", name="ticks.out")
        size = (server.dir / "ticks.old").stat().st_size
        server.wait_log("tick", name="ticks.out")
        assert (server.dir / "ticks.old").stat().st_size == size


def test_last_words_of_companions_whose_manager_was_killed() -> None:
    with output_server(job("counts", restart_delay=0.1)) as server:
        server.wait_companion("counts")
        manager, keeper = server.wait_manager(), keeper_of(server)
        os.kill(manager, signal.SIGKILL)
        server.wait_log("counts | total")
        wait_until(lambda: not is_alive(keeper), 5, "the keeper gone after its last stream")


# -- an output that nobody reads --------------------------------------------------------------------------


@contextmanager
def stuck(*companions: dict[str, Any], **settings: Any) -> Iterator[tuple[Server, int]]:
    """A server that writes into a pipe; the other end of it."""
    reading, writing = os.pipe()
    server = output_server(*companions, **settings)
    server.popen_options.update(stdout=writing, stderr=writing)
    try:
        with server:
            os.close(writing)
            yield server, reading
    finally:
        os.close(reading)


def test_an_output_that_nobody_reads_holds_up_nothing() -> None:
    with stuck(job("floods"), job("ticks"), entry("idle")) as (server, _):
        server.wait_companion("floods")
        with following(server, "-n", "0", "--json", "ticks") as process:
            assert process.stdout is not None
            delays, answers = [], []
            for _ in range(60):
                found = json.loads(process.stdout.readline())
                delays.append(time.time() - float(found["line"].split()[1]))
                began = time.monotonic()
                server.ask("status")
                answers.append(time.monotonic() - began)
        assert server.get("/").status == 200
        # Three in four: other programs use the processors too.
        assert sorted(delays)[-15] < 0.2, delays
        assert sorted(answers)[-15] < 0.1, answers
        pid = server.companion("idle")["pid"]
        os.kill(pid, signal.SIGKILL)
        server.wait_companion("idle", without=[pid])
        assert server.stop(timeout=15) == 0


def read_to_the_end(fd: int) -> None:
    while os.read(fd, 65536):
        pass


def test_what_was_dropped_is_counted_and_said_when_somebody_reads_again() -> None:
    with stuck(job("floods")) as (server, reading):
        server.wait_companion("floods")
        with server.control() as control:
            control.ask("events")
            # Nobody reads for longer than the server waits.
            time.sleep(1.5)
            seen = b""
            while b"could not be written here]" not in seen:
                seen = seen[-1000:] + os.read(reading, 65536)
            # To the end of the server, or the output would be stuck again.
            threading.Thread(target=read_to_the_end, args=(reading,), daemon=True).start()
            event = control.read_reply()
            while event["event"] != "log-dropped":
                event = control.read_reply()
        assert event["name"] == "floods"
        assert event["lines"] > 1000


def test_an_idle_keeper_does_not_wake() -> None:
    with output_server(entry("idle")) as server:
        server.wait_companion("idle")
        keeper = keeper_of(server)

        def switches() -> int:
            return int(status_field(keeper, "voluntary_ctxt_switches"))

        time.sleep(0.3)
        before = switches()
        time.sleep(1.0)
        assert switches() == before


def test_capture_can_be_turned_off() -> None:
    with output_server(job("ticks"), companion_log_lines=0) as server:
        log = server.wait_log("tick")
        assert "ticks | " not in log
        reply = server.ask("logs")
        assert reply == {
            "ok": False,
            "error": "the output of companions is not captured: companion_log_lines is 0",
        }


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        ({"names": ["tick"]}, "no companion named tick: did you mean ticks?"),
        ({"names": "ticks"}, "'names' is not a list"),
        ({"lines": -1}, "'lines': -1 is not a number"),
        ({"since": "now"}, "'since': 'now' is not a time"),
        ({"stream": "stdin"}, "'stream': 'stdin' is neither"),
    ],
)
def test_wrong_requests_for_lines(more: dict[str, Any], mistake: str, ticking: Server) -> None:
    reply = ticking.ask("logs", **more)
    assert not reply["ok"] and mistake in reply["error"]


@pytest.fixture(scope="module")
def ticking() -> Iterator[Server]:
    with output_server(job("ticks")) as server:
        server.wait_companion("ticks")
        yield server
