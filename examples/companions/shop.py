# SPDX-License-Identifier: MIT
"""The shop's web side: a page that takes orders, and shows which process handled them."""

from __future__ import annotations

import os
from typing import Any

import chores  # noqa: F401  (loaded here so that the companions share it with the web workers)
import jobqueue
from flask import Flask, redirect, render_template, request
from werkzeug.wrappers import Response

ITEMS = ["a brass unicorn", "a horn polish", "a rainbow by the yard"]

app = Flask(__name__)


@app.get("/")
def page() -> str:
    return render_template("shop.html", items=ITEMS, jobs=jobqueue.recent(), pid=os.getpid())


@app.post("/orders")
def order() -> Response | tuple[dict[str, Any], int]:
    item = request.form.get("item", "")
    if item not in ITEMS:
        return {"error": "no such item"}, 400
    number = jobqueue.put("pack", item, source="web")
    if request.accept_mimetypes.best == "application/json":
        return {"id": number, "pid": os.getpid()}, 201
    return redirect("/", code=303)


@app.get("/jobs.json")
def jobs() -> dict[str, Any]:
    return {"pid": os.getpid(), "jobs": jobqueue.recent(), "counts": jobqueue.counts()}
