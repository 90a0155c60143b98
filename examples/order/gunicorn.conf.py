# SPDX-License-Identifier: MIT
"""What starts after what, and stops before it: start it with ``gunicorn`` in this directory."""

wsgi_app = "shop:app"
workers = 2
accesslog = "-"
# A request needs both. The first one is answered when the migration is done; none is refused.
web_after = ["migrate", "store"]

companion_workers = [
    # It keeps its numbers in memory, and writes them down when it stops: after all that count something.
    {"name": "store", "target": "services:store", "ready": "notify"},
    # A job, once at each start. If it fails, the server does not start.
    {"name": "migrate", "target": "services:migrate", "autorestart": "never"},
    # It starts when the store is ready, and has stopped before the store does.
    {"name": "packer", "target": "services:packer", "after": ["store"]},
    # It asks the web workers, so they have to be there before it, and after it.
    {"name": "visitor", "target": "services:visitor", "after": ["web"]},
]
companion_stop_timeout = 10
