# SPDX-License-Identifier: MIT
"""The script of examples/deploy: releases behind a link, an upgrade, and the way back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, Server, load, wait_until


@pytest.mark.matrix
def test_a_release_comes_into_service_or_the_old_one_stays(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples/deploy", tmp_path, dirs_exist_ok=True)
    code, current = tmp_path / "shop/shop.py", tmp_path / "current"

    def deploy(server: Server | None = None) -> tuple[int, str]:
        env = {**os.environ, **(server.env if server is not None else {})}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        done = subprocess.run([tmp_path / "deploy.sh"], env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    assert deploy() == (0, "start it: cd current && gunicorn\n")
    server = Server(target="", prefix=["sh", "-c", f'cd {current} && exec "$@"', "sh"])
    with server, load(server) as problems:
        first = server.wait_companion("clerk")["pid"]
        assert server.get().text == f"version one, release {current.resolve().name}\n"
        code.write_text(code.read_text().replace('"one"', '"two"'))
        status, text = deploy(server)
        assert status == 0 and text.endswith("has taken over\nclerk: RUNNING\ndone\n"), text
        server.wait_exit()
        server.adopt(int((tmp_path / "gunicorn.pid").read_text()))
        second = current.resolve()
        assert server.get().text == f"version two, release {second.name}\n"
        clerk = server.wait_companion("clerk", without=[first])["pid"]
        code.write_text("import nothing_of_that_name\n")
        status, text = deploy(server)
        assert status == 1 and "nothing_of_that_name" in text
        assert current.resolve() == second and len(list((tmp_path / "releases").iterdir())) == 2
        assert server.companion("clerk")["pid"] == clerk
        assert server.get().text == f"version two, release {second.name}\n"
        wait_until(lambda: "the clerk of version two" in server.log(), 10, "his work")
    assert problems == []
