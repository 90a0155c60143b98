# SPDX-License-Identifier: MIT
"""The command ``gunicorn-companion metrics``: the scrape's text, without the monitor."""

from __future__ import annotations

import sys
from argparse import Namespace

from gunicorn.companion.client.connection import OK, Connection
from gunicorn.monitor.openmetrics import render


def show_metrics(connection: Connection, options: Namespace) -> int:
    """Print all figures of the server and its companions as Prometheus reads them."""
    status = connection.must(cmd="status", memory=True)
    # An older server has no such command, and one without companions no scoreboard.
    web = connection.ask(cmd="web", memory=True).get("web")
    sys.stdout.write(render(status, web, openmetrics=options.openmetrics))
    return OK
