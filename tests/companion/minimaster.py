# SPDX-License-Identifier: MIT
"""As much of a master as a companion manager needs: it forks one, holds the link, forks another when told.

Masters are forked from one process that has everything imported. It reads a plan a line on stdin, answers
with the pid of the master, and reaps what has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import managertargets
from companiontools import make_cfg

from gunicorn.companion.config import CompanionConfig, build_companion_configs
from gunicorn.companion.manager import CompanionManager
from gunicorn.companion.server.link import Link
from gunicorn.companion.supervise.changes import ConfigUnreadable
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.companion.supervise.starter import no_hook
from gunicorn.unix.poller import Poller
from gunicorn.unix.signals import SignalInbox, blocked_signals, reset_to_default, unblock_all


def serve() -> None:
    for line in iter(sys.stdin.readline, ""):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        with blocked_signals():
            pid = os.fork()
            if pid == 0:
                unblock_all()
                live(json.loads(line))
        os.write(1, b"%d\n" % pid)


def live(plan: dict[str, Any]) -> NoReturn:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        out = os.open(Path(plan["directory"]) / "output", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.closerange(3, 64)
        Master(plan).run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


class Log(logging.Logger):
    """A logger with what the server's own has besides."""

    def __init__(self, path: Path) -> None:
        super().__init__("companions", logging.DEBUG)
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(created).3f %(process)d %(levelname)s %(message)s"))
        self.addHandler(handler)
        self.path = path

    def reopen_files(self) -> None:
        self.info("files reopened")


class Master:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.directory = Path(plan["directory"])
        os.environ["TEST_DIRECTORY"] = plan["directory"]
        self.log = Log(self.directory / "log")
        self.poller = Poller()
        self.inbox = SignalInbox([signal.SIGCHLD])
        self.inbox.install()
        self.orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.orders.bind(str(self.directory / "orders"))
        self.link: Link | None = None
        self.manager = 0
        self.shared = SharedState.create()
        if plan["state"]:
            self.shared.write(plan["state"])
        self.hook = self.exit_hook = no_hook
        self.started = time.monotonic()

    def note(self, **event: Any) -> None:
        with open(self.directory / "events", "a") as file:
            file.write(json.dumps(event) + "\n")

    def run(self) -> None:
        self.poller.add(self.inbox.fileno(), lambda events: self.inbox.drain())
        self.poller.add(
            self.orders.fileno(), lambda events: self.on_order(json.loads(self.orders.recv(65536)))
        )
        self.spawn()
        while True:
            self.poller.wait(None)
            self.reap()

    def on_order(self, order: dict[str, Any]) -> None:
        if "spawn" in order:
            self.plan.update(order["spawn"])
            self.spawn()
        if "send" in order:
            assert self.link is not None
            self.link.send(order["send"])

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self.manager:
                    self.on_link()
                    self.note(ended=found[0], code=os.waitstatus_to_exitcode(found[1]))

    def on_link(self) -> None:
        assert self.link is not None
        for message in self.link.receive():
            self.note(message=message)
        if self.link.ended:
            self.poller.remove(self.link.fileno())

    def load(self) -> list[CompanionConfig]:
        names: dict[str, Any] = {
            "T": managertargets,
            "ConfigUnreadable": ConfigUnreadable,
            "__name__": "conf",
        }
        path = self.directory / "conf.py"
        exec(compile(path.read_text(), str(path), "exec"), names)
        self.hook, self.exit_hook = names.get("hook", no_hook), names.get("exit_hook", no_hook)
        return build_companion_configs(make_cfg(*names["workers"], **names.get("settings", {})))

    def spawn(self) -> None:
        if self.link is not None:
            self.poller.remove(self.link.fileno())
            self.link.close()
        configs = self.load()
        self.link, theirs = Link.pair()
        with blocked_signals():
            self.manager = os.fork()
            if self.manager == 0:
                self.run_manager(configs, theirs)
        theirs.close()
        self.poller.add(self.link.fileno(), lambda events: self.on_link())
        self.note(started=self.manager)

    def run_manager(self, configs: list[CompanionConfig], theirs: Link) -> NoReturn:
        try:
            os.setsid()
            reset_to_default()
            self.inbox.close()
            self.orders.close()
            assert self.link is not None
            self.link.close()
            manager = CompanionManager(
                configs,
                self.log,
                load_configs=self.load if self.plan["reread"] else None,
                control_path=self.plan["control"],
                run_dir=self.plan["run_dir"],
                post_fork=lambda manager, companion: self.hook(manager, companion),
                on_exit=lambda manager, companion: self.exit_hook(manager, companion),
                graceful_timeout=self.plan["graceful_timeout"],
                stop_order=self.plan["stop_order"],
                server={
                    "pid": os.getppid(),
                    "version": "1",
                    "application": "app:app",
                    "addresses": ["127.0.0.1:8000"],
                    "started": self.started,
                },
                link=theirs,
                shared=self.shared,
            )
            manager.run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)


if __name__ == "__main__":
    serve()
