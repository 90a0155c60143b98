# SPDX-License-Identifier: MIT
"""The pair of sockets between arbiter and manager."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest
from companiontools import Script

from gunicorn.companion.server.link import Link


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


def test_the_end_is_seen_after_what_was_said_last(pair):
    ours, theirs = pair
    theirs.send({"state": 1})
    theirs.close()
    assert list(ours.receive()) == [{"state": 1}]
    assert ours.ended
    # To nobody: nothing is kept, nothing is raised.
    assert ours.send({"n": 1}) is True
    assert list(ours.receive()) == []


def test_a_message_cut_off_by_the_end_is_none(pair):
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


def test_of_messages_that_say_all_of_their_kind_only_the_last_is_kept(pair):
    ours, theirs = pair
    filling = "x" * 50_000
    sent = 0
    while ours.send_latest({"state": sent, "filling": filling}):
        sent += 1
    # The other end is busy; one more is under way, and of the rest the last of each kind is kept.
    for number in range(1000):
        assert not ours.send_latest({"state": -number, "filling": filling})
        assert not ours.send_latest({"pong": number})
    assert len(ours._unsent) + sum(map(len, ours._latest.values())) < 200_000
    received = []
    while not ours.flush():
        received += list(theirs.receive())
    received += list(theirs.receive())
    assert [message["state"] for message in received[: sent + 1]] == list(range(sent + 1))
    assert [next(iter(message.items())) for message in received[sent + 1 :]] == [
        ("state", -999),
        ("pong", 999),
    ]
