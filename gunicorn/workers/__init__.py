# SPDX-License-Identifier: MIT
"""The worker classes, by the short names for ``worker_class``."""

from __future__ import annotations

SUPPORTED_WORKERS = {
    "sync": "gunicorn.workers.sync.SyncWorker",
    "gthread": "gunicorn.workers.gthread.ThreadWorker",
    "gevent": "gunicorn.workers.ggevent.GeventWorker",
    "gevent_wsgi": "gunicorn.workers.ggevent.GeventPyWSGIWorker",
    "gevent_pywsgi": "gunicorn.workers.ggevent.GeventPyWSGIWorker",
    "asgi": "gunicorn.workers.asgi.ASGIWorker",
    "tornado": "gunicorn.workers.gtornado.TornadoWorker",
}
