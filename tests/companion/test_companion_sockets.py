# SPDX-License-Identifier: MIT
"""The sockets of `bind`: kept by the manager, handed over as the descriptors from 3 on."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import run_python

from gunicorn.companion.child.descriptors import most
from gunicorn.companion.server.keptsockets import KeptSockets
from gunicorn.companion.supervise.sockets import KeptSocket, Listeners


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners()
    yield made
    made.close_all()


def connect(sock: socket.socket) -> socket.socket:
    client = socket.socket(sock.family)
    client.settimeout(5)
    client.connect(sock.getsockname())
    return client


# -- in the manager --------------------------------------------------------------------


def test_a_client_waits_in_the_queue(listeners: Listeners) -> None:
    [sock] = listeners.open("web", ["127.0.0.1:0"])
    with connect(sock) as client:
        client.sendall(b"hello")
        assert listeners.open("web", ["127.0.0.1:0"]) == [sock]
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.recv(10) == b"hello"


def test_as_systemd_hands_them_over(listeners: Listeners) -> None:
    [sock] = listeners.open("web", ["127.0.0.1:0"])
    assert sock.getblocking() and os.get_blocking(sock.fileno())
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1


def test_the_order_is_that_of_the_addresses(listeners: Listeners, tmp_path: Path) -> None:
    addresses = ["127.0.0.1:0", f"unix:{tmp_path / 'a'}", "[::1]:0", f"unix:{tmp_path / 'b'}"]
    try:
        found = listeners.open("web", addresses)
    except OSError as exc:
        if "[::1]" in str(exc):
            pytest.skip("no IPv6")
        raise
    assert [sock.family for sock in found] == [
        socket.AF_INET,
        socket.AF_UNIX,
        socket.AF_INET6,
        socket.AF_UNIX,
    ]
    assert sorted(listeners.descriptors()) == sorted(sock.fileno() for sock in found)
    assert listeners.open("web", addresses[::-1]) == found[::-1]


def test_other_addresses_replace_those_that_are_named_no_more(listeners: Listeners, tmp_path: Path) -> None:
    first, second = listeners.open("web", ["127.0.0.1:0", f"unix:{tmp_path / 'a'}"])
    port = first.getsockname()
    kept, added = listeners.open("web", [f"unix:{tmp_path / 'a'}", f"unix:{tmp_path / 'b'}"])
    assert kept is second and added.fileno() in listeners.descriptors()
    with socket.socket() as client:
        assert client.connect_ex(port) == errno.ECONNREFUSED
    listeners.open("web", [])
    assert listeners.descriptors() == []
    assert os.listdir(tmp_path) == []


def test_closing_takes_the_files_away(listeners: Listeners, tmp_path: Path) -> None:
    for name in "ab":
        listeners.open(name, [f"unix:{tmp_path / name}"])
    listeners.close("a")
    listeners.close("a")
    assert os.listdir(tmp_path) == ["b"]
    listeners.close_all()
    assert os.listdir(tmp_path) == []


def test_a_file_of_a_dead_server_is_replaced(listeners: Listeners, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    [sock] = listeners.open("web", [f"unix:{path}"])
    connect(sock).close()


@pytest.mark.parametrize(("umask", "mode"), [(0, 0o777), (0o117, 0o660), (0o077, 0o700)])
def test_the_mode_of_the_file(tmp_path: Path, umask: int, mode: int) -> None:
    made = Listeners(umask=umask)
    made.open("web", [f"unix:{tmp_path / 's'}"])
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    made.close_all()


def test_an_address_that_is_taken(listeners: Listeners, tmp_path: Path) -> None:
    [sock] = listeners.open("web", ["127.0.0.1:0"])
    port = sock.getsockname()[1]
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .* in use") as caught:
        listeners.open("other", [f"unix:{tmp_path / 'a'}", f"127.0.0.1:{port}"])
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.strerror is not None and caught.value.strerror.startswith("cannot listen")
    # Nobody will accept at the others of that start.
    assert listeners.descriptors() == [sock.fileno()]
    assert os.listdir(tmp_path) == []


def test_a_path_of_a_file(listeners: Listeners, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(OSError, match="something that is not a socket is there"):
        listeners.open("web", [f"unix:{tmp_path / 's'}"])
    with pytest.raises(OSError, match="cannot listen on unix:/nonexistent/s: No such file"):
        listeners.open("web", ["unix:/nonexistent/s"])
    assert (tmp_path / "s").read_text() == "mine"


def test_the_next_manager_goes_on_with_the_sockets(listeners: Listeners, tmp_path: Path) -> None:
    """Not with one whose file was removed: nobody could reach it."""
    kept = KeptSockets()

    def tell(message: dict[str, Any], fd: int | None) -> None:
        if "keep" in message:
            assert fd is not None
            which = message["keep"]
            assert which.pop("inode") == os.fstat(fd).st_ino
            kept.keep(fd=os.dup(fd), **which)
        else:
            kept.let_go(**message["let_go"])

    listeners.tell = tell
    addresses = ["127.0.0.1:0", f"unix:{tmp_path / 'a'}", f"unix:{tmp_path / 'b'}"]
    names = [sock.getsockname() for sock in listeners.open("web", addresses)]
    listeners.open("other", ["127.0.0.1:0"])
    listeners.close("other")
    listeners.hand_over()
    assert listeners.descriptors() == []
    (tmp_path / "b").unlink()
    second = Listeners(tell=tell, kept=kept.inherited())
    try:
        assert second.groups() == ["web"]
        connect(second.open("web", addresses[:2])[0]).close()
        found = second.open("web", addresses)
        assert [sock.getsockname() for sock in found] == names
        assert all(sock.getblocking() and not sock.get_inheritable() for sock in found)
        for sock in found:
            connect(sock).close()
    finally:
        second.close_all()
    assert kept.inherited() == [] and os.listdir(tmp_path) == []


def test_what_is_no_listener_any_more_is_opened_anew() -> None:
    told: list[dict[str, Any]] = []
    with open(os.devnull) as file:
        kept = KeptSocket("web", "127.0.0.1:0", None, file.fileno())
        made = Listeners(tell=lambda message, fd: told.append(message), kept=[kept])
        assert told == [{"let_go": {"group": "web", "address": "127.0.0.1:0"}}]
        connect(made.open("web", ["127.0.0.1:0"])[0]).close()
        made.close_all()


def test_another_user_makes_the_sockets_anew(listeners: Listeners) -> None:
    kept = KeptSockets()
    kept.begin([1, 1, 0])
    [sock] = listeners.open("web", ["127.0.0.1:0"])
    kept.keep("web", "127.0.0.1:0", None, os.dup(sock.fileno()))
    kept.begin([1, 1, 0])
    assert len(kept._sockets) == 1
    kept.begin([2, 1, 0])
    assert kept.inherited() == []


def test_a_shorter_queue_of_the_program_before_does_not_last(listeners: Listeners) -> None:
    [sock] = listeners.open("web", ["127.0.0.1:0"])
    sock.listen(0)
    listeners.open("web", ["127.0.0.1:0"])
    clients = [connect(sock) for _ in range(50)]
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("binds", "count"),
    [
        ([], 0),
        ([None, []], 0),
        (["127.0.0.1:1"], 1),
        ([["a:1", "b:1"], ("c:1",)], 2),
        ([5, {"a": 1}, ["a:1"]], 1),
    ],
)
def test_the_most_sockets_of_one(binds: list[Any], count: int) -> None:
    assert most(["no dict", {"name": "a"}, *({"bind": bind} for bind in binds)]) == count


# -- the numbers from 3 on, in a process of its own -----------------------------------------

BEGIN = """
import json, os, socket
from gunicorn.companion.child import descriptors
os.closerange(3, 100)
def kinds(until=10):
    def kind(number):
        try:
            target = os.readlink(f"/proc/self/fd/{number}").partition(":")[0]
        except OSError:
            return None
        return f"{target} {'inherited' if os.get_inheritable(number) else 'own'}"
    return {n: k for n in range(3, until) if (k := kind(n))}
def tell(**more): print(json.dumps({"kinds": kinds(), **more}))
def port_at(number):
    sock = socket.socket(fileno=number)
    port = sock.getsockname()[1]
    sock.detach()
    return port
def listener():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock
"""

NULL = "/dev/null own"
HANDED = "socket inherited"


def told(code: str) -> dict[str, Any]:
    done = run_python(BEGIN + code)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    result["kinds"] = {int(number): kind for number, kind in result["kinds"].items()}
    return result


proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks at descriptors by /proc")


@proc
@pytest.mark.parametrize("closed", [[], [5], [9, 3, 6], [12, 3, 4], [8, 10, 9, 20]])
def test_many_are_closed_together(closed: list[int]) -> None:
    found = told(
        "for number in range(3, 13): os.dup2(0, number)\n"
        f"descriptors.close_all({closed})\n"
        "print(json.dumps({'kinds': {n: '' for n in range(3, 13) if descriptors.is_open(n)}}))\n"
    )
    assert sorted(found["kinds"]) == sorted({*range(3, 13)} - {*closed})


@proc
def test_reserved_numbers_are_given_to_nobody() -> None:
    found = told(
        "descriptors.reserve(2)\ndescriptors.reserve(2)\nfd = os.dup(0)\nos.close(fd)\ntell(next=fd)"
    )
    assert found == {"kinds": {3: NULL, 4: NULL}, "next": 5}


@proc
def test_nothing_is_reserved_without_a_socket() -> None:
    assert told("descriptors.reserve(0)\ntell()")["kinds"] == {}


@proc
def test_what_is_held_already_stays() -> None:
    found = told("os.pipe()\nos.close(4)\ndescriptors.reserve(2)\ndescriptors.release()\ntell()")
    assert found["kinds"] == {3: "pipe own"}


@proc
def test_release_closes_only_what_is_reserved() -> None:
    found = told("descriptors.reserve(3)\nos.close(4)\nr, w = os.pipe()\ndescriptors.release()\ntell(r=r)")
    assert found["r"] == 4 and found["kinds"] == {4: "pipe own", 6: "pipe own"}


@proc
def test_sockets_go_where_numbers_are_reserved() -> None:
    found = told(
        "descriptors.reserve(3)\n"
        "a, b = listener(), listener()\n"
        "ports = [sock.getsockname()[1] for sock in (a, b)]\n"
        "descriptors.hand_over([b.detach(), a.detach()])\n"
        "descriptors.release()\n"
        "there = [port_at(n) for n in (3, 4)]\n"
        "tell(same=there == ports[::-1])\n"
    )
    assert found == {"kinds": {3: HANDED, 4: HANDED}, "same": True}


@proc
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0]])
def test_sockets_that_lie_in_the_place_of_each_other(order: list[int]) -> None:
    found = told(
        f"""
socks = [listener() for _ in range(3)]
ports = [sock.getsockname()[1] for sock in socks]
fds = [sock.detach() for sock in socks]
order = {order}
for index, fd in enumerate(fds):
    if index not in order:
        os.close(fd)
descriptors.hand_over([fds[index] for index in order])
there = [port_at(n) for n in range(3, 3 + len(order))]
tell(before=fds, same=there == [ports[index] for index in order])
"""
    )
    assert found["before"] == [3, 4, 5] and found["same"]
    assert found["kinds"] == dict.fromkeys(range(3, 3 + len(order)), HANDED)


OCCUPIED = """
import tempfile
descriptors.reserve(1)
file = open("/etc/passwd")
sock = listener()
descriptors._RESERVED.add(9)
"""


@proc
def test_the_application_keeps_what_it_holds() -> None:
    found = told(
        OCCUPIED
        + """
other = listener()
try:
    descriptors.hand_over([sock.fileno(), other.fileno()])
except descriptors.Occupied as exc:
    tell(error=str(exc))
"""
    )
    assert found["error"] == (
        "descriptor 4, needed for a socket of 'bind', is held by /etc/passwd of the application;"
        " restart the server to free it"
    )
    # Before anything was changed.
    assert found["kinds"] == {3: NULL, 4: "/etc/passwd own", 5: "socket own", 6: "socket own"}


@proc
def test_what_came_with_the_server_is_told_apart() -> None:
    code = "os.set_inheritable(os.open('/etc/passwd', os.O_RDONLY), True)\nsock = listener()\n"
    hand = "try: descriptors.hand_over([sock.fileno()])\n"
    hand += "except descriptors.Occupied as exc: tell(error=str(exc))"
    assert told(code + hand)["error"].endswith("is held by /etc/passwd, which the server was started with")


@proc
def test_before_an_exec_nobody_keeps_anything() -> None:
    found = told(
        OCCUPIED + "descriptors.hand_over([os.dup(sock.fileno()), sock.detach()], force=True)\ntell()"
    )
    assert found["kinds"] == {3: HANDED, 4: HANDED}


@proc
def test_a_descriptor_in_the_way_is_lifted() -> None:
    found = told(
        "fd, w = os.pipe()\ntell(fds=[descriptors.lift(fd, n) for n in (0,)], w=descriptors.lift(w, 4))"
    )
    assert found["fds"] == [3] and found["w"] == 7
