# SPDX-License-Identifier: MIT
"""Settings for TLS. The constants are numbers, so that the ``ssl`` module is imported only with TLS."""

from __future__ import annotations

from gunicorn.settings.base import SSL, Setting
from gunicorn.settings.kinds import Flag, Text
from gunicorn.settings.validators import (
    validate_cert_reqs,
    validate_file_exists,
    validate_ssl_version,
)

SECTION = SSL


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
