# SPDX-License-Identifier: MIT
"""No secret of a configuration is shown: by commands, in the log, on the monitor's pages."""

from __future__ import annotations

import threading
import urllib.request
from typing import Any

from e2e_companions import companion_server, entry
from harness import Control, free_port, wait_until
from test_e2e_companion_commands import ctl

MARK = "XYZZY"
APP = """
import time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(4)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""
JOBS = f"""
import time

def idle():
    time.sleep(1000)

def fails():
    try:
        raise OSError("no answer from redis://jobs:{MARK}7@127.0.0.1/0")
    finally:
        time.sleep(0.2)
"""
ENV = {"API_TOKEN": f"{MARK}0", "PLAIN": f"{MARK}1", "DATABASE_URL": f"postgres://shop:{MARK}2@db/shop"}
PROGRAM = ["sh", "-c", "sleep 1000", f"postgres://shop:{MARK}3@db/shop", "--password", f"{MARK}4"]
# Not the lines of "fails" itself: what a companion writes is shown as it is.
COMMANDS = (
    *(
        "status",
        "status -v",
        "status --json",
        "status idle",
        "status program",
        "status bad",
        "status --json program",
    ),
    *("history", "history --json", "metrics", "web", "web --json", "dump idle", "dump web"),
    "reread --dry-run",
)


def test_no_secret_is_shown() -> None:
    port = free_port()
    settings: dict[str, Any] = {
        "raw_env": [f"SHOP_SECRET={MARK}5"],
        "companion_env": {"BROKER": f"amqp://shop:{MARK}6@mq/"},
        "monitor": f"127.0.0.1:{port}",
        "monitor_token": f"{MARK}8",
        "loglevel": "debug",
        "app_option": APP,
        "files_option": {
            "jobs.py": JOBS,
            "good.env": f"OTHER_TOKEN={MARK}10\n",
            "bad.env": f"OTHER_TOKEN='{MARK}11\n",
        },
    }
    server = companion_server(
        entry("idle", env=ENV, env_file="good.env"),
        entry("bad", "idle", env_file="bad.env"),
        {"name": "program", "command": PROGRAM, "env": ENV},
        entry("fails", stdout="fails.out", stderr="stdout", restart_delay=0.3),
        **settings,
    )
    server.notes_starts = False
    with server:
        server.wait_manager()
        events = Control(server.control_path(), 20)
        events.ask("events")
        for name in ("idle", "program", "monitor"):
            server.wait_companion(name)
        wait_until(lambda: "OSError" in ctl(server, "history").stdout, 20, "a failure in the history")
        # The query of a request may hold a secret, too.
        slow = threading.Thread(target=server.get, args=(f"/slow?token={MARK}9",))
        slow.start()
        wait_until(lambda: "/slow" in ctl(server, "web").stdout, 10, "the slow request")
        shown = {words: ctl(server, *words.split()) for words in COMMANDS}
        assert not [words for words, done in shown.items() if not done.stdout], shown
        pages = ("", "companion/idle", "companion/program", "metrics", "live", "ready")
        apis = ("status", "companion/program", "history", "events", "session")
        texts = {words: done.stdout + done.stderr for words, done in shown.items()}
        for path in (*pages, *(f"api/{name}" for name in apis)):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                texts[f"/{path}"] = answer.read().decode()
        server.ask("restart", "idle")
        told = events.read_reply()
        while (told["name"], told["event"]) != ("fails", "exit"):
            told = events.read_reply()
        texts["events"] = str(told)
        slow.join(10)
        texts["log"] = server.log()
    assert "bad.env, line 1: OTHER_TOKEN: the quotes are not closed" in texts["status bad"]
    assert "OSError: no answer from redis://jobs:***@" in texts["events"]
    found = {
        name: text[text.find(MARK) - 60 : text.find(MARK) + 20]
        for name, text in texts.items()
        if MARK in text
    }
    assert found == {}
