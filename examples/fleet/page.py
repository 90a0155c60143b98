# SPDX-License-Identifier: MIT
"""A page that shows which server has done the latest chores."""

import os

import store


def app(environ, start_response):
    rows = "\n".join("{at}  {server}  pid {pid}  token {token}".format(**chore) for chore in store.chores())
    text = f"This is {os.environ['SERVER']}. The chores of the fleet, the last one first:\n\n{rows}\n"
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Refresh", "1")])
    return [text.encode()]
