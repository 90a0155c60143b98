# SPDX-License-Identifier: MIT
"""TLS. The constants are the numbers of the ``ssl`` module, which is imported only where TLS is used."""

from __future__ import annotations

from gunicorn.settings.base import Setting
from gunicorn.settings.validators import (
    validate_bool,
    validate_cert_reqs,
    validate_file_exists,
    validate_ssl_version,
    validate_string,
)


class KeyFile(Setting):
    name = "keyfile"
    section = "SSL"
    cli = ["--keyfile"]
    meta = "FILE"
    validator = validate_file_exists
    desc = """\
        The file of the private key, in PEM form.

        Not needed where ``certfile`` holds the key as well. With either of them the server speaks HTTPS.
        """


class CertFile(Setting):
    name = "certfile"
    section = "SSL"
    cli = ["--certfile"]
    meta = "FILE"
    validator = validate_file_exists
    desc = """\
        The file of the certificate, in PEM form, those of intermediate authorities after it.
        """


class SSLVersion(Setting):
    name = "ssl_version"
    section = "SSL"
    cli = ["--ssl-version"]
    validator = validate_ssl_version
    default = 2  # ssl.PROTOCOL_TLS
    default_text = "TLS, negotiated"
    desc = """\
        The version of TLS, kept for worker classes that ask for it.

        The version is negotiated with each client, whatever is set here; to narrow it down use the hook
        ``ssl_context``.
        """


class CertReqs(Setting):
    name = "cert_reqs"
    section = "SSL"
    cli = ["--cert-reqs"]
    validator = validate_cert_reqs
    default = 0  # ssl.CERT_NONE
    default_text = "0, ``ssl.CERT_NONE``"
    desc = """\
        Whether clients need a certificate: 0 for no, 1 for checked if sent, 2 for required.

        These are ``ssl.CERT_NONE``, ``ssl.CERT_OPTIONAL`` and ``ssl.CERT_REQUIRED``. Certificates are
        checked against ``ca_certs``.
        """


class CACerts(Setting):
    name = "ca_certs"
    section = "SSL"
    cli = ["--ca-certs"]
    meta = "FILE"
    validator = validate_string
    desc = """\
        The file of the authorities whose client certificates are accepted, in PEM form.
        """


class SuppressRaggedEOFs(Setting):
    name = "suppress_ragged_eofs"
    section = "SSL"
    cli = ["--suppress-ragged-eofs"]
    action = "store_true"
    validator = validate_bool
    default = True
    desc = """\
        Take a connection that ends without TLS's own goodbye for an ordinary end.
        """


class DoHandshakeOnConnect(Setting):
    name = "do_handshake_on_connect"
    section = "SSL"
    cli = ["--do-handshake-on-connect"]
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Do the TLS handshake as soon as a connection is accepted, rather than on the first read.
        """


class Ciphers(Setting):
    name = "ciphers"
    section = "SSL"
    cli = ["--ciphers"]
    validator = validate_string
    desc = """\
        The ciphers that are offered, in OpenSSL's notation; OpenSSL's own choice if not set.

        It decides about TLS 1.2 and older. Those of TLS 1.3 are all secure and always on.
        """
