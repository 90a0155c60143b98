# SPDX-License-Identifier: MIT
"""The command ``lease``: a table of leases, and giving one away."""

from __future__ import annotations

import json
from argparse import Namespace

from gunicorn.companion.client.connection import NOT_RUNNING, OK, REFUSED, Connection, Failure, Reply, refusal
from gunicorn.companion.client.show import print_table

HEADER = ["LEASE", "HOLDER", "TOKEN", "ENDS IN", "COMPANIONS", "STORE"]


def lease(connection: Connection, options: Namespace) -> int:
    """Show the leases that companions of this server need, or give one away."""
    if options.do is None:
        return _show(connection, options)
    if options.name is None:
        raise Failure("which lease? 'gunicorn-companion lease' shows them")
    reply = connection.ask(cmd="lease", release=options.name)
    if not reply.get("ok"):
        raise Failure(refusal(reply), REFUSED)
    print(json.dumps(reply) if options.json else reply["message"])
    return OK


def _show(connection: Connection, options: Namespace) -> int:
    reply = connection.must(cmd="lease")
    leases = reply["leases"]
    if options.json:
        print(json.dumps(reply, indent=2))
    elif not leases:
        print("no companion needs a lease")
    else:
        print_table([HEADER, *map(_row, leases)])
    good = all(one["unheld_for"] is None or one["unheld_for"] <= 2 * one["ttl"] for one in leases)
    return OK if good else NOT_RUNNING


def _row(one: Reply) -> list[str]:
    holder = "this server" if one["held"] else one["holder"] or "-"
    ends = "-" if one["expires_in"] is None else f"{one['expires_in']:.0f} s"
    store = one["store"] if one["store_up"] else f"{one['store']}   {one['trouble']}"
    return [one["name"], holder, str(one["token"] or "-"), ends, ", ".join(one["companions"]), store]
