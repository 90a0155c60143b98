# SPDX-License-Identifier: MIT
"""Sessions: who is in them, who they are, signals for them; by /proc, and by ps where there is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from companiontools import Script, no_descriptor_left
from harness import is_alive, read_proc, session_of, wait_until

from gunicorn.companion.supervise import memory
from gunicorn.unix import session, spare

# A leader that has a child in its process group, one in a group of its own, and one in a session of its own;
# it prints their pids and waits.
FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *a: os.write(1, b"USR1\\n"))
pids = []
for leave in (lambda: None, lambda: os.setpgid(0, 0), os.setsid):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        leave()
        os.write(w, b".")
        while True:
            time.sleep(60)
    os.read(r, 1)
    pids.append(pid)
os.write(1, b"%d %d %d\\n" % tuple(pids))
while True:
    time.sleep(60)
"""


class Family(Script):
    def __init__(self) -> None:
        super().__init__(FAMILY, start_new_session=True)
        self.leader = self.pid
        self.child, self.other_group, self.other_session = map(int, self.line().split())

    def end(self, *more: int) -> None:
        super().end(self.child, self.other_group, self.other_session, *more)


@pytest.fixture
def family() -> Iterator[Family]:
    found = Family()
    yield found
    found.end()


@pytest.fixture(params=["proc", "ps"])
def source(request, monkeypatch):
    """Both ways to look at processes."""
    if request.param == "proc" and not session.HAVE_PROC:
        pytest.skip("there is no /proc here")
    if request.param == "ps" and shutil.which("ps") is None:
        pytest.skip("there is no ps here")
    monkeypatch.setattr(session, "HAVE_PROC", request.param == "proc")


def test_members(source, family):
    found = session.members({family.leader, family.other_session, 4_000_000})
    assert {number: sorted(pids) for number, pids in found.items()} == {
        family.leader: sorted([family.leader, family.child, family.other_group]),
        family.other_session: [family.other_session],
    }
    assert session.members(set()) == {}


def test_a_family_is_more_than_its_session(source, family):
    everybody = sorted((family.leader, family.child, family.other_group, family.other_session))
    found = session.families({family.leader}, {})
    if not session.HAVE_PROC:
        assert found == session.members({family.leader})
        return
    assert {leader: sorted(pids) for leader, pids in found.items()} == {family.leader: everybody}
    # One that is asked for itself is its own.
    both = session.families({family.leader, family.other_session}, {})
    assert both[family.other_session] == [family.other_session]
    assert family.other_session not in both[family.leader]
    # As if it had lost its parent.
    adopted = session.families({family.leader, 4_000_000}, {family.other_session: 4_000_000})
    assert adopted[4_000_000] == [family.other_session]


def test_a_zombie_is_no_member_and_has_no_identity(source):
    with subprocess.Popen(["true"], start_new_session=True) as popen:
        wait_until(lambda: read_proc(popen.pid).state == "Z")
        assert session.members({popen.pid}) == {}
        assert session.identity(popen.pid) is None


# The main thread has ended, which the kernel shows as a zombie; another goes on.
HEADLESS = """
import ctypes, os, threading, time
def go_on():
    held = bytearray(30_000_000)
    os.write(1, b"%d\\n" % len(held))
    time.sleep(60)
threading.Thread(target=go_on).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def headless() -> Iterator[Script]:
    script = Script(HEADLESS, start_new_session=True)
    script.line()
    wait_until(lambda: (info := session.read_stat(script.pid)) is not None and info.state == "Z")
    yield script
    script.end()


@pytest.mark.skipif(not session.HAVE_PROC, reason="ps does not tell")
def test_a_process_whose_main_thread_has_ended_lives(headless):
    assert session.identity(headless.pid) is not None
    assert session.members({headless.pid}) == {headless.pid: [headless.pid]}
    found = memory.of_process(headless.pid)
    assert found is not None and found.private > 30_000_000
    assert memory.resident(headless.pid) > 30_000_000
    os.kill(headless.pid, signal.SIGKILL)
    wait_until(lambda: session.identity(headless.pid) is None)


@pytest.fixture(params=["spare", "no spare"])
def exhausted(request) -> Iterator[bool]:
    """Whether there is one in reserve, where there is no other."""
    has_spare = request.param == "spare"
    spare.ONE.fds.clear()
    if has_spare:
        spare.ONE.fill()
    yield has_spare
    for fd in spare.ONE.fds:
        os.close(fd)
    spare.ONE.fds.clear()


@pytest.mark.skipif(not session.HAVE_PROC, reason="ps takes more than a descriptor")
def test_without_a_descriptor_what_lives_is_not_taken_for_gone(family, exhausted):
    who = session.identity(family.leader)
    uid = os.getuid()
    if exhausted:
        with no_descriptor_left():
            found = session.members({family.leader}), session.children_of(family.leader)
            assert session.identity(family.leader) == who
            assert session.owner(family.leader) == uid
            assert session.identity(2**22 + 1) is None
        assert {*found[0][family.leader]} == {family.leader, family.child, family.other_group}
        assert {*found[1]} == {family.child, family.other_group, family.other_session}
        return
    with no_descriptor_left():
        assert session.is_alive(family.leader, who)
        for ask in (session.identity, session.read_stat, session.owner, session.children_of):
            with pytest.raises(OSError, match="Too many open files"):
                ask(family.leader)
        with pytest.raises(OSError, match="Too many open files"):
            session.members({family.leader})


def test_an_identity_is_that_of_one_process(source, family):
    who = session.identity(family.leader)
    assert who
    assert session.identity(family.leader) == who
    assert session.is_alive(family.leader, who)
    # The pid alone says nothing: another process has it later.
    assert not session.is_alive(family.leader, who + "1")
    family.end()
    assert session.identity(family.leader) is None
    assert not session.is_alive(family.leader, who)


def test_the_owner(source, family):
    assert session.owner(family.leader) == os.getuid()
    family.end()
    assert session.owner(family.leader) is None


@pytest.mark.skipif(not session.HAVE_PROC, reason="needs /proc")
def test_a_name_with_spaces_and_parentheses_is_read(tmp_path):
    script = tmp_path / "a) (b 1"
    script.write_text("#!/bin/sh\nread x\n")
    script.chmod(0o755)
    with subprocess.Popen([str(script)], stdin=subprocess.PIPE, start_new_session=True) as popen:
        wait_until(lambda: b"(a) (b 1)" in Path(f"/proc/{popen.pid}/stat").read_bytes())
        info = session.read_stat(popen.pid)
        assert (info.ppid, info.session) == (os.getpid(), popen.pid)
        assert info.state in "RSD"
        popen.stdin.close()


@pytest.mark.skipif(not session.HAVE_PROC, reason="needs /proc")
def test_children_include_zombies(family):
    assert set(session.children_of(family.leader)) == {
        family.child,
        family.other_group,
        family.other_session,
    }
    os.kill(family.child, signal.SIGKILL)
    wait_until(lambda: not is_alive(family.child))
    assert family.child in session.children_of(family.leader)


OWN_CHILDREN = """
import json, os, signal
from gunicorn.unix.session import OwnChildren
from gunicorn.unix.libc import become_subreaper

assert become_subreaper()
own, found = OwnChildren(), []
found.append(own.read() == set())
# More than the kernel hands out at once, one of them a zombie.
pids = set()
for _ in range(800):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    pids.add(pid)
os.kill(min(pids), signal.SIGKILL)
os.waitid(os.P_PID, min(pids), os.WEXITED | os.WNOWAIT)
found.append(own.read() == pids)
# One that we adopt is there as soon as its parent can be waited for.
read, write = os.pipe()
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        os.write(write, b"%d" % os.getpid())
        signal.pause()
    os._exit(0)
adopted = int(os.read(read, 20))
os.waitpid(middle, 0)
found.append(own.read() == pids | {adopted})
for pid in pids | {adopted}:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
found.append(own.read() == set())
own.close()
found.append(own.read() is None)
print(json.dumps(found), flush=True)
"""


@pytest.mark.skipif(
    not os.path.exists(f"/proc/self/task/{os.getpid()}/children"),
    reason="the kernel keeps no list of children",
)
def test_own_children_are_all_of_them():
    script = Script(OWN_CHILDREN, start_new_session=True)
    try:
        assert json.loads(script.line(60.0)) == [True] * 5
    finally:
        script.end()


def test_a_signal_to_nobody_is_no_error():
    with subprocess.Popen(["true"]) as popen:
        pass
    assert session.send(popen.pid, signal.SIGTERM) is False
    session.ask_to_stop(popen.pid, signal.SIGTERM)
    session.ask_to_stop(popen.pid, signal.SIGTERM, as_group=True)


def test_a_stop_reaches_the_leader_alone(family):
    session.ask_to_stop(family.leader, signal.SIGTERM)
    wait_until(lambda: not is_alive(family.leader))
    assert session_of(family.leader) == sorted([family.child, family.other_group])


def test_a_stop_as_group_reaches_the_group(family):
    session.ask_to_stop(family.leader, signal.SIGTERM, as_group=True)
    wait_until(lambda: session_of(family.leader) == [family.other_group])


@pytest.mark.parametrize("as_group", [False, True])
def test_a_stopped_process_hears_its_stop_signal(family, as_group):
    os.kill(family.leader, signal.SIGSTOP)
    wait_until(lambda: read_proc(family.leader).state == "T")
    session.ask_to_stop(family.leader, signal.SIGUSR1, as_group)
    assert family.line() == "USR1"


def test_a_stop_as_group_of_what_leads_no_group_yet_reaches_it():
    # A companion in the first moment after its fork: in the session of the manager still.
    with subprocess.Popen(["sleep", "60"]) as popen:
        assert os.getpgid(popen.pid) != popen.pid
        session.ask_to_stop(popen.pid, signal.SIGTERM, as_group=True)
        assert popen.wait(10) == -signal.SIGTERM
