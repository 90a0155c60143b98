# SPDX-License-Identifier: MIT
"""Limits on requests, which proxies are believed, and what is allowed beyond the standard."""

from __future__ import annotations

from typing import Any

from gunicorn.settings.base import SECURITY, SERVER_MECHANICS, Setting
from gunicorn.settings.kinds import Count, Flag
from gunicorn.settings.validators import (
    validate_dict,
    validate_header_map_behaviour,
    validate_proxy_protocol,
    validate_string_to_addr_list,
    validate_string_to_list,
)


def validate_scheme_headers(val: Any) -> dict[Any, Any]:
    fields = validate_dict(val)
    for name in fields:
        if not isinstance(name, str):
            raise TypeError(f"expected the names of header fields, not {name!r}")
    return fields


class LimitRequestLine(Count, section=SECURITY, default=4094):
    """The largest size of the request line (method, target, version) in bytes, at most 8190; 0 for no limit.

    A longer one is refused with 414. Raise it for applications with very long query strings.
    """


class LimitRequestFields(Count, section=SECURITY, default=100):
    """The largest number of header fields in a request, at most 32768.

    More are refused with 431.
    """


class LimitRequestFieldSize(Count, section=SECURITY, flags="--limit-request-field_size", default=8190):
    """The largest size of one header field in bytes; 0 for no limit.

    A larger one is refused with 431. Raise it where cookies or tokens are large, as those of
    Kerberos are; no limit means that a client decides how much memory it takes.
    """


class SecureSchemeHeader(
    Setting,
    section=SERVER_MECHANICS,
    name="secure_scheme_headers",
    flags=None,
    validator=validate_scheme_headers,
    default={"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"},
):
    """The header fields, with their values, by which a trusted proxy says that the client came by HTTPS.

    Names are in upper case. A request with one of them gets ``wsgi.url_scheme`` ``https``; one
    whose fields contradict each other is refused. Only proxies in ``forwarded_allow_ips`` are
    believed. Your proxy must set or remove each field named here, so that no client can.
    """


class ForwardedAllowIPS(
    Setting,
    section=SERVER_MECHANICS,
    meta="STRING",
    validator=validate_string_to_addr_list,
    default="127.0.0.1,::1",
    env_var="FORWARDED_ALLOW_IPS",
):
    """Comma-separated addresses of trusted proxies, whose word about the client is believed.

    Networks (``10.0.0.0/8``) can be given too. It decides about ``secure_scheme_headers`` and
    ``forwarder_headers``. ``*`` believes everybody: only where nothing but the proxy reaches the server.
    Peers on Unix sockets are always believed, since the mode of the file has let them in.

    Where the environment has ``FORWARDED_ALLOW_IPS``, that is the default.
    """

    def from_env(self, text: str) -> str:
        return text  # empty means nobody, not the default


class ProxyProtocol(
    Setting,
    section=SERVER_MECHANICS,
    meta="MODE",
    nargs="?",
    const="true",
    validator=validate_proxy_protocol,
    default=False,
):
    """Read the PROXY protocol, version 1 or 2, at the beginning of each connection that has it.

    True or False; the flag alone is True. Both versions are told apart by themselves, so that the words
    ``v1``, ``v2`` and ``auto`` of later Gunicorns are True, too, and ``off`` is False.

    HAProxy, AWS load balancers and stunnel tell the client's address by it. With TLS it is expected
    in the clear, before the handshake; inside of it only from peers that said nothing before. Of a
    connection without it the peer is the client, so let nobody but the proxy reach the address.
    """


class ProxyAllowFrom(
    Setting,
    section=SERVER_MECHANICS,
    name="proxy_allow_ips",
    flags="--proxy-allow-from",
    validator=validate_string_to_addr_list,
    default="127.0.0.1,::1",
):
    """The addresses that may speak the PROXY protocol, with commas in between; ``*`` for all.

    Only of use with ``proxy_protocol``.
    """


class PermitObsoleteFolding(Flag, section=SERVER_MECHANICS):
    """Accept header fields that go on in a further line.

    RFC 9112, section 5.2, has made them obsolete, and servers that read them differently have been
    attacked through them. Only for a client that cannot be changed.
    """


class StripHeaderSpaces(Flag, section=SERVER_MECHANICS):
    """Accept blanks between a header field's name and the colon, and drop them.

    RFC 9112, section 5.1, has a server refuse them, since requests can be smuggled through proxies
    that read them differently. Leave it off.
    """


class PermitUnconventionalHTTPMethod(Flag, section=SERVER_MECHANICS):
    """Accept methods of any token, lower case, ``#`` and any length included.

    Without it methods are 3 to 20 characters of the kind that the IANA registry has. A safety belt, not a
    promise: the application must check methods itself.
    """


class PermitUnconventionalHTTPVersion(Flag, section=SERVER_MECHANICS):
    """Accept HTTP versions other than 1.0, 1.1 and their like.

    Such a request is still read as HTTP/1.1, which may be wrong. For experiments only.
    """


class CasefoldHTTPMethod(Flag, section=SERVER_MECHANICS):
    """Turn methods into upper case.

    Methods are case-sensitive (RFC 9110, section 9.1); this is for clients that send ``get``. It needs
    ``permit_unconventional_http_method`` for those to be accepted at all.
    """


class ForwarderHeaders(
    Setting, section=SERVER_MECHANICS, validator=validate_string_to_list, default="SCRIPT_NAME,PATH_INFO"
):
    """Header fields with an underscore that are taken from a proxy in ``forwarded_allow_ips``, with
    commas in between.

    They are names of variables without ``HTTP_``, in upper case: ``REMOTE_USER`` sets
    ``HTTP_REMOTE_USER``. A proxy mounts an application under a path by ``SCRIPT_NAME``; the path is that
    of the request line, and ``PATH_INFO`` sets ``HTTP_PATH_INFO`` alone. From anybody else
    ``header_map`` decides. A proxy must remove from its clients' requests what it does not set itself, and
    ``Remote-User`` as well, which sets the same variable.
    """


class HeaderMap(Setting, section=SERVER_MECHANICS, validator=validate_header_map_behaviour, default="drop"):
    """What happens to header fields whose variable is ambiguous: ``drop``, ``refuse`` or ``dangerous``.

    WSGI turns ``X-User`` and ``X_User`` into the one variable ``HTTP_X_USER``, so that a client can
    pass the second where a proxy only removes the first. ``drop`` leaves fields with an underscore
    out, ``refuse`` answers with an error, ``dangerous`` passes them on.
    """
