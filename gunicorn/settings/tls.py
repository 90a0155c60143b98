# SPDX-License-Identifier: MIT
"""Settings for TLS. The constants are numbers, so that the ``ssl`` module is imported only with TLS."""

from __future__ import annotations

import re
from typing import Any

from gunicorn.settings.base import SSL, Setting
from gunicorn.settings.kinds import Flag, Text
from gunicorn.settings.validators import type_and_value, validate_file_exists

SECTION = SSL

_PROTOCOL_TLS = 2  # ssl.PROTOCOL_TLS, without an import of ssl
_TLS_VERSION = re.compile(r"(PROTOCOL_)?(TLS|SSL)v?[0-9._]*(_METHOD|_CLIENT|_SERVER)?", re.IGNORECASE)


def validate_ssl_version(val: Any) -> int:
    """A protocol constant of the ``ssl`` module, or its name with or without ``PROTOCOL_``.

    None, and versions without a constant in this Python such as ``TLSv1_3``, mean the one that negotiates.
    """
    if val is None:
        return _PROTOCOL_TLS
    if isinstance(val, int) and not isinstance(val, bool):
        return int(val)
    try:
        return _ssl_constant(val, "PROTOCOL_")
    except ValueError:
        if not val.strip() or _TLS_VERSION.fullmatch(val.strip()):
            return _PROTOCOL_TLS
        raise


def validate_cert_reqs(val: Any) -> int:
    """A ``CERT_…`` constant of the ``ssl`` module, its name, or its number as text."""
    number = int(val) if isinstance(val, int) else _ssl_constant(val, "CERT_")
    if number not in (0, 1, 2):
        raise ValueError(f"expected 0 (CERT_NONE), 1 (CERT_OPTIONAL) or 2 (CERT_REQUIRED), not {val!r}")
    return number


def _ssl_constant(val: Any, prefix: str) -> int:
    if not isinstance(val, str):
        raise TypeError(f"expected a constant of the ssl module or its name, not {type_and_value(val)}")
    import ssl

    text = val.strip()
    if text.isdecimal():
        return int(text)
    name = text if text.startswith(prefix) else prefix + text
    number = getattr(ssl, name, None)
    if not isinstance(number, int):
        known = sorted(key for key in vars(ssl) if key.startswith(prefix))
        raise ValueError(f"expected one of {', '.join(known)}, not {val!r}")
    return int(number)


class KeyFile(Setting, name="keyfile", meta="FILE", validator=validate_file_exists):
    """The file of the private key, in PEM format.

    Not needed if ``certfile`` contains the key. With either of them the server speaks HTTPS.
    """


class CertFile(Setting, name="certfile", meta="FILE", validator=validate_file_exists):
    """The file of the certificate, in PEM format, followed by the intermediate certificates."""


class SSLVersion(Setting, validator=validate_ssl_version, default=2, default_text="TLS, negotiated"):
    """The version of TLS, kept for worker classes that read it.

    The server negotiates the version with each client, whatever you set here; to restrict it, use the hook
    ``ssl_context``.
    """


class CertReqs(Setting, validator=validate_cert_reqs, default=0, default_text="0, ``ssl.CERT_NONE``"):
    """Whether clients need a certificate: 0 for no, 1 to check one that is sent, 2 to require one.

    These are ``ssl.CERT_NONE``, ``ssl.CERT_OPTIONAL`` and ``ssl.CERT_REQUIRED``. Certificates are checked
    against ``ca_certs``.
    """


class CACerts(Text, meta="FILE"):
    """The file of the authorities that sign accepted client certificates, in PEM format."""


class SuppressRaggedEOFs(Flag, name="suppress_ragged_eofs", default=True):
    """Treat a connection that ends without TLS's close message as an ordinary end."""


class DoHandshakeOnConnect(Flag, section=SECTION):
    """Do the TLS handshake when a connection is accepted, not on the first read."""


class Ciphers(Text, meta=None):
    """The ciphers to offer, in OpenSSL's notation; by default OpenSSL's own choice.

    This applies to TLS 1.2 and older. Those of TLS 1.3 are all secure and always on.
    """
