# SPDX-License-Identifier: MIT
"""TLS. The constants are the numbers of the ``ssl`` module, which is imported only where TLS is used."""

from __future__ import annotations

from gunicorn.settings.base import SSL, Setting
from gunicorn.settings.kinds import Flag, Text
from gunicorn.settings.validators import (
    validate_cert_reqs,
    validate_file_exists,
    validate_ssl_version,
)


class KeyFile(Setting, section=SSL, name="keyfile", meta="FILE", validator=validate_file_exists):
    """The file of the private key, in PEM form.

    Not needed where ``certfile`` holds the key as well. With either of them the server speaks HTTPS.
    """


class CertFile(Setting, section=SSL, name="certfile", meta="FILE", validator=validate_file_exists):
    """The file of the certificate, in PEM form, those of intermediate authorities after it."""


class SSLVersion(
    Setting, section=SSL, validator=validate_ssl_version, default=2, default_text="TLS, negotiated"
):
    """The version of TLS, kept for worker classes that ask for it.

    The version is negotiated with each client, whatever is set here; to narrow it down use the hook
    ``ssl_context``.
    """


class CertReqs(
    Setting, section=SSL, validator=validate_cert_reqs, default=0, default_text="0, ``ssl.CERT_NONE``"
):
    """Whether clients need a certificate: 0 for no, 1 for checked if sent, 2 for required.

    These are ``ssl.CERT_NONE``, ``ssl.CERT_OPTIONAL`` and ``ssl.CERT_REQUIRED``. Certificates are
    checked against ``ca_certs``.
    """


class CACerts(Text, section=SSL, meta="FILE"):
    """The file of the authorities whose client certificates are accepted, in PEM form."""


class SuppressRaggedEOFs(Flag, section=SSL, name="suppress_ragged_eofs", default=True):
    """Take a connection that ends without TLS's own goodbye for an ordinary end."""


class DoHandshakeOnConnect(Flag, section=SSL):
    """Do the TLS handshake as soon as a connection is accepted, rather than on the first read."""


class Ciphers(Text, section=SSL, meta=None):
    """The ciphers that are offered, in OpenSSL's notation; OpenSSL's own choice if not set.

    It decides about TLS 1.2 and older. Those of TLS 1.3 are all secure and always on.
    """
