# SPDX-License-Identifier: MIT
"""Who may speak for a companion, and what becomes of descriptors, floods and rubbish: real processes."""

from __future__ import annotations

import array
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import answer_of, python_env
from harness import LINUX, kill_all

from gunicorn.companion.child.sdnotify import MAX_DATAGRAM
from gunicorn.companion.supervise.notify_sockets import (
    MOST_AT_ONCE,
    MOST_REJECTED,
    Notice,
    NoticeSocket,
    remove_stale,
)

pytestmark = pytest.mark.skipif(not LINUX, reason="senders are known on Linux only")

READY = Notice(ready=True)

# What the speaking programs begin with.
PRELUDE = """
import array, os, select, socket, sys
address = os.environ["NOTIFY_SOCKET"]
name = "\\0" + address[1:] if address.startswith("@") else address
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(data, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sock.sendmsg([data], rights if fds else [], 0, name)
def stay(word="said"):
    print(word, flush=True)
    sys.stdin.read()
"""


class Companion:
    """A program that leads a session of its own, and the socket that it may speak on."""

    def __init__(self, code: str, notices: NoticeSocket, argv: list[str] | None = None) -> None:
        self.notices = notices
        self.popen = subprocess.Popen(
            argv or [sys.executable, "-c", PRELUDE + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=python_env(NOTIFY_SOCKET=notices.address),
            start_new_session=True,
        )
        self.pid = self.popen.pid

    def wait_said(self, word: str = "said") -> None:
        """Until it has said what it has to say, and says so."""
        assert self.popen.stdout is not None
        assert select.select([self.popen.stdout], [], [], 20)[0]
        assert self.popen.stdout.readline().decode() == word + "\n"

    def hear(self) -> list[Notice]:
        """All that is in the queue."""
        heard: list[Notice] = []
        while select.select([self.notices], [], [], 0)[0]:
            heard += self.notices.receive(self.pid)
        return heard

    def wait_heard(self) -> list[Notice]:
        """What is heard until the program ends."""
        heard: list[Notice] = []
        deadline = time.monotonic() + 20
        while self.popen.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.notices], [], [], 0.02)[0]:
                heard += self.notices.receive(self.pid)
        return heard + self.hear()

    def end(self) -> None:
        kill_all([self.pid])
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()
        self.popen.wait(20)


@pytest.fixture
def notices() -> Iterator[NoticeSocket]:
    opened = NoticeSocket.open(None, "it")
    yield opened
    opened.close()


@pytest.fixture
def companion(notices: NoticeSocket) -> Iterator[Callable[..., Companion]]:
    """Starts programs that are companions of one socket."""
    started: list[Companion] = []

    def start(code: str = "", **options: Any) -> Companion:
        started.append(Companion(code, notices, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


# -- who is heard --


def test_the_companion_itself(companion: Callable[..., Companion]) -> None:
    it = companion("say(b'READY=1\\nSTATUS=up'); say(b'WATCHDOG=1'); say(b'X=1'); stay()")
    it.wait_said()
    assert it.hear() == [Notice(ready=True, status="up"), Notice(watchdog=True)]
    assert it.notices.rejected == []
    assert it.notices.receive(it.pid) == []


def test_a_child_in_its_session(companion: Callable[..., Companion]) -> None:
    it = companion("if os.fork(): os.wait()\nelse: os.setpgid(0, 0); say(b'READY=1'); stay()")
    it.wait_said()
    assert it.hear() == [READY]


def test_a_descendant_with_a_session_of_its_own(companion: Callable[..., Companion]) -> None:
    """Its parent, another session's too, lives: it can be shown to belong to the companion."""
    code = """
if os.fork():
    os.wait()
else:
    os.setsid()
    if os.fork():
        os.wait()
    else:
        os.setsid(); say(b'READY=1'); stay()
"""
    it = companion(code)
    it.wait_said()
    assert it.hear() == [READY]


def test_a_descendant_in_the_session_whose_parent_is_gone(companion: Callable[..., Companion]) -> None:
    it = companion("if os.fork(): os.wait(); stay()\nelif not os.fork():\n say(b'READY=1'); stay()")
    it.wait_said()
    assert it.hear() == [READY]


def test_a_sender_that_is_not_reaped_yet(companion: Callable[..., Companion]) -> None:
    code = """
pid = os.fork()
if pid:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    stay()
else:
    say(b'READY=1')
"""
    it = companion(code)
    it.wait_said()
    assert it.hear() == [READY]


def test_a_sender_that_is_gone_is_not_heard(companion: Callable[..., Companion]) -> None:
    it = companion("if os.fork(): os.wait(); stay()\nelse: say(b'READY=1')")
    it.wait_said()
    assert it.hear() == []
    assert len(it.notices.rejected) == 1


def test_what_left_the_family_is_not_heard(companion: Callable[..., Companion]) -> None:
    """With a session of its own and without its parent, nothing tells it from a stranger."""
    code = """
if os.fork():
    os.wait()
    sys.stdin.read()
else:
    os.setsid()
    parent = os.getpid()
    if not os.fork():
        while os.getppid() == parent:
            os.sched_yield()
        say(b'READY=1')
        stay()
"""
    it = companion(code)
    it.wait_said()
    assert it.hear() == []
    assert len(it.notices.rejected) == 1
    kill_all(it.notices.rejected)


def test_strangers_are_not_heard(companion: Callable[..., Companion]) -> None:
    """Neither this process, which is the companion's parent, nor another companion."""
    it, other = companion("stay()"), companion("say(b'READY=1\\nSTATUS=forged\\nWATCHDOG=trigger'); stay()")
    it.wait_said()
    other.wait_said()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", "\0" + it.notices.address[1:])
    assert it.notices.receive(it.pid) == []
    assert it.notices.rejected == [other.pid, os.getpid()]


def test_each_stranger_is_reported_once(companion: Callable[..., Companion], notices: NoticeSocket) -> None:
    it = companion("stay()")
    reported = []
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", "\0" + notices.address[1:])
        assert notices.receive(it.pid) == []
        reported.append(list(notices.rejected))
    assert reported == [[os.getpid()], [], []]


def test_the_report_of_strangers_has_an_end(companion: Callable[..., Companion]) -> None:
    code = """
for _ in range(40):
    if not os.fork():
        say(b'READY=1')
        os._exit(0)
    os.wait()
stay()
"""
    it = companion(code)
    reported: list[int] = []
    deadline = time.monotonic() + 20
    while not select.select([it.popen.stdout], [], [], 0)[0]:
        assert time.monotonic() < deadline
        it.notices.receive(it.pid)
        reported += it.notices.rejected
    # A quick look may have met some before they were gone; none of the rest is named twice.
    assert len(reported) == len(set(reported)) <= MOST_REJECTED


def test_a_companion_that_has_changed_its_user_is_heard(companion: Callable[..., Companion]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root changes its user")
    it = companion("os.setgid(65534); os.setuid(65534); say(b'READY=1'); stay()")
    it.wait_said()
    assert it.hear() == [READY]


def test_systemd_notify(companion: Callable[..., Companion]) -> None:
    """It goes when its message was taken in (BARRIER=1); as root it names its parent as the sender."""
    if not shutil.which("systemd-notify"):
        pytest.skip("no systemd-notify")
    script = "systemd-notify --ready --status='shell works' && systemd-notify WATCHDOG=1 && true"
    it = companion(argv=["sh", "-c", script])
    assert it.wait_heard() == [Notice(ready=True, status="shell works"), Notice(watchdog=True)]
    assert it.popen.returncode == 0
    assert it.notices.rejected == []


# -- descriptors --

BARRIER = """
reader, writer = os.pipe()
say(b'READY=1')
say(b'BARRIER=1', [writer])
os.close(writer)
print("early" if select.select([reader], [], [], 0.3)[0] else "waits", flush=True)
assert os.read(reader, 1) == b''
stay()
"""


def test_a_barrier_falls_when_what_came_before_was_taken_in(companion: Callable[..., Companion]) -> None:
    it = companion(BARRIER)
    it.wait_said("waits")
    before = descriptors()
    assert it.hear() == [READY]
    assert descriptors() == before
    it.wait_said()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100, 253])
def test_descriptors_that_nobody_asked_for_are_closed(
    companion: Callable[..., Companion], count: int
) -> None:
    it = companion(f"say(b'READY=1\\nFDSTORE=1', [0] * {count}); stay()")
    it.wait_said()
    before = descriptors()
    assert it.hear() == [READY]
    assert descriptors() == before


def test_descriptors_of_strangers_are_closed(companion: Callable[..., Companion]) -> None:
    it = companion("stay()")
    it.wait_said()
    before = descriptors()
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer, writer]))]
        sock.sendmsg([b"BARRIER=1"], rights, 0, "\0" + it.notices.address[1:])
    os.close(writer)
    assert not select.select([reader], [], [], 0)[0]
    assert it.hear() == []
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert descriptors() == before


# -- rubbish and floods --

RUBBISH = {
    "empty": b"",
    "one byte too many": b"READY=1\nSTATUS=" + b"x" * (MAX_DATAGRAM - 14),
    "huge": b"READY=1\n" + b"X" * 100_000,
    "bytes": bytes(range(256)) * 8,
    "no assignment": b"READY",
    "line ends": b"\n" * 4000,
    "equal signs": b"=" * 4000,
}


@pytest.mark.parametrize("data", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_says_nothing_and_stops_nothing(companion: Callable[..., Companion], data: bytes) -> None:
    it = companion(f"say({data!r}); say(b'READY=1'); stay()")
    it.wait_said()
    assert it.hear() == [READY]
    assert it.notices.rejected == []


def test_the_largest_datagram(companion: Callable[..., Companion]) -> None:
    it = companion(f"say(b'READY=1\\n' + b'x' * {MAX_DATAGRAM - 8}); stay()")
    it.wait_said()
    assert it.hear() == [READY]


def test_a_flood_is_taken_in_portions(companion: Callable[..., Companion]) -> None:
    """Who talks without end does not keep the caller, who has others to listen to."""
    it = companion("while True: say(b'WATCHDOG=1')")
    heard = 0
    deadline = time.monotonic() + 30
    while heard < 2000:
        assert time.monotonic() < deadline
        notices = it.notices.receive(it.pid)
        assert len(notices) <= MOST_AT_ONCE
        heard += len(notices)


def test_a_strangers_flood_keeps_nobody_out(companion: Callable[..., Companion]) -> None:
    companion("print('said', flush=True)\nwhile True: say(b'STATUS=noise')").wait_said()
    it = companion("say(b'READY=1'); say(b'STATUS=heard'); stay()")
    heard: list[Notice] = []
    deadline = time.monotonic() + 30
    while len(heard) < 2:
        assert time.monotonic() < deadline
        heard += it.notices.receive(it.pid)
    assert heard == [READY, Notice(status="heard")]


def test_receive_does_not_block(notices: NoticeSocket) -> None:
    assert notices.receive(1) == []
    assert not os.get_blocking(notices.fileno())
    assert not os.get_inheritable(notices.fileno())


def test_what_is_left_of_another_process_is_discarded(companion: Callable[..., Companion]) -> None:
    old = companion("say(b'READY=1', [0]); say(b'STATUS=old', [0, 0]); stay()")
    old.wait_said()
    before = descriptors()
    old.notices.discard()
    assert old.hear() == [] and old.notices.rejected == []
    assert descriptors() == before
    flood = companion("print('said', flush=True)\nwhile True: say(b'STATUS=noise')")
    flood.wait_said()
    flood.notices.discard()


def test_nobody_belongs_to_no_leader(companion: Callable[..., Companion]) -> None:
    """Sessions outside of a pid namespace have the number 0 within it."""
    it = companion("say(b'READY=1'); stay()")
    it.wait_said()
    assert it.notices.receive(0) == []
    assert it.notices.rejected == [it.pid]


# -- addresses --

UNPRIVILEGED = """
import json, os, socket, stat, sys
from gunicorn.companion.supervise.notify_sockets import NoticeSocket, remove_stale
if os.geteuid() == 0:
    os.chown(sys.argv[1], 65534, 65534)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.chdir("/")
def speak(address, name=None):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", "\\0" + address[1:] if address.startswith("@") else address)
"""


def unprivileged(code: str, *args: str) -> Any:
    """The answer of *code*, run by a user that is not root."""
    return answer_of(UNPRIVILEGED + code, *args)


def test_a_file_in_the_run_directory(short_dir: Path) -> None:
    code = """
os.umask(0o022)
notices = NoticeSocket.open(sys.argv[1], "rq:1")
info = os.stat(notices.address)
speak(notices.address)
answer = {
    "address": notices.address, "pid": os.getpid(), "mode": stat.S_IMODE(info.st_mode),
    "is_socket": stat.S_ISSOCK(info.st_mode), "umask": os.umask(0),
    "heard": len(notices.receive(os.getpid())), "rejected": notices.rejected,
}
if not (child := os.fork()):
    notices.close()
    os._exit(0)
os.waitpid(child, 0)
answer["kept"] = os.path.exists(notices.address)
notices.close()
answer["left"] = os.listdir(sys.argv[1])
print(json.dumps(answer))
"""
    answer = unprivileged(code, str(short_dir))
    pid = answer.pop("pid")
    assert answer == {
        # Without the colon, which socat would take for the end of the path.
        "address": f"{short_dir}/rq@1.{pid}.notify",
        "mode": 0o600,
        "is_socket": True,
        "umask": 0o022,
        "heard": 1,
        "rejected": [],
        "kept": True,
        "left": [],
    }


def test_a_file_that_was_removed_is_missed(short_dir: Path) -> None:
    code = """
notices = NoticeSocket.open(sys.argv[1], "a")
answer = [notices.reachable]
os.unlink(notices.address)
answer.append(notices.reachable)
notices.close()
notices = NoticeSocket.open(None, "a")
answer.append(notices.reachable)
print(json.dumps(answer))
"""
    assert unprivileged(code, str(short_dir)) == [True, False, True]


def test_one_that_a_process_of_the_same_number_left(short_dir: Path) -> None:
    code = """
first = NoticeSocket.open(sys.argv[1], "a")
second = NoticeSocket.open(sys.argv[1], "a")
speak(second.address)
print(json.dumps([first.address == second.address, len(second.receive(os.getpid()))]))
second.close()
"""
    assert unprivileged(code, str(short_dir)) == [True, 1]


def test_a_relative_directory_is_found_from_everywhere(short_dir: Path) -> None:
    code = """
os.chdir(os.path.dirname(sys.argv[1]))
notices = NoticeSocket.open(os.path.basename(sys.argv[1]), "a")
print(json.dumps(notices.address))
notices.close()
"""
    assert unprivileged(code, str(short_dir)).startswith(f"{short_dir}/a.")


NO_DIRECTORY = {
    "none": "None",
    "missing": "sys.argv[1] + '/missing'",
    "not a directory": "'/dev/null'",
    "not writable": "'/'",
    "too long": "sys.argv[1] + '/' + 'x' * 100",
}


@pytest.mark.parametrize("directory", NO_DIRECTORY.values(), ids=NO_DIRECTORY)
def test_without_a_directory_the_kernel_keeps_the_name(directory: str, short_dir: Path) -> None:
    code = f"""
directory = {directory}
if directory and len(directory) > 100:
    os.mkdir(directory)
notices = NoticeSocket.open(directory, "a" * 200)
speak(notices.address)
print(json.dumps([notices.address, len(notices.receive(os.getpid()))]))
notices.close()
"""
    address, heard = unprivileged(code, str(short_dir))
    assert address.startswith("@") and heard == 1


def test_abstract_names_are_never_the_same() -> None:
    with contextlib.ExitStack() as stack:
        opened = [NoticeSocket.open(None, "a") for _ in range(10)]
        for each in opened:
            stack.callback(each.close)
        assert len({each.address for each in opened}) == 10


def test_a_root_manager_needs_no_directory(short_dir: Path) -> None:
    """The file would be out of reach for a companion that has changed its user."""
    if os.geteuid() != 0:
        pytest.skip("for root only")
    notices = NoticeSocket.open(str(short_dir), "a")
    notices.close()
    assert notices.address.startswith("@")


def test_files_that_dead_managers_left_are_removed(short_dir: Path) -> None:
    def bound(name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(short_dir / name))
        return sock

    bound("dead.123.notify").close()
    bound("dead.sock").close()
    (short_dir / "file.notify").write_text("not ours")
    (short_dir / "rq.run").write_text("{}")
    (short_dir / "link.notify").symlink_to("dead.sock")
    with bound("alive.124.notify"):
        remove_stale(str(short_dir))
        left = sorted(os.listdir(short_dir))
    assert left == ["alive.124.notify", "dead.sock", "file.notify", "link.notify", "rq.run"]
    remove_stale(str(short_dir / "missing"))
    remove_stale(None)


def test_the_file_of_a_killed_manager_is_removed(short_dir: Path) -> None:
    if os.geteuid() == 0:
        os.chown(short_dir, 65534, 65534)
    code = """
print(NoticeSocket.open(sys.argv[1], 'a').address, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED + code, str(short_dir)], env=python_env(), capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path(os.fsdecode(done.stdout.strip())).is_socket()
    remove_stale(str(short_dir))
    assert os.listdir(short_dir) == []
