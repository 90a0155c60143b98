# SPDX-License-Identifier: MIT
"""Listening sockets: created from configured addresses, or inherited by descriptor."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gunicorn.errors import ConfigError, HaltServer
from gunicorn.unix import trust
from gunicorn.unix.process import failure_as

if TYPE_CHECKING:
    import ssl

# Attempts to bind at a start: a server that is just stopping still has its address.
ATTEMPTS = 5
RETRY_DELAY = 1.0


class BindError(Exception):
    """A listener cannot be made; the text says which one and why. *busy*: another attempt may succeed."""

    def __init__(self, text: str, busy: bool = False) -> None:
        super().__init__(text)
        self.busy = busy


class BaseSocket:
    """A listening, non-blocking stream socket; other attributes come from ``sock``, the real one.

    ``cfg_addr`` is the configured *address*. *fd*: the descriptor of an existing, bound socket to take over.
    The socket is inheritable for a successor started by exec; a process that runs application code sets
    close-on-exec for itself.
    """

    FAMILY: socket.AddressFamily
    #: Device and inode of the file that is this listener's to remove; None without one.
    file: tuple[int, int] | None = None

    def __init__(self, address: Any, conf: Any, log: Any, fd: int | None = None) -> None:
        self.log = log
        self.conf = conf
        self.cfg_addr = address
        sock = socket.socket(self.FAMILY, socket.SOCK_STREAM) if fd is None else socket.socket(fileno=fd)
        try:
            self.sock: socket.socket | None = self.set_options(sock, bound=fd is not None)
        except BaseException:
            sock.close()
            raise

    def __str__(self) -> str:
        return f"<socket {self._socket().fileno()}>"

    def __getattr__(self, name: str) -> Any:
        # Also called before __init__ is done, when there is no socket yet.
        if name == "sock":
            raise AttributeError(name)
        return getattr(self.sock, name)

    def _socket(self) -> socket.socket:
        if self.sock is None:
            raise ValueError("the listener is closed")
        return self.sock

    def set_options(self, sock: socket.socket, bound: bool = False) -> socket.socket:
        """Make *sock* a listener; bind it unless it is *bound*."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not bound:
            if self.conf.reuse_port and self.FAMILY != socket.AF_UNIX:
                _set_reuse_port(sock)
            self.bind(sock)
        # Workers race for each connection; the losers must not block.
        sock.setblocking(False)
        sock.set_inheritable(True)
        # The kernel takes an int, and lowers it to its own limit.
        sock.listen(min(self.conf.backlog, 2**31 - 1))
        return sock

    def bind(self, sock: socket.socket) -> None:
        """Bind *sock* to the configured address."""
        sock.bind(self.cfg_addr)

    def close(self) -> None:
        """Close this process's descriptor, once."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()

    def owns_path(self) -> bool:
        """Whether to remove the file of this listener when it is closed for good."""
        return False

    def take_path(self) -> None:
        """Become the owner of the file of an inherited socket."""


def _set_reuse_port(sock: socket.socket) -> None:
    option = getattr(socket, "SO_REUSEPORT", None)
    if option is None:
        raise BindError("reuse_port is not available on this system")
    sock.setsockopt(socket.SOL_SOCKET, option, 1)


class TCPSocket(BaseSocket):
    """A listener on an IPv4 address and port, shown as a URL."""

    FAMILY = socket.AF_INET

    def __str__(self) -> str:
        schemes = {"http": ("http", "https"), "uwsgi": ("uwsgi", "suwsgi")}  # as nginx writes them
        return f"{schemes[self.conf.protocol][self.conf.is_ssl]}://{_shown(self._socket().getsockname())}"

    def set_options(self, sock: socket.socket, bound: bool = False) -> socket.socket:
        # Accepted connections inherit it. A response in several writes must not wait for an ACK (RFC 896).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return super().set_options(sock, bound=bound)


class TCP6Socket(TCPSocket):
    """The same for IPv6. ``[::]`` also takes IPv4 where the system maps it."""

    FAMILY = socket.AF_INET6


class UnixSocket(BaseSocket):
    """A listener on a path, with the mode from ``umask`` and the configured owner.

    It replaces the stale file of a dead server, but no socket on which somebody listens.
    """

    FAMILY = socket.AF_UNIX

    def __init__(self, addr: Any, conf: Any, log: Any, fd: int | None = None) -> None:
        self.file = None
        if fd is None:
            trust.remove_stale_socket(addr)
        super().__init__(addr, conf, log, fd=fd)

    def __str__(self) -> str:
        return f"unix:{os.fsdecode(self.cfg_addr)}"

    def bind(self, sock: socket.socket) -> None:
        if not _is_abstract(self.cfg_addr):
            trust.check_path(os.fsdecode(self.cfg_addr))
        # bind() creates the file: with its final mode from the beginning.
        before = os.umask(self.conf.umask)
        try:
            sock.bind(self.cfg_addr)
        finally:
            os.umask(before)
        self.take_path()
        if not _is_abstract(self.cfg_addr):
            trust.give_socket(os.fsdecode(self.cfg_addr), (self.conf.uid, self.conf.gid))

    def take_path(self) -> None:
        self.file = file_identity(self.cfg_addr)

    def owns_path(self) -> bool:
        return self.file is not None and self.file == file_identity(self.cfg_addr)


def file_identity(path: Any) -> tuple[int, int] | None:
    """Device and inode of the file at *path*; None if there is none."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        # ValueError: a name of the abstract namespace, which begins with NUL and has no file.
        return None
    return info.st_dev, info.st_ino


def _sock_type(addr: Any) -> type[BaseSocket]:
    """The class for an address of the socket calls: a tuple or a path."""
    if isinstance(addr, tuple):
        # No host name contains a colon, every IPv6 address does.
        return TCP6Socket if ":" in addr[0] else TCPSocket
    if isinstance(addr, str | bytes):
        return UnixSocket
    raise TypeError(f"{addr!r} is neither (host, port) nor the path of a Unix socket")


def create_sockets(conf: Any, log: Any, fds: Iterable[int] | None = None) -> list[BaseSocket]:
    """The listeners for ``conf.address``, or for the sockets *fds*.

    If one cannot be made it closes all and raises HaltServer with exit status 1.
    """
    try:
        _check_certificates(conf)
        if fds:
            listeners = [_from_fd(fd, conf, log) for fd in fds]
            for listener in listeners:
                listener.take_path()
            return listeners
        return open_listeners(conf.address, conf, log)
    except BindError as exc:
        raise HaltServer(str(exc), 1) from exc


def open_listeners(
    addresses: Sequence[Any], conf: Any, log: Any, attempts: int = ATTEMPTS
) -> list[BaseSocket]:
    """A listener for each address (an int is an open descriptor). If one fails, all are closed: BindError.

    It tries an address in use *attempts* times and sleeps in between.
    """
    listeners: list[BaseSocket] = []
    try:
        for address in addresses:
            listeners.append(_open_patiently(address, conf, log, attempts))
    except BaseException:
        close_sockets(listeners)
        raise
    return listeners


def _open_patiently(address: Any, conf: Any, log: Any, attempts: int) -> BaseSocket:
    for left in range(attempts - 1, -1, -1):
        try:
            return _open(address, conf, log)
        except BindError as exc:
            if not exc.busy or not left:
                raise
            log.warning("%s; trying again in %g s", exc, RETRY_DELAY)
        time.sleep(RETRY_DELAY)
    raise AssertionError("at least one attempt is made")


def _open(address: Any, conf: Any, log: Any) -> BaseSocket:
    if isinstance(address, int):
        return _from_fd(address, conf, log)
    try:
        return _sock_type(address)(address, conf, log)
    except OSError as exc:
        raise BindError(
            f"cannot listen on {_shown(address)}: {_explain(exc)}", busy=exc.errno == errno.EADDRINUSE
        ) from exc


def _from_fd(fd: int, conf: Any, log: Any) -> BaseSocket:
    try:
        # Only for a look: the listener closes the descriptor.
        looked = socket.socket(fileno=fd)
        try:
            name = looked.getsockname()
        finally:
            looked.detach()
        return _sock_type(name)(name, conf, log, fd=fd)
    except OSError as exc:
        raise BindError(f"descriptor {fd} is not a socket to listen on: {exc.strerror or exc}") from exc


def _explain(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"{os.strerror(exc.errno)} (is another server running there?)"
    reason = exc.strerror or str(exc)
    if exc.errno in (errno.EACCES, errno.EPERM) and not isinstance(exc, trust.Untrusted):
        return f"{reason} (ports below 1024, and directories of others, need privileges)"
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"{reason} (no interface of this host has that address)"
    return reason


def _shown(address: Any) -> str:
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{os.fsdecode(address)}"


def _check_certificates(conf: Any) -> None:
    if not conf.is_ssl:
        return
    for name in ("certfile", "keyfile"):
        path = getattr(conf, name)
        if path and not os.path.exists(path):
            raise BindError(f"{name} {path!r} does not exist")


def close_sockets(listeners: Iterable[Any], unlink: bool = True) -> None:
    """Close *listeners*; with *unlink*, remove the files that they own."""
    for listener in listeners:
        if listener.sock is None:
            continue
        name = listener.getsockname()
        removable = (
            unlink and _sock_type(name) is UnixSocket and not _is_abstract(name) and listener.owns_path()
        )
        listener.close()
        if removable:
            try:
                os.unlink(name)
            except OSError:
                # It is gone, or the user has no right to the directory any more.
                pass


def _is_abstract(name: str | bytes) -> bool:
    return not name or name[0] in (0, "\0")


def ssl_context(conf: Any) -> ssl.SSLContext:
    """Return the TLS context for *conf*, from the ``ssl_context`` hook.

    The hook gets the configuration and a function that makes the default context from the settings. With
    ``proxy_protocol`` its sockets take a PROXY header before the handshake. Raises ConfigError with the wrong
    setting.
    """
    step = _HOOK

    def default_ssl_context_factory() -> ssl.SSLContext:
        nonlocal step
        import ssl

        step = "ca_certs"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=conf.ca_certs)
        step = "certfile"
        # Without a callback OpenSSL asks for the password on the terminal, in each process.
        context.load_cert_chain(certfile=conf.certfile, keyfile=conf.keyfile, password=_no_password)
        context.verify_mode = conf.cert_reqs
        step = "ciphers"
        if conf.ciphers:
            context.set_ciphers(conf.ciphers)
        step = _HOOK
        return context

    hook: Callable[[Any, Callable[[], ssl.SSLContext]], ssl.SSLContext] = conf.ssl_context
    try:
        context = hook(conf, default_ssl_context_factory)
        context.sslsocket_class = tls_socket_class(conf, context.sslsocket_class)
    except Exception as exc:
        raise ConfigError(_explain_tls(conf, step, exc)) from exc
    return context


_HOOK = "the hook ssl_context"


def _no_password() -> str:
    raise ValueError("the key is encrypted, and the server cannot ask for the password")


def _explain_tls(conf: Any, step: str, exc: Exception) -> str:
    """One line for an error at *step* of making a TLS context: the setting, the file, the reason."""
    text = " ".join(str(exc).split())
    if step == _HOOK:
        return f"{step} failed: {type(exc).__name__}: {text}"
    if step == "ciphers":
        return f"ciphers {conf.ciphers!r} cannot be used: {text}"
    names = ["ca_certs"] if step == "ca_certs" else ["certfile", "keyfile"]
    for name in names:
        path = getattr(conf, name)
        if not path:
            continue
        try:
            # OpenSSL does not name the file that it cannot read.
            with open(path, "rb") as file:
                empty = not file.read(1)
        except FileNotFoundError:
            return f"{name} {path!r} does not exist"
        except OSError as error:
            return f"{name} {path!r} cannot be read: {error.strerror}"
        if empty:
            return f"{name} {path!r} is empty"
    if step == "certfile" and not conf.certfile:
        return "keyfile is set, but certfile is not"
    reason = getattr(exc, "reason", None) or ""
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        text = "the key belongs to another certificate"
    elif step == "certfile" and ("PEM" in reason or "PEM" in text):
        text = f"no certificate with its private key was found in PEM form ({text})"
    shown = " with ".join(f"{name} {getattr(conf, name)!r}" for name in names if getattr(conf, name))
    return f"{shown} cannot be used: {text}"


def check_tls(conf: Any) -> None:
    """Make the TLS context once, with the rights of a worker. Raises ConfigError."""
    if not conf.is_ssl:
        return
    # Import it before forks: the workers' user may have no right to read Python's library.
    import ssl  # noqa: F401

    if os.geteuid() == 0 and (conf.uid or conf.gid):
        # Root can read every key; the workers' user perhaps not.
        reason = failure_as(conf.uid, conf.gid, conf.initgroups, lambda: ssl_context(conf))
        if reason:
            raise ConfigError(f"{reason} (as user {conf.uid}, group {conf.gid}, which the workers run as)")
    else:
        ssl_context(conf)


def tls_socket_class(conf: Any, base: Any) -> Any:
    """*base*, a class of TLS sockets; with ``proxy_protocol`` a subclass that reads that protocol first."""
    if conf.proxy_protocol == "off":
        return base
    from gunicorn.http.proxytls import proxied_class

    return proxied_class(base, conf)


def ssl_wrap_socket(sock: socket.socket, conf: Any) -> ssl.SSLSocket:
    """*sock* as the server's end of a TLS connection."""
    return ssl_context(conf).wrap_socket(
        sock,
        server_side=True,
        suppress_ragged_eofs=conf.suppress_ragged_eofs,
        do_handshake_on_connect=conf.do_handshake_on_connect,
    )
