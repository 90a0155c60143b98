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
    forget(environ)
    assert environ == {"HOME": "/"}


def test_for_a_successor() -> None:
    before = {"HOME": "/", "GUNICORN_FD": "9", "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    environ = reexec_environment(before, master_pid=7, fds=[5, 6])
    assert environ == {"HOME": "/", "GUNICORN_PID": "7", "GUNICORN_FD": "5,6"}
    assert inherited(environ, 42) == Inherited(7, (5, 6))
    assert before["GUNICORN_FD"] == "9"


@pytest.mark.parametrize("run_dir", ["/run/x", ""])
def test_a_successor_is_told_where_companions_leave_their_records(run_dir: str) -> None:
    environ = reexec_environment({}, master_pid=7, fds=[5], companion_run_dir=run_dir)
    assert inherited(environ, 42) == Inherited(7, (5,), companion_run_dir=run_dir)
    # And not what the master before told this one.
    assert "GUNICORN_COMPANION_RUN_DIR" not in reexec_environment(environ, master_pid=8, fds=[5])


def test_a_successor_is_told_where_to_read_what_is_asked_of_companions() -> None:
    environ = reexec_environment({}, master_pid=7, fds=[5], companion_state_fd=9)
    assert inherited(environ, 42) == Inherited(7, (5,), companion_state_fd=9)
    assert "GUNICORN_COMPANION_STATE" not in reexec_environment(environ, master_pid=8, fds=[5])


def test_for_a_successor_as_systemd_does_it() -> None:
    environ = reexec_environment({"GUNICORN_FD": "9"}, master_pid=7, fds=[3, 4], systemd_pid=42)
    assert environ == {"GUNICORN_PID": "7", "LISTEN_PID": "42", "LISTEN_FDS": "2"}
    assert inherited(environ, 42) == Inherited(7, (3, 4), True)
    assert listen_fd_count(environ, 41) == 0
