# SPDX-License-Identifier: MIT
"""The monitor of a real server: probes, JSON, streams, actions, reloads."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from e2e_companions import companion_server, entry, reconfigure
from harness import Background, Reply, Server, UnixHTTPConnection, free_port, wait_until

TOKEN = "marked-token"
SECRETS = (TOKEN, "marked-env", "marked-raw", "marked-url", "marked-all")
JSON = {"Content-Type": "application/json"}
AUTHORIZED = {**JSON, "Authorization": f"Bearer {TOKEN}"}


class Client:
    """Requests to the monitor on *port*."""

    def __init__(self, port: int) -> None:
        self.port = port
        # All that was answered.
        self.seen: list[str] = []

    def ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            reply = Reply(answer.status, answer.headers, answer.read())
        self.seen.append(f"{answer.headers}{reply.text}")
        return reply

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    def act(self, headers: Any = AUTHORIZED, **action: Any) -> Reply:
        return self.ask("POST", "/api/action", json.dumps(action), headers)

    def quick(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a probe, which answers at once whatever happens."""
        started = time.monotonic()
        reply = self.get(path)
        assert time.monotonic() - started < 0.5  # 0.1 on a machine without other work
        return reply.status, reply.json()

    @contextlib.contextmanager
    def events(self, path: str) -> Iterator[Callable[..., Any]]:
        """A function that returns the value of the next event of a name that fulfils a condition."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.getheader("Content-Type") == "text/event-stream"

            def wait(name: str, right: Callable[[Any], Any] = lambda value: True) -> Any:
                # A sample may take six seconds: the master looks at the clock once a second.
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline:
                    line = answer.readline().decode()
                    if line == f"event: {name}\n":
                        data = answer.readline().decode()
                        self.seen.append(data)
                        value = json.loads(data.removeprefix("data: "))
                        if right(value):
                            return value
                raise AssertionError(f"no event {name}")

            yield wait


def test_what_it_answers() -> None:
    port = free_port()
    url = "http://user:marked-url@127.0.0.1:1/"
    program = {"name": "p", "command": ["sh", "-c", f"echo hello; exec sleep 60 # {url}"]}
    with companion_server(
        entry("a", "idle", env={"SETTING": "marked-env"}),
        entry("b", "idle", autostart=False),
        program,
        monitor=f"127.0.0.1:{port}",
        monitor_token=TOKEN,
        monitor_ready=["a"],
        monitor_hosts=["public.example.com"],
        raw_env=["OTHER=marked-raw"],
        companion_env={"ALL": "marked-all"},
        workers=1,
        timeout=60,
    ) as server:
        client = Client(port)
        server.notes_starts = False
        for name in ("a", "p", "monitor"):
            server.wait_companion(name)
        check_reading(client)
        check_hosts_and_methods(client)
        check_actions(server, client)
        check_streams(server, client)
        check_held_up(server, client)
        shown = "".join(client.seen) + server.log("server.log")
        assert [secret for secret in SECRETS if secret in shown] == []
        assert "Traceback" not in server.log("server.log")


def check_reading(client: Client) -> None:
    assert client.quick("/live") == (200, {"live": True})
    ready = {"ready": True, "missing": []}
    wait_until(lambda: client.quick("/ready") == (200, ready), 5, "a server that is ready")
    head = client.ask("HEAD", "/ready")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) > 0
    status = client.get("/api/status").json()
    assert [one["name"] for one in status["companions"]] == ["a", "b", "p", "monitor"]
    assert status["companions"][0]["memory"]["private"] > 0
    assert status["server"]["application"] == "app:app"
    assert (status["web"]["class"], len(status["web"]["workers"])) == ("sync", 1)
    assert client.get("/api/session").json() == {"actions": True}
    page = client.get("/api/companion/p").json()
    assert "user:***@127.0.0.1" in page["details"]["runs"]
    assert client.get("/api/companion/monitor").json()["details"]["runs"] == "gunicorn.monitor.server:run"
    assert client.get("/api/companion/nobody").status == 404
    events = client.get("/api/events?name=a").json()["history"]
    assert [event["event"] for event in events] == ["start"]
    [line] = wait_until(lambda: client.get("/api/logs?name=p&lines=5").json()["lines"], 5, "a line")
    assert (line["name"], line["line"]) == ("p", "hello")
    assert client.get("/api/logs?lines=many").status == 400
    assert client.get("/api/logs?name=nobody").status == 409
    assert client.get("/api/history").json()["interval"] == 5
    plain = client.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert "gunicorn_companion_state{" in plain.text
    modern = client.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert modern.text.endswith("# EOF\n")
    assert client.get("/nothing").status == 404
    assert client.get("/static/../app.py").status == 404
    assert client.get("/static/").status == 404
    policy = plain.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def check_hosts_and_methods(client: Client) -> None:
    for host, status in (
        (f"127.0.0.1:{client.port}", 200),
        ("localhost", 200),
        ("public.example.com", 200),
        ("evil.example.com", 421),
        (f"evil.example.com:{client.port}", 421),
    ):
        assert client.get("/api/status", Host=host).status == status, host
        # A probe of a load balancer has any name.
        assert client.get("/live", Host=host).status == 200
    assert client.get("/api/action").status == 405
    assert client.ask("POST", "/api/status", "{}", AUTHORIZED).status == 405
    assert client.ask("DELETE", "/live").status == 405


def check_actions(server: Server, client: Client) -> None:
    before = server.companion("a")["pid"]
    own = f"http://127.0.0.1:{client.port}"
    refused = [
        (401, JSON),
        (401, {**JSON, "Authorization": "Bearer wrong"}),
        (401, {**JSON, "Authorization": f"Basic {TOKEN}"}),
        (403, {**AUTHORIZED, "Origin": "http://evil.example.com"}),
        (403, {**AUTHORIZED, "Origin": "null"}),
        (421, {**AUTHORIZED, "Host": "evil.example.com"}),
        (415, {**AUTHORIZED, "Content-Type": "text/plain"}),
        (415, {"Authorization": f"Bearer {TOKEN}"}),
    ]
    for status, headers in refused:
        reply = client.act(headers, action="restart", name="a")
        assert (reply.status, [*reply.json()]) == (status, ["error"]), headers
    wrong = [
        {"action": "signal", "name": "a"},
        {"action": "stop"},
        {"action": "stop", "name": "a", "x": 1},
        {},
    ]
    assert [client.act(**action).status for action in wrong] == [400] * len(wrong)
    assert client.ask("POST", "/api/action", "{", AUTHORIZED).status == 400
    assert client.ask("POST", "/api/action", "[]", AUTHORIZED).status == 400
    assert client.ask("POST", "/api/action", b" " * 20_000, AUTHORIZED).status == 413
    assert client.act(action="restart", name="nobody").status == 409
    assert server.companion("a")["pid"] == before

    assert client.act({**AUTHORIZED, "Origin": own}, action="restart", name="a").status == 200
    server.wait_companion("a", without=[before])
    assert client.act(action="stop", name="a").json()["ok"]
    server.wait_companion("a", "STOPPED")
    # A manager that takes longer than a probe may is asked again by the next one.
    missing = {"ready": False, "missing": ["companion a is STOPPED"]}
    wait_until(lambda: client.quick("/ready") == (503, missing), 5, "what is missing")
    assert client.act(action="start", name="a").status == 200
    server.wait_companion("a")
    wait_until(lambda: client.quick("/ready")[0] == 200, 5, "a server that is ready again")
    dumped = client.act(action="dump", what="monitor").json()["dumps"]
    # The thread that asks for it.
    assert "in _act" in dumped[0]["stacks"]
    assert client.act(action="web", do="add", count=1).status == 200
    wait_until(lambda: len(client.get("/api/status").json()["web"]["workers"]) == 2, 5, "two workers")
    assert client.act(action="web", do="remove", count=1).status == 200
    wait_until(lambda: len(client.get("/api/status").json()["web"]["workers"]) == 1, 5, "one worker")
    assert client.act(action="web", do="kill", pid=1).status == 409


def check_streams(server: Server, client: Client) -> None:
    with client.events("/api/stream") as wait, client.events("/api/logs/stream?name=p&lines=1") as wait_line:
        assert wait_line("line")["line"] == "hello"
        status = wait("status")
        pids = {one["name"]: one["pid"] for one in status["companions"]}
        assert all(one["memory"] for one in status["companions"] if one["pid"])
        os.kill(pids["a"], signal.SIGKILL)
        killed = time.monotonic()

        def shown(value: Any) -> bool:
            return value["companions"][0]["pid"] != pids["a"]

        assert wait("event", lambda value: value["event"] == "exit")["cause"] == "killed"
        wait("status", shown)
        assert time.monotonic() - killed < 2.0  # 0.3 on a machine without other work
        # The master notes one every five seconds.
        assert wait("sample")["workers"] == 1
        pid = pids["p"]
        os.kill(pid, signal.SIGKILL)
        assert wait_line("line", lambda value: value["pid"] != pid)["line"] == "hello"
    assert client.get("/api/history").json()["samples"]
    server.wait_companion("a")


def check_held_up(server: Server, client: Client) -> None:
    """A busy worker, silent clients and a hung manager delay no probe."""
    slow = Background(server, "/wait?go", 60)
    wait_until(lambda: server.log("wait.started"), 10, "a request that holds the only worker")
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", client.port)))
        half = stack.enter_context(socket.create_connection(("127.0.0.1", client.port)))
        half.sendall(b"GET /live HTTP/1.1\r\nHost: loc")
        assert client.quick("/live")[0] == 200
        assert client.quick("/ready")[0] == 200
        manager = server.wait_manager()
        os.kill(manager, signal.SIGSTOP)
        try:
            assert client.quick("/live")[0] == 200
            # What the manager said last counts for a while.
            assert client.quick("/ready")[0] == 200
            paths = ("/api/status", "/metrics", "/api/logs", "/api/events")
            with ThreadPoolExecutor(len(paths)) as pool:
                started = time.monotonic()
                replies = dict(zip(paths, pool.map(client.get, paths), strict=True))
                assert time.monotonic() - started < 2.5
            assert [path for path, reply in replies.items() if reply.status != 503] == []
            assert all("does not answer" in reply.json()["error"] for reply in replies.values())
        finally:
            os.kill(manager, signal.SIGCONT)
        server.write("go", "")
        assert slow.result().status == 200
    assert client.get("/api/status").status == 200
    fields = "".join(f"{name}: {value}\r\n" for name, value in AUTHORIZED.items())
    head = f"POST /api/action HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: 9\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            client_without_body = stack.enter_context(socket.create_connection(("127.0.0.1", client.port)))
            client_without_body.sendall(head.encode())
        wait_until(lambda: client.get("/api/session").status == 503, 4, "a monitor without a place")
        assert client.quick("/live")[0] == 200
        assert client.quick("/ready")[0] == 200
    wait_until(lambda: [client.get("/api/status").status for _ in range(4)] == [200] * 4, 10, "places")


def test_reloads() -> None:
    """A reload brings the monitor, moves it, refuses a wrong address, and takes it away."""
    first, second = free_port(), free_port()
    with companion_server(workers=1) as server:
        server.notes_starts = False

        def reload(*companions: Any, **settings: Any) -> None:
            reconfigure(server, *companions, workers=1, **settings)
            server.signal(signal.SIGHUP)

        reload(monitor=f"127.0.0.1:{first}")
        wait_until(lambda: answers(first), 10, "the monitor")
        server.wait_companion("monitor")
        # Without a token there are no actions.
        assert Client(first).get("/api/session").json() == {"actions": False}
        reply = Client(first).act(action="restart", name="monitor")
        assert (reply.status, "monitor_token" in reply.text) == (403, True)

        reload(monitor=f"127.0.0.1:{second}")
        wait_until(lambda: answers(second) and not answers(first), 10, "the monitor at its new address")

        reload(monitor="127.0.0.1:many")
        server.wait_log("Reload refused")
        assert "'127.0.0.1:many': expected HOST:PORT or unix:PATH" in server.log("server.log")
        reload({"name": "monitor", "target": "jobs:idle"}, monitor=f"127.0.0.1:{second}")
        server.wait_log("the setting monitor adds one of that name")
        reload(monitor=f"127.0.0.1:{second}", monitor_ready=["nobody"])
        server.wait_log("monitor_ready: no companion named nobody")
        assert answers(second)

        with socket.create_server(("127.0.0.1", first)):
            reload(monitor=f"127.0.0.1:{first}")
            found = server.wait_companion("monitor", "BACKOFF")
            assert f"127.0.0.1:{first}" in found["description"]
        wait_until(lambda: answers(first), 10, "the monitor once the port is free")

        path = str(server.dir / "monitor.sock")
        reload(monitor=f"unix:{path}", umask=0o077)
        wait_until(lambda: os.path.exists(path), 10, "the socket")
        connection = UnixHTTPConnection(path, 5)
        with contextlib.closing(connection):
            connection.request("GET", "/api/status")
            assert connection.getresponse().status == 200
        server.stop()
        assert not os.path.exists(path)


def answers(port: int) -> bool:
    try:
        return Client(port).get("/live").status == 200
    except OSError:
        return False


def test_a_server_whose_workers_do_not_boot() -> None:
    port = free_port()
    app = "import time\ntime.sleep(60)\n"
    settings: dict[str, Any] = {"monitor": f"0.0.0.0:{port}", "workers": 1, "timeout": 60}
    # gevent in the configuration file is nothing to the monitor.
    extra = "import gevent.monkey; gevent.monkey.patch_all()" if find_spec("gevent") else ""
    with companion_server(app_option=app, ready_option=None, extra=extra, **settings) as server:
        wait_until(lambda: answers(port), 10, "the monitor")
        client = Client(port)
        missing = {"ready": False, "missing": ["no web worker has booted"]}
        assert client.quick("/ready") == (503, missing)
        # Everybody in the network can read it.
        assert f"monitor: everybody who reaches 0.0.0.0:{port} can read it" in server.log("server.log")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: client.quick("/live")[0] == 503, 10, "a master that does not answer")
            [text] = client.get("/live").json()["missing"]
            assert text.startswith("the master has not answered for ")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        wait_until(lambda: client.quick("/live")[0] == 200, 10, "the master")
        # gevent has a way of its own to collect children, who must be found nevertheless.
        server.stop(signal.SIGINT, timeout=10)
