# SPDX-License-Identifier: MIT
"""Completion of gunicorn-companion, in real shells and with the names of a running server."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_companions import companion_server, entry
from harness import Server
from proctools import program

from gunicorn.companion.ctl import COMMANDS

BIN = Path(sys.executable).parent
# Goes to the beginning of the line and has the shell print it.
SHOW = b"\x01echo It is: \n"
Ask = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with companion_server(
        entry("scheduler", "idle", group="night"), entry("rq", "idle", numprocs=2, group="jobs"), workers=2
    ) as server:
        server.wait_companion("scheduler")
        server.wait_companion("rq:1")
        yield server


@pytest.fixture
def env(server: Server) -> dict[str, str]:
    return {
        **server.env,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "GUNICORN_COMPANION_SOCKET": str(server.control_path()),
        "HOME": str(server.dir),
        "TERM": "dumb",
    }


@pytest.fixture
def ask(env: dict[str, str]) -> Ask:
    """What may follow a line, as the scripts ask for it."""

    def run(line: str) -> list[str]:
        command = [str(BIN / "gunicorn-companion"), "__complete", "fish", *line.split(" ")]
        found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20)
        assert not found.stderr and found.returncode == 0, found
        return [line.partition("\t")[0] for line in found.stdout.splitlines()]

    return run


def type_in(shell: list[str], start: str, text: str, env: dict[str, str], directory: Path) -> str:
    """Type *text* into an interactive shell; return the line that it has become."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.execve(shell[0], shell, env)
    try:
        os.write(terminal, f"PS1=; PROMPT=; {start}; echo Is rea''dy\n".encode())
        _read_until(terminal, "Is ready")
        os.write(terminal, text.encode() + SHOW)
        return _read_until(terminal, "\nIt is: ").strip()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def _read_until(terminal: int, mark: str) -> str:
    """The line after *mark*."""
    seen, deadline = "", time.monotonic() + 20
    while True:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], seen
        seen += os.read(terminal, 4096).decode().replace("\r", "\n")
        _, found, rest = seen.partition(mark)
        if found and "\n" in rest:
            return rest.partition("\n")[0]


SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], "source <(gunicorn-companion completion bash)"),
    "zsh": (
        ["-f", "-i"],
        "bindkey -e; autoload -Uz compinit; compinit -u -D; source <(gunicorn-companion completion zsh)",
    ),
}


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("statu\t", "status"),
        ("restart sch\t", "restart scheduler"),
        ("restart --no\tsch\t", "restart --no-wait scheduler"),
        ("stop rq:1\t", "stop rq:1"),
        ("stop @ni\t", "stop @night"),
        ("wait --state=RU\t", "wait --state=RUNNING"),
        ("-s control.s\t", "-s control.sock"),
    ],
)
def test_a_shell_completes_the_line(
    name: str, typed: str, wanted: str, env: dict[str, str], server: Server
) -> None:
    options, start = SHELLS[name]
    (server.dir / "control.sock").touch()
    line = type_in([program(name), *options], start, f"gunicorn-companion {typed}", env, server.dir)
    assert line == f"gunicorn-companion {wanted}"


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("restart s", ["scheduler\tRUNNING"]),
        ("stop @", ["@night\tall of the group", "@jobs\tall of the group"]),
        ("scale r", ["rq\tall its copies"]),
        ("wait --state=RU", ["--state=RUNNING"]),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_fish_completes_the_line(typed: str, wanted: list[str], env: dict[str, str]) -> None:
    script = f"gunicorn-companion completion fish | source; complete -C 'gunicorn-companion {typed}'"
    command = [program("fish"), "--no-config", "-c", script]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True)
    assert [line.strip() for line in found.stdout.splitlines()] == wanted


def test_what_is_offered(ask: Ask, server: Server) -> None:
    assert set(ask("")) == set(COMMANDS)
    assert ask("restart ") == ["scheduler", "rq", "rq:0", "rq:1", "@night", "@jobs", "all"]
    assert ask("restart scheduler rq:0 rq") == ["rq", "rq:1"]
    assert ask("scale ") == ["rq"]
    assert "USR1" in ask("signal scheduler ")
    assert ask("wait scheduler --state D") == ["DONE"]
    assert "--follow" in ask("logs --")
    assert "--rolling" in ask("restart --") and "--rolling" not in ask("stop --")
    assert ask("web ") == ["add", "remove", "reload", "kill"]
    workers = server.ask("web")["web"]["workers"]
    assert sorted(ask("web kill ")) == sorted(str(worker["pid"]) for worker in workers)
    assert len(workers) == 2
    assert ask("dump w") == ["web"]
    assert ask("nonsense ") == ask("pid -- --") == ask("logs -n ") == ask("web add ") == []


def test_without_a_server_nothing_is_offered_and_nothing_said(env: dict[str, str], tmp_path: Path) -> None:
    env["GUNICORN_COMPANION_SOCKET"] = str(tmp_path / "none.sock")
    command = [str(BIN / "gunicorn-companion"), "__complete", "fish", "restart", ""]
    found = subprocess.run(command, env=env, capture_output=True, timeout=20)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
