# SPDX-License-Identifier: MIT
"""One server of a fleet: ``python fleet.py`` starts three of them.

All have this configuration. $SERVER names the server, $REDIS_URL the Redis that they share.
"""

import os

wsgi_app = "page:app"
proc_name = os.environ["SERVER"]

companion_lease_store = os.environ["REDIS_URL"]
# How long a server that crashes is missed. 15 is the default.
companion_lease_ttl = 6

companion_workers = [
    {"name": "scheduler", "target": "chores:schedule", "lease": "fleet-scheduler", "stop_timeout": 2},
]
