# SPDX-License-Identifier: MIT
"""The gunicorn-companion command: what it prints, what it waits for, how it exits."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import answer_of, python_env
from harness import ROOT, wait_until

from gunicorn import __version__
from gunicorn.companion import ctl
from gunicorn.companion.client import arguments, commands, default_paths
from gunicorn.companion.control import MAX_CONNECTIONS
from gunicorn.companion.status import State
from gunicorn.unix import session

needs_manager = pytest.mark.skipif(not session.HAVE_PROC, reason="looks at processes by /proc")


@pytest.fixture
def answers(short_dir) -> Iterator[Callable[..., Path]]:
    """Listens on a socket and answers each line of each connection with what it is told."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(answer: bytes | None, name: str = "fake.sock") -> Path:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(short_dir / name))
        listener.listen(8)
        listeners.append(listener)

        def loop() -> None:
            kept = []
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.close()

        threads.append(threading.Thread(target=loop, daemon=True))
        threads[-1].start()
        return short_dir / name

    yield serve
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(5)


# -- status --------------------------------------------------------------------------------


@needs_manager
def test_status_is_aligned_columns(managed, run):
    server = managed("""
        settings = dict(restart_delay=60)
        workers = [
            dict(name="scheduler", target=T.obey, startsecs=0),
            dict(name="rq", target=T.exit_3),
            dict(name="off", target=T.obey, autostart=False),
        ]
    """)
    pid = server.pid("scheduler")
    server.wait("rq", "BACKOFF")
    code, out, err = run("-s", server.socket, "status")
    assert (code, err) == (3, "")
    lines = out.splitlines()
    assert re.fullmatch(rf"scheduler   RUNNING    pid {pid}, uptime 00:00:\d\d", lines[0])
    assert re.fullmatch(r"rq          BACKOFF    exited with status 3, retrying in \d\ds", lines[1])
    assert lines[2] == "off         STOPPED    not started"
    # One by one: what should run and does not is what 3 says.
    assert run("-s", server.socket, "status", "scheduler")[0] == 0
    assert run("-s", server.socket, "status", "off")[0] == 0
    assert run("-s", server.socket, "status", "rq", "off")[0] == 3
    code, out, _ = run("-s", server.socket, "status", "scheduler", "off")
    assert [line.split()[0] for line in out.splitlines()] == ["scheduler", "off"]
    assert run("-s", server.socket, "status", "all")[1].count("\n") == 3
    code, out, err = run("-s", server.socket, "status", "schedulr")
    assert (code, out) == (1, "")
    assert err == "gunicorn-companion: no companion named schedulr: did you mean scheduler?\n"


@needs_manager
def test_status_as_json(managed, run):
    server = managed("workers = [dict(name=n, target=T.obey, autostart=False) for n in ('a', 'b')]")
    code, out, _ = run("-s", server.socket, "--json", "status")
    reply = json.loads(out)
    assert code == 0 and reply["ok"]
    assert reply["server"]["pid"] == server.master
    assert [entry["name"] for entry in reply["companions"]] == ["a", "b"]
    assert "memory" in reply["companions"][0]
    _, out, _ = run("-s", server.socket, "--json", "status", "b")
    assert [entry["name"] for entry in json.loads(out)["companions"]] == ["b"]


@needs_manager
def test_status_of_nothing(managed, run):
    server = managed("workers = []")
    assert run("-s", server.socket, "status") == (0, "no companions are configured\n", "")


@pytest.mark.parametrize(
    ("companion", "good"),
    [
        ({"state": "RUNNING"}, True),
        ({"state": "RUNNING", "flapping": False}, True),
        ({"state": "RUNNING", "flapping": True}, False),
        ({"state": "STARTING"}, False),
        ({"state": "BACKOFF"}, False),
        ({"state": "STOPPED"}, False),
        ({"state": "STOPPED", "manual_stop": True}, True),
        ({"state": "STOPPED", "autostart": False}, True),
        ({"state": "STOPPING"}, False),
        ({"state": "STOPPING", "manual_stop": True}, True),
        ({"state": "BACKOFF", "manual_stop": True}, False),
        # What ended by itself and is not wanted back (autorestart).
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": 0}, True),
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": 3}, False),
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": None}, False),
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": 0, "autostart": False}, True),
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": 3, "autostart": False}, False),
        ({"state": "STOPPED", "reason": "gave up", "last_exit_code": 0}, False),
        ({"state": "STOPPED", "reason": "gave up", "autostart": False}, False),
        ({"state": "STOPPED", "reason": "gave up", "manual_stop": True}, True),
        ({"state": "BACKOFF", "reason": "exited with status 3"}, False),
        # Ended for it was not ready in time, however politely it went.
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": 0, "done": False}, False),
        ({"state": "STOPPED", "reason": "exited", "last_exit_code": 0, "done": True}, True),
    ],
)
def test_what_runs_as_it_should(companion, good):
    assert commands.runs_as_it_should({"manual_stop": False, "autostart": True, **companion}) is good


# -- start, stop, restart ---------------------------------------------------------------------


@needs_manager
def test_it_waits_until_companions_have_settled(managed, run):
    server = managed(
        "workers = [dict(name='rq', target=T.slow_stop, startsecs=0.3), dict(name='b', target=T.obey)]"
    )
    first = server.pid("rq")
    server.wait_told("rq", "runs")
    assert run("-s", server.socket, "stop", "rq") == (0, "rq: stopped\n", "")
    assert server.status()["rq"]["state"] == "STOPPED"
    assert run("-s", server.socket, "start", "rq") == (0, "rq: started\n", "")
    second = server.status()["rq"]
    assert second["state"] == "RUNNING" and second["pid"] != first
    server.wait_told("rq", "runs", 2)
    assert run("-s", server.socket, "restart", "rq", "rq") == (0, "rq: restarted\n", "")
    third = server.status()["rq"]
    assert third["state"] == "RUNNING" and third["pid"] != second["pid"]
    code, out, _ = run("-s", server.socket, "stop", "all")
    assert (code, sorted(out.splitlines())) == (0, ["b: stopped", "rq: stopped"])
    # To be stopped already is no fault.
    assert run("-s", server.socket, "stop", "rq") == (0, "rq: already stopped\n", "")
    assert run("-s", server.socket, "start", "rq", "b")[1] == "b: started\nrq: started\n"
    assert run("-s", server.socket, "start", "rq") == (0, "rq: already started\n", "")


@needs_manager
def test_several_are_stopped_in_their_order(managed, run):
    server = managed("""
        workers = [
            dict(name="store", target=T.obey),
            dict(name="rq", target=T.drain, numprocs=2, after=["store"]),
        ]
    """)
    store = server.pid("store")
    for name in ("rq:0", "rq:1"):
        server.wait_told(name, "runs")
    code, out, err = run("-s", server.socket, "--no-wait", "stop", "all")
    assert (code, err) == (0, "")
    assert "store is stopped after rq:0, rq:1" in out
    assert server.pid("store") == store
    code, out, err = run("-s", server.socket, "status", "store")
    assert out.splitlines()[0].endswith(", is stopped after rq:0, rq:1")
    server.go_on()
    # Once more, and this time they are waited for.
    code, out, err = run("-s", server.socket, "stop", "store", "rq", "nobody")
    assert code == 1 and "no companion named nobody" in err
    assert sorted(line for line in out.splitlines() if "stopped" in line)[-1].startswith("store: ")
    assert [server.wait(name, "STOPPED")["manual_stop"] for name in ("store", "rq:0", "rq:1")] == [True] * 3
    assert server.told("rq:0")[-1].startswith("finished")


@needs_manager
def test_it_need_not_wait(managed, run):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    server.pid("rq")
    server.wait_told("rq", "runs")
    assert run("-s", server.socket, "--no-wait", "restart", "rq") == (0, "rq is restarting\n", "")
    code, out, err = run("-s", server.socket, "--no-wait", "start", "rq")
    assert (code, out) == (1, "")
    shown = r"pid \d+, SIGKILL in \d+s"
    assert re.fullmatch(rf"gunicorn-companion: rq is stopping; retry later \({shown}\)\n", err)
    code, out, err = run("-s", server.socket, "--no-wait", "restart", "--rolling", "rq")
    assert (code, out) == (1, "") and "rq is stopping; retry later" in err
    code, out, err = run("-s", server.socket, "--timeout", "0.2", "stop", "rq")
    assert code == 2
    assert re.fullmatch(rf"gunicorn-companion: not settled in time: rq \(STOPPING, {shown}\)\n", err)
    code, out, _ = run("-s", server.socket, "--json", "--no-wait", "stop", "rq")
    assert (code, json.loads(out)) == (0, {"ok": True, "message": "rq is stopping"})


@needs_manager
def test_what_settles_otherwise_than_asked_is_told(managed, run):
    server = managed(
        "workers = [dict(name='rq', target=T.exit_3, restart_delay=60, startsecs=5, autostart=False)]"
    )
    code, out, err = run("-s", server.socket, "start", "rq")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"gunicorn-companion: rq: BACKOFF, exited with status 3, retrying in \d\ds\n", err)


JOBS = """
    settings = dict(restart_delay=0.1, stop_timeout=20, reload_timeout=20, startsecs=1)
    workers = [
        dict(name="job", target=T.exit_0, autorestart="on-failure"),
        dict(name="rq", target=T.obey, after=["job"], startsecs=0),
    ]
"""


@needs_manager
def test_a_job_that_has_done_its_work_is_as_it_should_be(managed, run):
    server = managed(JOBS)
    rq = server.pid("rq")
    job = server.status()["job"]
    assert (job["state"], job["done"], job["failed_starts"]) == ("STOPPED", True, 0)
    assert run("-s", server.socket, "start", "job") == (0, "job: done\n", "")
    assert server.status()["job"]["exit_count"] == 2
    code, out, err = run("-s", server.socket, "restart", "all")
    assert (code, sorted(out.splitlines()), err) == (0, ["job: done", "rq: restarted"], "")
    assert server.pid("rq") != rq
    assert run("-s", server.socket, "wait", "all") == (0, "job: DONE\nrq: RUNNING\n", "")
    assert run("-s", server.socket, "wait", "job", "--state", "done") == (0, "job: DONE\n", "")
    assert run("-s", server.socket, "status")[0] == 0
    code, out, err = run("-s", server.socket, "wait", "rq", "--state", "DONE")
    assert (code, out) == (1, "")
    assert err.endswith("it never finishes, because its autorestart is 'always'\n")
    # To have been stopped by command is no success.
    run("-s", server.socket, "stop", "job")
    code, out, err = run("-s", server.socket, "wait", "job", "--state", "DONE")
    assert (code, out, err) == (1, "", "gunicorn-companion: job: STOPPED, stopped manually\n")


@needs_manager
def test_what_waits_for_one_that_gave_up_is_not_waited_for(managed, run):
    server = managed(JOBS.replace("T.exit_0,", "T.exit_3, start_retries=1, retry_after=100_000,"))
    server.wait("job", "STOPPED")
    given_up = "gunicorn-companion: job: STOPPED, gave up after 1 failed start: exited with status 3"
    # Neither does anything wait for the next try.
    assert run("-s", server.socket, "wait", "job") == (1, "", f"{given_up}; next try in 27h\n")
    why = "job, which gave up after 1 failed start: exited with status 3"
    wait_until(lambda: server.status()["rq"]["stuck"] == why, 20, lambda: server.status()["rq"])
    line = f"gunicorn-companion: rq: STARTING, waiting for {why}\n"
    code, out, err = run("-s", server.socket, "status")
    assert code == 3 and f"rq    STARTING   waiting for {why}\n" in out
    for words in (["wait", "rq"], ["start", "rq"], ["restart", "rq"], ["restart", "--rolling", "rq"]):
        assert run("-s", server.socket, *words) == (1, "", line), words
    assert run("-s", server.socket, "start", "rq", "--no-wait") == (0, f"rq is waiting for {why}\n", "")
    assert run("-s", server.socket, "restart", "rq", "--no-wait") == (0, f"rq is waiting for {why}\n", "")
    # A job that is tried again and fails again is told, and so is what came after it.
    code, out, err = run("-s", server.socket, "restart", "all")
    assert (code, out) == (1, "")
    assert sorted(err.splitlines(keepends=True)) == [
        f"{given_up}; next try in 27h\n",
        line,
    ]


@needs_manager
def test_a_start_does_not_wait_for_one_that_fails_and_is_tried_again(managed, run):
    server = managed(JOBS.replace("T.exit_0,", "T.exit_3, restart_delay=60,"))
    server.wait("job", "BACKOFF")
    line = "gunicorn-companion: rq: STARTING, waiting for job, which keeps failing: exited with"
    for words in (["start", "rq"], ["restart", "rq"], ["wait", "rq", "--timeout", "0.2"]):
        code, out, err = run("-s", server.socket, *words)
        assert (code, out) == (1, "") and err.startswith(line), words


@needs_manager
def test_a_set_that_is_stopping_in_part_is_restarted_in_part(managed, run):
    server = managed("workers = [dict(name='n', target=T.drain, numprocs=3)]")
    for index in range(3):
        server.pid(f"n:{index}")
        server.wait_told(f"n:{index}", "runs")
    pids = {name: one["pid"] for name, one in server.status().items()}
    assert run("-s", server.socket, "stop", "n:1", "--no-wait")[0] == 0
    code, out, err = run("-s", server.socket, "restart", "n", "--no-wait")
    assert (code, out) == (1, "n:0 is restarting; n:2 is restarting\n")
    assert re.fullmatch(r"gunicorn-companion: n:1 is stopping; retry later \(pid \d+, .*\)\n", err)
    server.go_on()
    for name in ("n:0", "n:2"):
        server.wait(name, without=[pids[name]])
    assert server.wait("n:1", "STOPPED")["manual_stop"]


@needs_manager
def test_names_by_a_pattern(managed, run):
    names = ("worker-1", "worker-2", "clock")
    server = managed(f"workers = [dict(name=n, target=T.obey, autostart=False) for n in {names}]")
    code, out, err = run("-s", server.socket, "start", "worker-*")
    assert (code, out, err) == (0, "worker-1: started\nworker-2: started\n", "")
    code, out, _ = run("-s", server.socket, "status", "w*")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["worker-1", "worker-2"])
    assert run("-s", server.socket, "stop", "x*") == (
        1, "", "gunicorn-companion: no companion matches x*\n"
    )  # fmt: skip


@needs_manager
def test_one_that_there_is_not_does_not_keep_the_others(managed, run):
    server = managed("workers = [dict(name='rq', target=T.obey, autostart=False)]")
    code, out, err = run("-s", server.socket, "start", "rqq", "rq")
    assert (code, out) == (1, "rq: started\n")
    assert err == "gunicorn-companion: no companion named rqq: did you mean rq?\n"


@needs_manager
def test_reread(managed, run):
    server = managed("workers = [dict(name=n, target=T.obey, autostart=False) for n in 'abc']")
    assert run("-s", server.socket, "reread") == (0, "nothing changed\n", "")
    server.configure("""
        workers = [dict(name=n, target=T.obey, autostart=False) for n in 'bcd']
        workers[0]["stop_timeout"] = 1
    """)
    assert run("-s", server.socket, "reread") == (0, "d: added\na: removed\nb: updated\n", "")
    code, out, _ = run("-s", server.socket, "--json", "reread")
    assert (code, json.loads(out)["unchanged"]) == (0, ["b", "c", "d"])
    server.configure("workers = 1 / 0")
    code, out, err = run("-s", server.socket, "reread")
    assert (code, out) == (1, "")
    assert err == "gunicorn-companion: division by zero; the configuration stays as it was\n"
    code, out, _ = run("-s", server.socket, "--json", "reread")
    assert (code, json.loads(out)["kept_old_config"]) == (1, True)


# -- which server -----------------------------------------------------------------------------


@needs_manager
def test_the_socket_from_the_environment(managed, run, monkeypatch):
    server = managed("workers = []")
    monkeypatch.setenv("GUNICORN_COMPANION_SOCKET", str(server.socket))
    assert run("status")[0] == 0
    # A flag ranks above it.
    assert run("-s", server.directory / "none", "--timeout", "0", "status")[0] == 2
    # Empty is as not set.
    monkeypatch.setenv("GUNICORN_COMPANION_SOCKET", "")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(server.directory))
    (server.directory / "companion-1.sock").symlink_to(server.socket)
    assert run("status")[0] == 0


@needs_manager
def test_several_servers_are_listed(managed, run, short_dir, answers, monkeypatch):
    runtime = short_dir / "rt"
    runtime.mkdir()
    one = managed("workers = []", control=str(runtime / "companion-1.sock"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))
    # A stale one is none.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(runtime / "companion-0.sock"))
    assert run("status") == (0, "no companions are configured\n", "")
    two = managed("workers = []", control=str(runtime / "companion-2.sock"))
    (runtime / "companion-3.sock").symlink_to(answers(b"220 mail.example ESMTP\n"))
    code, out, err = run("status")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "gunicorn-companion: several servers are running; choose one with -s:"
    assert lines[1:] == [
        f"  -s {runtime}/companion-1.sock   pid {one.master}, 127.0.0.1:8000, app:app",
        f"  -s {runtime}/companion-2.sock   pid {two.master}, 127.0.0.1:8000, app:app",
        f"  -s {short_dir}/fake.sock   does not answer",
    ]
    assert run("-s", runtime / "companion-2.sock", "status")[0] == 0


def test_none_is_told_with_where_it_was_looked_for(run, monkeypatch):
    monkeypatch.setattr(default_paths, "candidate_sockets", lambda environ, uid: [])
    code, out, err = run("--timeout", "0.1", "status")
    assert (code, out) == (2, "")
    assert "no running companion manager found in $RUNTIME_DIRECTORY" in err


def test_a_socket_that_is_missing_is_tried_until_the_timeout(run, short_dir):
    begun = time.monotonic()
    code, _, err = run("-s", short_dir / "c.sock", "--timeout", "0.3", "status")
    assert 0.15 <= time.monotonic() - begun < 5
    assert code == 2
    assert err.startswith(f"gunicorn-companion: {short_dir}/c.sock: No such file or directory; is the server")


@pytest.mark.parametrize("stale", [False, True])
def test_a_manager_that_just_starts_is_waited_for(run, short_dir, stale):
    path = short_dir / "c.sock"
    if stale:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def late() -> None:
        # Once it has been tried in vain.
        time.sleep(0.2)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b'{"ok": true, "companions": []}\n')

    thread = threading.Thread(target=late)
    thread.start()
    assert run("-s", path, "status") == (0, "no companions are configured\n", "")
    thread.join(10)
    listener.close()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"220 mail.example ESMTP\n", "the answer is not JSON; is it a companion socket?"),
        (b"[" * 100_000 + b"\n", "the answer is not JSON; is it a companion socket?"),
        (b"[]\n", "the answer is not an object; is it a companion socket?"),
        (b"", "the server closed the connection"),
        (b'{"ok": true', "the server closed the connection"),
        (b'{"ok": false, "error": "no"}\n', "gunicorn-companion: no\n"),
        (b'{"ok": false}\n', "gunicorn-companion: refused\n"),
    ],
)
def test_strange_answers(run, answers, answer, text):
    code, out, err = run("-s", answers(answer), "status")
    assert (code, out) == (1 if b"false" in answer else 2, "")
    assert text in err


def test_a_server_that_does_not_answer(run, answers):
    path = answers(None)
    code, _, err = run("-s", path, "--timeout", "0.2", "status")
    assert (code, err) == (2, f"gunicorn-companion: no answer from {path} in time\n")


def test_a_path_that_cannot_be(run, tmp_path):
    code, _, err = run("-s", "x" * 200, "status")
    assert code == 2 and "too long" in err
    (tmp_path / "file").touch()
    code, _, err = run("-s", tmp_path / "file" / "c.sock", "--timeout", "0", "status")
    assert (code, err) == (2, f"gunicorn-companion: {tmp_path}/file/c.sock: Not a directory\n")


# -- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["statsu"], "unknown command statsu; did you mean status?"),
        (["frobnicate"], "unknown command frobnicate (status, start, "),
        (["update"], "unknown command update: reread applies"),
        (["deploy"], "unknown command deploy: use reload, or upgrade"),
        (["tail", "-f", "rq"], "unknown command tail: use logs -f NAME"),
        (["start"], "the following arguments are required: NAME"),
        (["reread", "rq"], "unrecognized arguments: rq"),
        (["restart", "--rolling"], "the following arguments are required: NAME"),
        (["signal", "rq"], "the following arguments are required: SIG"),
        (["scale", "rq"], "the following arguments are required: N"),
        (["scale", "rq", "many"], "argument N: 'many' is not a number of 1 or more"),
        (["scale", "rq", "²"], "argument N: '²' is not a number of 1 or more"),
        (["wait", "rq", "--state", "DEAD"], "argument --state: invalid choice: 'DEAD'"),
        (["wait", "rq", "--timeout", "-1"], "argument --timeout: '-1' is not a time of 0 or more seconds"),
        (["version", "rq"], "unrecognized arguments: rq"),
        (["--timeout", "x", "status"], "argument --timeout: 'x' is not a time of 0 or more seconds"),
        (["--timeout", "-1", "status"], "argument --timeout: '-1' is not a time of 0 or more seconds"),
        (["--timeout", "nan", "status"], "argument --timeout: 'nan' is not a time of 0 or more seconds"),
        (["--timeout", "inf", "status"], "argument --timeout: 'inf' is not a time of 0 or more seconds"),
    ],
)
def test_wrong_usage(run, words, text):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert text in err


def test_version_and_help(run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out == f"gunicorn-companion {__version__} from {Path(ctl.__file__).parents[1]}\n"
    code, out, _ = run("--help")
    assert code == 0
    for word in (*ctl.COMMANDS, "--no-wait", "GUNICORN_COMPANION_SOCKET"):
        assert word in out


def test_the_version_of_another_gunicorn_over_this_one(tmp_path):
    (tmp_path / "gunicorn-27.0.1.dist-info").mkdir()
    (tmp_path / "gunicorn-27.0.1.dist-info/METADATA").write_text("Name: gunicorn\nVersion: 27.0.1\n")
    command = [sys.executable, "-m", "gunicorn.companion.ctl", "--version"]
    found = subprocess.run(
        command, env=python_env(PYTHONPATH=f"{tmp_path}:{ROOT}"), cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert "the gunicorn that is installed is another one, 27.0.1" in found.stderr


@pytest.mark.parametrize("command", ctl.COMMANDS)
def test_each_command_has_its_help(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: gunicorn-companion {command} ") and "--json" in out
    options = {"restart": "--rolling", "wait": "--state", "reread": "--dry-run", "status": "--verbose"}
    assert options.get(command, "") in out


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("200", 200), ("0", 80), ("x", 80), ("", 80)])
def test_help_fits_the_terminal(columns, width):
    env = python_env(COLUMNS=columns)
    command = [sys.executable, "-m", "gunicorn.companion.ctl", "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert width - 25 < max(map(len, done.stdout.splitlines())) <= width


def test_options_stand_before_the_command_or_after_it(run, short_dir):
    path = short_dir / "none"
    for words in (["-s", path, "--timeout", "0", "pid"], ["pid", "--timeout=0", "-s", path]):
        code, out, err = run(*words)
        assert (code, out) == (2, "") and err.startswith(f"gunicorn-companion: {path}: No such file")


def test_as_a_program_it_exits_with_its_code(short_dir):
    command = [sys.executable, "-m", "gunicorn.companion.ctl", "-s", str(short_dir / "c"), "--timeout", "0"]
    done = subprocess.run([*command, "status"], env=python_env(), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")


@needs_manager
def test_a_reader_that_stops_reading_is_no_fault(managed):
    server = managed("workers = []")
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gunicorn.companion.ctl", "-s", str(server.socket), "--json", "status"],
            env=python_env(), stdout=write, stderr=subprocess.PIPE, text=True, timeout=30,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def shell(command: str, server: Any) -> tuple[int, str]:
    """The exit status and stderr of the command with an output as *command* has it."""
    program = f"{sys.executable} -m gunicorn.companion.ctl -s {server.socket}"
    done = subprocess.run(
        ["sh", "-c", command.format(program)], env=python_env(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, timeout=30,
    )  # fmt: skip
    return done.returncode, done.stderr


@needs_manager
def test_an_output_that_cannot_be_written_to(managed):
    server = managed("workers = [dict(name='rq', target=T.exit_3, restart_delay=60)]")
    server.wait("rq", "BACKOFF")
    line = "gunicorn-companion: cannot write the answer: No space left on device\n"
    for words in ("status", "--json status", "pid", "wait rq --state BACKOFF", "--help", "stop --help"):
        assert shell(f"{{}} {words} > /dev/full", server) == (2, line), words
    # Nowhere to write to, but the exit status tells.
    assert shell("{} status >&-", server) == (3, "")
    assert shell("{} status >&- 2>&-", server) == (3, "")
    assert shell("{} stop rq --no-wait >&-", server) == (0, "")
    assert shell("{} start nobody 2> /dev/full", server) == (1, "")
    # Were stdout taken in the place of a closed stderr, it would get the error.
    assert shell("{} start nobody 2>&- | grep -c . >&2", server) == (1, "0\n")


@needs_manager
def test_letters_that_the_output_does_not_know(managed):
    rq = r"dict(name='rq', target=T.obey, restart_delay=60, cwd='/nonexistent/\u2603')"
    server = managed(f"workers = [{rq}]")
    server.wait("rq", "BACKOFF")
    assert shell("PYTHONIOENCODING=ascii {} status | grep -q 2603", server) == (0, "")


@needs_manager
def test_a_server_that_has_too_many_connections_says_so(managed, run):
    server = managed("workers = []")
    held = []
    try:
        for _ in range(MAX_CONNECTIONS):
            held.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            held[-1].connect(str(server.socket))
        # Each of them has been accepted when the last one is answered.
        held[-1].sendall(b'{"cmd": "version"}\n')
        assert held[-1].recv(100)
        line = f"gunicorn-companion: too many connections (the limit is {MAX_CONNECTIONS})\n"
        for _ in range(20):
            assert run("-s", server.socket, "status") == (1, "", line)
    finally:
        for each in held:
            each.close()


def test_its_words_for_states_are_those_of_the_server():
    assert tuple(state.value for state in State) == arguments.STATES


def test_it_loads_little():
    loaded = answer_of(
        "import json, sys; import gunicorn.companion.ctl; print(json.dumps(sorted(sys.modules)))"
    )
    own = [name for name in loaded if name.startswith("gunicorn")]
    parts = (
        "child",
        "child.lease",
        "child.sdnotify",
        "client",
        "client.arguments",
        "client.commands",
        "client.connection",
        "client.default_paths",
        "client.logs",
        "client.show",
        "client.terminal",
        "client.web",
        "ctl",
    )
    assert own == ["gunicorn", "gunicorn.companion", *(f"gunicorn.companion.{part}" for part in parts)]
    assert not {"asyncio", "dataclasses", "inspect", "logging", "shutil", "subprocess"} & set(loaded)


@needs_manager
def test_a_server_that_ends_meanwhile_is_told(managed, run):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    server.pid("rq")
    server.wait_told("rq", "runs")

    def kill() -> None:
        wait_until(lambda: server.told("rq")[1:])
        server.kill_manager()

    thread = threading.Thread(target=kill)
    thread.start()
    code, _, err = run("-s", server.socket, "stop", "rq")
    thread.join(20)
    assert (code, err) == (2, f"gunicorn-companion: {server.socket}: the server closed the connection\n")
