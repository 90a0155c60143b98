# SPDX-License-Identifier: MIT
"""Each ``--companion-*`` flag, from the command line and from ``GUNICORN_CMD_ARGS``."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_apps import JOBS, WEB
from harness import Server, is_alive, wait_until

#: flag with its argument → the setting and what it becomes.
FLAGS: dict[str, tuple[str, object]] = {
    "--companion-config-file companions.py": ("companion_config_file", "companions.py"),
    "--companion-control-socket run/c.sock": ("companion_control_socket", "run/c.sock"),
    "--companion-control-socket-mode 660": ("companion_control_socket_mode", 0o660),
    "--companion-run-dir run/here": ("companion_run_dir", "run/here"),
    "--companion-cwd sub": ("companion_cwd", "sub"),
    "--companion-env A=1 --companion-env B=two=2": ("companion_env", {"A": "1", "B": "two=2"}),
    "--companion-stop-signal SIGINT": ("companion_stop_signal", "SIGINT"),
    "--companion-stop-timeout 7": ("companion_stop_timeout", 7),
    "--companion-stop-as-group": ("companion_stop_as_group", True),
    "--companion-stop-order together": ("companion_stop_order", "together"),
    "--companion-reload-timeout 8": ("companion_reload_timeout", 8),
    "--companion-startsecs 0.5": ("companion_startsecs", 0.5),
    "--companion-restart-delay 0.25": ("companion_restart_delay", 0.25),
    "--companion-stdout out.log": ("companion_stdout", "out.log"),
    "--companion-stderr stdout": ("companion_stderr", "stdout"),
    "--companion-manager-shutdown-buffer 3": ("companion_manager_shutdown_buffer", 3),
    "--companion-manager-stop-timeout 4": ("companion_manager_stop_timeout", 4),
    "--companion-manager-reload-timeout 5": ("companion_manager_reload_timeout", 5),
    "--companion-reload all": ("companion_reload", "all"),
    "--no-gc-freeze": ("gc_freeze", False),
}

#: Prints the settings that an on_starting hook sees, then leaves.
SHOW = """
def on_starting(server):
    import json, os
    names = [name for name in server.cfg.settings if "companion" in name or name == "gc_freeze"]
    values = {name: value for name in names if not callable(value := getattr(server.cfg, name))}
    with open("seen.json", "w") as f:
        json.dump(values, f)
    os._exit(0)
"""

WORKER = "--companion-worker one=jobs:idle --companion-worker two=jobs:report"


def seen(args: list[str], env: dict[str, str | None]) -> dict[str, object]:
    files = {"jobs.py": JOBS, "sub/x": "", "companions.py": "companion_startsecs = 2\n"}
    server = Server(WEB, SHOW, args=args, env=env, files=files, ready=None)
    with server:
        assert server.wait_exit(15) == 0, server.log()
        found: dict[str, object] = json.loads(server.log("seen.json"))
        return found


@pytest.mark.parametrize("how", ["line", "environment"])
def test_every_flag_sets_its_setting(how: str) -> None:
    text = " ".join(FLAGS) + " " + WORKER
    args, env = (shlex.split(text), {}) if how == "line" else ([], {"GUNICORN_CMD_ARGS": text})
    found = seen(args, dict(env))
    assert {name: found[name] for name, _value in FLAGS.values()} == dict(FLAGS.values())
    names = [companion["name"] for companion in found["companion_workers"]]  # type: ignore[attr-defined]
    assert names == ["one", "two"]


def test_the_command_line_outranks_the_environment() -> None:
    env = {"GUNICORN_CMD_ARGS": "--companion-startsecs 9 --companion-stop-timeout 9"}
    found = seen(["--companion-startsecs", "8"], dict(env))
    assert (found["companion_startsecs"], found["companion_stop_timeout"]) == (8, 9)


def test_help_and_print_config_show_them(short_dir: Path) -> None:
    command = [sys.executable, "-m", "gunicorn"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(short_dir)}
    help_ = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, cwd=short_dir, env=environment, timeout=30
    ).stdout
    for flag in [*FLAGS, "--companion-worker x"]:
        assert flag.split()[0] in help_, flag
    (short_dir / "app.py").write_text(WEB)
    (short_dir / "jobs.py").write_text(JOBS)
    shown = subprocess.run(
        [
            *command,
            "--print-config",
            "--companion-startsecs",
            "12.5",
            "--companion-worker",
            "w=jobs:idle",
            "app:app",
        ],
        capture_output=True,
        text=True,
        cwd=short_dir,
        env=environment,
        timeout=30,
    ).stdout
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    for name, _value in FLAGS.values():
        assert name in lines, name
    assert "12.5" in lines["companion_startsecs"]
    assert "jobs:idle" in lines["companion_workers"]
    # What follows from others is worked out, and nothing is made for it.
    run = str(short_dir / "gunicorn")
    assert lines["companion_control_socket"].endswith(f" = {run}/companion-PID.sock")
    assert re.fullmatch(rf"companion_run_dir += {run}/run-[0-9a-f]{{16}}", lines["companion_run_dir"])
    assert re.fullmatch(
        r"companion_manager_stop_timeout += 70(\.0)?", lines["companion_manager_stop_timeout"]
    )
    assert re.fullmatch(
        r"companion_manager_reload_timeout += 70(\.0)?", lines["companion_manager_reload_timeout"]
    )
    assert not os.path.exists(run)


@pytest.mark.parametrize("how", ["line", "environment"])
def test_the_flags_do_what_their_settings_do(how: str) -> None:
    text = (
        f"{WORKER} --companion-control-socket run/c.sock --companion-control-socket-mode 660"
        " --companion-run-dir run/files --companion-cwd sub --companion-env FROM_FLAG=1"
        " --companion-stop-signal INT --companion-stop-timeout 5 --companion-startsecs 0.2"
        " --companion-restart-delay 0.4 --companion-stdout ../all.log --companion-stderr stdout"
        " --companion-reload all"
    )
    files = {"jobs.py": JOBS, "sub/x": ""}
    args, env = (shlex.split(text), {}) if how == "line" else ([], {"GUNICORN_CMD_ARGS": text})
    server = Server(
        WEB, "companion_workers = [{'name': 'zero', 'target': 'jobs:idle'}]", args=args, env=env, files=files
    )
    server.configured_control = server.dir / "run" / "c.sock"
    with server:
        one = server.wait_companion("one")["pid"]
        server.wait_companion("two")
        assert sorted(server.companions()) == ["one", "two", "zero"], "flags add to the file's"
        info = os.stat(server.configured_control)
        assert stat.S_IMODE(info.st_mode) == 0o660
        assert [path for path in (server.dir / "run" / "files").rglob("*") if path.is_file()]
        found = json.loads(wait_until(lambda: server.log("two.json")))
        assert found["cwd"] == str(server.dir / "sub")
        assert found["env"]["FROM_FLAG"] == "1"
        log = next(path for path in (server.dir / "all.log", server.dir.parent / "all.log") if path.exists())
        try:
            assert (
                "two says hello on stdout" in log.read_text()
                and "two says hello on stderr" in log.read_text()
            )
        finally:
            if log.parent != server.dir:
                log.unlink()
        os.kill(one, signal.SIGKILL)
        killed = time.monotonic()
        new = server.wait_companion("one", without=[one])["pid"]
        assert 0.35 < time.monotonic() - killed < 2.5
        manager = server.wait_manager()
        server.signal(signal.SIGHUP)
        server.wait_manager(8, without=manager)
        wait_until(lambda: not is_alive(new), 5, "replaced with the manager")
        server.ask("stop", "two")
        server.wait_companion("two", "STOPPED")


def test_a_companion_from_the_line_alone_needs_no_config_file() -> None:
    with Server(WEB, args=["--companion-worker", "report=jobs:report"], files={"jobs.py": JOBS}) as server:
        (server.dir / "gunicorn.conf.py").unlink()
        server.wait_companion("report")


@pytest.mark.parametrize(
    "args",
    [
        ["--companion-worker", "no-target"],
        ["--companion-worker", "a=jobs:idle", "--companion-worker", "a=jobs:idle"],
        ["--companion-env", "novalue", "--companion-worker", "a=jobs:idle"],
        ["--companion-stop-signal", "SIGNOPE", "--companion-worker", "a=jobs:idle"],
        ["--companion-stop-timeout", "-1", "--companion-worker", "a=jobs:idle"],
        ["--companion-control-socket-mode", "rw", "--companion-worker", "a=jobs:idle"],
        ["--companion-reload", "sometimes", "--companion-worker", "a=jobs:idle"],
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_wrong_values_are_refused_before_anything_starts(args: list[str]) -> None:
    for more in ([], ["--check-config"]):
        server = Server(WEB, args=[*args, *more], files={"jobs.py": JOBS}, ready=None)
        with server:
            assert server.wait_exit(15) not in (0, 3, 4), server.log()
            assert "Traceback" not in server.log()
            assert not list(server.dir.glob("*.starts"))
            server.assert_nothing_left()


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
