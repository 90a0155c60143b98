# SPDX-License-Identifier: MIT
"""What ``gunicorn-companion import`` writes runs the programs of the files, with their arguments."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Server, free_port, wait_until
from importcases import CASES, VARIABLES, translated

from gunicorn.companion.placeholders import fill

# A stub for every program: it says how it was called, and stays; a migration ends.
STUB = """\
#!/bin/sh
# A probe.
[ "$1" != info ] || exit 0
for word; do printf '%s\\0' "$word"; done > "$NOTES/$GUNICORN_COMPANION_NAME.new"
mv "$NOTES/$GUNICORN_COMPANION_NAME.new" "$NOTES/$GUNICORN_COMPANION_NAME"
case "$*" in *migrate*) exit 0 ;; esac
case "$*" in *fd?3* | *server.js*) exec {python} -c "$TELL" ;; esac
exec sleep 1000
"""

TELL = """
import os, socket, time
path = os.environ.get("NOTIFY_SOCKET", "")
if path:
    address = chr(0) + path[1:] if path[0] == "@" else path
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", address)
# The manager looks at the sender: it must still be there.
time.sleep(1000)
"""

# Programs that the stubs need themselves.
REAL = ("sh", "bash", "env", "true", "sleep", "mv", "grep", "tail", "date", "test", "mkdir")


def make_stubs(place: Path, text: str, companions: list[dict[str, Any]]) -> None:
    """A stub for each program that *text* names."""
    stub = STUB.replace("{python}", sys.executable)
    paths = set(re.findall(rf"{place}/[\w./-]*/bin/[\w-]+", text))
    for companion in companions:
        program = companion["command"][0]
        if program not in REAL:
            start = Path(companion.get("cwd", place)) if "/" in program else place / "bin"
            paths.add(str(start / program))
    paths.add(f"{place}/worker.sh")
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stub)
        path.chmod(0o755)


def test_all_programs_of_all_files_run(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    place = server.dir
    files = list(dict.fromkeys(name for names in CASES.values() for name in names))
    text = re.sub(r"/(srv|var/log|run)/shop|/data/", lambda match: f"{place}{match[0]}", translated(*files))
    for port in set(re.findall(r'"127\.0\.0\.1:(\d+)"', text)):
        text = text.replace(f'"127.0.0.1:{port}"', f'"127.0.0.1:{free_port()}"')
    for name, value in VARIABLES.items():
        server.env[name] = value.replace("/srv/", f"{place}/srv/")
        monkeypatch.setenv(name, server.env[name])
    for name in ("srv/shop/venv", "srv/shop/lib", "var/log/shop", "run/shop", "data/compose", "notes"):
        (place / name).mkdir(parents=True)
    text += "for one in companion_workers:\n    one['startsecs'] = 0.1\n"
    names: dict[str, Any] = {}
    exec(text, names)
    companions = names["companion_workers"]
    for companion in companions:
        paths = companion.get("env_file", [])
        for path in [paths] if isinstance(paths, str) else paths:
            Path(path).write_text("FROM_FILE=1\n")
    make_stubs(place, text, companions)
    wanted = {each["name"]: each for each in companions if each.get("autostart", True)}
    assert len(wanted) > 50
    server.write("gunicorn.conf.py", text)
    server.env |= {"NOTES": str(place / "notes"), "TELL": TELL, "PATH": f"{place}/bin:/usr/bin:/bin"}
    with server:
        server.wait_manager(30)
        for companion in companions:
            if "schedule" in companion:
                assert server.ask("start", companion["name"])["ok"]
        wait_until(lambda: not laggards(server), 30, lambda: f"all to run; not yet: {laggards(server)}")
        found = server.companions()
        assert {name.partition(":")[0] for name in found} == {each["name"] for each in companions}
        for name, state in found.items():
            companion = wanted.get(name.partition(":")[0])
            if companion is None:
                assert state["pid"] is None
                continue
            # Of one that crashes at once the wait may have seen a moment in which it runs.
            assert state["restart_count"] == 0, state["description"]
            index = int(name.partition(":")[2] or 0)
            command = fill(companion["command"], {"name": name, "group": "", "index": index})
            if command[0] not in REAL:
                said = (place / "notes" / name).read_bytes().decode().split("\0")[:-1]
                assert said == command[1:], name


def laggards(server: Server) -> list[tuple[str, str, str]]:
    """Those that should run, or have ended well, and do not."""
    return [
        (name, one["state"], one["description"])
        for name, one in server.companions().items()
        if one["state"] not in ("RUNNING", "STOPPED") or "gave up" in one["description"]
    ]
