# SPDX-License-Identifier: MIT
"""The web workers in the order of companions: what waits for what, at a start and at a stop."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from e2e_apps import JOBS, WEB
from e2e_companions import companion_server, entry, reconfigure, signals, starts
from harness import Background, Server, is_alive, kill_quietly, wait_until

ASK = '''
import socket

def ask_store():
    """The store's answer; an exception if it is gone."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(f"\\0{HERE}")
        return sock.recv(10).decode()

def event(text):
    """Note the order in which things happen."""
    fd = os.open(os.path.join(HERE, "events"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)

def until(name):
    while not os.path.exists(os.path.join(HERE, name)):
        time.sleep(0.01)
'''
TARGETS = (
    JOBS
    + ASK
    + '''
import http.client

class Told(BaseException):
    pass

def tell(*_):
    raise Told

def working(finish):
    """Works until it is told to stop, and then does the rest of its work."""
    signal.signal(signal.SIGTERM, tell)
    try:
        begin()
        sleep_forever()
    except Told:
        event(f"{name()} told")
        finish()

def store():
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\\0{HERE}")
        listener.listen(20)
        signal.signal(signal.SIGTERM, tell)
        begin()
        try:
            while True:
                with listener.accept()[0] as sock:
                    sock.sendall(b"stored")
        except Told:
            event("store told")

def job():
    """Has one more job that needs the store."""
    def finish():
        until("go")
        event(f"job {ask_store()}")
    working(finish)

def front():
    """Has one more request for the web workers."""
    def finish():
        until("ask")
        host, port = os.environ["WEB"].split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        connection.request("GET", "/")
        event(f"front {connection.getresponse().status}")
    working(finish)

def fail_late():
    begin()
    time.sleep(0.3)
    sys.exit(3)

def migrate():
    begin()
    until("migrated")
'''
)
APP = WEB.replace(
    '    if path == "/slow":',
    """    if path == "/store":
        mark("store.asked", str(os.getpid()))
        until("go")
        text = ask_store()
        event(f"web {text}")
        return answer(text)
    if path == "/slow":""",
).replace("def app(", ASK + "\ndef app(")


def ordered_server(*companions, **settings) -> Server:
    server = companion_server(*companions, app_option=APP, files_option={"jobs.py": TARGETS}, **settings)
    server.env["WEB"] = server.address
    return server


def events(server: Server) -> list[str]:
    return server.log("events").splitlines()


def in_flight(server: Server) -> Background:
    """A request that needs the store at its end."""
    request = Background(server, "/store")
    wait_until(lambda: server.log("store.asked"), 10, "the request is in work")
    return request


@pytest.mark.parametrize(
    "kind",
    ["gthread", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("sync", "gevent", "tornado"))],
)
def test_each_is_stopped_when_nothing_needs_it_any_more(kind: str) -> None:
    """A companion after web, the workers, the store that they need, and one with `stop_after`."""
    server = ordered_server(
        entry("store"),
        entry("job", after=["store"]),
        entry("front", after=["web"]),
        entry("log", "drain", stop_after=["web", "store"], env={"DRAIN": "0"}),
        web_after=["store"],
        worker_class=kind,
        workers=2,
        threads=2,
    )
    with server:
        for name in ("store", "job", "front", "log"):
            server.wait_companion(name)
        request = in_flight(server)
        worker = server.read_int("store.asked")
        # By command only the named ones stop.
        front = server.companion("front")["pid"]
        server.write("ask", "")
        assert server.ask("restart", "front")["ok"]
        server.wait_companion("front", without=[front])
        assert is_alive(worker) and events(server) == ["front told", "front 200"]
        (server.dir / "events").unlink()
        (server.dir / "ask").unlink()

        server.signal(signal.SIGTERM)
        # The workers still serve when the companion that comes after them has been told.
        wait_until(lambda: set(events(server)) == {"job told", "front told"}, 10, lambda: f"{events(server)}")
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            assert len(server.workers()) == 2 and server.get("/").status == 200
        server.write("ask", "")
        wait_until(lambda: "front 200" in events(server), 10, lambda: f"{events(server)}")
        assert is_alive(worker)
        found = server.wait_companion("store")
        assert set(found["stops_after"]) == {"job", "web"}
        assert "is stopped after job, web" in found["description"]
        assert signals(server, "log") == []
        server.write("go", "")
        assert request.result().text == "stored"
        assert server.wait_exit(15) == 0
        told = events(server)
        assert told.index("front 200") < told.index("web stored")
        assert {"web stored", "job stored"} < set(told)
        assert told[-1] == "store told"
        ((_, _, asked),) = signals(server, "log")
        assert asked > (server.dir / "events").stat().st_mtime


def test_a_second_int_ends_what_waits_for_its_turn() -> None:
    server = ordered_server(
        entry("store", "idle", stop_timeout=60),
        entry("stubborn", after=["web"], stop_timeout=60),
        web_after=["store"],
        graceful_timeout=60,
    )
    with server:
        server.wait_companion("stubborn")
        in_flight(server)
        server.signal(signal.SIGTERM)
        server.wait_companion("stubborn", "STOPPING")
        started = time.monotonic()
        server.signal(signal.SIGINT)
        server.expected_code = None
        server.wait_exit(10)
        assert time.monotonic() - started < 5
        assert "Traceback" not in server.log()
        assert len(re.findall(r"Worker \d+ starts", server.log())) == 1


def test_without_its_manager_the_stop_goes_on() -> None:
    """The manager dies while the workers wait for its word."""
    stubborn = entry("stubborn", after=["web"], stop_timeout=0.3)
    server = ordered_server(stubborn, graceful_timeout=60)
    with server:
        server.wait_companion("stubborn")
        # Workers that serve do not wait for what a reload brings.
        (worker,) = server.workers()
        reconfigure(server, stubborn, entry("slow", "idle", startsecs=60), web_after=["slow"])
        server.signal(signal.SIGHUP)
        server.wait_workers(1, without=[worker])
        server.signal(signal.SIGTERM)
        server.wait_companion("stubborn", "STOPPING")
        assert server.get("/").status == 200
        os.kill(server.wait_manager(), signal.SIGKILL)
        assert server.wait_exit(10) == 0


def test_the_first_request_is_answered_after_the_migration() -> None:
    """Not refused before: it waits in the backlog. Neither a reload nor a new manager changes that."""
    server = ordered_server(
        entry("migrate", autorestart="on-failure", startsecs=0.1),
        entry("front", "idle", after=["web"]),
        web_after=["migrate"],
        workers=2,
        ready_option="listen",
    )
    with server:
        request = Background(server, "/")
        server.wait_companion("migrate")
        server.wait_log("Web workers wait for migrate")
        server.signal(signal.SIGHUP)
        server.wait_log("Companions reread")
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(without=manager)
        server.wait_companion("migrate")
        found = server.companion("front")
        assert (found["state"], found["description"]) == ("STARTING", "waiting for web")
        held_by = "migrate, which is a job and has not ended yet"
        wait_until(lambda: server.ask("status")["server"]["web_held_by"] == held_by, 10, held_by)
        assert server.ask("web")["web"]["held_by"] == held_by
        assert server.workers() == [] and request.thread.is_alive()
        server.write("migrated", "")
        assert request.result().status == 200
        server.wait_companion("front")
        assert server.companion("migrate")["description"] == "done, exited with status 0"
        assert server.ask("status")["server"]["web_held_by"] is None
        # What was there once is not waited for again.
        worker = server.workers()[0]
        server.ask("start", "migrate")
        os.kill(worker, signal.SIGKILL)
        server.wait_workers(2, without=[worker])


def test_a_failing_migration_ends_the_start() -> None:
    """Also if it fails when it has long been RUNNING; and it is not retried for ever."""
    migrate = entry("fail_late", autorestart="on-failure", start_retries=3, restart_delay=0.1)
    server = ordered_server(migrate, entry("a", "idle"), web_after=["fail_late"], ready_option=None)
    with server:
        assert server.wait_exit(15) == 1
        why = "gave up after 3 failed starts: exited with status 3"
        assert (
            f"The server stops: web workers cannot start, they wait for fail_late, which {why}"
            in server.log()
        )
        assert len(starts(server, "fail_late")) == 3
        assert server.log().count("Web workers wait for fail_late, which keeps failing") == 1
        assert "Worker" not in server.log().replace("Workers: ", "").replace("Web workers", "")


def test_the_workers_of_a_successor_find_the_store_of_the_old_master() -> None:
    """Its migration runs at once, beside the old store, which the requests of the old workers keep."""
    server = ordered_server(
        entry("store"),
        entry("migrate", autorestart="on-failure", after=["store"]),
        entry("drain", after=["store"], env={"UNTIL": "done"}, stop_timeout=60),
        web_after=["migrate", "store"],
        pidfile="g.pid",
    )
    server.write("migrated", "")
    with server:
        request = in_flight(server)
        store = server.companion("store")["pid"]
        old = server.pid
        (server.dir / "migrated").unlink()
        server.signal(signal.SIGUSR2)
        wait_until(lambda: len(starts(server, "migrate")) == 2, 10, "the second migration")
        new = server.new_master()
        assert new is not None and server.log().count("] Worker ") == 1
        server.write("migrated", "")
        wait_until(lambda: server.log().count("] Worker ") == 2, 10, "the new worker")
        assert is_alive(store) and len(starts(server, "store")) == 1
        os.kill(old, signal.SIGTERM)
        # The old worker has the only request that it is to finish.
        wait_until(lambda: server.get("/").status == 200, 10, "the new worker answers")
        assert is_alive(store)
        server.write("go", "")
        assert request.result().text == "stored"
        # The old one does not wait for companions, for which the new one is there.
        wait_until(lambda: events(server) == ["web stored", "store told"], 10, lambda: f"{events(server)}")
        server.write("done", "")
        wait_until(lambda: not is_alive(old), 10, "the old master is gone")
        wait_until(lambda: len(starts(server, "store")) == 2, 10, "the store of the new master")
        server.adopt(new)


@pytest.mark.matrix
@pytest.mark.parametrize("kill", [False, True], ids=["", "manager killed"])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=lambda sig: sig.name)
@pytest.mark.parametrize(
    "moment",
    [
        "Workers: 2",
        "The companion manager is",
        "Web workers wait for",
        "Starting companion migrate",
        "store is RUNNING",
        "Web workers start",
        "front is RUNNING",
    ],
)
def test_a_stop_at_any_moment_comes_to_its_end(moment: str, sig: signal.Signals, kill: bool) -> None:
    server = ordered_server(
        entry("store"),
        entry("migrate", autorestart="on-failure", after=["store"]),
        entry("front", "drain", after=["web"], env={"DRAIN": "0.1"}),
        web_after=["migrate", "store"],
        workers=2,
        ready_option=None,
    )
    if moment in ("Web workers start", "front is RUNNING"):
        server.write("migrated", "")
    with server:
        wait_until(lambda: moment in server.log(), 10, moment, interval=0.001)
        server.signal(sig)
        if kill and (manager := server.manager()) is not None:
            kill_quietly(manager)
        assert server.wait_exit(20) in (0, -sig)
        server.assert_nothing_left()
