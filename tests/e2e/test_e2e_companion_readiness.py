# SPDX-License-Identifier: MIT
"""Companions that tell by sd_notify(3) when they are ready and that they are alive."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_companions import companion_server, keeper_of
from e2e_users import reachable_for_all
from harness import LINUX, Server, descendants_of, is_alive, kill_all, wait_until

pytestmark = pytest.mark.skipif(not LINUX, reason="senders are known on Linux only")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")

#: Targets. Each waits for a file ``go`` in the server's directory before it says READY=1.
SPEAK = '''
import ctypes, os, signal, socket, sys, threading, time

from gunicorn.companion import notify

HERE = os.path.dirname(os.path.abspath(__file__))

def name():
    return os.environ["GUNICORN_COMPANION_NAME"]

def mark(what, text=""):
    with open(os.path.join(HERE, f"{name()}.{what}"), "a") as file:
        file.write(f"{text}\\n")

def wait_for(file_name):
    while not os.path.exists(os.path.join(HERE, file_name)):
        time.sleep(0.01)

def begin():
    mark("address", os.environ["NOTIFY_SOCKET"])
    mark("usec", os.environ.get("WATCHDOG_USEC"))
    mark("starts", f"{os.getpid()} {time.time()}")

def sleep_forever():
    while True:
        time.sleep(1000)

def after_go():
    begin()
    wait_for(f"go.{name()}")
    assert notify(ready=True, status="serving, 0 jobs")
    wait_for("busy")
    assert notify(status="7 \\x1b[31mjobs")
    wait_for("idle")
    assert notify(status="")
    sleep_forever()

def never():
    begin()
    notify(status="loading the model")
    sleep_forever()

def ready_then(hang):
    begin()
    notify(ready=True)
    for _ in range(3):
        notify(watchdog=True)
        time.sleep(0.1)
    mark("hangs", os.getpid())
    hang()

def hangs_in_c():
    ready_then(blocked_in_c)

def blocked_in_c():
    # PyDLL: the call is made with the interpreter locked, as a bad extension does.
    ctypes.PyDLL(None).sleep(1000)

def hangs_in_a_lock():
    ready_then(blocked_in_a_lock)

def blocked_in_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def hangs_in_a_loop():
    ready_then(busy_loop)

def busy_loop():
    while True:
        pass

def hangs_stopped():
    ready_then(stopped)

def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)

def hangs_and_ignores():
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    ready_then(sleep_forever)

def hangs_with_a_child():
    if os.fork() == 0:
        os.setpgid(0, 0)
        mark("child", os.getpid())
        sleep_forever()
    ready_then(sleep_forever)

def beats():
    begin()
    notify(ready=True)
    pause = int(os.environ["WATCHDOG_USEC"]) / 2e6
    count = 0
    while True:
        count += 1
        notify(watchdog=True, status=f"beat {count}")
        time.sleep(pause)

def beats_in_a_flood():
    """Sends messages as fast as it can, and beats now and then in between."""
    begin()
    notify(ready=True)
    pause = int(os.environ["WATCHDOG_USEC"]) / 2e6
    while True:
        notify(watchdog=True)
        until = time.monotonic() + pause
        while time.monotonic() < until:
            notify(status="talking")

def from_a_child():
    """A launcher that does nothing itself; what it launched has a session of its own."""
    begin()
    if os.fork() == 0:
        os.setsid()
        wait_for(f"go.{name()}")
        notify(ready=True, status="said by a child")
        while True:
            notify(watchdog=True)
            time.sleep(0.1)
    sleep_forever()

def trigger():
    begin()
    if name() != "trigger_early":
        notify(ready=True)
    wait_for(f"go.{name()}")
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\\0" + address[1:] if address.startswith("@") else address)
        sock.send(b"WATCHDOG=trigger")
    sleep_forever()

def forge():
    """Speaks on the socket of another companion."""
    begin()
    with open(os.path.join(HERE, "victim.address")) as file:
        os.environ["NOTIFY_SOCKET"] = file.read().split()[-1]
    for _ in range(20):
        notify(ready=True, watchdog=True, status="forged")
    mark("forged")
    sleep_forever()
'''

#: A program as it is written for systemd.
SDNOTIFY_PROGRAM = """
import os, time
import sdnotify

notifier = sdnotify.SystemdNotifier(debug=True)
notifier.notify("STATUS=Loading")
while not os.path.exists("go." + os.environ["GUNICORN_COMPANION_NAME"]):
    time.sleep(0.01)
notifier.notify("READY=1")
notifier.notify("STATUS=said by sdnotify")
while True:
    notifier.notify("WATCHDOG=1")
    time.sleep(0.1)
"""

#: For scripts without systemd-notify and socat: sends the message and waits until it was received.
ONE_LINER = (
    "import os, socket, sys;"
    'n = os.environ["NOTIFY_SOCKET"];'
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
    's.connect("\\0" + n[1:] if n[0] == "@" else n);'
    's.send("\\n".join(sys.argv[1:]).encode());'
    "r, w = os.pipe();"
    'socket.send_fds(s, [b"BARRIER=1"], [w]);'
    "os.close(w); os.read(r, 1)"
)

WAIT = "while [ ! -e go.$GUNICORN_COMPANION_NAME ]; do sleep 0.05; done"
SOCAT = (
    "to=UNIX-SENDTO:$NOTIFY_SOCKET;"
    'case $NOTIFY_SOCKET in @*) to="ABSTRACT-SENDTO:${NOTIFY_SOCKET#@}";; esac;'
    'printf "READY=1\\nSTATUS=said by socat" | socat -t 5 - "$to"'
)

#: Ways to send READY=1, and what each needs to be installed.
SPEAKERS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "python": (None, {"target": "speak:after_go"}),
    "child": (None, {"target": "speak:from_a_child"}),
    "sdnotify": ("sdnotify", {"command": [sys.executable, "program.py"]}),
    "systemd-notify": (
        "systemd-notify",
        {
            "command": [
                "sh",
                "-c",
                f"{WAIT}; systemd-notify --ready '--status=said by a shell'; while :; do sleep 1; done",
            ]
        },
    ),
    "socat": ("socat", {"command": ["sh", "-c", f"{WAIT}; {SOCAT}; while :; do sleep 1; done"]}),
    "one-liner": (
        None,
        {
            "command": [
                "sh",
                "-c",
                f'{WAIT}; "$0" -c "$1" READY=1 "STATUS=said by a line"; while :; do sleep 1; done',
                sys.executable,
                ONE_LINER,
            ]
        },
    ),
}


def speaking(*companions: dict[str, Any], **settings: Any) -> Server:
    files = {"speak.py": SPEAK, "program.py": SDNOTIFY_PROGRAM}
    server = companion_server(*companions, files_option=files, **settings)
    server.notes_starts = False
    return server


def speaker(target: str, **keys: Any) -> dict[str, Any]:
    """A companion with ready="notify"; its target is the function of its name."""
    return {"name": target, "target": f"speak:{target}", "ready": "notify", **keys}


def go(server: Server, name: str) -> None:
    (server.dir / name).touch()


def pid_that(server: Server, what: str, name: str) -> int:
    """The last pid in the notes *what* of companion *name*, once it is there."""
    return int(wait_until(lambda: server.log(f"{name}.{what}").split(), 20, f"{name}.{what}")[-1])


def say(address: str, *lines: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send("\n".join(lines).encode())


# -- readiness --


def missing(needs: str | None) -> bool:
    return not (
        needs is None or shutil.which(needs) or (needs == "sdnotify" and importlib.util.find_spec(needs))
    )


@pytest.fixture(scope="module")
def speakers() -> Iterator[Server]:
    """A server with a companion for each way; none has sent READY=1 yet."""
    companions = [
        {"name": name, "ready": "notify", **keys}
        for name, (needs, keys) in SPEAKERS.items()
        if not missing(needs)
    ]
    with speaking(*companions) as server:
        yield server


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_companion_is_running_once_it_says_ready(name: str, speakers: Server) -> None:
    needs, _ = SPEAKERS[name]
    if missing(needs):
        pytest.skip(f"no {needs}")
    word = f"go.{name}"
    first = speakers.wait_companion(name, "STARTING")
    # Long after startsecs (0.1 s), which has no meaning with ready="notify".
    wait_until(lambda: time.time() - speakers.companion(name)["started_at"] > 0.7)
    assert speakers.companion(name)["state"] == "STARTING"
    go(speakers, word)
    entry = speakers.wait_companion(name)
    assert entry["pid"] == first["pid"] and entry["restart_count"] == 0
    text = {"python": "serving, 0 jobs"}.get(name, "said by ")
    shown = wait_until(
        lambda: (e := speakers.companion(name)) and str(e["status_text"]).startswith(text) and e
    )
    assert shown["description"].endswith(", " + shown["status_text"])
    assert "ignored" not in speakers.log()


def test_the_status_follows_and_is_safe_to_show() -> None:
    with speaking(speaker("after_go")) as server:
        go(server, "go.after_go")
        server.wait_companion("after_go")
        go(server, "busy")
        wait_until(lambda: server.companion("after_go")["status_text"] == "7  [31mjobs")
        shown = subprocess.run(
            [sys.executable, "-m", "gunicorn.companion.ctl", "-s", str(server.control_path()), "status"],
            env=server.env,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert shown.returncode == 0 and "7  [31mjobs" in shown.stdout and "\x1b" not in shown.stdout
        go(server, "idle")
        wait_until(lambda: not server.companion("after_go")["status_text"])
        assert re.fullmatch(r"pid \d+, uptime [\d:]+", server.companion("after_go")["description"])


def test_each_process_must_say_ready_itself() -> None:
    """A restart begins with STARTING, an empty status and an address of its own."""
    with speaking(speaker("after_go")) as server:
        go(server, "go.after_go")
        old = server.wait_companion("after_go")["pid"]
        (server.dir / "go.after_go").unlink()
        os.kill(old, signal.SIGKILL)
        again = server.wait_companion("after_go", "STARTING", without=[old, None])
        assert again["status_text"] in (None, "")
        addresses = wait_until(lambda: len(found := server.log("after_go.address").split()) == 2 and found)
        wait_until(lambda: time.time() - server.companion("after_go")["started_at"] > 0.5)
        assert server.companion("after_go")["state"] == "STARTING"
        go(server, "go.after_go")
        server.wait_companion("after_go", without=[old])
        assert len(addresses) == 2


def test_a_companion_that_is_not_ready_in_time_is_retried() -> None:
    with speaking(speaker("never", start_timeout=0.6, restart_delay=60)) as server:
        entry = server.wait_companion("never", "BACKOFF")
        assert re.fullmatch(r"not ready within 0\.6s, retrying in \d+s", entry["description"])
        assert not is_alive(int(server.log("never.starts").split()[0]))
        assert entry["exit_count"] == 1 and entry["kill_count"] == 0
        server.wait_log("not ready within 0.6s")


# -- the watchdog --

#: Target, and the function in which it hangs.
HANGS = {
    "hangs_in_c": "blocked_in_c",
    "hangs_in_a_lock": "blocked_in_a_lock",
    "hangs_in_a_loop": "busy_loop",
    "hangs_stopped": "stopped",
}


@pytest.fixture(scope="module")
def hung() -> Iterator[Server]:
    """A server with companions that hang, each in its way."""
    keys: dict[str, Any] = {"watchdog": 0.6, "restart_delay": 60}
    companions = [speaker(name, stderr=f"{name}.err", **keys) for name in HANGS]
    companions += [speaker(name, **keys) for name in ("hangs_and_ignores", "hangs_with_a_child")]
    companions += [
        {"name": "silent", "command": ["sleep", "1000"], **keys},
        {
            "name": "python",
            "command": [sys.executable, "-c", "import time\ndef asleep(): time.sleep(1000)\nasleep()"],
            "env": {"PYTHONFAULTHANDLER": "1"},
            "stderr": "python.err",
            **keys,
        },
        speaker("hangs_in_a_lock", name="again", watchdog=0.6, restart_delay=0.1),
        speaker("hangs_in_a_lock", name="unwatched"),
        speaker("trigger", restart_delay=60),
        speaker("trigger", name="trigger_early", restart_delay=60),
    ]
    with speaking(*companions) as server:
        yield server


@pytest.mark.parametrize("name", HANGS)
def test_a_hung_target_is_dumped_and_killed(name: str, hung: Server) -> None:
    pid = pid_that(hung, "hangs", name)
    entry = hung.wait_companion(name, "BACKOFF")
    assert re.fullmatch(r"no WATCHDOG=1 for 0\.6s, retrying in \d\ds", entry["description"])
    assert entry["last_exit_signal"] in (signal.SIGABRT, "SIGABRT")
    assert (entry["exit_count"], entry["kill_count"]) == (1, 0)
    assert not is_alive(pid)
    dump = hung.log(f"{name}.err")
    assert "most recent call first" in dump
    assert f"in {HANGS[name]}" in dump and f"in {name}" in dump
    assert re.search(rf"Killing companion {name} \(pid {pid}\).*no WATCHDOG=1 for 0\.6s", hung.log())
    assert hung.log(f"{name}.usec").split() == ["600000"]


def test_a_hung_companion_is_started_again(hung: Server) -> None:
    wait_until(lambda: len(hung.log("again.starts").splitlines()) >= 3, 20)


def test_a_hung_companion_that_ignores_sigabrt_gets_sigkill(hung: Server) -> None:
    pid = pid_that(hung, "hangs", "hangs_and_ignores")
    entry = hung.wait_companion("hangs_and_ignores", "BACKOFF")
    assert entry["description"].startswith("no WATCHDOG=1 for 0.6s, retrying in")
    assert entry["kill_count"] == 1 and entry["last_exit_signal"] in (signal.SIGKILL, "SIGKILL")
    assert not is_alive(pid)


def test_children_of_a_hung_companion_end_with_it(hung: Server) -> None:
    child = pid_that(hung, "child", "hangs_with_a_child")
    hung.wait_companion("hangs_with_a_child", "BACKOFF")
    wait_until(lambda: not is_alive(child))


def test_a_program_that_falls_silent_is_killed_as_well(hung: Server) -> None:
    entry = hung.wait_companion("silent", "BACKOFF")
    assert entry["description"].startswith("no WATCHDOG=1 for 0.6s, retrying in")
    # What Python itself offers, for a program that is not forked from the master.
    hung.wait_companion("python", "BACKOFF")
    assert "in asleep" in hung.log("python.err")


@pytest.mark.parametrize(("name", "state"), [("trigger", "RUNNING"), ("trigger_early", "STARTING")])
def test_watchdog_trigger_restarts_a_companion(name: str, state: str, hung: Server) -> None:
    hung.wait_companion(name, state)
    go(hung, f"go.{name}")
    assert hung.wait_companion(name, "BACKOFF")["description"].startswith("it sent WATCHDOG=trigger")
    assert re.search(rf"Killing companion {name} .*it sent WATCHDOG=trigger", hung.log())


def test_without_a_watchdog_a_silent_companion_runs_on(hung: Server) -> None:
    pid = pid_that(hung, "hangs", "unwatched")
    assert hung.log("unwatched.usec").split() == ["None"]
    wait_until(lambda: time.time() - hung.companion("unwatched")["started_at"] > 1)
    assert hung.wait_companion("unwatched")["pid"] == pid


@pytest.fixture
def spinners() -> Iterator[None]:
    """Busy processes, twice as many as processors."""
    code = "import os\nwhile os.getppid() != 1: sum(range(10000))"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range((os.cpu_count() or 1) * 2)]
    yield
    kill_all([each.pid for each in running])
    for each in running:
        each.wait(20)


def test_a_companion_that_beats_runs_on_under_load(spinners: None) -> None:
    with speaking(speaker("beats", watchdog=1.2), speaker("beats_in_a_flood", watchdog=1.2)) as server:
        before = {name: server.wait_companion(name)["pid"] for name in ("beats", "beats_in_a_flood")}
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert server.get("/").status == 200
            states = {name: e["state"] for name, e in server.companions().items()}
            assert set(states.values()) == {"RUNNING"}, states
        assert {name: e["pid"] for name, e in server.companions().items()} == before


def test_a_manager_that_was_stopped_kills_no_companion() -> None:
    """It has read nothing for longer than the watchdog's time, but the messages wait in the socket."""
    with speaking(speaker("beats", watchdog=1)) as server:
        pid = server.wait_companion("beats")["pid"]
        manager = server.wait_manager()
        os.kill(manager, signal.SIGSTOP)
        try:
            time.sleep(2)  # there is nothing to poll: the manager is stopped
        finally:
            os.kill(manager, signal.SIGCONT)
        count = int(server.companion("beats")["status_text"].split()[-1])
        wait_until(lambda: int(server.companion("beats")["status_text"].split()[-1]) > count)
        entry = server.companion("beats")
        assert entry["pid"] == pid and entry["state"] == "RUNNING"


# -- users, directories --


def as_nobody(*companions: dict[str, Any]) -> tuple[Server, Path]:
    """A server (not started) that changes its user, and its runtime directory."""
    nobody = pwd.getpwnam("nobody")
    prefix = reachable_for_all()
    server = speaking(*companions, user="nobody", group=nobody.pw_gid, prefix_option=prefix)
    runtime = server.dir / "rt"
    runtime.mkdir()
    server.env["RUNTIME_DIRECTORY"] = str(runtime)
    for path in (server.dir, runtime):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return server, runtime


@ROOT_ONLY
def test_a_server_that_has_dropped_its_user_listens_in_its_directory() -> None:
    server, runtime = as_nobody(speaker("after_go"))
    with server:
        address = wait_until(lambda: server.log("after_go.address").strip())
        info = os.stat(address)
        assert runtime in Path(address).parents
        assert stat.S_ISSOCK(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o600
        assert info.st_uid == pwd.getpwnam("nobody").pw_uid
        # The permissions do not keep root out, but its messages are ignored too.
        say(address, "READY=1")
        server.wait_log(f"pid {os.getpid()}")
        assert server.companion("after_go")["state"] == "STARTING"
        go(server, "go.after_go")
        server.wait_companion("after_go")

        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(20, without=manager)
        server.wait_companion("after_go", timeout=20)
        wait_until(lambda: not os.path.exists(address), 10, "the dead manager's socket is removed")
        assert server.stop() == 0
        assert not [path for path in runtime.rglob("*") if path.is_socket()]


def test_restarts_leave_no_descriptors_and_no_processes() -> None:
    """Neither descriptors in the manager nor processes, after many restarts."""
    with speaking(speaker("hangs_in_a_lock", ready="startsecs", restart_delay=0)) as server:
        manager = server.wait_manager()
        first = server.wait_companion("hangs_in_a_lock")["pid"]
        count = len(os.listdir(f"/proc/{manager}/fd"))
        seen = [first]
        for _ in range(5):
            os.kill(seen[-1], signal.SIGKILL)
            seen.append(server.wait_companion("hangs_in_a_lock", without=seen)["pid"])
        wait_until(lambda: len(os.listdir(f"/proc/{manager}/fd")) <= count)
        assert descendants_of(manager) == sorted([seen[-1], keeper_of(server)])
