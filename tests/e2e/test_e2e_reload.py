# SPDX-License-Identifier: MIT
"""Under load, a reload that fails changes nothing: not one request, worker, companion or setting."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from e2e_apps import WEB
from e2e_companions import companion_server, config_text, entry, pids, reconfigure
from harness import Server, load, wait_until


class Bad(NamedTuple):
    """What is wrong with a new version, and the reason that everybody is told."""

    reason: str
    app: str = WEB
    extra: str = ""
    settings: dict[str, Any] = {}


#: Once a worker of this version runs, it dies.
DIES = """
def post_worker_init(worker):
    def run():
        worker.notify()
        {how}
    worker.run = run
"""
#: The failure of a child is none of the worker's.
FORKS = "import os\nif not os.fork():\n    raise SystemExit(1)\n"
CODE = {
    "a syntax error": Bad("SyntaxError: ", "def app(:"),
    "an exception": Bad("ZeroDivisionError: not today", "raise ZeroDivisionError('not today')"),
    "a missing module": Bad("ModuleNotFoundError: No module named 'not_there'", "import not_there"),
    "a missing callable": Bad("has no attribute 'app'", "pass"),
    "a hang": Bad(
        "a worker did not boot within 1 s (timeout)", "import time\ntime.sleep(60)", settings={"timeout": 1}
    ),
    "sys.exit()": Bad("it asked to exit, with 0", "import sys\nsys.exit(0)"),
    "os._exit()": Bad("a worker exited with status 0 while booting, without", "import os\nos._exit(0)"),
    "a kill": Bad("a worker was killed by SIGKILL while booting", "import os\nos.kill(os.getpid(), 9)"),
}
SETTINGS = {
    "post_fork": Bad("KeyError: 'fork'", extra="def post_fork(server, worker): raise KeyError('fork')"),
    "a hook that exits": Bad(
        "a worker exited with status 0 while booting",
        extra="def post_fork(server, worker): raise SystemExit(0)",
    ),
    "a hook that exits with 7": Bad(
        "it asked to exit (7)", extra="def post_worker_init(worker): raise SystemExit(7)"
    ),
    "post_worker_init": Bad("KeyError: 'init'", extra="def post_worker_init(worker): raise KeyError('init')"),
    "one of them": Bad(
        "KeyError: 'even'",
        extra="def post_fork(server, worker):\n    if worker.age % 2 == 0: raise KeyError('even')",
        settings={"workers": 2},
    ),
    "a certificate": Bad("certfile", settings={"certfile": "app.py", "keyfile": "app.py"}),
    "a class": Bad("No module named 'not_there'", settings={"worker_class": "not_there.Worker"}),
    "a death at work": Bad("EOFError: at work", extra=DIES.format(how="raise EOFError('at work')")),
    "a sudden death at work": Bad(
        "a worker exited with status 5 while serving, without", extra=DIES.format(how="os._exit(5)")
    ),
    "a companion": Bad("no_such_key", settings={"companion_workers": [entry("b", "idle", no_such_key=1)]}),
}


def errors(log: str) -> list[str]:
    return [line for line in log.splitlines() if "[ERROR]" in line or "[CRITICAL]" in line]


def result(server: Server) -> dict[str, Any]:
    """What has come of the last reload."""
    none = {"result": None, "totals": {"applied": 0, "refused": 0}}
    return server.ask("status")["server"]["reload"] or none


def said(server: Server) -> str:
    """What ``status`` prints below its table."""
    command = [sys.executable, "-m", "gunicorn.companion.ctl", "status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=server.dir, env=server.env)
    return done.stdout.partition("\n\n")[2].strip()


def put_through(kind: str, workers: int, preload: bool, cases: dict[str, Bad]) -> None:
    """Have a server refuse each of *cases* under load, and then take a good version."""
    settings = {"workers": workers, "worker_class": kind, "preload_app": preload}
    before = [entry("a", "idle")]
    with companion_server(*before, **settings) as server:
        server.wait_companion("a")
        kept, companions = server.wait_workers(workers), pids(server)
        with contextlib.ExitStack() as loads:
            problems = [loads.enter_context(load(server, interval=0.005)) for _ in range(2)]
            for number, (case, bad) in enumerate(cases.items(), 1):
                seen = len(server.log())
                server.write("app.py", bad.app)
                new = {**settings, "companion_workers": [*before, entry("b", "idle")], **bad.settings}
                server.write("gunicorn.conf.py", config_text(extra=f"import os\n{bad.extra}", **new))
                server.signal(signal.SIGHUP)
                wait_until(lambda n=number: result(server)["totals"]["refused"] == n, 15, case)  # type: ignore[misc]
                server.wait_workers(workers)
                assert server.workers() == kept and pids(server) == companions, case
                found = result(server)
                assert (found["result"], found["number"]) == ("refused", number), case
                assert bad.reason in found["reason"], case
                (error,) = errors(server.log()[seen:])
                assert f"Reload refused, the old configuration stays: {found['reason']}" in error, case
            # For people, and for who asks the next manager.
            assert said(server).startswith("reload refused at ") and said(server).endswith(found["reason"])
            server.signal(signal.SIGKILL, server.wait_manager())
            server.wait_manager()
            assert result(server)["number"] == number
            server.wait_companion("a")
            companions = pids(server)
            server.write("app.py", FORKS + WEB)
            reconfigure(server, *before, entry("b", "idle"), **settings)
            server.signal(signal.SIGHUP)
            server.wait_workers(workers, without=kept)
            server.wait_companion("b")
            wait_until(lambda: result(server)["result"] == "applied", 10)
            assert result(server)["totals"] == {"applied": 1, "refused": len(cases)}
            assert result(server)["companions"]["added"] == ["b"]
            assert not said(server)
        assert problems == [[], []]
        assert pids(server)["a"] == companions["a"]


def test_a_bad_version_changes_nothing() -> None:
    put_through("gthread", 2, False, {**CODE, "at work": SETTINGS["a death at work"]})


def test_bad_settings_change_nothing() -> None:
    put_through("sync", 1, True, {name: bad for name, bad in SETTINGS.items() if name != "one of them"})


@pytest.mark.matrix
@pytest.mark.parametrize("preload", [False, True], ids=["lazy", "preload"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado"])
def test_every_bad_version(kind: str, workers: int, preload: bool) -> None:
    # A preloaded application stays.
    put_through(kind, workers, preload, SETTINGS if preload else {**CODE, **SETTINGS})
