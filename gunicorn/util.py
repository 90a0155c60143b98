# SPDX-License-Identifier: MIT
"""Names that other packages import from here; each lives elsewhere, and nothing here imports this one."""

from __future__ import annotations

from gunicorn.addresses import is_ipv6, parse_address
from gunicorn.compat import (
    _called_with_wrong_args,
    check_is_writable,
    close,
    get_arity,
    has_fileno,
    make_fail_app,
    reraise,
    warn,
)
from gunicorn.errors import AppImportError
from gunicorn.http.grammar import bytes_to_str, is_hoppish, to_bytestring, unquote_to_wsgi_str
from gunicorn.http.head import http_date
from gunicorn.http.sending import split_request_uri, write, write_chunk, write_error, write_nonblock
from gunicorn.loading import getcwd, import_app, load_class, load_entry_point
from gunicorn.unix.process import (
    REDIRECT_TO,
    chown,
    close_on_exec,
    daemonize,
    get_username,
    seed,
    set_non_blocking,
    set_owner_process,
    unlink,
)
from gunicorn.unix.process import set_process_title as _setproctitle
from gunicorn.workers import SUPPORTED_WORKERS

__all__ = [
    "REDIRECT_TO",
    "SUPPORTED_WORKERS",
    "AppImportError",
    "_called_with_wrong_args",
    "_setproctitle",
    "bytes_to_str",
    "check_is_writable",
    "chown",
    "close",
    "close_on_exec",
    "daemonize",
    "get_arity",
    "get_username",
    "getcwd",
    "has_fileno",
    "http_date",
    "import_app",
    "is_hoppish",
    "is_ipv6",
    "load_class",
    "load_entry_point",
    "make_fail_app",
    "parse_address",
    "reraise",
    "seed",
    "set_non_blocking",
    "set_owner_process",
    "split_request_uri",
    "to_bytestring",
    "unlink",
    "unquote_to_wsgi_str",
    "warn",
    "write",
    "write_chunk",
    "write_error",
    "write_nonblock",
]
