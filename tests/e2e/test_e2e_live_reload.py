# SPDX-License-Identifier: MIT
"""``--reload``: workers and companions run the code on disk."""

from __future__ import annotations

import http.client
import importlib.util
from typing import Any

import pytest
from e2e_companions import FAST, take_options
from harness import Server, conf, status_field, wait_until

WATCHFILES = importlib.util.find_spec("watchfiles") is not None
ENGINES = pytest.mark.parametrize(
    "engine",
    ["poll", pytest.param("inotify", marks=pytest.mark.skipif(not WATCHFILES, reason="needs watchfiles"))],
)
# The quicker engine, for tests that do not depend on it.
ENGINE = "inotify" if WATCHFILES else "poll"

SHOP = """
import helper

def app(environ, start_response):
    start_response("200 OK", [])
    return [helper.TEXT]
"""
CHORE = """
import os, time

HERE = os.path.dirname(os.path.abspath(__file__))
WORD = "one"

def work():
    with open(os.path.join(HERE, os.environ["GUNICORN_COMPANION_NAME"] + ".words"), "a") as notes:
        notes.write(WORD + "\\n")
    time.sleep(1000)
"""


def reloading(engine: str = ENGINE, *, files: dict[str, str] | None = None, **settings: Any) -> Server:
    """A server (not started) of ``app.py``, which says what ``helper.py`` does."""
    options = take_options(settings)
    text = options.pop("extra", "") + conf(**{**FAST, "reload": True, "reload_engine": engine, **settings})
    return Server(SHOP, text, files={"helper.py": 'TEXT = b"one"\n', **(files or {})}, **options)


def wait_answer(server: Server, text: str, status: int = 200) -> None:
    def answered() -> bool:
        try:
            reply = server.get()
        except (OSError, http.client.HTTPException):
            return False
        return reply.status == status and text in reply.text

    wait_until(answered, 15, lambda: f"{text!r}; got {server.get()}")


@pytest.mark.parametrize(("engine", "worker_class"), [("poll", "sync"), (ENGINE, "gthread")])
def test_a_change_to_a_module_of_the_application(engine: str, worker_class: str) -> None:
    booted = "def post_worker_init(worker):\n    worker.log.info('has the old text')\n"
    with reloading(engine, workers=2, worker_class=worker_class, extra_option=booted) as server:
        wait_until(lambda: server.log().count("has the old text") == 2)
        before = server.workers()
        server.write("helper.py", 'TEXT = b"two"\n')
        server.wait_workers(2, without=before)
        wait_answer(server, "two")
        assert "helper.py has changed" in server.log() and "polled" not in server.log()
        assert server.get().text == "two"


@ENGINES
def test_a_syntax_error_is_shown_and_waits_for_its_fix(engine: str) -> None:
    with reloading(engine) as server:
        server.write("helper.py", "TEXT = b'two\n")
        wait_answer(server, "SyntaxError", 500)
        assert "helper.py" in server.get().text
        assert "waiting for a change" in server.log() and "SyntaxError" in server.log()
        (worker,) = server.workers()
        server.write("helper.py", "TEXT = b'three'\n")
        wait_answer(server, "three")
        assert worker not in server.workers()


def test_a_server_starts_with_an_application_that_does_not_load() -> None:
    with reloading(
        files={"helper.py": "import supply\nTEXT = supply.TEXT\n"}, ready_option="listen"
    ) as server:
        wait_answer(server, "No module named 'supply'", 500)
        # There is no file yet that could change.
        server.write("supply.py", "TEXT = b'supplied'\n")
        wait_answer(server, "supplied")


def test_a_module_that_calls_exit_waits_for_its_fix_too() -> None:
    with reloading(files={"helper.py": "import sys\nsys.exit('no key')\n"}, ready_option="listen") as server:
        wait_answer(server, "SystemExit: no key", 500)
        server.write("helper.py", "TEXT = b'opened'\n")
        wait_answer(server, "opened")


def test_extra_files_and_patterns() -> None:
    files = {"price.txt": "1", "pages/a.html": "a", "pages/deep/b.html": "b"}
    with reloading(files=files, reload_extra_files=["price.txt", "pages/**/*.html"]) as server:
        for name, text in (("price.txt", "22"), ("pages/deep/b.html", "bb"), ("pages/new.html", "c")):
            before = server.workers()
            server.write(name, text)
            server.wait_workers(1, without=before)
            wait_answer(server, "one")
            server.wait_log(f"{name} has changed")


def test_the_hook_is_called_once_a_reload() -> None:
    hook = 'def worker_int(worker):\n    print("worker_int", worker.pid, flush=True)\n'
    with reloading(
        extra_option=hook, files={"second.py": "", "helper.py": "import second\nTEXT = b'one'\n"}
    ) as server:
        before = server.workers()
        server.write("second.py", "x = 1\n")
        server.write("helper.py", "import second\nTEXT = b'two'\n")
        server.write("app.py", SHOP + "\nx = 1\n")
        server.wait_workers(1, without=before)
        wait_answer(server, "two")
        assert server.log().count(f"worker_int {before[0]}") == 1


def test_nothing_is_preloaded() -> None:
    companion = {"name": "chore", "target": "chore:work"}
    with reloading(preload_app=True, files={"chore.py": CHORE}, companion_workers=[companion]) as server:
        wait_answer(server, "one")
        server.write("helper.py", 'TEXT = b"two"\n')
        wait_answer(server, "two")
        assert "preload_app has no effect" in server.log()


@ENGINES
def test_a_companion_restarts_when_its_own_files_change(engine: str) -> None:
    companions = [{"name": "chore", "target": "chore:work"}, {"name": "other", "target": "other:work"}]
    files = {"chore.py": CHORE, "other.py": CHORE.replace("one", "other")}
    with reloading(engine, files=files, companion_workers=companions) as server:
        first, other = server.wait_companion("chore")["pid"], server.wait_companion("other")["pid"]
        workers = server.workers()
        server.write("chore.py", CHORE.replace('"one"', '"two"'))
        second = server.wait_companion("chore", without=[first])
        wait_until(lambda: server.log("chore.words").split() == ["one", "two"], 5, "the new code")
        # The manager has restarted it; it has not just exited.
        assert second["exit_count"] == 1 and second["last_exit_signal"] == "SIGTERM"
        server.wait_log("chore.py has changed")
        # No other process had loaded that file.
        assert second["last_exit_cause"] == "code"
        ends = [entry for entry in server.ask("history", "chore")["history"] if entry["event"] == "exit"]
        assert [entry["cause"] for entry in ends] == ["code"]
        assert ", cause: code" in server.log()
        assert server.companion("other")["pid"] == other and server.workers() == workers
        # And again, by the new process.
        server.write("chore.py", CHORE.replace('"one"', '"three"'))
        server.wait_companion("chore", without=[first, second["pid"]])
        wait_until(lambda: server.log("chore.words").split()[-1] == "three", 5, "the newest code")


def test_a_companion_that_cannot_be_imported_comes_back_with_the_fix() -> None:
    companions = [{"name": "chore", "target": "chore:work"}]
    with reloading(files={"chore.py": CHORE}, companion_workers=companions) as server:
        first = server.wait_companion("chore")["pid"]
        server.write("chore.py", "def work(:\n")
        shown = server.wait_companion("chore", "BACKOFF")
        assert "SyntaxError" in shown["description"] and server.get().status == 200
        server.write("chore.py", CHORE.replace('"one"', '"fixed"'))
        server.wait_companion("chore", without=[first])
        wait_until(lambda: server.log("chore.words").split()[-1] == "fixed", 5, "the fix")


def test_without_reload_nothing_is_watched() -> None:
    companions = [{"name": "chore", "target": "chore:work"}]
    with reloading(reload=False, files={"chore.py": CHORE}, companion_workers=companions) as server:
        for pid in (server.wait_companion("chore")["pid"], *server.workers()):
            assert status_field(pid, "Threads") == "1"


def test_a_change_to_a_module_that_the_master_holds_is_logged() -> None:
    """A module that the configuration file imports stays as it is until the server is restarted."""
    extra = "import sys\nsys.path.insert(0, '')\nimport helper\n"
    with reloading(extra_option=extra) as server:
        before = server.workers()
        server.write("helper.py", 'TEXT = b"two"\n')
        server.wait_log("helper.py has changed, but is in the master's memory")
        # New workers would have the old code too, so the old ones stay.
        assert server.workers() == before and server.get().text == "one"
