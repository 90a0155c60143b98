# SPDX-License-Identifier: MIT
"""A pre-fork server for WSGI and ASGI that also runs the companion processes of an application."""

version_info = (27, 1, 0)

# The local part names this implementation; PEP 440 ignores it when a
# requirement such as ``gunicorn>=21.2`` is compared.
__version__ = ".".join(map(str, version_info)) + "+companions"

SERVER = "gunicorn"
SERVER_SOFTWARE = f"{SERVER}/{__version__}"
