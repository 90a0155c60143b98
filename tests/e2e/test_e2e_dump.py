# SPDX-License-Identifier: MIT
"""``gunicorn-companion dump``: the stacks of workers and companions, which are not disturbed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_companions import companion_server
from harness import Background, Server, children_of, is_alive, read_proc, wait_until
from test_e2e_companion_commands import ctl

APP = '''
import socket, threading, time

OURS, THEIRS = socket.socketpair()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = {"/busy": busy, "/blocked": blocked}.get(path, lambda: b"fine")()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

def busy():
    """Computes for a while."""
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        sum(range(100))
    return b"busy"

def blocked():
    """Waits for a byte in the system call recv(2), and gets it after a while."""
    threading.Timer(1.5, THEIRS.send, (b"x",)).start()
    return OURS.recv(1)
'''

JOBS = '''
import itertools, json, os, signal, socket, sys, threading, time

def computes():
    while True:
        json.loads(json.dumps({"deep": [1, {"deeper": "x"}]}, indent=1))

def threads():
    """Several threads compute, and the main thread waits for one of them."""
    found = [threading.Thread(target=computes) for _ in range(3)]
    for each in found:
        each.start()
    found[0].join()

def in_c():
    """Computes in C, and keeps the interpreter lock from all others."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    sum(itertools.repeat(1.0))

def parent():
    """Waits for a child that it has forked."""
    if os.fork() == 0:
        child()
    os.wait()

def child():
    time.sleep(1000)

def receives():
    """Waits in recv(2); says when that has failed, or a signal has shown."""
    ours, theirs = socket.socketpair()
    try:
        ours.recv(1)
    finally:
        open("disturbed", "w").close()

def resets():
    """Has no handlers any more."""
    for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(1000)

def own():
    """Has handlers of its own."""
    for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
        signal.signal(number, lambda *_: None)
    while True:
        time.sleep(1000)

def many():
    """A hundred threads with a hundred frames each."""
    def down(depth):
        if depth:
            down(depth - 1)
        else:
            time.sleep(1000)
    for _ in range(99):
        threading.Thread(target=down, args=(100,), daemon=True).start()
    open("many.ready", "w").close()
    down(90)
'''


def job(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "target": f"dumped:{name}", **keys}


def dump_of(server: Server, what: str | int) -> dict[str, Any]:
    """The dump of the only process of *what*."""
    reply = server.ask("dump", what=what)
    assert reply["ok"], reply
    (dump,) = reply["dumps"]
    assert isinstance(dump, dict)
    return dump


def stacks_of(server: Server, what: str | int) -> str:
    dump = dump_of(server, what)
    assert dump["error"] is None, dump
    text = dump["stacks"]
    assert isinstance(text, str)
    return text


# -- web workers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent", "tornado"])
def test_idle_busy_and_blocked_workers(worker_class: str) -> None:
    if worker_class in ("gevent", "tornado"):
        pytest.importorskip(worker_class)
    options = {"files_option": {"dumped.py": JOBS}, "app_option": APP}
    with companion_server(job("receives"), worker_class=worker_class, workers=2, **options) as server:
        server.notes_starts = False
        server.wait_companion("receives")
        idle = server.ask("dump", what="web")["dumps"]
        assert [dump["name"] for dump in idle] == ["worker", "worker"]
        assert all(" in run\n" in dump["stacks"] for dump in idle), idle
        for path, function in (("/busy", "busy"), ("/blocked", "blocked")):
            request = Background(server, path)
            found = wait_until(
                lambda name=function: in_function(server, name), 1.5, "the request in the stacks"
            )
            # Several times, to be noticed if anything can be.
            for _ in range(3):
                assert f" in {function}\n" in stacks_of(server, found["pid"])
            reply = request.result()
            assert (reply.status, reply.body) == (200, b"busy" if path == "/busy" else b"x")
        assert {dump["pid"] for dump in server.ask("dump", what="web")["dumps"]} == {
            dump["pid"] for dump in idle
        }
        assert "ERROR" not in server.log()


def in_function(server: Server, name: str) -> dict[str, Any] | None:
    dumps = server.ask("dump", what="web")["dumps"]
    return next((dump for dump in dumps if f" in {name}\n" in (dump["stacks"] or "")), None)


# -- companions --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    names = ["parent", "receives", "resets", "own", "many"]
    jobs = [job(name, startsecs=0.3) for name in names]
    jobs += [job(name, startsecs=0.3, autostart=False) for name in ("computes", "threads", "in_c")]
    program = {"name": "program", "command": ["sleep", "1000"], "startsecs": 0}
    with companion_server(*jobs, program, files_option={"dumped.py": JOBS}) as server:
        server.notes_starts = False
        for name in [*names, "program"]:
            server.wait_companion(name)
        wait_until(lambda: (server.dir / "many.ready").exists(), 10, "all threads")
        yield server
        server.checked = False


@contextlib.contextmanager
def computing(server: Server, *names: str) -> Iterator[None]:
    """Let these compute only as long as a test looks at them: they would take the processor from others."""
    for name in names:
        assert server.ask("start", name)["ok"]
    for name in names:
        server.wait_companion(name)
        # It has begun: one that has threads has started all of them.
        begun = " in join\n" if name == "threads" else f" in {name}\n"
        wait_until(lambda name=name, begun=begun: begun in str(dump_of(server, name)["stacks"]))  # type: ignore[misc]
    yield
    for name in names:
        assert server.ask("stop", name)["ok"]
        server.wait_companion(name, "STOPPED")


def test_threads_that_compute_are_not_disturbed(server: Server) -> None:
    """A look at frames of running threads would have crashed Python within a few times."""
    with computing(server, "computes", "threads"):
        pids = {name: server.companion(name)["pid"] for name in ("computes", "threads")}
        for _ in range(10):
            assert " in computes\n" in stacks_of(server, "computes")
            text = stacks_of(server, "threads")
            assert text.count(" in computes\n") == 3
            assert " in join\n" in text
        assert {name: server.companion(name)["pid"] for name in pids} == pids


def test_a_companion_that_computes_in_c(server: Server) -> None:
    with computing(server, "in_c"):
        text = stacks_of(server, "in_c")
        assert re.search(r"Current thread .*\n  File .*/dumped.py\", line \d+ in in_c\n", text), text
        # Below that is only what all companions begin with.
        assert text.rstrip().endswith(" in _run_child")
        assert " in run_manager" not in text


def test_a_companion_that_waits_in_the_kernel_goes_on_waiting(server: Server) -> None:
    pid = server.companion("receives")["pid"]
    for _ in range(3):
        assert " in receives\n" in stacks_of(server, "receives")
    assert not (server.dir / "disturbed").exists()
    assert server.companion("receives")["pid"] == pid


def test_a_companion_and_its_child(server: Server) -> None:
    pid = server.companion("parent")["pid"]
    (child,) = children_of(pid)
    dumps = server.ask("dump", what="parent")["dumps"]
    assert [(dump["name"], dump["pid"]) for dump in dumps] == [("parent", pid), ("parent", child)]
    assert " in parent\n" in dumps[0]["stacks"]
    assert " in child\n" in dumps[1]["stacks"]
    assert stacks_of(server, child) == dumps[1]["stacks"]


def test_many_threads_with_many_frames(server: Server) -> None:
    text = stacks_of(server, "many")
    assert text.count(" (most recent call first):\n") == 100
    assert text.count(" in down\n") > 9000


def test_several_clients_at_once(server: Server) -> None:
    with computing(server, "computes", "in_c"):
        found: list[str] = []
        names = ["computes", "receives", "in_c", "parent", "many"]
        asking = [
            threading.Thread(target=lambda n=name: found.append(n if first(server, n) else ""))
            for name in names
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert sorted(found) == sorted(names)


def first(server: Server, name: str) -> bool:
    expected = "down" if name == "many" else name
    return f" in {expected}\n" in server.ask("dump", what=name)["dumps"][0]["stacks"]


@pytest.mark.parametrize(
    ("what", "mistake"),
    [
        ("program", "it does not listen: it runs a program"),
        ("resets", "it does not listen"),
        ("own", "no answer within 2 s"),
    ],
)
def test_processes_that_do_not_listen_live_on(server: Server, what: str, mistake: str) -> None:
    pid = server.companion(what)["pid"]
    dump = dump_of(server, what)
    assert dump["stacks"] is None and mistake in dump["error"]
    assert is_alive(pid) and server.companion(what)["pid"] == pid


def test_a_stopped_companion(server: Server) -> None:
    with computing(server, "computes"):
        pid = server.companion("computes")["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: (proc := read_proc(pid)) is not None and proc.state == "T", 5, "stopped")
            assert dump_of(server, "computes")["error"] == "it is stopped (SIGSTOP)"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert " in computes\n" in stacks_of(server, "computes")


def test_processes_of_others_are_refused(server: Server) -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        for pid in (1, other.pid, os.getpid(), server.pid, server.wait_manager(), 2**22 + 1, 10**30):
            reply = server.ask("dump", what=pid)
            assert not reply["ok"] and f"process {pid} is neither a web worker" in reply["error"]
            assert server.ask("dump", what=str(pid)) == reply
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("what", "mistake"),
    [
        (None, "'what' is missing"),
        (True, "'what' is missing"),
        ("compute", "no companion named compute: did you mean computes?"),
        ("x*", "no companion matches x*"),
    ],
)
def test_wrong_requests(server: Server, what: Any, mistake: str) -> None:
    reply = server.ask("dump", what=what)
    assert not reply["ok"] and mistake in reply["error"]


def test_a_client_that_leaves_early_holds_nobody_up(server: Server) -> None:
    with server.control() as control:
        control.send(b'{"cmd": "dump", "what": "own"}\n{"cmd": "version"}\n')
    with server.control() as control:
        # The answers come in the order of the requests.
        control.send(b'{"cmd": "dump", "what": "receives"}\n{"cmd": "version"}\n')
        assert "dumps" in control.read_reply()
        assert "version" in control.read_reply()


def test_the_command(server: Server) -> None:
    result = ctl(server, "dump", "receives", "web")
    assert result.returncode == 0, result
    assert re.match(r"receives \(pid \d+\)\nCurrent thread ", result.stdout)
    assert re.search(r"^worker \(pid \d+\)\n", result.stdout, re.MULTILINE)
    result = ctl(server, "dump", "program", "parent")
    assert result.returncode == 1
    assert "in child" in result.stdout
    assert re.search(r"gunicorn-companion: program \(pid \d+\): it does not listen", result.stderr)
