# SPDX-License-Identifier: MIT
"""Companions for the tests of spawn(): each does one thing, and tells of it on stdout."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import random
import signal
import sys
import threading
import time
import weakref


def nothing():
    pass


def returns_a_value():
    return 7


def exits(code=None):
    sys.exit(code)


def raises():
    raise ValueError("no such queue")


def interrupted():
    raise KeyboardInterrupt


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def exits_at_once():
    os._exit(9)


class Shop:
    class Jobs:
        @staticmethod
        def run():
            print("the jobs of the shop")

    number = 5

    @staticmethod
    def made(name, number=None):
        return number or (lambda: print("the", name, "of the shop"))


def facts():
    """What this process is, as JSON."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip().split(":", 1) for line in file)
    pdeathsig = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(pdeathsig), 0, 0, 0)
    files = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the directory itself, which is being listed
        # Where ctypes is imported, libffi from 3.5 on keeps its library open, for what it maps later.
        if not os.path.basename(path).startswith("libffi.so"):
            files[int(name)] = path
    print(
        json.dumps(
            {
                "pid": os.getpid(),
                "ppid": os.getppid(),
                "session": os.getsid(0),
                "group": os.getpgid(0),
                "blocked": int(status["SigBlk"], 16),
                "ignored": int(status["SigIgn"], 16),
                "caught": int(status["SigCgt"], 16),
                "handlers": [
                    repr(signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP)
                ],
                "wakeup": signal.set_wakeup_fd(-1),
                "pdeathsig": pdeathsig.value,
                "files": files,
                "environ": dict(os.environ),
                "cwd": os.getcwd(),
                "stdin": [os.readlink("/proc/self/fd/0"), sys.stdin.read(), sys.stdin.fileno()],
                "line_buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
                "same_streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__],
                "random": random.random(),
                "threads": [thread.name for thread in threading.enumerate()],
                "main": threading.current_thread() is threading.main_thread(),
                "nofile": __import__("resource").getrlimit(__import__("resource").RLIMIT_NOFILE)[0],
                "cmdline": open("/proc/self/cmdline").read(),  # noqa: SIM115
            }
        )
    )


class Thing:
    pass


KEPT = Thing()


def registers_exit_handlers():
    import multiprocessing.util

    atexit.register(print, "own atexit")
    weakref.finalize(KEPT, print, "own finalize")
    multiprocessing.util.Finalize(None, print, ("own multiprocessing",), exitpriority=1)


def exit_handler_that_fails():
    atexit.register(print, "the other one")
    atexit.register(lambda: 1 / 0)


def exit_handlers_after_an_exception():
    atexit.register(print, "own atexit")
    raise ValueError("boom")


def threads():
    def work():
        time.sleep(0.1)
        print("from the thread")

    threading.Thread(target=work).start()


def daemon_thread():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def pool():
    from concurrent.futures import ThreadPoolExecutor

    executor = ThreadPoolExecutor(2)
    for number in range(3):
        executor.submit(lambda n=number: (time.sleep(0.05), print(f"job {n}")))


def processes():
    import multiprocessing

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=queue.put, args=("from the process",))
    child.start()
    print(queue.get())
    child.join()
    print(child.exitcode)


def leaves_output_unflushed():
    sys.stdout.write("without an end")
    sys.stderr.write("nor here")


def prints_and_waits():
    print(os.getpid())
    sys.stderr.write("and one on stderr\n")
    time.sleep(60)


def output_lost():
    sys.stdout.reconfigure(line_buffering=False)
    sys.stdout.write("nowhere")


def writes_to_a_closed_pipe():
    read, write = os.pipe()
    os.close(read)
    try:
        os.write(write, b"x")
    except BrokenPipeError:
        print("BrokenPipeError")


def becomes_another_program():
    os.execv("/bin/sh", ["/bin/sh", "-c", "ls /proc/self/fd | wc -l; cat /proc/self/status; exit 5"])


def own_excepthook():
    sys.excepthook = lambda kind, value, trace: print("hook", kind.__name__, trace.tb_frame.f_code.co_name)
    raise ValueError


def excepthook_that_fails():
    def hook(*args):
        raise RuntimeError("the reporter is down")

    atexit.register(print, "own atexit")
    sys.excepthook = hook
    raise ValueError("boom")


def forks_and_both_return():
    atexit.register(lambda: os.write(1, b"handler\n"))
    os.fork()


def waits():
    time.sleep(60)
