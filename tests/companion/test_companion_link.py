# SPDX-License-Identifier: MIT
"""The pair of sockets between master and manager, and the pings on it."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest
from companiontools import Script
from harness import wait_until

from gunicorn.companion.server.link import Link, Pulse
from gunicorn.unix.poller import Poller


@pytest.fixture
def pair() -> Iterator[tuple[Link, Link]]:
    first, second = Link.pair()
    yield first, second
    first.close()
    second.close()


def test_messages_arrive_in_order(pair):
    ours, theirs = pair
    messages = [{"n": n, "text": "ü\n\ud800" * n} for n in range(20)]
    for message in messages:
        assert ours.send(message) is True
    assert list(theirs.receive()) == messages
    assert list(theirs.receive()) == []
    assert not theirs.ended


def test_both_directions(pair):
    ours, theirs = pair
    ours.send({"a": 1})
    theirs.send({"b": 2})
    assert list(ours.receive()) == [{"b": 2}]
    assert list(theirs.receive()) == [{"a": 1}]


def test_what_the_other_end_does_not_take_is_kept_and_nothing_blocks(pair):
    ours, theirs = pair
    big = {"text": "x" * 2_000_000}
    assert ours.send(big) is False
    assert ours.send({"n": 1}) is False
    found = []
    while len(found) < 2:
        found.extend(theirs.receive())
        ours.flush()
    assert found == [big, {"n": 1}]
    assert ours.flush() is True


@pytest.mark.parametrize("nonsense", [b"{", b"[1]", b"7", b"\xff", b"[" * 100_000, b"x" * 5_000_000], ids=len)
def test_what_is_no_message_is_dropped(pair, nonsense):
    ours, theirs = pair
    sender = threading.Thread(target=theirs.sock.sendall, args=(nonsense + b'\n{"n": 1}\n',))
    theirs.sock.setblocking(True)
    sender.start()
    seen: list[dict[str, int]] = []
    wait_until(lambda: seen.extend(ours.receive()) or seen)
    assert seen == [{"n": 1}]
    sender.join()


def test_a_socket_comes_with_its_message_however_much_waits(pair):
    ours, theirs = pair
    socks = [socket.socket() for _ in range(3)]
    inodes = [os.fstat(sock.fileno()).st_ino for sock in socks]
    ours.send({"text": "x" * 2_000_000})
    for sock, inode in zip(socks, inodes, strict=True):
        ours.send({"n": inode}, sock.fileno())
        # Theirs is a copy.
        sock.close()
    found = []
    while len(found) < 4:
        for message in theirs.receive():
            # The last one is never taken.
            if message.get("n") in inodes[:2]:
                fd = theirs.take(message["n"])
                assert os.fstat(fd).st_ino == message["n"] and not os.get_inheritable(fd)
                os.close(fd)
            found.append(message)
        ours.flush()
    assert [message.get("n") for message in found] == [None, *inodes]
    assert theirs.take(inodes[0]) is None
    before = len(os.listdir("/proc/self/fd"))
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_the_end_is_seen_after_the_last_message(pair):
    ours, theirs = pair
    theirs.send({"state": 1})
    theirs.close()
    assert list(ours.receive()) == [{"state": 1}]
    assert ours.ended
    # Nobody reads it: nothing is kept, nothing is raised.
    assert ours.send({"n": 1}) is True
    assert list(ours.receive()) == []


def test_a_message_that_is_cut_off_by_the_end_is_dropped(pair):
    ours, theirs = pair
    theirs.sock.send(b'{"half')
    theirs.close()
    assert list(ours.receive()) == []
    assert ours.ended


def test_the_death_of_the_other_end_is_seen_at_once():
    script = Script(
        """
        import os, sys, time
        from gunicorn.companion.server.link import Link
        ours, theirs = Link.pair()
        if os.fork():
            theirs.close()
            os.read(0, 1)
            os._exit(0)  # without a close
        ours.close()
        import select
        select.select([theirs], [], [])
        messages = list(theirs.receive())
        os.write(1, b"%r %r\\n" % (messages, theirs.ended))
        """
    )
    script.go_on()
    assert script.line() == "[] True"
    script.wait_closed()
    script.end()


def test_it_is_not_inherited_by_programs(pair):
    assert not any(os.get_inheritable(link.fileno()) for link in pair)


def test_a_silent_link_is_not_readable(pair):
    ours, theirs = pair
    assert select.select([ours, theirs], [], [], 0)[0] == []
    theirs.send({"n": 1})
    assert select.select([ours, theirs], [], [], 1)[0] == [ours]


# -- watched by a poller ---------------------------------------------------


def test_a_watched_end_passes_messages_on_and_the_end_once(pair):
    ours, theirs = pair
    poller, seen = Poller(), []
    ours.watch(poller, seen.append, lambda: seen.append("end"))
    theirs.send({"n": 1})
    theirs.send({"n": 2})
    poller.wait(10)
    assert seen == [{"n": 1}, {"n": 2}]
    theirs.send({"n": 3})
    theirs.close()
    poller.wait(10)
    ours.read()
    assert seen[2:] == [{"n": 3}, "end"]
    assert len(poller) == 0


def test_a_watched_end_sends_the_rest_when_the_other_end_takes_it(pair):
    ours, theirs = pair
    poller, received = Poller(), []
    ours.watch(poller, lambda message: None)
    big = {"text": "x" * 2_000_000}
    assert ours.send(big) is False
    while not received:
        poller.wait(0.1)
        received.extend(theirs.receive())
    assert received == [big]
    # Else the poller would never wait again.
    assert poller.wait(0) == 0


def test_an_end_that_is_not_watched_any_more_is_silent(pair):
    ours, theirs = pair
    poller, seen = Poller(), []
    ours.watch(poller, seen.append)
    ours.unwatch()
    theirs.send({"n": 1})
    ours.read()
    assert seen == [] and len(poller) == 0


# -- pings -----------------------------------------------------------------


def test_the_manager_is_pinged_at_an_interval() -> None:
    pulse = Pulse(100)
    assert not pulse.due(159.9, 60)
    assert pulse.due(160, 60)
    assert pulse.ask(160) == 1
    # One ping at a time.
    assert not pulse.due(1000, 60)
    pulse.answered(1)
    assert not pulse.due(219.9, 60)
    assert pulse.due(220, 60)
    assert pulse.ask(220) == 2


def test_after_what_may_hang_it_the_manager_is_pinged_at_once() -> None:
    pulse = Pulse(100)
    pulse.suspect()
    assert pulse.due(100, 60)
    pulse.ask(100)
    pulse.answered(1)
    assert not pulse.due(101, 60)


def test_an_answer_to_an_earlier_ping_says_nothing_about_it() -> None:
    pulse = Pulse(100)
    pulse.ask(100)
    pulse.suspect()
    assert not pulse.due(101, 60)
    pulse.answered(1)
    assert pulse.due(101, 60)


def test_silence_is_counted_from_the_ping() -> None:
    pulse = Pulse(0)
    assert [pulse.look(now) for now in (10, 11, 12)] == [0, 0, 0]
    pulse.ask(20.5)
    assert [pulse.look(now) for now in (21, 22, 23)] == [0.5, 1.5, 2.5]
    pulse.answered(1)
    assert pulse.look(24) == 0
    pulse.ask(30)
    assert pulse.look(30.5) == 0.5


def test_an_answer_to_another_ping_does_not_count() -> None:
    pulse = Pulse(0)
    pulse.ask(0)
    pulse.answered(1)
    pulse.ask(60)
    for number in (1, 3, "2", None):
        pulse.answered(number)
    assert pulse.look(61) == 1
    pulse.answered(2)
    assert pulse.look(62) == 0


def test_the_time_in_which_the_master_was_held_up_does_not_count() -> None:
    pulse = Pulse(0)
    pulse.ask(0)
    assert pulse.look(1) == 1
    # All processes were frozen for an hour, the ping still unread.
    assert pulse.look(3601) == 2
    assert pulse.look(3602) == 3
