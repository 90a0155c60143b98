# SPDX-License-Identifier: MIT
"""Where the logs go: files, streams, syslog, logconfig; and what a second setup changes."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn import glogging
from gunicorn.config import Config
from gunicorn.errors import ConfigError
from gunicorn.glogging import Logger
from gunicorn.logs.files import LogStream, never_block

RESPONSE = SimpleNamespace(status="200 OK", headers=[("Content-Type", "text/html")], sent=12)
REQUEST = SimpleNamespace(headers=[("ACCEPT", "*/*")])
ENVIRON = {
    "REMOTE_ADDR": "127.0.0.1",
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_USER_AGENT": "probe",
}


@pytest.fixture(autouse=True)
def _pristine() -> Iterator[None]:
    names = [None, "gunicorn.error", "gunicorn.access", "own"]
    before = {name: list(logging.getLogger(name).handlers) for name in names}
    yield
    for name in names:
        log = logging.getLogger(name)
        for handler in log.handlers[:]:
            if handler not in before[name]:
                log.removeHandler(handler)
                handler.close()


def config(**settings: Any) -> Config:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def access(logger: Logger, **environ: str) -> None:
    logger.access(RESPONSE, REQUEST, {**ENVIRON, **environ}, timedelta(milliseconds=3))


def only_handler(logger: Logger) -> Any:
    """The access log's, after pytest's own are gone, with which each line would be a record."""
    log = logger.access_log
    own = [handler for handler in log.handlers if isinstance(handler, (glogging.LogFile, glogging.LogStream))]
    log.handlers[:] = own
    return own[0]


def test_error_log_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path), loglevel="warning"))
    logger.info("too little")
    logger.warning("%s of %s", 1, 2)
    logger.log("error", "by name")
    logger.log(logging.CRITICAL, "by number")
    logger.log("no such level", "is info")
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("it failed")
    text = path.read_text()
    first = text.splitlines()[0]
    assert first.endswith(f"[{os.getpid()}] [WARNING] 1 of 2") and first.startswith("[20")
    assert "[ERROR] by name" in text and "[CRITICAL] by number" in text and "ValueError: the reason" in text
    assert "too little" not in text and "is info" not in text


def test_text_of_any_kind_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path)))
    # Without pytest's own handlers: it cannot send what they would capture from process to process.
    own = [handler for handler in logger.error_log.handlers if isinstance(handler, logging.FileHandler)]
    monkeypatch.setattr(logger.error_log, "handlers", own)
    logger.error("caf\xe9 \u2603 and a lone \udc80")
    assert "caf\xe9 \u2603 and a lone \\udc80" in path.read_text("utf-8")


def test_access_log_only_where_asked_for(tmp_path: Path, capsys: Any) -> None:
    logger = Logger(config())
    assert not logger.wants_access
    access(logger)
    assert capsys.readouterr().out == ""
    path = tmp_path / "access.log"
    logger.setup(config(accesslog=str(path), access_log_format="%(m)s %(s)s %(b)s"))
    assert logger.wants_access
    access(logger)
    assert path.read_text() == "GET 200 12\n"
    logger.setup(config())
    access(logger)
    assert path.read_text() == "GET 200 12\n"


def test_access_log_on_standard_output(capsys: Any) -> None:
    logger = Logger(config(accesslog="-"))
    only_handler(logger)
    access(logger)
    out = capsys.readouterr().out
    assert out.startswith("127.0.0.1 - - [") and out.endswith('] "GET / HTTP/1.1" 200 12 "-" "probe"\n')


def test_one_request_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    logger = Logger(config(accesslog=str(path)))
    only_handler(logger)
    access(logger, HTTP_USER_AGENT='x" 200\n127.0.0.1 - forged', RAW_URI="/\x1b[2J")
    assert path.read_text().count("\n") == 1 and "\x1b" not in path.read_text()


def test_a_subclass_may_add_atoms(tmp_path: Path) -> None:
    class Own(Logger):
        def atoms(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> dict[str, Any]:
            return {**super().atoms(resp, req, environ, request_time), "own": 'mine "!"'}

    path = tmp_path / "access.log"
    logger = Own(config(accesslog=str(path), access_log_format="%(own)s %({Accept}i)s %(nothing)s"))
    access(logger)
    assert path.read_text() == 'mine \\"!\\" */* -\n'


@pytest.mark.parametrize("fmt", ["%(m)d", "%(zz)q", "%"])
def test_a_format_that_fails_is_refused(tmp_path: Path, fmt: str) -> None:
    with pytest.raises(ConfigError, match="access_log_format"):
        Logger(config(access_log_format=fmt))
    logger = Logger(config(errorlog=str(tmp_path / "error.log")))
    with pytest.raises(ConfigError, match="access_log_format"):
        logger.setup(config(access_log_format=fmt))
    logger.error("goes on")
    assert "goes on" in (tmp_path / "error.log").read_text()


def test_a_format_of_the_user_s_own_access_method_is_not_ours_to_judge() -> None:
    class Own(Logger):
        def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None:
            """Something else."""

    Own(config(access_log_format="{remote} 100%"))


def test_atoms_that_fail_are_said_once_and_harm_no_request(tmp_path: Path) -> None:
    class Own(Logger):
        def atoms(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> dict[str, Any]:
            raise LookupError("no such atom")

    error = tmp_path / "error.log"
    logger = Own(config(accesslog=str(tmp_path / "access.log"), errorlog=str(error)))
    for _ in range(3):
        access(logger)
    assert error.read_text().count("LookupError: no such atom") == 1


needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


@needs_dev_full
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_an_access_log_on_a_full_disk_is_a_line_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(glogging.time, "monotonic", lambda: clock[0])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        logger = Logger(
            config(accesslog="/dev/full" if kind == "file" else "-", errorlog=str(tmp_path / "error.log"))
        )
        only_handler(logger)
        for _ in range(3):
            access(logger)
        clock[0] += 60
        access(logger)
        lines = (tmp_path / "error.log").read_text().splitlines()
        assert [line.partition("[ERROR] ")[2] for line in lines] == [
            f"The access log cannot be written: [Errno 28] No space left on device (lines lost: {lost})"
            for lost in (1, 3)
        ]
        with contextlib.suppress(OSError):
            full.close()


@needs_dev_full
@pytest.mark.parametrize("which", ["accesslog", "errorlog"])
def test_what_was_lost_is_said_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(glogging.time, "monotonic", lambda: clock[0])
    path, error = tmp_path / "the.log", tmp_path / "error.log"
    path.touch()
    logger = Logger(config(**{"errorlog": str(error), which: str(path)}))
    handler = only_handler(logger) if which == "accesslog" else logger._get_gunicorn_handler(logger.error_log)
    monkeypatch.setattr(sys, "stderr", seen := io.StringIO())

    def write(times: int) -> None:
        for _ in range(times):
            access(logger) if which == "accesslog" else logger.error("x")

    def said() -> str:
        return error.read_text() if which == "accesslog" else seen.getvalue()

    file = handler.stream.fileno()
    with open("/dev/full", "wb", buffering=0) as full, open(path, "ab") as there:
        os.dup2(full.fileno(), file)
        write(3)
        os.dup2(there.fileno(), file)
        write(1)
        # Full again, and room again: not a line for each change.
        os.dup2(full.fileno(), file)
        write(1)
        os.dup2(there.fileno(), file)
        write(1)
        assert "works again" not in said()
        clock[0] += 60
        write(2)
    assert said().count("(lines lost: ") == 2
    assert said().count("works again (lines lost: 3)") == 1


@needs_dev_full
@pytest.mark.parametrize("which", ["errorlog", "access log with more handlers"])
def test_a_log_on_a_full_disk_says_so_on_standard_error_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    seen = io.StringIO()
    if which == "errorlog":
        logger = Logger(config(errorlog="/dev/full"))
        monkeypatch.setattr(sys, "stderr", seen)
        for number in range(5):
            logger.error("line %d", number)
    else:
        logger = Logger(config(accesslog="/dev/full", errorlog=str(tmp_path / "error.log")))
        only_handler(logger)
        logger.access_log.addHandler(logging.NullHandler())
        monkeypatch.setattr(sys, "stderr", seen)
        for _ in range(5):
            access(logger)
    assert seen.getvalue().splitlines() == [
        "The log file /dev/full cannot be written: [Errno 28] No space left on device (lines lost: 1)"
    ]


@needs_dev_full
def test_a_log_of_a_logconfig_on_a_full_disk_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"class": "logging.FileHandler", "filename": "/dev/full"}
    handlers = {**glogging.CONFIG_DEFAULTS["handlers"], "own": own}
    loggers = {"own": {"handlers": ["own"], "propagate": False}}
    Logger(config(logconfig_dict={"handlers": handlers, "loggers": loggers}))
    monkeypatch.setattr(sys, "stderr", seen := io.StringIO())
    for _ in range(5):
        logging.getLogger("own").error("lost")
    assert seen.getvalue().splitlines() == [
        "The log file /dev/full cannot be written: [Errno 28] No space left on device (lines lost: 1)"
    ]
    with contextlib.suppress(OSError):
        logging.getLogger("own").handlers[0].close()


def test_a_wrong_call_of_the_application_s_is_still_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = Logger(config(errorlog=str(tmp_path / "error.log")))
    monkeypatch.setattr(sys, "stderr", seen := io.StringIO())
    record = logging.LogRecord("own", logging.ERROR, __file__, 1, "%d", ("no number",), None)
    handler = logger._get_gunicorn_handler(logger.error_log)
    assert handler is not None
    handler.handle(record)
    assert "TypeError" in seen.getvalue()


def test_records_carry_the_atoms_for_handlers_of_others(tmp_path: Path) -> None:
    class Json(logging.Handler):
        seen: list[Any] = []

        def emit(self, record: logging.LogRecord) -> None:
            assert isinstance(record.args, dict)
            self.seen.append((record.args["m"], record.args["{accept}i"], record.getMessage()))

    logger = Logger(config(accesslog=str(tmp_path / "access.log"), access_log_format="%(m)s"))
    only_handler(logger)
    handler = Json()
    logger.access_log.addHandler(handler)
    access(logger)
    assert handler.seen == [("GET", "*/*", "GET")]
    assert (tmp_path / "access.log").read_text() == "GET\n"


class Marked(logging.Formatter):
    """An application's own, which reads the atoms."""

    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record.args, dict)
        return f"own {record.args['m']} {record.getMessage()}"


@pytest.mark.parametrize("output", ["file", "-"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda log, handler: log.setLevel(logging.WARNING), ""),
        (lambda log, handler: log.setLevel(logging.NOTSET) or log.setLevel(logging.DEBUG), "GET /\n"),
        (lambda log, handler: handler.setLevel(logging.WARNING), ""),
        (lambda log, handler: logging.disable(logging.INFO), ""),
        (lambda log, handler: setattr(log, "disabled", True), ""),
        (lambda log, handler: log.addFilter(lambda record: False), ""),
        (lambda log, handler: log.addFilter(lambda record: record.args["r"] != "/none"), "GET /\n"),
        (lambda log, handler: handler.addFilter(lambda record: False), ""),
        (lambda log, handler: handler.setFormatter(Marked()), "own GET GET /\n"),
        (lambda log, handler: log.removeHandler(handler), ""),
    ],
    ids=[
        *("level", "lower-level", "handler-level", "disable", "disabled"),
        *("filter", "open-filter", "handler-filter", "formatter", "removed"),
    ],
)
def test_what_an_application_changes_meanwhile(
    tmp_path: Path, capfd: Any, output: str, change: Any, expected: str
) -> None:
    path = tmp_path / "access.log"
    logger = Logger(
        config(accesslog=str(path) if output == "file" else output, access_log_format="%(m)s %(U)s")
    )
    log = logger.access_log
    handler = only_handler(logger)
    if output == "-":
        handler.setStream(path.open("w"))
    try:
        access(logger, PATH_INFO="/")
        assert path.read_text() == "GET /\n"
        change(log, handler)
        access(logger, PATH_INFO="/")
        assert path.read_text() == "GET /\n" + expected
    finally:
        logging.disable(logging.NOTSET)
        log.disabled = False
        log.filters.clear()
        handler.close()
        log.removeHandler(handler)


def test_a_line_of_an_unchanged_log_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Logger(config(accesslog=str(tmp_path / "access.log"), access_log_format="%(m)s"))
    only_handler(logger)
    monkeypatch.setattr(logger.access_log, "handle", None)
    access(logger)
    assert (tmp_path / "access.log").read_text() == "GET\n"


def test_lines_go_on_to_loggers_above(tmp_path: Path) -> None:
    seen = []

    class Above(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger = Logger(config(accesslog=str(tmp_path / "access.log"), access_log_format="%(m)s"))
    only_handler(logger)
    handler = Above()
    above = logging.getLogger("gunicorn")
    above.addHandler(handler)
    try:
        logger.access_log.propagate = True
        access(logger)
    finally:
        logger.access_log.propagate = False
        above.removeHandler(handler)
    assert seen == ["GET"] and (tmp_path / "access.log").read_text() == "GET\n"


def test_a_file_that_is_opened_anew_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    logger = Logger(config(accesslog=str(path), access_log_format="%(m)s"))
    handler = only_handler(logger)
    # As configuring the standard library's way does.
    handler.close()
    access(logger)
    handler.stream.close()
    handler.stream = path.open("a")
    access(logger)
    assert path.read_text() == "GET\nGET\n"


def test_a_pipe_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    pipe, error = tmp_path / "pipe", tmp_path / "error.log"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    logger = Logger(config(accesslog=str(pipe), errorlog=str(error)))
    handler = only_handler(logger)
    # Some program that shares it may do so.
    os.set_blocking(handler.stream.fileno(), False)
    for _ in range(3):
        access(logger, HTTP_USER_AGENT="x" * 60000)
    assert error.read_text().count("nobody reads from the log's pipe") == 1
    os.close(reading)


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    settings = {"errorlog": str(tmp_path / "error.log"), "access_log_format": "%(a)s"}
    logger = Logger(config(accesslog=str(pipe), **settings))
    os.set_blocking(only_handler(logger).stream.fileno(), False)
    # More than a pipe holds: a part of it is written.
    access(logger, HTTP_USER_AGENT="x" * 1_000_000)
    first = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reading, 1 << 20):
            first += data
    assert set(first) == set(b"x") and len(first) < 1_000_000
    for agent in ("next", "last"):
        access(logger, HTTP_USER_AGENT=agent)
    assert os.read(reading, 1000) == b"\nnext\nlast\n"
    os.close(reading)


def test_time_is_the_clock_s_and_english() -> None:
    text = Logger(config()).now()
    assert len(text) == len("[10/Oct/2000:13:55:36 -0700]")
    assert text[4:7] in glogging._MONTHS and text[0] == "[" and text[-1] == "]"


# -- a second setup ---------------------------------------------------------------------------


def test_setup_again_moves_the_logs(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    logger = Logger(config(errorlog=str(one)))
    before = count_descriptors()
    for _ in range(5):
        logger.setup(config(errorlog=str(two), loglevel="debug"))
    logger.debug("moved")
    assert one.read_text() == "" and two.read_text().count("moved") == 1
    assert count_descriptors() == before


def count_descriptors() -> int:
    gc.collect()  # what other tests have left closes now, not in between
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"errorlog": "/no/such/directory/error.log"},
        {"accesslog": "/no/such/directory/access.log"},
        {"logconfig": "/no/such/file"},
        {"logconfig_json": "/no/such/file"},
        {"logconfig_dict": {"handlers": {"x": {"class": "no.such.Class"}}}},
        {"syslog": True, "syslog_facility": "nonsense"},
        {"syslog": True, "syslog_addr": "nonsense"},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_wrong_setup_changes_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    error, path = tmp_path / "error.log", tmp_path / "access.log"
    logger = Logger(config(errorlog=str(error), accesslog=str(path), access_log_format="%(m)s"))
    with pytest.raises(ConfigError):
        logger.setup(config(loglevel="critical", **wrong))
    logger.info("still here")
    access(logger)
    assert "still here" in error.read_text() and path.read_text() == "GET\n"


def test_another_instance_takes_over(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    Logger(config(errorlog=str(one)))
    Logger(config(errorlog=str(two))).error("taken over")
    assert one.read_text() == "" and two.read_text().count("taken over") == 1


# -- rotation ---------------------------------------------------------------------------------


def test_reopen_follows_the_name(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path), accesslog=str(tmp_path / "access.log")))
    logger.info("first")
    path.rename(tmp_path / "error.log.1")
    logger.info("second")
    before = count_descriptors()
    logger.reopen_files()
    assert count_descriptors() == before
    logger.info("third")
    old = (tmp_path / "error.log.1").read_text()
    assert "first" in old and "second" in old and "third" not in old
    assert path.read_text().count("\n") == 1 and "third" in path.read_text()


def test_reopen_moves_the_access_log(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    logger = Logger(config(accesslog=str(path), access_log_format="%(U)s"))
    only_handler(logger)
    access(logger, PATH_INFO="/one")
    path.rename(tmp_path / "old")
    access(logger, PATH_INFO="/two")
    logger.reopen_files()
    access(logger, PATH_INFO="/three")
    assert (tmp_path / "old").read_text() == "/one\n/two\n"
    assert path.read_text() == "/three\n"


def test_reopen_while_threads_log_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path)))

    def work() -> None:
        for number in range(300):
            logger.info("line %d", number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        path.rename(tmp_path / f"old{turn}")
        logger.reopen_files()
    for thread in threads:
        thread.join()
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 4 * 300 and all(" [INFO] line " in line for line in lines)


def test_reopen_that_fails_keeps_the_file(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "error.log"
    logger = Logger(config(errorlog=str(path)))
    directory.rename(tmp_path / "moved")
    logger.reopen_files()
    logger.info("kept")
    assert "kept" in (tmp_path / "moved" / "error.log").read_text()


def test_reopen_works_on_files_of_a_logconfig(tmp_path: Path) -> None:
    path = tmp_path / "own.log"
    logger = Logger(
        config(
            logconfig_dict={
                "handlers": {
                    **glogging.CONFIG_DEFAULTS["handlers"],
                    "own": {"class": "logging.FileHandler", "filename": str(path)},
                },
                "loggers": {"own": {"handlers": ["own"], "propagate": False}},
            }
        )
    )
    path.rename(tmp_path / "own.log.1")
    logger.reopen_files()
    logging.getLogger("own").warning("new")
    assert path.read_text() == "new\n"


def test_files_are_closed_on_exec(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path)))
    logger.close_on_exec()
    listing = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True)
    assert str(path) not in listing.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_belong_to_the_user_who_must_open_them_again(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path), accesslog="/dev/null", user=65534, group=65534))
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    assert os.stat("/dev/null").st_uid == 0
    path.unlink()
    logger.reopen_files()
    assert path.stat().st_uid == 65534


@pytest.fixture
def of_nobody(short_dir: Path) -> Path:
    """A log directory of the user that the server changes to."""
    short_dir.chmod(0o755)
    directory = short_dir / "logs"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    return directory


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled into giving files away")
@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_nothing_of_root_s_is_given_away_at_a_rotation(of_nobody: Path, tmp_path: Path, kind: str) -> None:
    secret = of_nobody.parent / "secret"
    secret.write_text("secret\n")
    path = of_nobody / "error.log"
    logger = Logger(config(errorlog=str(path), user=65534, group=65534))
    path.rename(of_nobody / "error.log.1")
    if kind == "link":
        path.symlink_to(secret)
        os.lchown(path, 65534, 65534)
    else:
        os.link(secret, path)
    logger.reopen_files()
    logger.info("goes on")
    assert secret.read_text() == "secret\n" and secret.stat().st_uid == 0
    old = (of_nobody / "error.log.1").read_text()
    assert f"Log file {path} cannot be reopened: root does not use it" in old and "goes on" in old
    with pytest.raises(ConfigError, match="root does not use it"):
        Logger(config(errorlog=str(path), user=65534, group=65534))
    assert secret.read_text() == "secret\n" and secret.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled into giving files away")
@pytest.mark.parametrize("mode", ["a", "w"])
def test_root_opens_files_of_a_logconfig_as_safely(
    of_nobody: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = of_nobody.parent / "secret"
    secret.write_text("secret\n")
    path = of_nobody / "own.log"

    def setup(name: str, delay: bool = False) -> Logger:
        file = {"class": f"logging.{name}", "filename": str(path), "mode": mode, "delay": delay}
        handlers = {**glogging.CONFIG_DEFAULTS["handlers"], "own": file}
        own = {"handlers": ["own"], "propagate": False}
        settings = {"handlers": handlers, "loggers": {"own": own}}
        return Logger(config(logconfig_dict=settings, user=65534, group=65534))

    for name in ("FileHandler", "handlers.WatchedFileHandler"):
        setup(name)
        logging.getLogger("own").warning("ordinary")
        assert "ordinary" in path.read_text() and path.stat().st_uid == 65534
        path.unlink()
        path.symlink_to(secret)
        os.lchown(path, 65534, 65534)
        with pytest.raises(ConfigError, match="root does not use it"):
            setup(name)
        setup(name, delay=True)
        try:
            logging.getLogger("own").warning("misled")
        except PermissionError as error:
            told = str(error)
        else:  # from Python 3.15 on it goes where the errors of other records go
            told = capsys.readouterr().err
        assert "root does not use it" in told
        assert secret.read_text() == "secret\n"
        path.unlink()


def test_a_file_that_is_in_its_place_is_not_opened_anew(tmp_path: Path) -> None:
    pipe = tmp_path / "error.log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    logger = Logger(config(errorlog=str(pipe)))
    os.close(reader)
    # To open it would be to wait for a reader.
    logger.reopen_files()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    logger.info("first")
    assert b"first" in os.read(reader, 1000)
    os.close(reader)


def test_a_stream_that_its_owner_has_closed_ends_no_rotation(tmp_path: Path) -> None:
    """In a signal handler: what is raised there would end the process."""
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path)))
    closed = logging.FileHandler(tmp_path / "own.log")
    logging.getLogger("own").addHandler(closed)
    closed.stream.close()
    path.rename(tmp_path / "old")
    logger.reopen_files()
    logging.getLogger("own").removeHandler(closed)
    logger.info("new")
    assert "own.log cannot be reopened" in (tmp_path / "old").read_text() + path.read_text()
    assert "new" in path.read_text()


def test_a_logger_of_the_user_s_that_cannot_reopen_ends_no_process(tmp_path: Path) -> None:
    class Own(Logger):
        def reopen_files(self) -> None:
            raise LookupError("no such file")

    logger = Own(config(errorlog=str(tmp_path / "error.log")))
    glogging.reopen_logs(logger)
    assert "LookupError: no such file" in (tmp_path / "error.log").read_text()


def test_a_pipe_that_nobody_reads_takes_the_place_of_no_file(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    logger = Logger(config(errorlog=str(path)))
    path.rename(tmp_path / "old")
    os.mkfifo(path)
    logger.reopen_files()
    assert "cannot be reopened" in (tmp_path / "old").read_text()


def test_loggers_may_be_made_while_they_are_looked_at() -> None:
    existing: dict[str, Any] = logging.root.manager.loggerDict

    class Meanwhile:
        """Another thread's first `getLogger`, at the worst moment."""

        @property
        def __class__(self) -> Any:
            existing.setdefault("made meanwhile", logging.getLogger("own"))
            return logging.PlaceHolder

    existing["a place"] = Meanwhile()
    try:
        assert logging.getLogger("own") in glogging.loggers()
        assert "made meanwhile" in existing
    finally:
        existing.pop("a place")
        existing.pop("made meanwhile", None)


# -- logconfig --------------------------------------------------------------------------------


def test_logconfig_file(tmp_path: Path) -> None:
    path = tmp_path / "log.ini"
    path.write_text(
        textwrap.dedent(
            """
            [loggers]
            keys=root,error,access
            [handlers]
            keys=own
            [formatters]
            keys=plain
            [logger_root]
            handlers=
            [logger_error]
            handlers=own
            qualname=gunicorn.error
            level=DEBUG
            propagate=0
            [logger_access]
            handlers=own
            qualname=gunicorn.access
            propagate=0
            [handler_own]
            class=FileHandler
            args=("%(here)s/own.log",)
            formatter=plain
            [formatter_plain]
            format=<%(name)s> %(message)s
            """
        )
    )
    logger = Logger(config(logconfig=str(path), access_log_format="%(m)s"))
    logger.debug("by the file")
    access(logger)
    own = tmp_path / "own.log"
    assert own.read_text() == "<gunicorn.error> by the file\n<gunicorn.access> GET\n"
    logger.setup(config(errorlog=str(tmp_path / "error.log")))
    logger.info("without it")
    assert "without it" not in own.read_text()
    assert (tmp_path / "error.log").read_text().count("without it") == 1


def test_a_logconfig_without_a_section(tmp_path: Path) -> None:
    path = tmp_path / "log.ini"
    path.write_text("[loggers]\nkeys=root\n[handlers]\nkeys=\n[logger_root]\nhandlers=\n")
    with pytest.raises(ConfigError, match="there is no section or key 'formatters'"):
        Logger(config(logconfig=str(path)))


@pytest.mark.parametrize("kind", ["dict", "json"])
def test_logconfig_names_only_what_differs(tmp_path: Path, kind: str, capsys: Any) -> None:
    settings = {"formatters": {"generic": {"format": "own %(message)s"}}}
    cfg: Config
    if kind == "dict":
        cfg = config(logconfig_dict=settings, access_log_format="%(m)s")
    else:
        path = tmp_path / "log.json"
        path.write_text(json.dumps(settings))
        cfg = config(logconfig_json=str(path), access_log_format="%(m)s")
    logger = Logger(cfg)
    logger.info("said once")
    access(logger)
    captured = capsys.readouterr()
    assert captured.err == "own said once\n" and captured.out == "own GET\n"


def test_loggers_of_others_are_left_alone(tmp_path: Path) -> None:
    other = logging.getLogger("own")
    stream = io.StringIO()
    other.addHandler(logging.StreamHandler(stream))
    Logger(config(logconfig_dict={"root": {"level": "INFO", "handlers": []}}))
    other.warning("heard")
    assert stream.getvalue() == "heard\n" and other in glogging.loggers()


# -- syslog -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("udp://", (socket.SOCK_DGRAM, ("localhost", 514))),
        ("udp://Host", (socket.SOCK_DGRAM, ("host", 514))),
        ("udp://host:5140", (socket.SOCK_DGRAM, ("host", 5140))),
        ("tcp://192.0.2.1:601", (socket.SOCK_STREAM, ("192.0.2.1", 601))),
        ("tcp://[::1]:601", (socket.SOCK_STREAM, ("::1", 601))),
        ("udp://[::1]", (socket.SOCK_DGRAM, ("::1", 514))),
        ("unix:///dev/log", (None, "/dev/log")),
        ("unix:///dev/log#dgram", (socket.SOCK_DGRAM, "/dev/log")),
        ("unix:///dev/log#stream", (socket.SOCK_STREAM, "/dev/log")),
    ],
)
def test_syslog_addresses(text: str, expected: Any) -> None:
    assert glogging.parse_syslog_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:514",
        "http://host",
        "udp://host:port",
        "udp://host:0",
        "tcp://[::1",
        "unix://",
        "unix:///x#y",
    ],
)
def test_syslog_addresses_that_are_none(text: str) -> None:
    with pytest.raises(RuntimeError):
        glogging.parse_syslog_address(text)


def syslog(address: str, **more: Any) -> Config:
    return config(
        syslog=True,
        syslog_addr=address,
        syslog_facility="local3",
        syslog_prefix="shop",
        errorlog=None,
        access_log_format="%(m)s",
        **more,
    )


def test_syslog_over_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        daemon.settimeout(5)
        logger = Logger(syslog(f"udp://127.0.0.1:{daemon.getsockname()[1]}"))
        logger.error("two\nlines")
        assert daemon.recv(4096) == b"<155>gunicorn.shop.error: [%d] two\nlines" % os.getpid()
        access(logger)
        assert daemon.recv(4096) == b"<158>gunicorn.shop.access: [%d] GET" % os.getpid()


def test_syslog_without_the_access_log() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        daemon.settimeout(5)
        address = f"udp://127.0.0.1:{daemon.getsockname()[1]}"
        logger = Logger(syslog(address, disable_redirect_access_to_syslog=True))
        access(logger)
        logger.error("next")
        assert b"next" in daemon.recv(4096) and not logger.wants_access


def test_syslog_over_tcp_finds_a_daemon_that_comes_and_goes(capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as daemon:
        port = daemon.getsockname()[1]
    logger = Logger(syslog(f"tcp://127.0.0.1:{port}"))
    for _ in range(3):
        logger.error("lost")
    assert capsys.readouterr().err.count("does not accept messages") == 1
    with socket.create_server(("127.0.0.1", port)) as daemon:
        logger.error("one\nmessage")
        connection, _ = daemon.accept()
        with connection, connection.makefile("rb") as lines:
            assert lines.readline().endswith(b"one#012message\n")
            logger.error("another")
            assert lines.readline().endswith(b"another\n")


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_syslog_over_a_unix_socket(short_dir: Path, kind: socket.SocketKind) -> None:
    path = str(short_dir / "log")
    with socket.socket(socket.AF_UNIX, kind) as daemon:
        daemon.bind(path)
        daemon.settimeout(5)
        if kind == socket.SOCK_STREAM:
            daemon.listen()
        Logger(syslog(f"unix://{path}")).error("local")
        if kind == socket.SOCK_STREAM:
            connection, _ = daemon.accept()
            with connection:
                assert connection.recv(4096).endswith(b"local\n")
        else:
            assert daemon.recv(4096).endswith(b"local")


def test_a_forked_process_has_a_stream_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as daemon:
        daemon.settimeout(5)
        logger = Logger(syslog(f"tcp://127.0.0.1:{daemon.getsockname()[1]}"))
        logger.error("parent")
        pid = os.fork()
        if pid == 0:
            logger.error("child")
            os._exit(0)
        os.waitpid(pid, 0)
        first, _ = daemon.accept()
        second, _ = daemon.accept()
        with first, second:
            assert b"parent" in first.recv(4096) and b"child" in second.recv(4096)


# -- capture ----------------------------------------------------------------------------------


def in_a_process(body: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    script = f"""
import os, subprocess, sys
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.logs.files import LogStream, never_block

def config(**settings):
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg
{textwrap.dedent(body)}
"""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )


def test_captured_output_goes_where_the_error_log_goes(tmp_path: Path) -> None:
    done = in_a_process(
        """
        logger = Logger(config(errorlog="error.log", capture_output=True))
        print("printed")
        subprocess.run(["sh", "-c", "echo from a program; echo and its errors >&2"])
        os.rename("error.log", "old.log")
        logger.reopen_files()
        print("after rotation")
        logger.setup(config(errorlog="error.log"))
        print("no longer captured")
        """,
        tmp_path,
    )
    assert (tmp_path / "old.log").read_text() == "printed\nfrom a program\nand its errors\n"
    assert (tmp_path / "error.log").read_text() == "after rotation\n"
    assert done.stdout == "no longer captured\n"


def test_nothing_is_captured_without_a_file(tmp_path: Path) -> None:
    done = in_a_process('Logger(config(errorlog="-", capture_output=True)); print("printed")', tmp_path)
    assert done.stdout == "printed\n"


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", "caf\xe9\n"), ("ascii", "caf\\xe9\n")])
def test_a_stream_takes_what_its_encoding_does_not_know(encoding: str, expected: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    glogging.LogStream(stream).write_line("caf\xe9\n".encode())
    assert raw.getvalue().decode(encoding) == expected


def test_lines_are_left_out_and_counted_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(LogStream, "supervisor", None)
    never_block()
    with open(writing, "w") as stream, open(reading, "rb", buffering=0) as reader:
        handler = LogStream(stream)

        def log(text: str) -> None:
            handler.emit(logging.LogRecord("a", logging.INFO, "", 0, text, None, None))

        for number in range(3000):
            log(f"{number} {'x' * 60}")
        data = reader.read(1 << 20)
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        assert 500 < len(whole) < 3000
        log("again")
        note, again = reader.read(1 << 20)[len(data) - data.rfind(b"\n") - 1 :].decode().splitlines()[-2:]
        assert again == "again"
        assert note == f"[lines left out, because nobody read them: {3000 - len(whole)}]"
