# SPDX-License-Identifier: MIT
"""``--companion-*`` flags, and mistakes in the configuration of companions, in a running server."""

from __future__ import annotations

import json
import os
import signal
import stat
import time

from e2e_apps import JOBS, WEB
from harness import Server, is_alive, wait_until

FLAGS = """
    --companion-worker one=jobs:idle --companion-worker two=jobs:report
    --companion-control-socket run/c.sock --companion-control-socket-mode 660
    --companion-run-dir run/files --companion-cwd sub --companion-env FROM_FLAG=1
    --companion-stop-signal INT --companion-stop-timeout 5 --companion-startsecs 0.2
    --companion-restart-delay 0.4 --companion-stdout ../all.log --companion-stderr stdout
    --companion-reload all
"""


def test_the_flags_do_what_their_settings_do() -> None:
    config = "companion_workers = [{'name': 'zero', 'target': 'jobs:idle'}]"
    server = Server(WEB, config, args=FLAGS.split(), files={"jobs.py": JOBS, "sub/x": ""})
    server.configured_control = server.dir / "run" / "c.sock"
    with server:
        one = server.wait_companion("one")["pid"]
        server.wait_companion("two")
        assert sorted(server.companions()) == ["one", "two", "zero"], "flags add to the file's"
        assert stat.S_IMODE(server.configured_control.stat().st_mode) == 0o660
        assert [path for path in (server.dir / "run" / "files").rglob("*") if path.is_file()]
        found = json.loads(wait_until(lambda: server.log("two.json")))
        assert found["cwd"] == str(server.dir / "sub")
        assert found["env"]["FROM_FLAG"] == "1"
        # Relative to the companions' directory.
        server.wait_log("two says hello on stdout", name="all.log")
        server.wait_log("two says hello on stderr", name="all.log")
        os.kill(one, signal.SIGKILL)
        killed = time.monotonic()
        new = server.wait_companion("one", without=[one])["pid"]
        assert 0.35 < time.monotonic() - killed < 2.5
        manager = server.wait_manager()
        server.signal(signal.SIGHUP)
        server.wait_manager(8, without=manager)
        wait_until(lambda: not is_alive(new), 5, "replaced with the manager")


def test_a_companion_from_the_line_alone_needs_no_config_file() -> None:
    with Server(WEB, args=["--companion-worker", "report=jobs:report"], files={"jobs.py": JOBS}) as server:
        (server.dir / "gunicorn.conf.py").unlink()
        server.wait_companion("report")


def test_every_mistake_is_reported_at_once() -> None:
    config = """
companion_workers = [
    {"name": "a", "target": "jobs:idle", "stop_sigal": "TERM"},
    {"name": "bad name!", "target": "jobs:idle"},
    {"name": "c", "target": "nocolon", "stop_timeout": -1},
    {"target": "jobs:idle"},
]
"""
    for more in ([], ["--check-config"]):
        server = Server(WEB, config, args=more, files={"jobs.py": JOBS}, ready=None)
        with server:
            assert server.wait_exit(15) == 1
            log = server.log()
            for part in ("stop_sigal", "stop_signal", "bad name!", "nocolon", "stop_timeout"):
                assert part in log, part
            assert "Traceback" not in log
