# SPDX-License-Identifier: MIT
"""What people read of a worker that has failed."""

from __future__ import annotations

from signal import SIGKILL, SIGSEGV

import pytest

from gunicorn.errors import AppImportError, ConfigError
from gunicorn.master.failure import (
    LAST_LINES,
    FailedStarts,
    Failure,
    explain,
    last_lines,
    of_exception,
    one_line,
)

NO_TRACE = "without an exception (os._exit() in the application?)"
TOLD = Failure("ImportError: no", "Traceback …\nImportError: no")


@pytest.mark.parametrize(
    ("status", "booted", "told", "timeout", "vanished", "reason"),
    [
        (3 << 8, False, TOLD, 0, False, "ImportError: no"),
        (3 << 8, False, None, 0, False, "a worker exited with status 3 while booting"),
        (
            7 << 8,
            False,
            None,
            0,
            True,
            f"a worker exited with status 7 while booting, {NO_TRACE}",
        ),
        (SIGKILL, False, None, 0, True, "a worker was killed by SIGKILL while booting (out of memory?)"),
        (SIGSEGV, True, None, 0, True, "a worker was killed by SIGSEGV while serving"),
        # What the watchdog interrupts says where, but not why.
        (1 << 8, False, TOLD, 30, False, "a worker did not boot within 30 s (timeout)"),
        (SIGKILL, True, None, 0.5, True, "a worker sent no heartbeat within 0.5 s (timeout)"),
    ],
)
def test_why_a_worker_failed(
    status: int, booted: bool, told: Failure | None, timeout: float, vanished: bool, reason: str
) -> None:
    failure = explain(status, booted=booted, told=told, timeout=timeout, vanished=vanished)
    assert failure == Failure(reason, TOLD.trace if told is not None else "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("workers: 'many'\nis no number"), "workers: 'many' is no number"),
        (AppImportError("no module"), "no module"),
        (RuntimeError("no class"), "no class"),
        (SystemExit(3), "it asked to exit (3)"),
        (SystemExit(), "it asked to exit"),
        (KeyError("x"), "KeyError: 'x'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_an_error_in_one_line(error: BaseException, text: str) -> None:
    assert one_line(error) == text


def test_of_an_exception_of_the_application_the_type_is_told() -> None:
    assert of_exception(RuntimeError("no luck")).reason == "RuntimeError: no luck"
    assert of_exception(ConfigError("a mistake")) == Failure("a mistake")


def test_where_a_worker_was_interrupted() -> None:
    with pytest.raises(SystemExit) as caught:
        exec(compile("def load():\n    raise SystemExit(1)\nload()", "shop.py", "exec"), {})
    reason, trace = of_exception(caught.value)
    assert reason == "it asked to exit (1)"
    assert trace.endswith('  File "shop.py", line 3, in <module>\n  File "shop.py", line 2, in load')


def test_the_last_lines_lead_to_the_error() -> None:
    source = "def f(n):\n    return 1 / n if n < 1 else g(n)\ndef g(n):\n    return f(n - 1)\nf(40)"
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile(source, "shop.py", "exec"), {})
    lines = last_lines(caught.value).splitlines()
    assert len(lines) == LAST_LINES and lines[-1] == "ZeroDivisionError: division by zero"
    with pytest.raises(SyntaxError) as mistake:
        compile("def app(:", "shop.py", "exec")
    assert last_lines(mistake.value.with_traceback(None)).startswith(
        '  File "shop.py", line 1\n    def app(:'
    )


def test_the_same_failure_is_logged_less_and_less() -> None:
    failed = FailedStarts()
    assert [n for n in range(1, 1001) if failed.note("no module")] == [1, 10, 100, 1000]
    assert failed.note("another reason") and not failed.note("another reason")
    assert failed.end() == 1002 and failed.end() == 0
    assert failed.note("no module")
