# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from gunicorn import sock
from gunicorn.errors import ConfigError, HaltServer


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock, "RETRY_DELAY", 0.01)


def conf(*addresses: Any, **settings: Any) -> Any:
    values: dict[str, Any] = {
        "address": list(addresses),
        "backlog": 64,
        "reuse_port": False,
        "umask": 0,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "is_ssl": False,
        "protocol": "http",
        "certfile": None,
        "keyfile": None,
    }
    return SimpleNamespace(**{**values, **settings})


@pytest.fixture
def opened() -> Iterator[Any]:
    """Creates listeners that are closed when the test is over."""
    made: list[Any] = []

    def create(*addresses: Any, fds: Any = None, **settings: Any) -> list[Any]:
        listeners = sock.create_sockets(conf(*addresses, **settings), mock.Mock(), fds)
        made.extend(listeners)
        return listeners

    yield create
    sock.close_sockets(made)


def served(listener: Any) -> bool:
    """A client's connection arrives at *listener*."""
    with socket.socket(listener.FAMILY) as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.close()
    return True


def test_a_backlog_is_as_long_as_it_likes(opened: Any) -> None:
    (listener,) = opened(("127.0.0.1", 0), backlog=2**63 - 1)
    assert served(listener)


@pytest.mark.parametrize(
    "address, expected",
    [
        (("127.0.0.1", 80), sock.TCPSocket),
        (("localhost", 80), sock.TCPSocket),
        (("::1", 80), sock.TCP6Socket),
        (("::1", 80, 0, 0), sock.TCP6Socket),
        ("/run/x.sock", sock.UnixSocket),
        (b"/run/x.sock", sock.UnixSocket),
    ],
)
def test_the_class_of_an_address(address: Any, expected: type) -> None:
    assert sock._sock_type(address) is expected


@pytest.mark.parametrize("address", [5, None, ["127.0.0.1", 80]])
def test_what_is_no_address(address: Any) -> None:
    with pytest.raises(TypeError):
        sock._sock_type(address)


def test_tcp(opened: Any) -> None:
    [listener] = opened(("127.0.0.1", 0))
    _, port = listener.getsockname()
    assert str(listener) == f"http://127.0.0.1:{port}" and port
    assert listener.cfg_addr == ("127.0.0.1", 0)
    assert listener.FAMILY == socket.AF_INET
    assert not listener.getblocking()
    assert os.get_inheritable(listener.fileno())
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert served(listener)


def test_ipv6(opened: Any) -> None:
    [listener] = opened(("::1", 0), is_ssl=True)
    assert str(listener) == f"https://[::1]:{listener.getsockname()[1]}"
    assert served(listener)


@pytest.mark.parametrize(("is_ssl", "scheme"), [(False, "uwsgi"), (True, "suwsgi")])
def test_uwsgi(opened: Any, is_ssl: bool, scheme: str) -> None:
    [listener] = opened(("127.0.0.1", 0), is_ssl=is_ssl, protocol="uwsgi")
    assert str(listener) == f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"


def test_several(opened: Any, short_dir: Path) -> None:
    listeners = opened(("127.0.0.1", 0), str(short_dir / "s"), ("::1", 0))
    assert [type(listener) for listener in listeners] == [sock.TCPSocket, sock.UnixSocket, sock.TCP6Socket]
    assert all(map(served, listeners))


@pytest.mark.parametrize("umask, mode", [(0, 0o777), (0o117, 0o660), (0o077, 0o700)])
def test_the_mode_of_a_unix_socket(opened: Any, short_dir: Path, umask: int, mode: int) -> None:
    before = os.umask(0o22)
    os.umask(before)
    path = short_dir / "s"
    [listener] = opened(str(path), umask=umask)
    assert str(listener) == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.umask(before) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_the_owner_of_a_unix_socket(opened: Any, short_dir: Path) -> None:
    opened(str(short_dir / "s"), uid=65534, gid=65534)
    info = (short_dir / "s").stat()
    assert (info.st_uid, info.st_gid) == (65534, 65534)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_what_takes_the_place_of_a_unix_socket_is_not_given_away(
    opened: Any, short_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    secret, path = short_dir / "secret", short_dir / "s"
    secret.touch()

    class Raced(sock.UnixSocket):
        def take_path(self) -> None:
            super().take_path()
            path.unlink()
            os.link(secret, path) if kind == "hard link" else path.symlink_to(secret)

    monkeypatch.setattr(sock, "UnixSocket", Raced)
    with pytest.raises(sock.HaltServer, match="replaced as soon as it was made"):
        opened(str(path), uid=65534, gid=65534)
    assert secret.stat().st_uid == 0


def test_a_stale_file_is_replaced(opened: Any, short_dir: Path) -> None:
    path = str(short_dir / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    [listener] = opened(path)
    assert served(listener)


def test_a_live_socket_is_left_alone(opened: Any, short_dir: Path) -> None:
    path = str(short_dir / "s")
    [listener] = opened(path)
    with pytest.raises(HaltServer, match=f"unix:{path}.*in use") as halt:
        opened(path)
    assert halt.value.exit_status == 1
    while True:
        # The attempts have left connections that nobody uses.
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            break
    assert served(listener)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_path_that_is_something_else(opened: Any, short_dir: Path, kind: str) -> None:
    path = short_dir / "s"
    path.mkdir() if kind == "directory" else path.write_text("precious")
    with pytest.raises(HaltServer, match="not a socket"):
        opened(str(path))
    assert path.exists()


@pytest.mark.parametrize("path", ["/nothing/of/that/name", "/tmp/" + "x" * 200])
def test_a_path_that_cannot_be_made(opened: Any, path: str) -> None:
    with pytest.raises(HaltServer, match=f"unix:{path}"):
        opened(path)


def test_an_address_in_use_is_tried_again(short_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = taken.getsockname()
        path = short_dir / "s"
        log = mock.Mock()
        fds = len(os.listdir("/dev/fd"))
        with pytest.raises(HaltServer, match=f"127.0.0.1:{address[1]}.*in use") as halt:
            sock.create_sockets(conf(str(path), address), log)
        assert halt.value.exit_status == 1
        assert log.warning.call_count == sock.ATTEMPTS - 1
        # The ones made before it are gone again.
        assert not path.exists()
        assert len(os.listdir("/dev/fd")) == fds


def test_an_address_that_becomes_free(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    monkeypatch.setattr("time.sleep", lambda seconds: taken.close())
    [listener] = opened(taken.getsockname())
    assert served(listener)


@pytest.mark.parametrize(
    "address, said", [(("192.0.2.1", 0), "no interface"), (("host.invalid", 0), "host.invalid")]
)
def test_other_errors_are_final(address: Any, said: str) -> None:
    log = mock.Mock()
    with pytest.raises(HaltServer, match=said):
        sock.create_sockets(conf(address), log)
    assert not log.warning.called


@pytest.mark.skipif(os.getuid() != 0, reason="the test has to be able to drop privileges")
def test_a_port_that_needs_privileges() -> None:
    script = (
        "import os, types\n"
        "from gunicorn import sock\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "c = types.SimpleNamespace(address=['/s'], backlog=5, reuse_port=False, is_ssl=False, umask=0,\n"
        "    uid=65534, gid=65534)\n"
        "try:\n"
        "    sock.create_sockets(c, None)\n"
        "except BaseException as exc:\n"
        "    print(exc.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "unix:/s" in done.stdout and "privileges" in done.stdout


def test_an_inherited_socket(opened: Any) -> None:
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        fd = os.dup(given.fileno())
    # The configured address does not matter then.
    [listener] = opened(("127.0.0.1", 1), fds=[fd])
    assert listener.fileno() == fd
    assert listener.cfg_addr == listener.getsockname()
    assert served(listener)


def test_an_inherited_unix_socket_is_removed_by_its_last_owner(opened: Any, short_dir: Path) -> None:
    path = short_dir / "s"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        fds = [os.dup(given.fileno()) for _ in range(2)]
    listeners = opened(fds=fds[:1])
    assert served(listeners[0])
    sock.close_sockets(listeners, True)
    assert not path.exists()
    os.close(fds[1])


def test_a_descriptor_beside_an_address(opened: Any, short_dir: Path) -> None:
    path = short_dir / "given"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        fd = os.dup(given.fileno())
    listeners = opened(fd, ("127.0.0.1", 0))
    assert [type(listener) for listener in listeners] == [sock.UnixSocket, sock.TCPSocket]
    assert all(map(served, listeners))
    # Whoever passed it in has made the file, and keeps it.
    sock.close_sockets(listeners, True)
    assert path.exists()


def test_a_descriptor_that_is_no_socket(opened: Any) -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(HaltServer, match=f"descriptor {read} "):
            opened(read)
        os.fstat(read)
        with pytest.raises(HaltServer, match="descriptor 999 "):
            opened(fds=[999])
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="not on this system")
def test_reuse_port(opened: Any) -> None:
    [one] = opened(("127.0.0.1", 0), reuse_port=True)
    [two] = opened(one.getsockname(), reuse_port=True)
    assert one.getsockname() == two.getsockname()


class TestClose:
    def test_all_are_closed(self) -> None:
        listeners = [mock.Mock(), mock.Mock()]
        listeners[0].getsockname.return_value = ("127.0.0.1", 80)
        listeners[1].getsockname.return_value = ("::1", 80, 0, 0)
        sock.close_sockets(listeners)
        for listener in listeners:
            listener.close.assert_called_once_with()

    @pytest.mark.parametrize("unlink", [True, False])
    def test_the_file_of_a_unix_socket(self, unlink: bool) -> None:
        listener = mock.Mock()
        listener.getsockname.return_value = "/run/x.sock"
        with mock.patch("os.unlink") as os_unlink:
            sock.close_sockets([listener], unlink)
        listener.close.assert_called_once_with()
        assert os_unlink.call_args_list == ([mock.call("/run/x.sock")] if unlink else [])

    def test_twice(self, opened: Any) -> None:
        listeners = opened(("127.0.0.1", 0))
        sock.close_sockets(listeners)
        sock.close_sockets(listeners)
        listeners[0].close()

    def test_the_file_of_a_later_server_stays(self, opened: Any, short_dir: Path) -> None:
        path = short_dir / "s"
        [one] = opened(str(path))
        path.unlink()
        [two] = opened(str(path))
        sock.close_sockets([one])
        assert path.exists()
        sock.close_sockets([two])
        assert not path.exists()

    def test_a_file_that_is_gone(self, opened: Any, short_dir: Path) -> None:
        path = short_dir / "s"
        listeners = opened(str(path))
        path.unlink()
        sock.close_sockets(listeners)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the abstract namespace is Linux's")
    def test_a_name_without_a_file(self, opened: Any) -> None:
        name = f"\0gunicorn-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as given:
            given.bind(name)
            fd = os.dup(given.fileno())
        listeners = opened(fds=[fd])
        assert served(listeners[0])
        sock.close_sockets(listeners)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-out", cert, "-keyout", key]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


def tls(certificate: tuple[str, str], **settings: Any) -> Any:
    values: dict[str, Any] = {
        "is_ssl": True,
        "certfile": certificate[0],
        "keyfile": certificate[1],
        "ca_certs": None,
        "cert_reqs": ssl.CERT_NONE,
        "ciphers": None,
        "suppress_ragged_eofs": True,
        "do_handshake_on_connect": False,
        "proxy_protocol": "off",
        "ssl_context": lambda config, default_ssl_context_factory: default_ssl_context_factory(),
    }
    return conf(**{**values, **settings})


class TestTls:
    def test_context(self, certificate: tuple[str, str]) -> None:
        config = tls(certificate, ca_certs=certificate[0], cert_reqs=ssl.CERT_REQUIRED, ciphers="AES256+ECDH")
        context = sock.ssl_context(config)
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert {c["protocol"] for c in context.get_ciphers()} and len(context.get_ca_certs()) == 1
        assert sock.ssl_context(tls(certificate)).verify_mode == ssl.CERT_NONE

    def test_hook(self, certificate: tuple[str, str]) -> None:
        def hook(config: Any, default_ssl_context_factory: Any) -> ssl.SSLContext:
            assert config is given
            context: ssl.SSLContext = default_ssl_context_factory()
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            return context

        given = tls(certificate, ssl_context=hook)
        assert sock.ssl_context(given).minimum_version == ssl.TLSVersion.TLSv1_3

    def test_wrap(self, certificate: tuple[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, sock.ssl_wrap_socket(ours, tls(certificate)) as wrapped:
            assert wrapped.server_side and not wrapped.do_handshake_on_connect
            assert wrapped.suppress_ragged_eofs

    @pytest.mark.parametrize("name", ["certfile", "keyfile"])
    def test_a_file_that_is_not_there(self, certificate: tuple[str, str], name: str) -> None:
        config = tls(certificate, **{name: "/nothing/of/that/name", "address": [("127.0.0.1", 0)]})
        with pytest.raises(HaltServer, match=f"{name} '/nothing"):
            sock.create_sockets(config, mock.Mock())

    @pytest.mark.parametrize(
        "settings, said",
        [
            ({"certfile": "junk"}, "certfile .*junk' with keyfile .*PEM"),
            ({"keyfile": "junk"}, "certfile .* with keyfile .*junk'.*PEM"),
            ({"keyfile": None}, "certfile .*PEM"),
            ({"certfile": None}, "keyfile is set, but certfile is not"),
            ({"certfile": "empty"}, "certfile .*empty' is empty"),
            ({"keyfile": "other.pem"}, "the key belongs to another certificate"),
            ({"keyfile": "locked.pem"}, "the key is encrypted"),
            ({"ca_certs": "junk"}, "ca_certs .*junk' cannot be used"),
            ({"ca_certs": "empty"}, "ca_certs .*empty' is empty"),
            ({"ca_certs": "missing"}, "ca_certs .*missing' does not exist"),
            ({"ca_certs": "."}, "ca_certs .* cannot be read: Is a directory"),
            ({"ciphers": "NONE-SUCH"}, "ciphers 'NONE-SUCH' cannot be used"),
            (
                {"ssl_context": lambda config, factory: 1 / 0},
                "the hook ssl_context failed: ZeroDivisionError",
            ),
        ],
    )
    def test_what_cannot_be_used_is_named_in_one_line(
        self, certificate: tuple[str, str], tmp_path: Path, settings: dict[str, Any], said: str
    ) -> None:
        (tmp_path / "junk").write_text("nonsense")
        (tmp_path / "empty").write_text("")
        key = settings.get("keyfile")
        if key in ("other.pem", "locked.pem"):
            lock = " -aes256 -pass pass:x" if key == "locked.pem" else ""
            command = f"openssl genpkey -algorithm RSA -out {tmp_path / key}{lock}"
            subprocess.run(command.split(), check=True, capture_output=True)
        files = ("certfile", "keyfile", "ca_certs")
        given = {k: str(tmp_path / v) if v and k in files else v for k, v in settings.items()}
        with pytest.raises(ConfigError, match=said) as told:
            sock.check_tls(tls(certificate, uid=os.geteuid(), gid=os.getegid(), **given))
        assert "\n" not in str(told.value)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can run workers as somebody else")
    def test_a_key_that_the_workers_may_not_read(self, certificate: tuple[str, str]) -> None:
        os.chmod(certificate[1], 0o600)
        config = tls(certificate, uid=65534, gid=65534, initgroups=False)
        with pytest.raises(ConfigError, match=r"file .* cannot be read: Permission denied .as user 65534"):
            sock.check_tls(config)
        assert os.geteuid() == 0
        sock.check_tls(tls(certificate, uid=0, gid=0, initgroups=False))


def test_ssl_is_only_imported_where_it_is_used() -> None:
    script = "import sys, gunicorn.sock; print('ssl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("address", [b"127.0.0.1:8000", "127.0.0.1:8000"])
def test_a_replaced_constructor(address: Any) -> None:
    with mock.patch("os.stat"), mock.patch.object(sock.UnixSocket, "__init__", lambda *args: None):
        listeners = sock.create_sockets(mock.Mock(address=[address]), mock.Mock())
    assert [type(listener) for listener in listeners] == [sock.UnixSocket]
