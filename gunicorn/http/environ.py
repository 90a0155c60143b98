# SPDX-License-Identifier: MIT
"""Build the environ of PEP 3333. Pure: the caller brings addresses and defaults."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from .errors import ConfigurationProblem
from .grammar import unquote_to_wsgi_str

Environ = dict[str, Any]
Address = Any  # a tuple for TCP, str or bytes for a Unix socket

_DEFAULT_PORTS = {"http": "80", "https": "443"}
_KEYS = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}
_KEYS_MAX = 1024


def header_key(name: str) -> str:
    """Return the key in an environ for the header *name*, which is in upper case."""
    key = _KEYS.get(name)
    if key is None:
        key = "HTTP_" + name.replace("-", "_")
        # Clients choose the names: the table must not grow with them.
        if len(_KEYS) < _KEYS_MAX and len(name) < 64:
            _KEYS[name] = key
    return key


def add_headers(environ: Environ, headers: Iterable[tuple[str, str]]) -> None:
    """Put *headers* (names in upper case) into *environ*, and join values of the same name."""
    exact: list[tuple[str, str]] = []
    for name, value in headers:
        key = _KEYS.get(name) or header_key(name)
        if key not in environ:
            environ[key] = value
        elif key.startswith("HTTP_"):
            # RFC 9110 section 5.3 joins by comma; a cookie string has its own separator (RFC 6265).
            environ[key] += ("; " if name == "COOKIE" else ",") + value
        if "_" in name:
            exact.append((key, value))
    # A trusted proxy sets a name with an underscore (or header_map lets all through). The client's own
    # "Remote-User" must not mix with the proxy's "REMOTE_USER".
    for key, value in exact:
        environ[key] = value


def split_script_name(path: str, script_name: str) -> tuple[str, str]:
    """Split *path* into SCRIPT_NAME and PATH_INFO, for an application mounted at *script_name*.

    Raises ConfigurationProblem for a path that lies outside.
    """
    path = unquote_to_wsgi_str(path)
    script_name = script_name.rstrip("/")
    if not script_name or not path.startswith("/"):  # "*" and CONNECT name no path
        return "", path
    rest = path[len(script_name) :]
    if not path.startswith(script_name) or (rest and not rest.startswith("/")):
        raise ConfigurationProblem(f"path {path!a} does not lie below SCRIPT_NAME {script_name!a}")
    return script_name, rest


def add_client(environ: Environ, client: Address) -> None:
    """Set REMOTE_ADDR, and REMOTE_PORT where the peer has one."""
    if isinstance(client, tuple):
        environ["REMOTE_ADDR"] = str(client[0])
        environ["REMOTE_PORT"] = str(client[1])
    else:
        environ["REMOTE_ADDR"] = client.decode("latin-1") if isinstance(client, bytes) else client or ""


@lru_cache(maxsize=64)
def split_server(server: Address) -> tuple[str, str] | None:
    """Return name and port of a listener's address; None for a Unix socket, which has neither."""
    if isinstance(server, tuple):
        return str(server[0]), str(server[1])
    if isinstance(server, str) and ":" in server and not server.startswith(("/", "@", "\0", "unix:")):
        name, _, port = server.rpartition(":")
        return name.strip("[]"), port
    return None


def add_server(environ: Environ, server: Address, scheme: str) -> None:
    """Set SERVER_NAME and SERVER_PORT, from the listener or, behind a Unix socket, from Host."""
    pair = split_server(server)
    if pair is None:
        name, port = split_host(environ.get("HTTP_HOST", ""))
        pair = name or "localhost", port or _DEFAULT_PORTS.get(scheme, "80")
    environ["SERVER_NAME"], environ["SERVER_PORT"] = pair


def split_host(host: str) -> tuple[str, str]:
    """Split the value of Host into host and port; an address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and "]" not in port else (host, "")
