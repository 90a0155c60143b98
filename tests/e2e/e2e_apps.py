# SPDX-License-Identifier: MIT
"""Applications and companion targets that the end-to-end tests put into a server's directory."""

from __future__ import annotations

#: A bare WSGI application with a route for each thing that a test wants to see.
WEB = """
import json, os, time

HERE = os.path.dirname(os.path.abspath(__file__))
LOADED_BY = os.getpid()
VERSION = "one"

def mark(name, text=""):
    with open(os.path.join(HERE, name), "a") as f:
        f.write(f"{text}\\n")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    query = environ.get("QUERY_STRING", "")
    headers = [("Content-Type", "text/plain")]

    def answer(body, status="200 OK", more=()):
        if isinstance(body, str):
            body = body.encode()
        start_response(status, headers + [("Content-Length", str(len(body)))] + list(more))
        return [body]

    if path == "/slow":
        mark("slow.started", str(os.getpid()))
        deadline = time.monotonic() + float(query or 1)
        while time.monotonic() < deadline:
            time.sleep(0.01)
        return answer("slow done")
    if path == "/wait":
        # Answers once the test has made the file named by the query.
        mark("wait.started", str(os.getpid()))
        while not os.path.exists(os.path.join(HERE, query)):
            time.sleep(0.01)
        return answer("waited")
    if path == "/echo":
        return answer(environ["wsgi.input"].read())
    if path == "/process":
        return answer(json.dumps({
            "pid": os.getpid(), "ppid": os.getppid(), "loaded_by": LOADED_BY, "version": VERSION,
            "cwd": os.getcwd(), "env": dict(os.environ), "uid": os.getuid(), "gid": os.getgid(),
        }))
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    if path == "/boom":
        raise RuntimeError("boom on purpose")
    return answer(str(os.getpid()))
"""

#: Companion targets. Each notes its starts, and overlaps with an older process, in files beside the module.
JOBS = '''
import fcntl, json, os, signal, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
_lock = None

def name():
    return os.environ["GUNICORN_COMPANION_NAME"]

def mark(what, text=""):
    fd = os.open(os.path.join(HERE, f"{name()}.{what}"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)

def begin():
    """Note the start, and an overlap if another process of this companion has the lock."""
    global _lock
    _lock = open(os.path.join(HERE, f"{name()}.lock"), "a")
    try:
        fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        mark("overlap", os.getpid())
    mark("starts", f"{os.getpid()} {time.time()}")

def sleep_forever():
    while True:
        time.sleep(1000)

def idle():
    """Is killed by the first signal, as a plain program is."""
    begin()
    sleep_forever()

def drain():
    """Asked to stop, it works on for DRAIN seconds, or until the file UNTIL is there; then it exits with 0.

    Further signals are counted.
    """
    seconds, until = float(os.environ.get("DRAIN", "1")), os.environ.get("UNTIL")
    asked = []
    def done():
        if until:
            return os.path.exists(os.path.join(HERE, until))
        return time.monotonic() >= asked[0] + seconds
    def on_term(sig, frame):
        mark("signals", f"{os.getpid()} {sig} {time.time()}")
        asked.append(time.monotonic())
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(sig, on_term)
    begin()
    while not asked or not done():
        time.sleep(0.02)
    mark("drained", os.getpid())

def stubborn():
    """Ignores what asks it to stop."""
    def on_term(sig, frame):
        mark("signals", f"{os.getpid()} {sig} {time.time()}")
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(sig, on_term)
    begin()
    while True:
        time.sleep(1000)

def _child(setup):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        setup()
        mark("child", os.getpid())
        sleep_forever()
    return pid

def family():
    """Has a child in a process group of its own, as job workers do, and one in its own group."""
    begin()
    _child(lambda: os.setpgid(0, 0))
    _child(lambda: None)
    sleep_forever()

def stubborn_family():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin()
    _child(lambda: os.setpgid(0, 0))
    _child(lambda: None)
    sleep_forever()

def report():
    """Writes down the state of its process, then waits."""
    begin()
    with open(os.path.join(HERE, f"{name()}.json.new"), "w") as f:
        json.dump({
            "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(), "ppid": os.getppid(),
            "sid": os.getsid(0), "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
        }, f)
    os.rename(os.path.join(HERE, f"{name()}.json.new"), os.path.join(HERE, f"{name()}.json"))
    print(f"{name()} says hello on stdout")
    print(f"{name()} says hello on stderr", file=sys.stderr)
    sleep_forever()

def exit3():
    begin()
    sys.exit(3)

def returns():
    begin()

def double_forks():
    """Leaves a daemon behind that has a session of its own, and goes on itself."""
    begin()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            mark("daemon", os.getpid())
            sleep_forever()
        os._exit(0)
    os.waitpid(pid, 0)
    sleep_forever()
'''
