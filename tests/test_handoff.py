# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from gunicorn.master.handoff import Inherited, forget, inherited, listen_fd_count, reexec_environment


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, Inherited()),
        ({"GUNICORN_PID": "7", "GUNICORN_FD": "5,6"}, Inherited(7, (5, 6))),
        ({"GUNICORN_PID": "7", "GUNICORN_FD": ""}, Inherited(7)),
        ({"GUNICORN_PID": "7"}, Inherited(7)),
        # Descriptors without a master to succeed are somebody else's variables.
        ({"GUNICORN_FD": "5,6"}, Inherited()),
        ({"GUNICORN_PID": "seven", "GUNICORN_FD": "5"}, Inherited()),
        ({"LISTEN_PID": "42", "LISTEN_FDS": "2"}, Inherited(0, (3, 4), True)),
        ({"LISTEN_PID": "43", "LISTEN_FDS": "2"}, Inherited()),
        ({"LISTEN_PID": "42", "LISTEN_FDS": "0"}, Inherited()),
        ({"LISTEN_PID": "42", "LISTEN_FDS": "-1"}, Inherited()),
        ({"LISTEN_PID": "42", "LISTEN_FDS": "x"}, Inherited()),
        ({"LISTEN_PID": "42"}, Inherited()),
        ({"LISTEN_PID": "42", "LISTEN_FDS": "1", "GUNICORN_PID": "7"}, Inherited(7, (3,), True)),
        (
            {"GUNICORN_PID": "7", "GUNICORN_FD": "5", "GUNICORN_COMPANION_RUN_DIR": "/run/x"},
            Inherited(7, (5,), companion_run_dir="/run/x"),
        ),
        (
            {"GUNICORN_PID": "7", "GUNICORN_FD": "5", "GUNICORN_COMPANION_RUN_DIR": ""},
            Inherited(7, (5,), companion_run_dir=""),
        ),
        (
            {
                "LISTEN_PID": "42",
                "LISTEN_FDS": "1",
                "GUNICORN_PID": "7",
                "GUNICORN_COMPANION_RUN_DIR": "/run/x",
            },
            Inherited(7, (3,), True, "/run/x"),
        ),
        ({"GUNICORN_COMPANION_RUN_DIR": "/run/x"}, Inherited()),
        (
            {"GUNICORN_PID": "7", "GUNICORN_COMPANION_STATE": "9"},
            Inherited(7, companion_state_fd=9),
        ),
        ({"GUNICORN_PID": "7", "GUNICORN_COMPANION_STATE": "{}"}, Inherited(7)),
        ({"GUNICORN_COMPANION_STATE": "9"}, Inherited()),
        ({"GUNICORN_PID": "7", "GUNICORN_SCOREBOARD": "9"}, Inherited(7, scoreboard_fd=9)),
        ({"GUNICORN_PID": "7", "GUNICORN_SCOREBOARD": "x"}, Inherited(7)),
        ({"GUNICORN_SCOREBOARD": "9"}, Inherited()),
        ({"GUNICORN_PID": "7", "GUNICORN_UPGRADE": "11,3"}, Inherited(7, report_fd=11, upgrade=3)),
        ({"GUNICORN_PID": "7", "GUNICORN_UPGRADE": "x"}, Inherited(7)),
        ({"GUNICORN_UPGRADE": "11,3"}, Inherited()),
        ({"GUNICORN_PID": "7", "GUNICORN_COMPANION_SOCKETS": "{}"}, Inherited(7, companion_sockets="{}")),
        ({"GUNICORN_COMPANION_SOCKETS": "{}"}, Inherited()),
    ],
)
def test_inherited(environ: dict[str, str], expected: Inherited) -> None:
    assert inherited(environ, 42) == expected


def test_descriptors_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="GUNICORN_FD='a,b'"):
        inherited({"GUNICORN_PID": "7", "GUNICORN_FD": "a,b"}, 42)


def test_forget() -> None:
    environ = {"GUNICORN_PID": "1", "GUNICORN_FD": "2", "LISTEN_FDNAMES": "x", "LISTEN_PID": "3", "HOME": "/"}
    environ["GUNICORN_COMPANION_RUN_DIR"] = "/run/x"
    environ["GUNICORN_COMPANION_STATE"] = "9"
    environ["GUNICORN_SCOREBOARD"] = "10"
    environ["GUNICORN_UPGRADE"] = "11,3"
    forget(environ)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "given, expected",
    [
        (Inherited(7, (5, 6)), {"GUNICORN_PID": "7", "GUNICORN_FD": "5,6"}),
        (Inherited(7, (3, 4), True), {"GUNICORN_PID": "7", "LISTEN_PID": "42", "LISTEN_FDS": "2"}),
        (
            Inherited(
                7, (5,), False, "/run/x", companion_state_fd=9, scoreboard_fd=10, report_fd=11, upgrade=3
            ),
            {
                "GUNICORN_PID": "7",
                "GUNICORN_FD": "5",
                "GUNICORN_COMPANION_RUN_DIR": "/run/x",
                "GUNICORN_COMPANION_STATE": "9",
                "GUNICORN_SCOREBOARD": "10",
                "GUNICORN_UPGRADE": "11,3",
            },
        ),
        (
            Inherited(7, (5,), companion_run_dir=""),
            {"GUNICORN_PID": "7", "GUNICORN_FD": "5", "GUNICORN_COMPANION_RUN_DIR": ""},
        ),
    ],
)
def test_a_successor_reads_what_it_is_given(given: Inherited, expected: dict[str, str]) -> None:
    # What this master was given itself is not passed on.
    before = {
        "HOME": "/",
        "GUNICORN_FD": "9",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "1",
        "GUNICORN_COMPANION_RUN_DIR": "/run/older",
        "GUNICORN_COMPANION_STATE": "8",
        "WATCHDOG_PID": "7",
    }
    environ = reexec_environment(before, given, 42)
    # The watchdog of this master is the successor's.
    assert environ == {"HOME": "/", "WATCHDOG_PID": "42", **expected}
    assert inherited(environ, 42) == given
    assert before["GUNICORN_FD"] == "9"
    assert listen_fd_count(environ, 41) == 0
