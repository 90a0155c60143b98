# SPDX-License-Identifier: MIT
"""Start an example from a copy of its directory, so that nothing is written into the checkout."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from harness import ROOT, Server, wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


def example_server(name: str, env: Mapping[str, str | None]) -> Server:
    """A server on a copy of ``examples/<name>``, with just the configuration file that lies there."""
    source = ROOT / "examples" / name
    files = {
        str(path.relative_to(source)): path.read_text()
        for path in source.rglob("*")
        if path.suffix in (".py", ".html", ".js", ".env")
    }
    config = files.pop("gunicorn.conf.py")
    return Server(config=config, files=files, target="", env=env)


def order(server: Server, **form: Any) -> dict[str, Any]:
    """Order something as the page's form does; the answer tells the job and the web worker."""
    reply = server.post("/orders", urllib.parse.urlencode(form), headers=FORM)
    assert reply.status == 201, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def job(server: Server, number: Any) -> dict[str, Any]:
    """The job as ``/jobs.json`` shows it; ``{}`` if it is not among the latest."""
    found = [one for one in server.get("/jobs.json").json()["jobs"] if one["id"] == number]
    return found[0] if found else {}


def wait_job(server: Server, number: Any, state: str, timeout: float = 15.0) -> dict[str, Any]:
    """The job, once it is in *state*."""
    last: dict[str, Any] = {}

    def right() -> bool:
        last.clear()
        last.update(job(server, number))
        return last.get("state") == state

    wait_until(right, timeout, lambda: f"job {number} {state}; last seen {last}")
    return last
