# SPDX-License-Identifier: MIT
"""HTTP/1.1 after RFC 9110 and RFC 9112, and WSGI after PEP 3333.

Pure: grammar, errors, policy, proxyproto, parse, chunked, environ, head. Shells around sockets:
unreader, body, message, parser, uwsgi, wsgi.
"""

from __future__ import annotations

from .message import Message, Request
from .parser import RequestParser

__all__ = ["Message", "Request", "RequestParser"]
