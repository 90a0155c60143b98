# SPDX-License-Identifier: MIT
"""Configuration from files, modules, embedders and Paste, at the start, at a SIGHUP and at a reread."""

from __future__ import annotations

import json
import signal

import pytest
from e2e_apps import JOBS, WEB
from harness import Server, wait_until

FORMS = {
    "default name": ("gunicorn.conf.py", []),
    "python:": ("mine/settings.py", ["-c", "python:mine.settings"]),
    "odd name": ("conf/has space.and-dots.py", ["-c", "conf/has space.and-dots.py"]),
}


def text(value: str, *names: str) -> str:
    companions = [{"name": name, "target": "jobs:idle"} for name in names]
    return (
        f"raw_env = ['VALUE={value}']\ncompanion_startsecs = 0.1\ncompanion_workers = {companions!r}\n"
        "graceful_timeout = 5\n"
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_config_file_in_every_form(form: str) -> None:
    name, args = FORMS[form]
    files = {"jobs.py": JOBS, name: text("one", "a")}
    if form == "python:":
        files["mine/__init__.py"] = ""
    server = Server(WEB, "", args=args, files=files)
    if form != "default name":
        (server.dir / "gunicorn.conf.py").unlink()
    with server:
        assert server.get("/process").json()["env"]["VALUE"] == "one"
        pid = server.wait_companion("a")["pid"]
        server.write(name, text("two", "a", "b"))
        reply = server.ask("reread")
        assert (reply["ok"], reply["added"]) == (True, ["b"]), reply
        server.wait_companion("b")
        assert server.get("/process").json()["env"]["VALUE"] == "one", "workers are not touched"
        server.write(name, text("three", "a", "c"))
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.get("/process").json()["env"]["VALUE"] == "three", 5, "applied")
        server.wait_companion("c")
        wait_until(lambda: sorted(server.companions()) == ["a", "c"], 5)
        assert server.companion("a")["pid"] == pid


EMBEDDED = """
import json
import jobs
from app import app
from gunicorn.app.base import BaseApplication

class Embedded(BaseApplication):
    def __init__(self, application, options):
        self.application, self.options = application, options
        super().__init__()

    def load_config(self):
        with open("options.json") as f:
            more = json.load(f)
        for name, value in {**self.options, **more}.items():
            self.cfg.set(name, value)

    def load(self):
        return self.application

if __name__ == "__main__":
    Embedded(app, {
        "companion_startsecs": 0.1,
        "companion_workers": [{"name": "a", "target": jobs.idle}],
        "graceful_timeout": 5,
    }).run()
"""


class Embedded(Server):
    """Runs the script in place of the command."""

    def command(self) -> list[str]:
        line = super().command()
        return [line[0], "main.py"]


def options(server: Server, **more: object) -> None:
    server.write("options.json", json.dumps({"bind": server.address, **more}))


def test_an_application_that_embeds_the_server() -> None:
    server = Embedded(WEB, files={"jobs.py": JOBS, "main.py": EMBEDDED})
    (server.dir / "gunicorn.conf.py").unlink()
    options(server, workers=2)
    with server:
        server.wait_workers(2)
        pid = server.wait_companion("a")["pid"]
        old = server.workers()
        companions = [{"name": "a", "target": "jobs:idle"}, {"name": "b", "target": "jobs:idle"}]
        options(server, workers=1, companion_workers=companions)
        assert server.ask("reread")["added"] == ["b"]
        server.wait_companion("b")
        assert server.workers() == old
        server.signal(signal.SIGHUP)
        server.wait_workers(1, without=old)
        server.write("options.json", "{not json")
        assert server.ask("reread")["ok"] is False
        before = server.workers()
        log = len(server.log())
        server.signal(signal.SIGHUP)
        wait_until(lambda: "ERROR" in server.log()[log:], 5, "an error")
        assert server.workers() == before
        # A callable and its name are the same target, so the companion runs on.
        assert server.companion("a")["pid"] == pid
        # USR2 runs the script again.
        options(server, workers=1)
        server.signal(signal.SIGUSR2)
        new = wait_until(server.new_master, 10, "a new master")
        assert new is not None
        wait_until(lambda: server.get("/process").json()["ppid"] == new, 10, "it serves")
        assert server.stop() == 0
        server.adopt(new)
        server.wait_companion("a", without=[pid])
