# SPDX-License-Identifier: MIT
"""What the tests of companions share: settings without a whole Config, and programs run apart.

What forks runs in a process of its own and not in the test process, whose
threads (of the test runner) a fork would meet in the middle of anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import ROOT, is_alive, kill_all

from gunicorn.companion.keys import KEYS
from gunicorn.companion.runfile import Record
from gunicorn.unix import session

HERE = Path(__file__).resolve().parent

# The defaults of the settings that companions look at.
DEFAULTS: dict[str, Any] = {
    "uid": os.geteuid(),
    "gid": os.getegid(),
    "initgroups": False,
    "companion_workers": [],
    "web_after": [],
    **{f"companion_{name}": key.setting.default for name, key in KEYS.items() if key.setting is not None},
}


def make_cfg(*workers: Any, **settings: Any) -> SimpleNamespace:
    """What ``build_companion_configs`` reads of a Config; ``stop_timeout=3`` is the global setting."""
    own = {("companion_" + name if name not in DEFAULTS else name): value for name, value in settings.items()}
    unknown = set(own) - set(DEFAULTS)
    assert not unknown, unknown
    return SimpleNamespace(**{**DEFAULTS, "companion_workers": list(workers), **own})


def python_env(**more: str) -> dict[str, str]:
    """An environment for programs of the tests, in which the package and the test tools are found."""
    unwanted = ("GUNICORN_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "XDG_", "PYTEST_", "COV_", "PYTHON")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    env.pop("RUNTIME_DIRECTORY", None)
    paths = [str(ROOT), str(HERE), str(ROOT / "tests")]
    return {**env, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", **more}


def run_python(
    code: str, *args: str, timeout: float = 20, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run *code* in an interpreter of its own; its output is captured."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=python_env() if env is None else env,
        stdin=subprocess.DEVNULL,
        **options,
    )


def answer_of(code: str, *args: str, **options: Any) -> Any:
    """The JSON value that *code* prints as its last line."""
    done = run_python(code, *args, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Every open(2) fails with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Script:
    """A program of its own with pipes at both ends; what it prints is waited for with a deadline.

    *code* is its text, or the path of its file.
    """

    def __init__(self, code: str | Path, *args: str, **options: Any) -> None:
        program = [str(code)] if isinstance(code, Path) else ["-c", textwrap.dedent(code)]
        self.popen = subprocess.Popen(
            [sys.executable, *program, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=python_env(),
            **options,
        )
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.stdin, self.stdout = self.popen.stdin, self.popen.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self.pid = self.popen.pid
        self._read = b""

    def _more(self, timeout: float) -> bool:
        """Read what comes next; False at the end."""
        if not select.select([self.stdout], [], [], timeout)[0]:
            raise AssertionError(f"nothing printed within {timeout} s after {self._read!r}")
        data = os.read(self.stdout.fileno(), 65536)
        self._read += data
        return bool(data)

    def line(self, timeout: float = 20.0) -> str:
        """The next line, without its end; what is left at the end of the output."""
        while b"\n" not in self._read and self._more(timeout):
            pass
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def wait_closed(self, timeout: float = 20.0) -> None:
        """Until every process that has the output has closed it."""
        while self._more(timeout):
            pass

    def go_on(self) -> None:
        """Close its input, which it waits for."""
        self.stdin.close()

    def end(self, *more: int) -> None:
        """Kill it, and *more*; again is harmless."""
        kill_all([pid for pid in (self.pid, *more) if is_alive(pid)])
        self.stdin.close()
        self.stdout.close()
        self.popen.wait(20)


DEAD = 4_000_000  # above the highest pid that there can be


def record(pid: int = DEAD, **values: Any) -> Record:
    """The record of *pid*, whose supervisor is dead."""
    known = {
        "name": "rq",
        "pid": pid,
        "started": session.identity(pid) or "boot/1",
        "session": pid,
        "supervisor": DEAD,
        "supervisor_started": "boot/1",
        "stop_signal": signal.SIGTERM,
        "stop_timeout": 60.0,
        "signalled": False,
        "error": None,
    }
    return Record(**{**known, **values})
