# SPDX-License-Identifier: MIT
"""The scrape of real servers: valid in every state, never going back, and read by a real Prometheus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e_companions import companion_server, entry, reconfigure
from harness import Control, free_port, load, wait_until
from proctools import program
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from test_e2e_companion_commands import ctl

from gunicorn.monitor.openmetrics import render

JOBS = """
import signal, sys, time

def idle():
    while True:
        time.sleep(60)

def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    idle()

def crash():
    raise KeyError("price")

def busy():
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    print("x" * 100, flush=True)
    time.sleep(0.1)
    sys.exit(3)
"""

Key = tuple[str, tuple[tuple[str, str], ...]]


def samples(text: str) -> dict[Key, float]:
    """The samples of a scrape, in either form."""
    if text.endswith("# EOF\n"):
        families = openmetrics_parser.text_string_to_metric_families(text)
    else:
        families = parser.text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_scrape_is_valid_in_every_state() -> None:
    secret = {"env": {"TOKEN": "hunter2"}, "command": ["sleep", "600", "--password=hunter2"]}
    companions = [
        entry("stopped", "idle", autostart=False),
        entry("starting", "idle", ready="notify", start_timeout=60),
        entry("running", "idle", watchdog=60),
        entry("backoff", "crash", restart_delay=60),
        entry("stopping", "stubborn", stop_timeout=600),
        entry("gave", "crash", start_retries=1, startsecs=5),
        entry("held", "idle", after=["gave"]),
        {"name": "secret", **secret, "restart_delay": 60},
    ]
    with companion_server(*companions, raw_env=["DB=hunter2"], files_option={"jobs.py": JOBS}) as server:
        server.notes_starts = False
        server.wait_companion("stopping")
        with server.control() as control:
            control.ask("stop", "stopping")
        states = {
            "stopped": "STOPPED",
            "starting": "STARTING",
            "running": "RUNNING",
            "backoff": "BACKOFF",
            "stopping": "STOPPING",
            "gave": "STOPPED",
            "held": "STARTING",
        }
        for name, state in states.items():
            server.wait_companion(name, state)
        plain, rich = (ctl(server, "metrics", *more) for more in ((), ("--openmetrics",)))
        assert (plain.returncode, rich.returncode) == (0, 0), plain.stderr + rich.stderr
        done = subprocess.run(
            [program("promtool"), "check", "metrics"],
            input=plain.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        found = samples(plain.stdout)
        assert {key for key in samples(rich.stdout) if not key[0].endswith("_created")} == {*found}
        for name, state in states.items():
            labels = (("companion", name), ("state", state))
            assert found["gunicorn_companion_state", labels] == 1, name
        healthy = {name: found["gunicorn_companion_healthy", (("companion", name),)] for name in states}
        assert {name for name, number in healthy.items() if number} == {"stopped", "running", "stopping"}
        assert found["gunicorn_companion_watchdog_limit_seconds", (("companion", "running"),)] == 60
        for text in (plain.stdout, rich.stdout):
            assert "hunter2" not in text
        server.signal(signal.SIGKILL, server.companion("stopping")["pid"])


class Sampler:
    """Scrapes again and again, whoever serves it, and notes every counter that is less than before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: dict[Key, float] = {}
        self.count = 0
        self.faults: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.01):
            try:
                found = samples(scrape(self.path))
            except (OSError, KeyError, ValueError):
                # There is nobody for a moment, or somebody who was killed in the middle of an answer.
                continue
            for key, value in found.items():
                if key[0].endswith("_total") and value < self.last.get(key, 0):
                    self.faults.append(f"{key}: {self.last[key]} -> {value}")
            self.last.update(found)
            self.count += 1

    def value(self, name: str, **labels: str) -> float:
        return self.last.get((name, tuple(sorted(labels.items()))), 0)

    def wait(self, name: str, least: float, **labels: str) -> None:
        wait_until(
            lambda: self.value(name, **labels) >= least,
            20,
            lambda: f"{name} {labels}: {self.value(name, **labels)}, not {least}",
        )


def scrape(path: Path) -> str:
    with Control(path) as control:
        status = control.ask("status", memory=True)
        web = control.ask("web")["web"]
    return render(status, web, openmetrics=False)


def test_counters_never_go_back() -> None:
    settings: dict[str, Any] = {"pidfile": "g.pid"}
    companions = [
        entry("busy", startsecs=0, restart_delay=0),
        entry("idle", numprocs=2),
        entry("guest", "idle"),
    ]
    made = companion_server(*companions, files_option={"jobs.py": JOBS}, **settings)
    path = made.dir / "control.sock"
    made.configured_control = path
    settings["companion_control_socket"] = str(path)
    reconfigure(made, *companions, **settings)
    made.notes_starts = False
    starts, ends = "gunicorn_companion_starts_total", "gunicorn_companion_ends_total"
    with made as server, Sampler(path) as sampler, load(server, interval=0.005) as problems:
        sampler.wait(ends, 2, companion="busy", cause="crash")
        sampler.wait("gunicorn_companion_cpu_seconds_total", 0.05, companion="busy")
        sampler.wait("gunicorn_companion_log_bytes_total", 200, companion="busy")
        server.signal(signal.SIGHUP)
        sampler.wait("gunicorn_worker_ends_total", 1, reason="reload")
        for number in (1, 2):
            assert server.ask("scale", "idle", numprocs=number)["ok"]
            wait_until(lambda number=number: f"idle:{number}" not in server.companions(), 10)
        sampler.wait(starts, 2, companion="idle:1")
        # One is removed, and comes back.
        for number, some in ((1, companions[:2]), (2, companions)):
            reconfigure(server, *some, **settings)
            assert server.ask("reread")["ok"]
            wait_until(lambda some=some: len(server.companions()) == len(some) + 1, 10)
            assert ('companion="guest"' in scrape(path)) == (len(some) == len(companions))
            sampler.wait(starts, number, companion="guest")
        manager = server.wait_manager()
        before = sampler.value(starts, companion="busy")
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(20, without=manager)
        sampler.wait(starts, before + 3, companion="busy")
        sampler.wait(starts, 3, companion="guest")
        # Another manager takes over in good order.
        manager = server.wait_manager()
        settings["companion_reload"] = "all"
        reconfigure(server, *companions, **settings)
        server.signal(signal.SIGHUP)
        server.wait_manager(20, without=manager)
        sampler.wait(starts, 4, companion="guest")
        sampler.wait(ends, 1, companion="guest", cause="reload")
        new = server.upgrade()
        assert server.stop() == 0
        server.adopt(new.pid)
        sampler.wait(ends, 1, companion="guest", cause="upgrade")
        sampler.wait(starts, 5, companion="guest")
        # The new master knows that the old one is gone.
        wait_until(lambda: (server.dir / "g.pid").read_text() == f"{new.pid}\n", 20, "the new master's pid")
        before = sampler.value("gunicorn_companion_log_bytes_total", companion="busy")
        sampler.wait("gunicorn_companion_log_bytes_total", before + 300, companion="busy")
        asked = sampler.value("gunicorn_requests_total", **{"class": "2xx"})
        sampler.wait("gunicorn_requests_total", asked + 10, **{"class": "2xx"})
        assert problems == []
    assert sampler.faults == []
    assert sampler.count > 20


@contextmanager
def prometheus(directory: Path, target: int) -> Iterator[int]:
    """Run a Prometheus that scrapes *target*; yield its port."""
    port = free_port()
    (directory / "prometheus.yml").write_text(
        "scrape_configs:\n- job_name: shop\n  scrape_interval: 1s\n  scrape_timeout: 1s\n"
        f"  static_configs:\n  - targets: ['127.0.0.1:{target}']\n"
    )
    command = [
        program("prometheus"),
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)


def query(port: int, text: str) -> list[tuple[dict[str, str], float]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(text)}"
    with urllib.request.urlopen(url, timeout=5) as reply:
        found = json.load(reply)["data"]["result"]
    return [(one["metric"], float(one["value"][1])) for one in found]


def test_a_real_prometheus_reads_the_monitor(tmp_path: Path) -> None:
    target = free_port()
    companions = [entry("idle"), entry("busy", startsecs=0, restart_delay=0)]
    with (
        companion_server(
            *companions, monitor=f"127.0.0.1:{target}", files_option={"jobs.py": JOBS}
        ) as server,
        prometheus(tmp_path, target) as port,
    ):
        server.notes_starts = False
        server.wait_companion("monitor")
        for _ in range(5):
            assert server.get("/empty").status == 204

        def told(text: str) -> list[tuple[dict[str, str], float]]:
            return wait_until(lambda: query(port, text), 20, (tmp_path / "prometheus.log").read_text)

        told("up == 1")
        found = told('gunicorn_companion_state{state="RUNNING"} == 1')
        assert {"idle", "monitor"} <= {labels["companion"] for labels, _ in found}
        # The test itself waits for the server with requests, too.
        told('gunicorn_requests_total{class="2xx"} >= 5')
        told("histogram_quantile(0.5, gunicorn_request_duration_seconds_bucket) < 60")
        told("gunicorn_listener_backlog > 0")
        told('gunicorn_companion_ends_total{companion="busy",cause="crash"} > 2')
        told('increase(gunicorn_companion_starts_total{companion="busy"}[1m]) > 0')
