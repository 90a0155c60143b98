# SPDX-License-Identifier: MIT
"""The request cycle: one request over a real connection, a worker that only counts."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gunicorn.config import Config
from gunicorn.http.errors import InvalidHeader, NoMoreData, RequestTimeout
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import Response
from gunicorn.workers.cycle import CLOSE, KEEP, LINGER, RESET, Cycle, HandledElsewhere, Outcome, Stopped

ADDRESS = ("192.0.2.1", 4711)
SERVER = ("192.0.2.9", 8000)
GET = b"GET /path?q HTTP/1.1\r\nHost: x\r\n\r\n"


class Log:
    """Keeps what was logged as (level, text) and what the access log got."""

    wants_access = True

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.accesses: list[tuple[str, Any, str]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        def log(msg: str, *args: Any, **kwargs: Any) -> None:
            self.lines.append((level, msg % args if args else msg))

        return log

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        assert isinstance(request_time, timedelta)
        self.accesses.append((resp.status, resp.sent, environ["REQUEST_METHOD"]))

    def levels(self) -> list[str]:
        return [level for level, _ in self.lines]


class Worker:
    def __init__(self, wsgi: Any, **settings: Any) -> None:
        self.cfg = Config()
        for name, value in settings.items():
            self.cfg.set(name, value)
        self.log = Log()
        self.wsgi = wsgi
        self.alive = True
        self.nr = 0
        self.max_requests = 1000

    def retire(self) -> None:
        self.alive = False


class Exchange:
    """One request given to a cycle, and what came of it."""

    def __init__(self, pair: tuple[socket.socket, socket.socket], app: Any, **settings: Any) -> None:
        self.ours, self.theirs = pair
        self.worker = Worker(app, **settings)
        self.cycle = Cycle(self.worker)
        self.parser = RequestParser(self.worker.cfg, self.ours, ADDRESS)

    def __call__(self, data: bytes = GET, keep: bool = True, **options: Any) -> Outcome:
        self.theirs.sendall(data)
        req = next(self.parser)
        return self.cycle.serve(req, self.ours, ADDRESS, SERVER, keep=keep, **options)

    def answer(self) -> bytes:
        self.ours.close()
        data = b""
        while chunk := self.theirs.recv(65536):
            data += chunk
        return data


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    ours.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def test_a_head_from_elsewhere(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who replaces what makes the head replaces no decision about the connection."""
    head = ["HTTP/1.1 200 OK\r\n", "X-Mine: 1\r\n"]
    monkeypatch.setattr(Response, "default_headers", lambda resp: list(head))
    exchange = Exchange(pair, hello)
    assert exchange() == KEEP
    assert exchange(b"GET / HTTP/1.0\r\n\r\n") == CLOSE
    assert exchange.answer() == 2 * b"HTTP/1.1 200 OK\r\nX-Mine: 1\r\nContent-Length: 5\r\n\r\nhello"


class Closing:
    """A result that says what became of it."""

    def __init__(self, items: list[Any], fails: bool = False) -> None:
        self.items = items
        self.fails = fails
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for item in self.items:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        self.closed += 1
        if self.fails:
            raise ValueError("close fails")


def answering(result: Any, status: str = "200 OK", headers: Any = (("Content-Length", "5"),)) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(headers))
        return result

    return app


# -- what becomes of the connection --------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "keep", "outcome"),
    [
        (GET, True, KEEP),
        (GET, False, CLOSE),
        (GET.replace(b"1.1", b"1.0"), True, CLOSE),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", True, CLOSE),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", True, KEEP),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab", True, LINGER),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", False, LINGER),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", True, LINGER),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            True,
            KEEP,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", True, LINGER),
    ],
)
def test_outcome_for_the_connection(pair: Any, data: bytes, keep: bool, outcome: Outcome) -> None:
    exchange = Exchange(pair, hello)
    assert exchange(data, keep) == outcome
    answer = exchange.answer()
    assert answer.startswith(b"HTTP/1.") and b" 200 OK\r\n" in answer and answer.endswith(b"\r\n\r\nhello")
    if outcome == CLOSE:
        assert b"\r\nConnection: close\r\n" in answer


def test_two_requests_on_one_connection(pair: Any) -> None:
    exchange = Exchange(pair, hello)
    assert exchange(GET + GET) == KEEP
    assert exchange(b"") == KEEP
    assert exchange.answer().count(b"HTTP/1.1 200 OK") == 2 and exchange.worker.nr == 2


def test_a_worker_that_has_served_enough_says_so(pair: Any) -> None:
    exchange = Exchange(pair, hello)
    exchange.worker.max_requests = 2
    assert exchange() == KEEP and exchange.worker.alive
    assert exchange() == CLOSE and not exchange.worker.alive


def test_an_order_to_end_before_the_request_reaches_a_client_that_is_written_to(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "1")])(b"x")
        return []

    exchange = Exchange(pair, app)
    exchange.worker.alive = False
    assert exchange() == CLOSE
    assert b"Connection: close" in exchange.answer()


def test_a_client_that_goes_away_during_its_body_gets_no_answer(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        # What the client has not read makes its end a reset.
        exchange.ours.sendall(b"unread")
        exchange.theirs.close()
        environ["wsgi.input"].read()
        return hello(environ, start_response)

    exchange = Exchange(pair, app)
    assert exchange(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc") == CLOSE
    assert exchange.worker.log.accesses == []
    assert exchange.worker.log.levels() == ["debug"]


def test_an_order_to_end_during_the_request_reaches_the_client(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        exchange.worker.alive = False
        return hello(environ, start_response)

    exchange = Exchange(pair, app)
    assert exchange() == CLOSE
    assert b"Connection: close" in exchange.answer()


# -- the environ, hooks, logs --------------------------------------------------------------------


@pytest.mark.parametrize("multithread", [True, False])
def test_environ(pair: Any, multithread: bool) -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    exchange = Exchange(pair, app)
    exchange(multithread=multithread)
    assert seen["wsgi.multithread"] is multithread
    assert seen["REMOTE_ADDR"] == "192.0.2.1" and seen["QUERY_STRING"] == "q"


def test_hooks_see_the_request_and_its_response(pair: Any) -> None:
    calls: list[Any] = []
    exchange = Exchange(
        pair,
        hello,
        pre_request=lambda worker, req: calls.append((worker.nr, req.path)),
        post_request=lambda worker, req, environ, resp: calls.append(
            (worker.nr, environ["PATH_INFO"], resp.status)
        ),
    )
    exchange()
    assert calls == [(0, "/path"), (1, "/path", "200 OK")]


def test_a_pre_request_hook_that_fails_is_a_500(pair: Any) -> None:
    def hook(worker: Any, req: Any) -> None:
        raise ValueError

    exchange = Exchange(pair, hello, pre_request=hook)
    assert exchange() == LINGER and exchange.answer().startswith(b"HTTP/1.1 500 ")
    [access] = exchange.worker.log.accesses
    assert access[0] == "500 Internal Server Error"


def test_a_post_request_hook_that_fails_is_only_logged(pair: Any) -> None:
    def hook(worker: Any, req: Any, environ: Any, resp: Any) -> None:
        raise ValueError

    exchange = Exchange(pair, hello, post_request=hook)
    assert exchange() == KEEP
    assert exchange.worker.log.lines == [("exception", "The hook post_request failed")]


def test_default_hooks_are_not_called(pair: Any) -> None:
    cycle = Exchange(pair, hello).cycle
    assert cycle.pre_request is None and cycle.post_request is None


def test_every_request_is_in_the_access_log_once(pair: Any) -> None:
    exchange = Exchange(pair, hello)
    exchange()
    exchange.worker.wsgi = answering([b"x"], headers=[("X", "y\n")])
    exchange()
    log = exchange.worker.log
    assert log.accesses[0] == ("200 OK", 5, "GET")
    assert log.accesses[1][0] == "500 Internal Server Error" and log.accesses[1][1] > 50
    assert len(log.accesses) == 2


# -- failures ------------------------------------------------------------------------------------


def raising(error: BaseException) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        raise error

    return app


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        # Ends of connections of the application's own.
        ConnectionResetError("a backend"),
        BrokenPipeError("a backend"),
        TimeoutError("a backend"),
        NoMoreData(b"from elsewhere"),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_the_application_raises_is_a_500(pair: Any, error: BaseException) -> None:
    exchange = Exchange(pair, raising(error))
    assert exchange() == LINGER
    assert exchange.worker.log.lines == [("error", "The application failed on 'GET /path?q'")]
    answer = exchange.answer()
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n") and b"Connection: close" in answer
    assert b"wrong" not in answer and b"backend" not in answer


def test_an_error_of_the_connection_stays_one_wherever_it_is_raised_again(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            kept = error.with_traceback(None)
        raise kept

    exchange = Exchange(pair, app)
    exchange.theirs.sendall(b"POST /path?q HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
    exchange.theirs.shutdown(socket.SHUT_WR)
    req = next(exchange.parser)
    exchange.cycle.serve(req, exchange.ours, ADDRESS, SERVER, keep=True)
    assert exchange.answer().startswith(b"HTTP/1.1 400 ")
    assert exchange.worker.log.levels() == ["warning"]


UPGRADE = b"GET /path HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
CONNECT = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"


class FailingResult:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        raise self.error

    def __repr__(self) -> str:
        return f"FailingResult({self.error!r})"


def taking_over(end: Any) -> Any:
    """An application that answers on the socket itself, and then raises *end*, or returns it."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        environ["gunicorn.socket"].sendall(b"taken")
        if isinstance(end, BaseException):
            raise end
        if end == "closed":
            environ["gunicorn.socket"].close()
            raise StopIteration
        return end

    return app


@pytest.mark.parametrize("request_", [GET, UPGRADE, CONNECT], ids=["plain", "upgrade", "connect"])
@pytest.mark.parametrize("end", [StopIteration(), FailingResult(StopIteration()), "closed"], ids=repr)
def test_stop_iteration_says_that_the_connection_was_taken_over(pair: Any, request_: bytes, end: Any) -> None:
    calls: list[Any] = []
    exchange = Exchange(pair, taking_over(end), post_request=lambda *arguments: calls.append(arguments))
    assert exchange(request_) == CLOSE
    assert exchange.answer() == b"taken"
    log = exchange.worker.log
    # Where nobody asked for another protocol, it may be a mistake, and that must be found.
    assert log.levels() == (["warning"] if request_ is GET else [])
    assert log.accesses == [] and len(calls) == 1


@pytest.mark.parametrize("request_", [UPGRADE, CONNECT], ids=["upgrade", "connect"])
@pytest.mark.parametrize("end", [ValueError(), None, [], FailingResult(ValueError()), SystemExit()], ids=repr)
def test_no_page_is_sent_into_another_protocol(pair: Any, request_: bytes, end: Any) -> None:
    exchange = Exchange(pair, taking_over(end))
    assert exchange(request_) == CLOSE
    assert exchange.answer() == b"taken"
    assert exchange.worker.log.levels() == ["error"]
    assert exchange.worker.log.accesses[0][:2] == ("500 Internal Server Error", 0)


def test_an_upgrade_that_the_application_answers_as_http_may_fail_as_http(pair: Any) -> None:
    exchange = Exchange(pair, answering(FailingResult(ValueError())))
    assert exchange(UPGRADE) == LINGER
    assert exchange.answer().startswith(b"HTTP/1.1 500 ")


def test_stop_iteration_within_a_response_cuts_it(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "5")])(b"he")
        raise StopIteration

    exchange = Exchange(pair, app)
    assert exchange() == CLOSE
    assert exchange.answer().endswith(b"\r\n\r\nhe") and exchange.worker.log.levels() == ["error"]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_path_outside_of_script_name_is_not_the_applications_failure(pair: Any, method: bytes) -> None:
    exchange = Exchange(pair, raising(AssertionError()), forwarded_allow_ips="192.0.2.1")
    data = method + b" /other HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /sub\r\n\r\n"
    assert exchange(data) == LINGER
    text = "configuration problem: path '/other' does not lie below SCRIPT_NAME '/sub'"
    assert exchange.worker.log.lines == [("warning", f"Bad request from 192.0.2.1: {text}")]
    answer = exchange.answer()
    assert answer.startswith(b"HTTP/1.1 500 ") and answer.endswith(b"\r\n\r\n") is (method == b"HEAD")
    assert len(exchange.worker.log.accesses) == 1


class Counting:
    """An endless result that counts what is taken of it."""

    def __init__(self, item: bytes = b"12345") -> None:
        self.item = item
        self.taken = self.closed = 0

    def __iter__(self) -> Counting:
        return self

    def __next__(self) -> bytes:
        self.taken += 1
        return self.item

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("method", "status", "length", "taken"),
    [
        ("GET", "200 OK", 15, 4),
        ("GET", "200 OK", 13, 4),
        ("GET", "200 OK", 0, 1),
        ("HEAD", "200 OK", 15, 1),
        ("HEAD", "200 OK", None, 1),
        ("GET", "204 No Content", None, 1),
        ("GET", "304 Not Modified", 15, 1),
    ],
)
def test_no_more_is_taken_of_a_result_than_can_be_sent(
    pair: Any, method: str, status: str, length: int | None, taken: int
) -> None:
    result = Counting()
    headers = [("Content-Length", str(length))] if length is not None else []
    exchange = Exchange(pair, answering(result, status, headers))
    assert exchange(GET.replace(b"GET", method.encode())) == KEEP
    assert (result.taken, result.closed) == (taken, 1)
    content = exchange.answer().partition(b"\r\n\r\n")[2]
    assert content == (b"12345" * 3)[:length] * (method == "GET" and status == "200 OK")


def test_what_follows_the_last_yield_runs(pair: Any) -> None:
    done = []

    def result() -> Iterator[bytes]:
        yield b"hello"
        done.append(True)

    assert Exchange(pair, answering(result()))() == KEEP and done


@pytest.mark.parametrize("error", [Stopped(0), HandledElsewhere()], ids=repr)
def test_what_ends_more_than_the_request_goes_through(pair: Any, error: BaseException) -> None:
    with pytest.raises(type(error)):
        Exchange(pair, raising(error))()


@pytest.mark.parametrize(
    "app",
    [
        lambda environ, start_response: [b"no start_response"],
        answering(None),
        answering(["text"]),
        answering([b"hello"], status="OK"),
        answering([b"hello"], headers=[("Name", "va\r\nlue")]),
        answering([b"hello"], headers=[("Na me", "value")]),
        answering([b"hello"], headers=[("Content-Length", "many")]),
    ],
)
def test_a_wrong_application_is_a_500(pair: Any, app: Any) -> None:
    exchange = Exchange(pair, app)
    assert exchange() == LINGER
    assert exchange.worker.log.levels() == ["error"]
    assert exchange.answer().count(b"HTTP/1.1 ") == 1


def test_an_error_page_for_head_has_no_body(pair: Any) -> None:
    exchange = Exchange(pair, raising(ValueError()))
    exchange(GET.replace(b"GET", b"HEAD"))
    answer = exchange.answer()
    assert answer.startswith(b"HTTP/1.1 500 ") and answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "headers", "outcome"),
    [
        (GET, [("Content-Length", "50")], CLOSE),
        (GET, [], CLOSE),
        (GET.replace(b"1.1", b"1.0"), [("Content-Length", "50")], CLOSE),
        # Its end would look like the end of the content.
        (GET.replace(b"1.1", b"1.0"), [], RESET),
    ],
)
def test_a_failure_in_the_middle_cuts_the_response(
    pair: Any, data: bytes, headers: Any, outcome: Outcome
) -> None:
    result = Closing([b"begun", ValueError("late")])
    exchange = Exchange(pair, answering(result, headers=headers))
    assert exchange(data) == outcome
    assert result.closed == 1
    answer = exchange.answer()
    assert b"begun" in answer and b"500" not in answer and not answer.endswith(b"0\r\n\r\n")


def test_close_is_called_whatever_happens(pair: Any) -> None:
    for items in ([b"hello"], [], [ValueError()], [b"he", b"llo", b"!"]):
        result = Closing(items)
        exchange = Exchange(pair, answering(result))
        exchange()
        assert result.closed == 1


def test_close_that_fails_is_logged(pair: Any) -> None:
    exchange = Exchange(pair, answering(Closing([b"hello"], fails=True)))
    assert exchange() == CLOSE
    assert exchange.worker.log.levels() == ["error"]
    assert exchange.answer().endswith(b"hello")


def test_a_client_that_leaves_is_no_error(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        exchange.theirs.close()
        result = Closing([b"x" * 100_000] * 50)
        results.append(result)
        return answering(result, headers=[])(environ, start_response)

    results: list[Closing] = []
    exchange = Exchange(pair, app)
    assert exchange() == CLOSE
    assert exchange.worker.log.levels() == ["debug"] and results[0].closed == 1


def test_a_client_that_leaves_within_its_body_is_no_error_of_the_application(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"].read()
        return hello(environ, start_response)

    exchange = Exchange(pair, app)
    exchange.theirs.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    exchange.theirs.shutdown(socket.SHUT_WR)
    req = next(exchange.parser)
    exchange.cycle.serve(req, exchange.ours, ADDRESS, SERVER, keep=True)
    assert "error" not in exchange.worker.log.levels()
    assert exchange.answer().startswith(b"HTTP/1.1 400 ")


def test_a_body_that_breaks_the_framing_is_a_400(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"].read()
        return hello(environ, start_response)

    exchange = Exchange(pair, app)
    assert exchange(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n") == LINGER
    assert exchange.worker.log.levels() == ["warning"]
    assert exchange.answer().startswith(b"HTTP/1.1 400 ")


def test_a_body_that_never_comes_is_a_408(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"].read()
        return hello(environ, start_response)

    exchange = Exchange(pair, app)
    exchange.ours.settimeout(0.05)
    assert exchange(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc") == LINGER
    assert exchange.answer().startswith(b"HTTP/1.1 408 ")


def test_files_are_closed(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    opened = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        file = open(path, "rb")  # noqa: SIM115 - that it is closed is the point
        opened.append(file)
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)

    exchange = Exchange(pair, app)
    assert exchange() == KEEP
    assert exchange.answer().endswith(b"\r\n\r\nhello") and opened[0].closed


# -- requests that could not be read -------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "level"),
    [
        (InvalidHeader("x"), 400, "warning"),
        (RequestTimeout(), 408, "warning"),
        (NoMoreData(b"GET /"), 400, "debug"),
        (TimeoutError(), 408, "debug"),
        (BlockingIOError(), 408, "debug"),
        (ValueError("a bug"), 500, "error"),
    ],
    ids=repr,
)
def test_what_cannot_be_read_is_answered(pair: Any, error: Exception, status: int, level: str) -> None:
    exchange = Exchange(pair, hello)
    assert exchange.cycle.answer_error(None, exchange.ours, ADDRESS, error) == LINGER
    assert exchange.worker.log.levels() == [level]
    answer = exchange.answer()
    assert answer.startswith(b"HTTP/1.1 %d " % status) and b"a bug" not in answer
    assert exchange.worker.log.accesses[0][0].startswith(str(status))


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ConnectionResetError(), "debug"),
        (BrokenPipeError(), "debug"),
        (ssl.SSLEOFError(), "debug"),
        (OSError(errno.EHOSTUNREACH, "no route"), "debug"),
        (OSError(errno.ETIMEDOUT, "no answer to probes"), "debug"),
        (ssl.SSLError(1, "wrong version"), "warning"),
    ],
    ids=repr,
)
def test_who_has_left_gets_no_answer(pair: Any, error: Exception, level: str) -> None:
    exchange = Exchange(pair, hello)
    assert exchange.cycle.answer_error(None, exchange.ours, ADDRESS, error) == CLOSE
    assert exchange.worker.log.levels() == [level] and exchange.answer() == b""


def test_a_bad_descriptor_is_no_client_that_has_left(pair: Any) -> None:
    exchange = Exchange(pair, hello)
    exchange.cycle.answer_error(None, exchange.ours, ADDRESS, OSError(errno.EBADF, "bad"))
    assert exchange.worker.log.levels() == ["error"]


def test_an_application_may_close_the_connection_itself(pair: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        environ["gunicorn.socket"].close()
        return [b"never sent"]

    exchange = Exchange(pair, app)
    assert exchange() == CLOSE
    assert exchange.worker.log.levels() == ["debug"]
