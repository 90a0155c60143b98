# SPDX-License-Identifier: MIT
"""The cases over HTTP: what is asked, what a right answer is, who takes part, and the targets."""

from __future__ import annotations

import contextlib
import fnmatch
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks import load, machine, servers
from benchmarks.load import Request, Sample
from benchmarks.peers import Environments, title
from benchmarks.results import Measured, Row, make_row
from benchmarks.servers import Server, Setup
from benchmarks.stats import ITSELF, Target, rotations

GROUP = "http"
MEGABYTE = 1 << 20
GUNICORNS = ("gunicorn27", "gunicorn23")
ALL = (*GUNICORNS, "waitress", "uwsgi", "granian")

RATE, LATENCY, P99 = "requests/s", "mean, µs", "p99, µs"


class WrongAnswer(Exception):
    """A server does not answer the case as it must; it is not timed."""


@dataclass(frozen=True)
class Contestant:
    """One entry of a case: a server as it is set up and loaded for it."""

    label: str
    peer: str
    setup: Setup
    # Keep-alive connections that are open and silent during the run.
    idle: int = 0


@dataclass(frozen=True)
class Case:
    """Who answers what; the first contestant is ours."""

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    request: Request
    # Whether this is the body of the answer to request number so and so.
    body: Callable[[int, bytes], bool]
    content_type: str
    connections: int = 32
    unit: str = RATE
    # Its runs are so many times as long, where a run would see only a handful of answers.
    stretch: float = 1
    targets: Mapping[str, Target] = field(default_factory=dict)
    note: str = ""
    # Only requests with this text in them are timed.
    timed: str = ""


def at_least(bound: float) -> Target:
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    return Target("<=", bound)


def entries(setup: Setup, peers: Sequence[str]) -> tuple[Contestant, ...]:
    """Ours and *peers*, all set up alike; Granian also with a single thread, its default."""
    found = [Contestant(title(label), label, setup) for label in ("ours", *peers)]
    if "granian" in peers:
        found.append(Contestant(GRANIAN_ALONE, "granian", replace(setup, threads=1)))
    return tuple(found)


G27, GRANIAN, UWSGI = title("gunicorn27"), title("granian"), title("uwsgi")
GRANIAN_ALONE = f"{GRANIAN}, 1 thread"
OTHERS = ("gunicorn27", "waitress", "uwsgi", "granian")
HELLO = Request()
FORM = Request(
    method="POST",
    headers={
        "Accept": "application/json, text/plain, */*",
        "Accept-Encoding": "gzip, deflate, br, zstd",
        "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
        "Cache-Control": "no-cache",
        "Content-Type": "application/json",
        "Cookie": "session={id}; " + "; ".join(f"cookie{n}=" + "0123456789abcdef" * 3 for n in range(5)),
        "DNT": "1",
        "Origin": "https://shop.example",
        "Pragma": "no-cache",
        "Referer": "https://shop.example/books?page=1",
        "Sec-Fetch-Dest": "empty",
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Site": "same-origin",
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "X-CSRF-Token": "5f2cf82a3166f8b6836111636d2",
        "X-Forwarded-Host": "shop.example",
        "X-Real-IP": "{address}",
        "X-Request-ID": "{id}",
    },
    body=json.dumps({"items": [{"number": n, "title": f"Book {n:03}"} for n in range(55)]}).encode(),
)


def _always(right: bytes) -> Callable[[int, bytes], bool]:
    return lambda n, body: body == right


def _is_form_answer(n: int, body: bytes) -> bool:
    found = json.loads(body)
    # Two of the 20 headers, Content-Type and Content-Length, are no HTTP_ variables.
    return bool(found["items"] == 55 and found["cookies"] == 6 and found["headers"] == 18)


def _is_book(n: int, body: bytes) -> bool:
    right = {"number": load.number(n), "title": "A Book", "page": str(load.page(n)), "tags": ["a", "b", "c"]}
    return bool(json.loads(body) == right)


def _hello(
    name: str, text: str, contestants: tuple[Contestant, ...], targets: Mapping[str, Target], **options: Any
) -> Case:
    right = _always(b"Hello, world!\n")
    return Case(name, text, contestants, HELLO, right, "text/plain", targets=targets, **options)


def cases() -> list[Case]:
    """Every case, in the order in which they are run."""
    octets = "application/octet-stream"
    gthread = Setup()
    flask = replace(gthread, app="flaskapp:app")
    with_log_and_tls = ("gunicorn27", "uwsgi", "granian")
    book = partial(
        Case,
        request=HELLO,
        body=_is_book,
        content_type="application/json",
        targets={G27: at_least(2), GRANIAN: at_least(1), GRANIAN_ALONE: at_least(1)},
    )
    idle = replace(gthread, extra=("--worker-connections", "2000", "--keep-alive", "75"))
    companions = tuple(f"--companion-worker=idle-{n}=webapps:pause" for n in range(3))
    found = [
        _hello(
            "gthread-hello",
            "gthread, 8 threads, 32 keep-alive connections, 14 bytes",
            (
                *entries(gthread, ALL),
                Contestant("bare epoll loop", "bare epoll loop", gthread),
            ),
            targets={
                G27: at_least(5),
                title("waitress"): at_least(1),
                UWSGI: at_least(1),
                GRANIAN: at_least(0.8),
                GRANIAN_ALONE: at_least(0.8),
            },
        ),
        _hello(
            "gthread-latency",
            "the same with 1 connection: mean latency",
            entries(gthread, GUNICORNS),
            connections=1,
            unit=LATENCY,
            targets={G27: at_most(0.5)},
        ),
        _hello(
            "sync-hello",
            "sync, 32 connections, 14 bytes",
            (
                *entries(Setup(worker="sync"), GUNICORNS),
                Contestant("bare accept loop", "bare accept loop", gthread),
            ),
            targets={G27: at_least(3), "bare accept loop": at_least(0.6)},
        ),
        _hello(
            "gevent-hello",
            "gevent, 32 keep-alive connections, 14 bytes",
            entries(Setup(worker="gevent"), GUNICORNS),
            targets={G27: at_least(2.5)},
        ),
    ]
    found += [
        _hello(
            f"{worker}-access-log",
            f"{worker}, 32 connections, 14 bytes, with the access log on",
            entries(Setup(worker=worker, access_log=True), ("gunicorn27",)),
            targets={G27: at_least(3)},
        )
        for worker in ("gthread", "sync", "gevent")
    ]
    found += [
        Case(
            "gthread-post",
            "gthread, 20 request headers, 6 cookies, a JSON body of 2 KB read and answered",
            entries(replace(gthread, app="webapps:form"), ("gunicorn27",)),
            FORM,
            _is_form_answer,
            "application/json",
            targets={G27: at_least(3)},
        ),
        book("gthread-flask", "gthread, a JSON view of Flask", entries(flask, OTHERS)),
        book(
            "gthread-django",
            "gthread, a JSON view of Django",
            entries(replace(gthread, app="djangoapp:app"), OTHERS),
        ),
        book(
            "gthread-flask-latency",
            "the view of Flask with 1 connection: mean latency",
            entries(flask, OTHERS),
            connections=1,
            unit=LATENCY,
            targets={UWSGI: at_most(1), GRANIAN: at_most(1), GRANIAN_ALONE: at_most(1)},
        ),
        book(
            "gthread-flask-200",
            "the view of Flask with 200 connections",
            entries(flask, OTHERS),
            connections=200,
        ),
        book(
            "gthread-flask-access-log",
            "the view of Flask with the access log on",
            entries(replace(flask, access_log=True), with_log_and_tls),
        ),
        book(
            "gthread-flask-tls",
            "the view of Flask over TLS",
            entries(replace(flask, tls=True), with_log_and_tls),
        ),
        book(
            "gthread-flask-4",
            "the view of Flask, 4 workers on all cores",
            entries(replace(flask, workers=4), OTHERS),
            note="the load has no core to itself",
        ),
        _hello(
            "gthread-sleep",
            "gthread, 8 threads, a view that waits for 5 ms: 1,600 a second would be the most",
            entries(replace(gthread, app="webapps:sleep"), OTHERS),
            targets={ITSELF: at_least(0.97 * 1600)},
        ),
        _hello(
            "gthread-query",
            "gthread, 8 threads, a view that waits for 1 ms",
            entries(replace(gthread, app="webapps:query"), OTHERS),
            targets={G27: at_least(1), GRANIAN: at_least(0.9)},
        ),
        _hello(
            "gthread-compute",
            "gthread, a view that computes for 2 ms",
            entries(replace(gthread, app="webapps:compute"), OTHERS),
            targets={G27: at_least(1), GRANIAN: at_least(1)},
        ),
        Case(
            "gthread-mixture",
            "gthread, 5 % of the views wait for 50 ms: p99 of the others, at 70 % of Gunicorn's rate",
            # A single thread of Granian's would answer half of them.
            entries(replace(gthread, app="webapps:mixture"), OTHERS)[:-1],
            replace(HELLO, path="/{pace}/{number}?page={page}"),
            _always(b"Hello, world!\n"),
            "text/plain",
            unit=P99,
            stretch=2,
            targets={GRANIAN: at_most(1)},
            timed="/quick/",
        ),
        Case(
            "gthread-file",
            "gthread, a response of 10 MB by the file wrapper",
            entries(replace(gthread, app="webapps:send_file"), ("gunicorn27",)),
            HELLO,
            _always(b"0123456789abcdef" * (10 * MEGABYTE // 16)),
            octets,
            connections=4,
            stretch=2,
            targets={G27: at_least(1.2)},
        ),
        Case(
            "gthread-upload",
            "gthread, a request of 10 MB read by the application",
            entries(replace(gthread, app="webapps:upload"), ("gunicorn27",)),
            Request(method="POST", body=b"x" * (10 * MEGABYTE)),
            _always(str(10 * MEGABYTE).encode()),
            "text/plain",
            connections=4,
            stretch=3,
            targets={G27: at_least(1.2)},
        ),
        Case(
            "gthread-chunked",
            "gthread, 1 MB chunked in the request and in the response",
            entries(replace(gthread, app="webapps:echo"), ("gunicorn27",)),
            Request(method="POST", body=b"x" * MEGABYTE, chunked=True),
            _always(b"x" * MEGABYTE),
            octets,
            connections=4,
            targets={G27: at_least(1.2)},
        ),
        _hello(
            "gthread-p99",
            "gthread, 99th percentile of the latency at 70 % of Gunicorn's own maximum rate",
            entries(gthread, ("gunicorn27",)),
            unit=P99,
            stretch=2,
            targets={G27: at_most(0.5)},
        ),
        _hello(
            "gthread-idle",
            "gthread, 32 busy connections beside 1,000 idle ones",
            (
                Contestant("with 1,000 idle connections", "ours", idle, idle=1000),
                Contestant("the busy ones alone", "ours", idle),
            ),
            targets={"the busy ones alone": at_least(0.95)},
        ),
        _hello(
            "gthread-companions",
            "gthread, 32 connections, with 3 companions configured",
            (
                Contestant("with companions", "ours", replace(gthread, extra=companions)),
                Contestant("without", "ours", gthread),
            ),
            targets={"without": at_least(0.95)},
            note="within noise: at most 5 % less",
        ),
    ]
    return found


def chosen(patterns: Sequence[str]) -> list[Case]:
    return [c for c in cases() if not patterns or any(fnmatch.fnmatch(c.name, p) for p in patterns)]


# -- running them ------------------------------------------------------------


def run_case(case: Case, environments: Environments, runs: int, seconds: float) -> Row:
    """Start everybody, check everybody's answers, then measure them in turn."""
    there = servers.labels(environments, [contestant.peer for contestant in case.contestants])
    contestants = [c for c in case.contestants if c.peer in there]
    notes = [case.note] if case.note else []
    if case.contestants[0] not in contestants:
        return Row(GROUP, case.name, case.title, case.unit, error="this server cannot be installed")
    with contextlib.ExitStack() as stack:
        started: dict[tuple[str, Setup], Server] = {}
        lineup: dict[str, tuple[Contestant, Server]] = {}
        for contestant in contestants:
            key = (contestant.peer, contestant.setup)
            try:
                if key not in started:
                    server = stack.enter_context(
                        servers.running(environments, contestant.peer, contestant.setup)
                    )
                    check(case, server)
                    started[key] = server
            except (RuntimeError, WrongAnswer, OSError) as exc:
                if contestant is contestants[0]:
                    return Row(GROUP, case.name, case.title, case.unit, error=str(exc))
                notes.append(f"{contestant.label} left out: {exc}")
                continue
            lineup[contestant.label] = (contestant, started[key])
        rate = None
        if case.unit == P99:
            reference = lineup.get(G27) or lineup[contestants[0].label]
            rate = 0.7 * load.closed_loop(reference[1].port, case.request, case.connections, seconds).rate
            notes.append(f"{rate:.0f} requests/s")
        measured: dict[str, Measured] = {label: Measured() for label in lineup}
        for order in rotations(list(lineup), runs):
            for label in order:
                contestant, server = lineup[label]
                try:
                    value, cpu = measure(case, contestant, server, seconds, rate)
                except RuntimeError as exc:
                    raise RuntimeError(f"{label}: {exc}; {servers.last_line(server.log())}") from None
                measured[label].values.append(value)
                if machine.PROC:
                    measured[label].cpu.append(cpu)
        for _, server in lineup.values():
            if server.process.poll() is not None:
                raise RuntimeError(f"{server.label} ended during the measurement")
    return make_row(GROUP, case.name, case.title, case.unit, measured, case.targets, "; ".join(notes))


def measure(
    case: Case, contestant: Contestant, server: Server, seconds: float, rate: float | None
) -> tuple[float, float]:
    """One run: the figure in the case's unit, and the server's CPU time for a request in microseconds."""
    seconds *= case.stretch
    with idle_connections(server.port, case.request, contestant.idle):
        for _ in range(2):
            before = server.cpu_seconds()
            if rate is not None:
                sample = load.open_loop(
                    server.port, case.request, case.connections, seconds, rate, case.timed
                )
            else:
                sample = load.closed_loop(
                    server.port, case.request, case.connections, seconds, contestant.setup.tls
                )
            cpu = (server.cpu_seconds() - before) / max(1, sample.requests) * 1e6
            # Without a single answer it is the machine that stood still, and no ratio comes of it.
            if sample.requests:
                break
    if sample.failed > sample.requests / 1000:
        raise RuntimeError(f"{sample.failed} of {sample.requests} requests failed")
    return figure(case.unit, sample), cpu


def figure(unit: str, sample: Sample) -> float:
    if unit == RATE:
        return sample.rate
    # One connection has one request under way, always.
    return 1e6 / sample.rate if unit == LATENCY else sample.p99 * 1e6


@contextlib.contextmanager
def idle_connections(port: int, request: Request, count: int) -> Iterator[None]:
    """*count* connections that have had an answer each, and are kept."""
    with contextlib.ExitStack() as stack:
        for n in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            sock.sendall(request.to_bytes(n, f"127.0.0.1:{port}"))
            if not sock.recv(4096):
                raise RuntimeError("the server closes a connection that is to be kept")
        if count:
            # What the server does after the last of them is not the run's.
            time.sleep(0.1)
        yield


def connected(port: int, tls: bool) -> socket.socket:
    """A connection to the server; with *tls* nobody is asked who has signed its certificate."""
    sock = socket.create_connection(("127.0.0.1", port), servers.BOOT_LIMIT)
    if not tls:
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock)


def check(case: Case, server: Server, times: int = 20) -> None:
    """Ask on several connections, and twice on each that is kept. Raises WrongAnswer."""
    size = len(case.request.body)
    for n in range(times if size < MEGABYTE else 2):
        with connected(server.port, case.contestants[0].setup.tls) as sock:
            if ask(case, 2 * n, sock):
                ask(case, 2 * n + 1, sock)


def ask(case: Case, n: int, sock: socket.socket) -> bool:
    """Request number *n* and its answer; True if the connection stays open."""
    port = sock.getpeername()[1]
    sock.sendall(case.request.to_bytes(n, f"127.0.0.1:{port}"))
    response = http.client.HTTPResponse(sock, method=case.request.method)
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, OSError) as exc:
        raise WrongAnswer(f"no answer: {type(exc).__name__} {exc}") from None
    problem = wrong(case, n, response.status, dict(response.getheaders()), body)
    if problem:
        raise WrongAnswer(problem)
    return not response.will_close


def wrong(case: Case, n: int, status: int, headers: Mapping[str, str], body: bytes) -> str:
    """What is wrong with the answer to request number *n*; empty where nothing is."""
    given = {name.lower(): value for name, value in headers.items()}
    if status != 200:
        return f"status {status}, not 200"
    if given.get("content-type", "").partition(";")[0] != case.content_type:
        return f"Content-Type {given.get('content-type')!r}, not {case.content_type!r}"
    if "content-length" in given and given["content-length"] != str(len(body)):
        return f"Content-Length {given['content-length']}, and {len(body)} bytes"
    try:
        good = case.body(n, body)
    except (ValueError, KeyError, TypeError):
        good = False
    return "" if good else f"the wrong body: {body[:60]!r}"
