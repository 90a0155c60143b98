# SPDX-License-Identifier: MIT
"""How an accepted connection becomes one with TLS."""

from __future__ import annotations

from typing import Any


def wrap_accepted(context: Any, sock: Any, cfg: Any, kind: Any = None) -> Any:
    """*sock*, just accepted, as the server's end of a TLS connection. The handshake is still to come.

    *kind* is a class of sockets to use instead of the context's. Raises OSError or ValueError if the client
    has left.
    """
    options = {
        "server_side": True,
        "suppress_ragged_eofs": cfg.suppress_ragged_eofs,
        "do_handshake_on_connect": False,
    }
    if kind is not None:
        return kind(sock, _context=context, **options)
    return context.wrap_socket(sock, **options)
