# SPDX-License-Identifier: MIT
"""An ASGI application and its companion: start it with ``gunicorn`` in this directory.

``gunicorn starlette_app:app`` serves the other one.
"""

import gunicorn.companion  # noqa: F401  an error under another Gunicorn, which would start no companion

wsgi_app = "fastapi_app:app"
worker_class = "asgi"
workers = 2
accesslog = "-"
# Seconds for requests to finish when a worker stops.
graceful_timeout = 20

companion_workers = [
    {"name": "ticker", "target": "ticker:run", "stop_timeout": 5},
]
