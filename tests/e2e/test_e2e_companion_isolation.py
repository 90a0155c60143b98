# SPDX-License-Identifier: MIT
"""What companions inherit and what not: descriptors, signals, environment, output, privileges."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e_apps import WEB
from e2e_companions import companion_server, entry, keeper_of, reconfigure, starts
from e2e_users import reachable_for_all
from harness import Server, descriptors, free_port, wait_until

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def report(server: Server, name: str = "report") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(wait_until(lambda: server.log(f"{name}.json")))
    return found


def writers(pid: int) -> set[str]:
    """The pipes whose writing end *pid* holds."""
    found = set()
    for fd, target in descriptors(pid).items():
        if target.startswith("pipe:"):
            text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
            flags = int(next(line for line in text.splitlines() if line.startswith("flags:")).split()[1], 8)
            if flags & os.O_ACCMODE != os.O_RDONLY:
                found.add(target)
    return found


def odd(pid: int, prefixes: tuple[str, ...]) -> set[str]:
    return {target for target in descriptors(pid).values() if target.startswith(prefixes)}


# -- descriptors --


@pytest.mark.parametrize(("preload", "bind"), [(False, "tcp"), (True, "unix")], ids=["lazy", "preload"])
def test_workers_and_companions_share_no_descriptors(preload: bool, bind: str) -> None:
    server = companion_server(
        entry("a", "idle"),
        entry("b", "idle", stdout="b.out", stderr="stdout"),
        workers=2,
        preload_app=preload,
        bind_option=bind,
    )
    with server:
        manager = server.wait_manager()
        server.wait_companion("a")
        b = server.wait_companion("b")["pid"]
        # Start one again, to see what a later fork inherits.
        os.kill(server.companion("a")["pid"], signal.SIGKILL)
        a = server.wait_companion("a", without=[starts(server, "a")[0][0]])["pid"]
        workers = server.wait_workers(2)
        for pid in (a, b):
            found = descriptors(pid)
            assert found[0] == "/dev/null"
            # Its output is captured, by pipes that nobody else may hold open.
            output = {found.pop(1), found.pop(2)}
            assert not [
                each for each in found.values() if each.startswith(("socket:", "pipe:", "anon_inode:"))
            ]
            for other in {a, b, *workers} - {pid}:
                assert not output & odd(other, ("pipe:",))
            assert not output & writers(manager)
            assert not [target for target in found.values() if "(deleted)" in target], f"heartbeat: {found}"
            # Standard streams, the run file, and the lock file that the target opened itself.
            assert len(found) <= 3, found
        assert descriptors(b)[1] == descriptors(b)[2]
        for worker in workers:
            for other in (manager, a, b):
                shared = odd(worker, ("pipe:", "socket:")) & odd(other, ("pipe:", "socket:"))
                assert not shared, f"worker and {other} share {shared}"
            assert not [t for t in descriptors(worker).values() if t.endswith((".run", ".lock"))]
        # Only the arbiter and the manager hold writing ends of the pipes that the manager reads.
        listens = odd(manager, ("pipe:",))
        for pid in (a, b, *workers):
            output = {descriptors(pid)[1], descriptors(pid)[2]} if pid in (a, b) else set()
            assert not (writers(pid) - output) & listens
        listeners = odd(server.pid, ("socket:",))
        assert listeners and not odd(manager, ("socket:",)) & listeners, "the manager holds no listener"


LOGS = """
import logging, time

def run():
    logging.getLogger("gunicorn.error").error("said by the companion")
    print("printed", flush=True)
    while True: time.sleep(1)
"""


@pytest.mark.parametrize("capture", [False, True], ids=["", "captured"])
def test_a_companion_holds_nothing_that_the_server_logs_to(capture: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*daemon.getsockname())
        server = companion_server(
            {"name": "a", "target": "logs:run", "stdout": "a.out", "stderr": "stdout"},
            files_option={"logs.py": LOGS},
            errorlog="error.log",
            accesslog="access.log",
            capture_output=capture,
            statsd_host=address,
            syslog=True,
            syslog_addr=f"udp://{address}",
            extra="def companion_post_fork(manager, one): manager.log.info('the hook of %s', one.name)",
        )
        server.notes_starts = False
        with server:
            pid = server.wait_companion("a")["pid"]
            server.wait_log("printed", name="a.out")
            held = descriptors(pid)
            assert held[1] == held[2] and held[1].startswith("pipe:")
            assert not [target for target in held.values() if target.endswith(".log")], held
            # It may have a socket of its own to the syslog daemon, because it has logged.
            assert not odd(pid, ("socket:",)) & odd(server.wait_manager(), ("socket:",))
            assert len(held) == 4, held
            server.get()
            assert "said by the companion" in server.log("a.out")
            assert "said by the companion" not in server.log("error.log")
            assert "the hook of a" in server.log("error.log")


@pytest.mark.parametrize("closed_by", ["shell", "application"])
def test_closed_standard_streams_become_dev_null(closed_by: str) -> None:
    by_shell = closed_by == "shell"
    server = companion_server(
        {"name": "a", "target": "logs:run"},
        {"name": "b", "command": ["sleep", "999"]},
        files_option={"logs.py": LOGS},
        prefix_option=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"] if by_shell else [],
        errorlog="error.log",
        app_option=WEB if by_shell else f"import os\nos.closerange(0, 3)\n{WEB}",
        preload_app=True,
    )
    server.notes_starts = False
    with server:
        pids = [server.wait_companion(name)["pid"] for name in ("a", "b")]
        for pid in (server.pid, server.wait_manager(), *server.workers(), keeper_of(server)):
            held = descriptors(pid)
            assert [held.get(number) for number in (0, 1, 2)] == ["/dev/null"] * 3, held
        assert all(descriptors(pid)[0] == "/dev/null" for pid in pids)
        assert server.companion("a")["pid"] == pids[0], "what it prints does not end it"
        assert "Traceback" not in server.log("error.log")


# -- the child's state --


def test_a_companion_is_a_program_of_its_own() -> None:
    env = {"FROM_ENTRY": "1", "SHARED": "entry"}
    server = companion_server(
        entry("report", env=env, cwd="sub"),
        companion_env={"FROM_GLOBAL": "1", "SHARED": "global"},
        files_option={"sub/x": ""},
        env_option={
            "NOTIFY_SOCKET": "/nowhere",
            "WATCHDOG_USEC": "1000000",
            "WATCHDOG_PID": "1",
            "LISTEN_PID": "1",
            "LISTEN_FDS": "1",
            "INHERITED": "yes",
        },
    )
    with server:
        pid = server.wait_companion("report")["pid"]
        found = report(server)
        variables = found["env"]
        assert found["pid"] == found["sid"] == pid
        assert found["ppid"] == server.wait_manager()
        assert found["cwd"] == str(server.dir / "sub")
        assert variables["GUNICORN_COMPANION_NAME"] == "report"
        assert (variables["FROM_ENTRY"], variables["FROM_GLOBAL"]) == ("1", "1")
        assert (variables["SHARED"], variables["INHERITED"]) == ("entry", "yes")
        gone = ("WATCHDOG_", "LISTEN_", "GUNICORN_PID", "GUNICORN_FD")
        assert not [name for name in variables if name.startswith(gone)]
        assert variables.get("NOTIFY_SOCKET") != "/nowhere", "the manager's, if any"


# -- privileges --


@ROOT_ONLY
def test_companions_run_and_write_as_the_configured_user() -> None:
    nobody = pwd.getpwnam("nobody")
    server = companion_server(
        entry("report", stdout="logs/report.out", stderr="logs/report.err"),
        user="nobody",
        group=nobody.pw_gid,
        prefix_option=reachable_for_all(),
        ready_option="http",
    )
    runtime = server.dir / "rt"
    runtime.mkdir()
    server.env["RUNTIME_DIRECTORY"] = str(runtime)
    (server.dir / "logs").mkdir()
    # The runtime directory is the user's, as systemd makes it; the targets leave notes beside their module.
    for path in (server.dir, server.dir / "logs", runtime):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    (server.dir / "gunicorn.conf.py").chmod(0o600)
    with server:
        entry_ = server.wait_companion("report")
        found = report(server)
        assert (found["uid"], found["gid"]) == (nobody.pw_uid, nobody.pw_gid)
        assert set(found["groups"]) <= {nobody.pw_gid}
        manager = server.wait_manager()
        for pid in (manager, entry_["pid"], *server.workers()):
            text = Path(f"/proc/{pid}/status").read_text()
            uids = next(line for line in text.splitlines() if line.startswith("Uid:")).split()[1:]
            assert set(uids) == {str(nobody.pw_uid)}, pid
        # Dumpable: /proc/<pid> belongs to the user, so the manager can read it.
        for pid in (manager, entry_["pid"]):
            assert os.stat(f"/proc/{pid}").st_uid == nobody.pw_uid
        info = os.stat(server.control_path())
        assert info.st_uid == nobody.pw_uid and stat.S_IMODE(info.st_mode) == 0o600
        for path in (server.dir / "logs").iterdir():
            assert path.stat().st_uid == nobody.pw_uid, path
        run_files = [path for path in runtime.rglob("*") if path.is_file()]
        assert run_files, "the run files are beside the socket"
        assert {path.stat().st_uid for path in run_files} == {nobody.pw_uid}
        assert b"hello on stdout" in (server.dir / "logs" / "report.out").read_bytes()
        (shown,) = server.ask("status", "report", memory=True)["companions"]
        assert shown["memory"]["pss"] > 0 and shown["memory"]["private"] > 0
        # The parent-death signal has survived the change of user.
        os.kill(server.pid, signal.SIGSTOP)
        os.kill(manager, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{entry_['pid']}/exe"), 3, "told by the kernel")
        os.kill(server.pid, signal.SIGCONT)
        server.wait_companion("report", without=[entry_["pid"]])


@ROOT_ONLY
def test_a_reread_of_an_unreadable_config_file_is_refused() -> None:
    nobody = pwd.getpwnam("nobody")
    server = companion_server(
        entry("a", "idle"), user="nobody", group=nobody.pw_gid, prefix_option=reachable_for_all()
    )
    os.chown(server.dir, nobody.pw_uid, nobody.pw_gid)
    # The user gets what is made in a runtime directory of root.
    runtime = server.dir / "rt"
    runtime.mkdir()
    server.env["RUNTIME_DIRECTORY"] = str(runtime)
    with server:
        path = server.control_path()
        wait_until(lambda: path.stat().st_uid == nobody.pw_uid)
        assert path.parent.stat().st_uid == nobody.pw_uid
        pid = server.wait_companion("a")["pid"]
        reconfigure(server, entry("a", "idle"), entry("b", "idle"), user="nobody", group=nobody.pw_gid)
        os.chown(server.dir / "gunicorn.conf.py", 0, 0)
        (server.dir / "gunicorn.conf.py").chmod(0o600)
        reply = server.ask("reread")
        assert (reply["ok"], reply["kept_old_config"]) == (False, True)
        assert "HUP" in reply["error"] and "gunicorn.conf.py" in reply["error"]
        assert list(server.companions()) == ["a"]
        server.signal(signal.SIGHUP)
        server.wait_companion("b")
        assert server.companion("a")["pid"] == pid


@ROOT_ONLY
def test_a_directory_that_the_user_may_not_write_is_one_warning() -> None:
    nobody = pwd.getpwnam("nobody")
    server = companion_server(
        entry("a", "idle"),
        user="nobody",
        group=nobody.pw_gid,
        companion_control_socket="closed/c.sock",
        companion_run_dir="closed",
        prefix_option=reachable_for_all(),
        files_option={"closed/x": ""},
    )
    os.chown(server.dir, nobody.pw_uid, nobody.pw_gid)
    with server:
        pid = int(wait_until(lambda: starts(server, "a"))[0][0])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(starts(server, "a")) == 2, 5, "supervised all the same")
        lines = [line for line in server.log().splitlines() if "WARNING" in line and "closed" in line]
        assert len([line for line in lines if "c.sock" in line]) == 1
        assert sorted(os.listdir(server.dir / "closed")) == ["x"]


@ROOT_ONLY
def test_the_default_home_is_the_user_s_own() -> None:
    """Without a runtime directory the socket is in the home of the user that the manager runs as."""
    name = "daemon"
    account = pwd.getpwnam(name)
    if not os.access(account.pw_dir, os.W_OK) or account.pw_dir == "/":
        pytest.skip(f"{name} has no home")
    server = companion_server(
        entry("a", "idle"),
        user=name,
        group=account.pw_gid,
        prefix_option=reachable_for_all(),
        env_option={"XDG_RUNTIME_DIR": None},
    )
    os.chown(server.dir, account.pw_uid, account.pw_gid)
    home = Path(account.pw_dir) / ".gunicorn"
    existed = home.exists()
    try:
        with server:
            path = server.configured_control = home / f"companion-{server.pid}.sock"
            server.wait_manager()
            assert path.stat().st_uid == account.pw_uid
            assert path.parent.stat().st_uid == account.pw_uid
    finally:
        if not existed and home.exists():
            subprocess.run(["rm", "-r", str(home)], check=False)


#: A process that has changed its user can import nothing, as where only root can read Python's files.
UNREADABLE = """
import os, sys, time

def run():
    while True:
        time.sleep(1000)

def refuse(event, args):
    if event == "import" and os.geteuid() != 0:
        os.write(2, f"wants {args[0]}\\n".encode())
        raise ImportError(f"{args[0]} cannot be read")

if not hasattr(sys, "refuses"):
    sys.refuses = True
    sys.addaudithook(refuse)
"""


@ROOT_ONLY
def test_nothing_is_imported_after_the_change_of_user() -> None:
    port = free_port()
    extra = UNREADABLE + (
        "companion_workers = [\n"
        f"    dict(name='a', target=run, bind='localhost:{port}', watchdog=100, max_memory='1G'),\n"
        "    dict(name='c', command=['sleep', '1000'], stop_as_group=True),\n"
        "]\n"
        "def companion_exit(manager, companion):\n"
        "    raise RuntimeError('a traceback')\n"
    )
    settings = {"user": "nobody", "preload_app": True}
    server = companion_server(**settings, extra=extra, bind_option="unix")
    server.run_dir.chmod(0o755)
    server.notes_starts = False
    with server:
        manager = server.wait_manager()
        old = {name: server.wait_companion(name)["pid"] for name in "ac"}
        with server.control() as control:
            assert "did you mean" in control.ask("stat")["error"]
            assert control.ask("status", memory=True)["ok"]
            assert control.ask("reread")["ok"]
            for name in "ac":
                assert control.ask("restart", name)["ok"]
        os.kill(server.wait_companion("c", without=[old["c"]])["pid"], signal.SIGKILL)
        wait_until(lambda: server.companion("c")["restart_count"] >= 2)
        for name in "ac":
            server.wait_companion(name, without=[old[name]])
        server.write("gunicorn.conf.py", server.config_text.replace("watchdog", "watchdok"))
        assert "did you mean watchdog" in server.ask("reread")["error"]
        assert server.manager() == manager
        assert "wants" not in server.log() and "cannot be read" not in server.log()
