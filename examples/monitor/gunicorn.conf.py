# SPDX-License-Identifier: MIT
"""A server with a monitor: start ``gunicorn`` in this directory, and open http://127.0.0.1:9600/."""

import os

wsgi_app = "shop:app"
worker_class = "gthread"
workers = 2
threads = 4

monitor = os.environ.get("SHOP_MONITOR", "127.0.0.1:9600")
# Without a token the monitor only shows. In real life it comes from the environment: GUNICORN_MONITOR_TOKEN.
monitor_token = "try-me"
# No requests for this server before the stock is known.
monitor_ready = ["stock"]

companion_workers = [
    {"name": "stock", "target": "jobs:count_stock"},
    {"name": "mailer", "target": "jobs:send_mail", "numprocs": 2},
    # Dies now and then, and comes back.
    {"name": "importer", "target": "jobs:import_prices", "restart_delay": 5},
]
