# SPDX-License-Identifier: MIT
"""A JSON view of Flask. Beside ``webapps``, so that only the case that is about Flask needs it."""

from __future__ import annotations

from typing import Any

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/books/<int:number>")
def book(number: int) -> Any:
    return jsonify(number=number, title="A Book", page=request.args.get("page"), tags=["a", "b", "c"])
