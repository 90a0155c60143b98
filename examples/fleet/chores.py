# SPDX-License-Identifier: MIT
"""A scheduler that may run on one server of the fleet at a time."""

import os
import signal
import sys
import time

import store

from gunicorn.companion import lease


def schedule():
    """Do the chore of each second, until the server stops or the lease is lost: both come as SIGTERM."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit())
    mine = lease()
    while True:
        if not store.note_chore(os.environ["SERVER"], os.getpid(), mine.token):
            # Somebody with a larger token has written: this process does not know yet that it has lost.
            sys.exit("the lease is lost")
        time.sleep(1)
