# SPDX-License-Identifier: MIT
"""What arrives at a statsd daemon: datagrams of real sockets."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn.config import Config
from gunicorn.instrument import statsd
from gunicorn.instrument.statsd import Statsd

RESPONSE = SimpleNamespace(status="200 OK", headers=[], sent=12)
REQUEST = SimpleNamespace(headers=[])
ENVIRON = {"REMOTE_ADDR": "127.0.0.1", "REQUEST_METHOD": "GET", "RAW_URI": "/", "SERVER_PROTOCOL": "HTTP/1.1"}


@pytest.fixture(autouse=True)
def _pristine() -> Iterator[None]:
    yield
    for name in ("gunicorn.error", "gunicorn.access"):
        log = logging.getLogger(name)
        for handler in log.handlers[:]:
            log.removeHandler(handler)
            handler.close()


@pytest.fixture
def daemon() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def logger(daemon: socket.socket | None, **settings: Any) -> Statsd:
    cfg = Config()
    if daemon is not None:
        settings.setdefault("statsd_host", "{}:{}".format(*daemon.getsockname()))
    for name, value in {"errorlog": os.devnull, **settings}.items():
        cfg.set(name, value)
    made = cfg.logger_class(cfg)
    assert isinstance(made, Statsd)
    return made


def received(daemon: socket.socket) -> list[str]:
    """What has arrived; sending to this host is done when the call returns."""
    found = []
    daemon.setblocking(False)
    try:
        while True:
            found.append(daemon.recv(4096).decode())
    except BlockingIOError:
        return found


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda log: log.gauge("g", 3), ["g:3|g"]),
        (lambda log: log.gauge("g", 0), ["g:0|g"]),
        (lambda log: log.increment("c", 1), ["c:1|c|@1.0"]),
        (lambda log: log.increment("c", 0), ["c:0|c|@1.0"]),
        (lambda log: log.increment("c", 1, sampling_rate=0.0), []),
        (lambda log: log.decrement("c", 2), ["c:-2|c|@1.0"]),
        (lambda log: log.histogram("h", 1.5), ["h:1.5|ms"]),
        (lambda log: log.critical("x"), ["gunicorn.log.critical:1|c|@1.0"]),
        (lambda log: log.error("x"), ["gunicorn.log.error:1|c|@1.0"]),
        (lambda log: log.warning("x"), ["gunicorn.log.warning:1|c|@1.0"]),
        (lambda log: log.exception("x"), ["gunicorn.log.exception:1|c|@1.0"]),
        (lambda log: log.info("x"), []),
        (lambda log: log.debug("x"), []),
    ],
)
@pytest.mark.parametrize(
    ("settings", "prefix", "tags"),
    [
        ({}, "", ""),
        ({"statsd_prefix": "shop"}, "shop.", ""),
        ({"statsd_prefix": "shop."}, "shop.", ""),
        ({"dogstatsd_tags": "env:live,x:1"}, "", "|#env:live,x:1"),
    ],
)
def test_figures(
    daemon: socket.socket, call: Any, expected: list[str], settings: dict[str, str], prefix: str, tags: str
) -> None:
    call(logger(daemon, **settings))
    assert received(daemon) == [prefix + line + tags for line in expected]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"metric": "workers", "value": 4, "mtype": "gauge"}, ["workers:4|g"]),
        ({"metric": "workers", "value": 0, "mtype": "gauge"}, ["workers:0|g"]),
        ({"metric": "n", "value": 0, "mtype": "counter"}, ["n:0|c|@1.0"]),
        ({"metric": "t", "value": 2, "mtype": "histogram"}, ["t:2|ms"]),
        ({"metric": "workers", "value": None, "mtype": "gauge"}, []),
        ({"metric": "workers", "mtype": "gauge"}, []),
        ({"value": 4, "mtype": "gauge"}, []),
        ({"metric": "workers", "value": 4, "mtype": "song"}, []),
        ({"metric": "workers", "value": 4}, []),
        ({"other": 1}, []),
    ],
)
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical", "log"])
def test_a_figure_with_a_line(
    daemon: socket.socket, level: str, extra: dict[str, Any], expected: list[str]
) -> None:
    """Whatever the log level lets through."""
    log = logger(daemon, loglevel="critical")
    if level == "log":
        log.log(logging.INFO, "a line", extra=extra)
    else:
        getattr(log, level)("a line", extra=extra)
    assert [line for line in received(daemon) if not line.startswith("gunicorn.log.")] == expected


def test_tags_of_one_figure_are_for_who_understands_them(daemon: socket.socket) -> None:
    extra = {"metric": "n", "value": 1, "mtype": "counter", "tags": {"companion": "rq:1"}}
    logger(daemon).info("x", extra=extra)
    logger(daemon, dogstatsd_tags="env:live").info("x", extra=extra)
    assert received(daemon) == ["n:1|c|@1.0", "n:1|c|@1.0|#companion:rq:1,env:live"]


def test_a_request(daemon: socket.socket) -> None:
    log = logger(daemon)
    assert log.wants_access
    log.access(RESPONSE, REQUEST, ENVIRON, timedelta(seconds=1, microseconds=2500))
    assert received(daemon) == [
        "gunicorn.request.duration:1002.5|ms",
        "gunicorn.requests:1|c|@1.0",
        "gunicorn.request.status.200:1|c|@1.0",
    ]


@pytest.mark.parametrize("status", ["404 Not Found", "404", 404, b"404 Not Found"])
def test_the_status_of_a_request(daemon: socket.socket, status: Any) -> None:
    logger(daemon).access(SimpleNamespace(status=status, headers=[], sent=0), REQUEST, ENVIRON, timedelta(0))
    assert "gunicorn.request.status.404:1|c|@1.0" in received(daemon)


def test_the_lines_are_logged_as_well(daemon: socket.socket, tmp_path: Path) -> None:
    log = logger(daemon, errorlog=str(tmp_path / "log"))
    log.warning("line %s", 1)
    log.info("line %s", 2, extra={"metric": "g", "value": 1, "mtype": "gauge"})
    log.info("", extra={"metric": "g", "value": 1, "mtype": "gauge"})
    text = (tmp_path / "log").read_text()
    assert "line 1" in text and "line 2" in text and text.count("\n") == 2


def test_a_unix_socket_that_is_made_anew(short_dir: Path) -> None:
    path = short_dir / "statsd"

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(path))
        return sock

    with listen() as first:
        log = logger(None, statsd_host=f"unix://{path}")
        log.gauge("a", 1)
        assert received(first) == ["a:1|g"]
    path.unlink()
    log.gauge("lost", 1)
    log._retry_delay = 0
    with listen() as second:
        # The first call finds that the old one is gone.
        log.gauge("b", 1)
        log.gauge("c", 1)
        assert "c:1|g" in received(second)


def test_nobody_listens() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    log = logger(None, statsd_host=f"127.0.0.1:{port}")
    for _ in range(5):
        log.gauge("a", 1)


def test_a_name_that_nobody_knows_is_tried_ever_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = []

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        tried.append(args)
        raise socket.gaierror(-2, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    now = [1000.0]
    monkeypatch.setattr(statsd.time, "monotonic", lambda: now[0])
    log = logger(None, statsd_host="nowhere.invalid", errorlog=str(tmp_path / "log"))
    for _ in range(600):
        now[0] += 1
        log.gauge("a", 1)
    assert 5 <= len(tried) <= 8
    assert (tmp_path / "log").read_text().count("statsd at nowhere.invalid:8125 cannot be reached") == 1


def test_a_socket_that_breaks_breaks_nothing(daemon: socket.socket, tmp_path: Path) -> None:
    class Broken:
        def send(self, data: bytes) -> int:
            raise RuntimeError("no")

        def close(self) -> None:
            pass

    log = logger(daemon, errorlog=str(tmp_path / "log"))
    log.sock = Broken()  # type: ignore[assignment]
    for _ in range(3):
        log.error("x")
    assert (tmp_path / "log").read_text().count("Metrics for statsd were lost") == 1
