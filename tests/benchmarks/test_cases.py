# SPDX-License-Identifier: MIT
"""The cases and the command line: what is chosen, and that a wrong answer is found out."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from harness import ROOT

from benchmarks import asgi, cli, deploys, peers, resident, startup, supervision, web
from benchmarks.results import Row
from benchmarks.stats import ITSELF

CASES = {case.name: case for case in web.cases()}
ALL_NAMES = [*CASES, *supervision.TITLES, *startup.TITLES, *deploys.TITLES, *resident.TITLES, *asgi.TITLES]


def test_each_case_has_a_name_of_its_own() -> None:
    assert len(set(ALL_NAMES)) == len(ALL_NAMES)
    assert len(CASES) == len(web.cases())


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_case_judges_only_who_takes_part(case: web.Case) -> None:
    labels = [contestant.label for contestant in case.contestants]
    assert len(set(labels)) == len(labels)
    assert case.contestants[0].peer == peers.OURS
    assert set(case.targets) <= {*labels[1:], ITSELF}


def test_the_request_with_many_headers_has_twenty() -> None:
    # Host and Content-Length are added.
    assert len(web.FORM.headers) + 2 == 20
    assert 1900 < len(web.FORM.body) < 2200


HELLO_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": "14"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "problem"),
    [
        (200, HELLO_HEADERS, b"Hello, world!\n", ""),
        (404, HELLO_HEADERS, b"Hello, world!\n", "status 404"),
        (200, {}, b"Hello, world!\n", "Content-Type"),
        (
            200,
            {"content-type": "text/plain", "content-length": "15"},
            b"Hello, world!\n",
            "Content-Length 15",
        ),
        (200, {"content-type": "text/plain"}, b"Hello!\n", "the wrong body"),
    ],
)
def test_answers_are_checked(status: int, headers: dict[str, str], body: bytes, problem: str) -> None:
    found = web.wrong(CASES["gthread-hello"], 0, status, headers, body)
    assert found.startswith(problem) and bool(found) == bool(problem)


def test_a_body_that_is_not_even_of_its_type_is_wrong() -> None:
    assert "the wrong body" in web.wrong(
        CASES["gthread-flask"], 0, 200, {"Content-Type": "application/json"}, b"{"
    )


@pytest.mark.parametrize(
    ("groups", "cases", "names"),
    [
        (
            ["http"],
            "*-log",
            ["gthread-access-log", "sync-access-log", "gevent-access-log", "gthread-flask-access-log"],
        ),
        (["all"], "restart,version", ["restart", "version"]),
        (["companions"], "status*", ["status-1000, status-command"]),
        (["startup", "startup"], "version,*-answer", ["version", "first-answer"]),
        (
            ["startup"],
            "start-*",
            ["start-application", "start-application-each", "start-together, start-programs"],
        ),
        (["http"], "nothing", []),
    ],
)
def test_the_chosen_cases(
    groups: list[str], cases: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*groups, "--cases", cases, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(None, 1)[1] for line in lines if line] == names


def test_all_is_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in ALL_NAMES if not re.search(rf"\b{re.escape(name)}\b", shown)] == []


@pytest.mark.parametrize(
    "arguments",
    [["ftp"], ["--runs", "0"], ["--runs", "x"], ["--seconds", "-1"], ["--peers", "nobody"], ["--nothing"]],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_command_itself() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--peers" in done.stdout


def test_a_case_that_fails_twice_is_a_row_that_says_so() -> None:
    tries = 0

    def fails() -> list[Row]:
        nonlocal tries
        tries += 1
        raise RuntimeError("no luck")

    def works() -> list[Row]:
        return [Row("http", "good", "good", "ms")]

    environments = peers.Environments(cache=ROOT / "nowhere")
    report = cli.measure([("http", "bad", fails), ("http", "good", works)], environments)
    assert [(row.name, row.error) for row in report.rows] == [("bad", "RuntimeError: no luck"), ("good", "")]
    assert tries == 2
    assert report.conditions["http"]["machine"]["cores"] >= 1


def test_a_case_that_works_the_second_time_has_worked() -> None:
    rows = iter([[Row("http", "one", "one", "ms", error="no luck")], [Row("http", "one", "one", "ms")]])
    assert [row.error for row in cli.attempt("http", "one", lambda: next(rows))] == [""]


def test_a_peer_that_is_left_out_is_not_installed() -> None:
    environments = peers.Environments(cache=ROOT / "nowhere", allowed=frozenset({"ours"}))
    assert environments.available(["waitress", "uwsgi"]) == []
    assert not (ROOT / "nowhere").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "Collecting x\nERROR: No matching distribution\nnotice: update\n",
            "ERROR: No matching distribution",
        ),
        ("one\ntwo\n\n", "two"),
        ("", "it gave no reason"),
    ],
)
def test_why_an_installation_failed(output: str, reason: str) -> None:
    assert peers.reason(output) == reason
