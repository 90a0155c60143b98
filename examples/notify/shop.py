# SPDX-License-Identifier: MIT
"""The web tier: it shows what the recommender has found."""

import json
from pathlib import Path

SUGGESTIONS = Path(__file__).resolve().parent / "var" / "suggestions.json"


def app(environ, start_response):
    try:
        suggestions = json.loads(SUGGESTIONS.read_text())
    except FileNotFoundError:
        status, lines = "503 Service Unavailable", ["The recommender is still loading."]
    else:
        status = "200 OK"
        lines = [f"Who buys a {article} also buys a {other}." for article, other in suggestions.items()]
    body = "".join(f"{line}\n" for line in lines).encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
