# SPDX-License-Identifier: MIT
"""The shop's web side: a page that takes orders, and shows which process handled them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import store
import work
from flask import Flask, redirect, render_template, request
from rq.job import Job
from werkzeug.wrappers import Response

ITEMS = ["a brass unicorn", "a horn polish", "a rainbow by the yard"]
SHOWN = 20

app = Flask(__name__)


@app.get("/")
def page() -> str:
    return render_template("shop.html", items=ITEMS, jobs=recent(), pid=os.getpid())


@app.post("/orders")
def order() -> Response | tuple[dict[str, Any], int]:
    item = request.form.get("item", "")
    if item not in ITEMS:
        return {"error": "no such item"}, 400
    meta = {"source": "web", "source_pid": os.getpid()}
    queue = store.queue()
    if delay := request.form.get("in", 0, type=int):
        job = queue.enqueue_in(timedelta(seconds=delay), work.pack, item, meta=meta)
    else:
        job = queue.enqueue(work.pack, item, meta=meta)
    if request.accept_mimetypes.best == "application/json":
        return {"id": job.id, "pid": os.getpid()}, 201
    return redirect("/", code=303)


@app.get("/jobs.json")
def jobs() -> dict[str, Any]:
    return {"pid": os.getpid(), "jobs": recent()}


def recent() -> list[dict[str, Any]]:
    """The latest jobs, newest first, as plain dictionaries."""
    queue = store.queue()
    registries = (
        queue.scheduled_job_registry,
        queue.started_job_registry,
        queue.finished_job_registry,
        queue.failed_job_registry,
    )
    numbers = set(queue.get_job_ids())
    for registry in registries:
        numbers.update(registry.get_job_ids())
    found = [job for job in Job.fetch_many(list(numbers), connection=store.redis()) if job is not None]
    found.sort(key=lambda job: job.created_at, reverse=True)
    return [describe(job) for job in found[:SHOWN]]


def describe(job: Job) -> dict[str, Any]:
    result = job.return_value() if job.is_finished else None
    return {
        "id": job.id,
        "what": (job.func_name or "").rpartition(".")[2],
        "state": str(job.get_status(refresh=False).value),
        "source": job.meta.get("source", "cron"),
        "source_pid": job.meta.get("source_pid"),
        "result": result,
    }
