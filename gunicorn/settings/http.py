# SPDX-License-Identifier: MIT
"""Settings for limits on requests, trusted proxies, and exceptions from the standard."""

from __future__ import annotations

from typing import Any

from gunicorn.errors import ConfigError
from gunicorn.settings.base import SECURITY, SERVER_MECHANICS, Setting
from gunicorn.settings.kinds import Count, Flag
from gunicorn.settings.validators import (
    FALSE_WORDS,
    TRUE_WORDS,
    one_of,
    validate_bool,
    validate_dict,
    validate_string,
)

HEADER_MAP_WAYS = ("drop", "refuse", "dangerous")
PROTOCOLS = ("http", "uwsgi")
PROXY_PROTOCOL_MODES = ("off", "v1", "v2", "auto")
#: The words that may follow the flag ``--proxy-protocol``.
PROXY_PROTOCOL_WORDS = PROXY_PROTOCOL_MODES + TRUE_WORDS + FALSE_WORDS


def validate_proxy_protocol(val: Any) -> str:
    """One of PROXY_PROTOCOL_MODES; a boolean or None, as before Gunicorn 24, is ``auto`` or ``off``."""
    word = val.strip().lower() if isinstance(val, str) else val
    if word in PROXY_PROTOCOL_MODES:
        return str(word)
    try:
        return "auto" if validate_bool(val) else "off"
    except ValueError:
        raise ValueError(f"expected one of {', '.join(PROXY_PROTOCOL_MODES)}, not {val!r}") from None


def validate_protocol(val: Any) -> str:
    return one_of(*PROTOCOLS)(val.strip().lower() if isinstance(val, str) else val)


def check_protocol(cfg: Any) -> None:
    """Raise ConfigError if the worker class, or another setting, does not go with ``protocol``."""
    if cfg.protocol == "http":
        return
    worker_class = cfg.worker_class
    if not (hasattr(worker_class, "speaks") and worker_class.speaks(cfg.protocol)):
        raise ConfigError(
            f'protocol = "{cfg.protocol}" works under sync, gthread and gevent, not under the worker class '
            f"{cfg.worker_class_str}; choose one of these, or let the proxy speak HTTP (nginx: proxy_pass)"
        )
    if cfg.proxy_protocol != "off":
        raise ConfigError(
            f'proxy_protocol does not go with protocol = "{cfg.protocol}", in which REMOTE_ADDR names the '
            'client; set proxy_protocol = "off"'
        )


def validate_string_to_list(val: Any) -> list[str]:
    """A list from comma-separated text, without blanks around the items and without empty ones."""
    text = validate_string(val)
    if not text:
        return []
    return [item.strip() for item in text.split(",") if item.strip()]


def validate_string_to_addr_list(val: Any) -> list[str]:
    """A list of IP addresses or networks from comma-separated text; ``*`` is any address."""
    addresses = validate_string_to_list(val)
    for address in addresses:
        if address not in ("*", "127.0.0.1", "::1"):
            _check_ip(address)
    return addresses


def _check_ip(text: str) -> None:
    import ipaddress  # the defaults do not need it

    if "/" in text:
        ipaddress.ip_network(text)
    else:
        ipaddress.ip_address(text)


def validate_header_map_behaviour(val: Any) -> str | None:
    return None if val is None else one_of(*HEADER_MAP_WAYS)(val.lower() if isinstance(val, str) else val)


def validate_scheme_headers(val: Any) -> dict[Any, Any]:
    fields = validate_dict(val)
    for name in fields:
        if not isinstance(name, str):
            raise TypeError(f"expected the names of header fields, not {name!r}")
    return fields


class LimitRequestLine(Count, section=SECURITY, default=4094):
    """The largest size of the request line (method, target, version) in bytes, at most 8190; 0 for no limit.

    A longer line gets 414. Raise the limit for applications with very long query strings.
    """


class LimitRequestFields(Count, section=SECURITY, default=100):
    """The largest number of header fields in a request, at most 32768.

    A request with more gets 431.
    """


class LimitRequestFieldSize(Count, section=SECURITY, flags="--limit-request-field_size", default=8190):
    """The largest size of one header field in bytes; 0 for no limit.

    A larger field gets 431. Raise the limit if cookies or tokens are large, such as those of Kerberos.
    Without a limit a client decides how much memory it takes.
    """


class SecureSchemeHeader(
    Setting,
    section=SERVER_MECHANICS,
    name="secure_scheme_headers",
    flags=None,
    validator=validate_scheme_headers,
    default={"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"},
):
    """The header fields, with their values, by which a trusted proxy says that the client uses HTTPS.

    Names are in upper case. A request with one of them gets ``wsgi.url_scheme`` ``https``; a request with
    contradicting fields is refused. Only proxies in ``forwarded_allow_ips`` are trusted. Your proxy must set
    or remove each field named here, so that no client can send it.
    """


class ForwardedAllowIPS(
    Setting,
    section=SERVER_MECHANICS,
    meta="STRING",
    validator=validate_string_to_addr_list,
    default="127.0.0.1,::1",
    env_var="FORWARDED_ALLOW_IPS",
):
    """Comma-separated addresses of trusted proxies.

    Networks (``10.0.0.0/8``) are allowed too. The server takes ``secure_scheme_headers`` and
    ``forwarder_headers`` only from these addresses. ``*`` trusts everybody: use it only if nothing but the
    proxy can reach the server. Peers on Unix sockets are always trusted, because the mode of the file has
    let them in.

    If the environment has ``FORWARDED_ALLOW_IPS``, that is the default.
    """

    def from_env(self, text: str) -> str:
        return text  # empty means nobody, not the default


class ProxyProtocol(
    Setting,
    section=SERVER_MECHANICS,
    meta="MODE",
    nargs="?",
    const="auto",
    validator=validate_proxy_protocol,
    default="off",
):
    """Read the PROXY protocol at the beginning of each connection that has it: ``v1``, ``v2`` or ``auto``.

    ``auto`` reads both versions; the flag alone and True are ``auto``, too. ``off`` and False read neither.

    HAProxy, AWS load balancers and stunnel send the client's address with it. With TLS it comes in the
    clear, before the handshake; after the handshake it is accepted only from peers that did not send it
    before. On a connection without it the peer counts as the client, so let nobody but the proxy reach the
    address.
    """


class ProxyAllowFrom(
    Setting,
    section=SERVER_MECHANICS,
    name="proxy_allow_ips",
    flags="--proxy-allow-from",
    validator=validate_string_to_addr_list,
    default="127.0.0.1,::1",
):
    """Comma-separated addresses that may use the PROXY protocol; ``*`` for all.

    It only affects ``proxy_protocol``.
    """


class Protocol(
    Setting,
    section=SERVER_MECHANICS,
    meta="NAME",
    validator=validate_protocol,
    default="http",
):
    """The protocol of the proxy in front: ``http`` or ``uwsgi``, for nginx's ``uwsgi_pass``.

    With ``uwsgi`` the proxy names the variables of the environ (``uwsgi_param``), REMOTE_ADDR and the scheme
    among them. Every connection has one request. It works under sync, gthread and gevent, on all addresses
    of ``bind``; a client that speaks HTTP there gets 400.
    """


class UwsgiAllowFrom(
    Setting,
    section=SERVER_MECHANICS,
    name="uwsgi_allow_ips",
    flags="--uwsgi-allow-from",
    validator=validate_string_to_addr_list,
    default="127.0.0.1,::1",
):
    """Comma-separated addresses that may use uWSGI's protocol; ``*`` for all.

    Networks (``10.0.0.0/8``) are allowed too. Who may use it decides what the application takes for the
    client's address and user. Any other peer gets 403. Peers on Unix sockets are always allowed, because the
    mode of the file has let them in. It only affects ``protocol = "uwsgi"``.
    """


class PermitObsoleteFolding(Flag, section=SERVER_MECHANICS):
    """Accept header fields that continue on a further line.

    RFC 9112, section 5.2, has made them obsolete, and servers that read them differently have been attacked
    through them. Only for a client that cannot be changed.
    """


class StripHeaderSpaces(Flag, section=SERVER_MECHANICS):
    """Accept spaces between a header field's name and the colon, and drop them.

    RFC 9112, section 5.1, tells servers to refuse them, because they let requests be smuggled through
    proxies that read them differently. Leave it off.
    """


class PermitUnconventionalHTTPMethod(Flag, section=SERVER_MECHANICS):
    """Accept any token as a method, with lower case, ``#`` and any length.

    Without it methods have 3 to 20 characters of the kind in the IANA registry. The application must still
    check methods itself.
    """


class PermitUnconventionalHTTPVersion(Flag, section=SERVER_MECHANICS):
    """Accept other HTTP versions than 1.0, 1.1 and similar.

    The server still reads such a request as HTTP/1.1, which may be wrong. For experiments only.
    """


class CasefoldHTTPMethod(Flag, section=SERVER_MECHANICS):
    """Convert methods to upper case.

    Methods are case-sensitive (RFC 9110, section 9.1); this is for clients that send ``get``. It needs
    ``permit_unconventional_http_method`` too, which accepts such methods in the first place.
    """


class ForwarderHeaders(
    Setting, section=SERVER_MECHANICS, validator=validate_string_to_list, default="SCRIPT_NAME,PATH_INFO"
):
    """Comma-separated header fields with an underscore that are accepted from a proxy in
    ``forwarded_allow_ips``.

    These are names of variables without ``HTTP_``, in upper case: ``REMOTE_USER`` sets ``HTTP_REMOTE_USER``.
    A proxy mounts an application under a path with ``SCRIPT_NAME``; the path is that of the request line,
    and ``PATH_INFO`` only sets ``HTTP_PATH_INFO``. For other peers ``header_map`` decides. A proxy must
    remove these fields from its clients' requests unless it sets them itself, and ``Remote-User`` as well,
    which sets the same variable.
    """


class HeaderMap(Setting, section=SERVER_MECHANICS, validator=validate_header_map_behaviour, default="drop"):
    """How to treat header fields with an ambiguous variable: ``drop``, ``refuse`` or ``dangerous``.

    WSGI turns ``X-User`` and ``X_User`` into the same variable ``HTTP_X_USER``, so a client can send the
    second if a proxy removes only the first. ``drop`` omits fields with an underscore, ``refuse`` answers
    with an error, ``dangerous`` passes them on.
    """
