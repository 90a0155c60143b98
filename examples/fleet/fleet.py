# SPDX-License-Identifier: MIT
"""Start a Redis and three servers on this host, as if they were four hosts: ``python fleet.py``.

Another Redis by $REDIS_URL; the first port by $PORT, 8001 if that is not set. Ctrl-C stops all of it.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PORT = int(os.environ.get("PORT", "8001"))
COUNT = 3


def start_redis(directory):
    """Return the process and the URL of a Redis on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--loglevel", "warning"]
    process = subprocess.Popen(["redis-server", *options], start_new_session=True)
    return process, f"redis://127.0.0.1:{port}/0"


def start_server(number, url, directory):
    runtime = pathlib.Path(directory) / f"web-{number}"
    runtime.mkdir(mode=0o700)
    environment = {"SERVER": f"web-{number}", "REDIS_URL": url, "XDG_RUNTIME_DIR": str(runtime)}
    command = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{PORT + number - 1}"]
    process = subprocess.Popen(command, cwd=HERE, env={**os.environ, **environment}, start_new_session=True)
    print(f"web-{number}: http://127.0.0.1:{PORT + number - 1}, pid {process.pid}", flush=True)
    return process


def stop(processes):
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def main():
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit())
    with tempfile.TemporaryDirectory(prefix="fleet-") as directory:
        stores, servers = [], []
        try:
            url = os.environ.get("REDIS_URL")
            if not url:
                redis, url = start_redis(directory)
                stores.append(redis)
            for number in range(1, COUNT + 1):
                servers.append(start_server(number, url, directory))
            print("Stop or kill one of them, and see the chores move to another one.", flush=True)
            for server in servers:
                server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            # The store last: the servers give up what they hold.
            stop(servers)
            stop(stores)


main()
