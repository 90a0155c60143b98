# SPDX-License-Identifier: MIT
"""Companions that write: start ``gunicorn`` in this directory, and then ``gunicorn-companion logs -f``."""

wsgi_app = "page:app"

companion_workers = [
    # To the server's output, each line with the name in front.
    {"name": "talker", "target": "talkers:talk", "numprocs": 2},
    # Its traceback has a name too, and can be read when it runs again.
    {"name": "failing", "target": "talkers:fail", "restart_delay": 10},
    # To files of its own, which are rotated: chatter-0.log, chatter-0.log.1.gz …
    {
        "name": "chatter",
        "target": "talkers:chatter",
        "numprocs": 2,
        "stdout": {
            "file": "chatter-%(index)s.log",
            "max_bytes": "100K",
            "backups": 3,
            "compress": True,
            "stamp": True,
        },
        "stderr": "stdout",
    },
]
