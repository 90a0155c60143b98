# SPDX-License-Identifier: MIT
"""The jobs of examples/schedules run at their times, or when they are told."""

from __future__ import annotations

from exampletree import example_server
from harness import wait_until


def test_jobs_run_at_their_times() -> None:
    with example_server("schedules", {"COUNT_EVERY": "1s", "SLOW_SECONDS": "0.1"}) as server:
        server.wait_manager()
        assert server.ask("start", "flaky")["ok"]
        for text in ("oh dear", "lines so far", "it works"):
            wait_until(lambda text=text: text in server.get("/").text, 20, server.log)  # type: ignore[misc]
        runs = server.ask("status", "flaky", details=True)["companions"][0]["details"]["runs_of_schedule"]
        assert [run["why"] for run in runs] == ["command", "retry"]
        assert "next run in" in server.companion("slow")["description"]
