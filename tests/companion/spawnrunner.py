# SPDX-License-Identifier: MIT
"""Forks companions through spawn(), as the manager does, and writes down how they ended.

With a plan as argument, this process is the parent. Without, plans come as lines on stdin, and each gets a
parent forked for it: so that the interpreter starts once for all of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import lownumbers  # before what imports ctypes
import spawntargets

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.spawn import Launch, spawn

lownumbers.give_back()


def serve() -> None:
    for line in iter(sys.stdin.readline, ""):
        plan = json.loads(line)
        pid = os.fork()
        if pid == 0:
            redirect(plan)
            run(plan)
            return  # and end as every interpreter does
        os.waitpid(pid, 0)
        os.write(1, b"done\n")


def redirect(plan: dict[str, Any]) -> None:
    os.environ.update(plan["environ"])
    for number, path in ((0, "/dev/null"), (1, plan["result"] + "-out"), (2, plan["result"] + "-err")):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if number else 0))
        os.dup2(fd, number)
        os.close(fd)


def run(plan: dict[str, Any]) -> None:
    names: dict[str, Any] = {"hook": lambda: None, "target": None}
    exec(plan["before"], names)
    target = names["target"] or plan["target"]
    if plan["config"].get("command") is not None:
        target = None
        plan["config"]["command"] = tuple(plan["config"]["command"])
    elif isinstance(target, str) and ":" not in target:
        target = getattr(spawntargets, target)
    file = RunFile.claim(plan["run_dir"], "rq")
    assert file is not None
    # As `StartRights` hands it out.
    file.clear()
    launch = Launch(
        config=CompanionConfig(plan["config"].pop("name", "rq"), target, **plan["config"]),
        run=file,
        close=names.get("close", ()),
        post_fork=names["hook"],
        nofile=plan["nofile"],
        listeners=names.get("listeners", ()),
        notify=names.get("notify"),
        watch=names.get("watch"),
        repeats=names.get("repeats", ()),
        repeats_until=names.get("repeats_until", time.monotonic() + 60),
    )
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        (pid,) = spawn([launch])
    finally:
        # No path of the child leads back to here.
        with open(plan["result"] + f".{os.getpid()}", "w"):
            pass
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    names.update(pid=pid, run=file)
    exec(plan["while_running"], names)
    _, status = os.waitpid(pid, 0)
    record = file.read()
    result = {
        "pid": pid,
        "parent": os.getpid(),
        "code": os.waitstatus_to_exitcode(status),
        "error": record.error if record is not None else None,
        "record": record is not None and {**record.__dict__},
    }
    with open(plan["result"], "w") as out:
        json.dump(result, out)


if __name__ == "__main__":
    if sys.argv[1:]:
        run(json.loads(sys.argv[1]))
    else:
        serve()
