# SPDX-License-Identifier: MIT
"""Running the interpreter for another user where it lives in a home that others may not enter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

#: Hides the closed directory behind an empty one that holds only the interpreter, in a mount namespace of
#: its own.
_SCRIPT = """
set -e
closed=$1 inside=$2 stage=$3; shift 3
mkdir -p "$stage"
mount --bind "$inside" "$stage"
mount -t tmpfs -o mode=755 tmpfs "$closed"
mkdir -p "$inside"
mount --move "$stage" "$inside"
exec "$@"
"""


def _closed_ancestor(path: Path) -> Path | None:
    for parent in [*reversed(path.parents), path]:
        if not parent.stat().st_mode & 0o001:
            return parent
    return None


def reachable_for_all() -> list[str]:
    """A command prefix under which every user may run this interpreter: usually an empty one."""
    if _closed_ancestor(ROOT) is not None:
        pytest.skip("other users cannot read the source tree")
    inside = Path(os.path.realpath(sys.base_prefix))
    closed = _closed_ancestor(inside)
    if closed is None:
        return []
    if not shutil.which("unshare"):
        pytest.skip("other users cannot reach the interpreter")
    # The stage goes below /run, which is a mount that other users' programs do not look at.
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh"]
    prefix += [str(closed), str(inside), "/run/stage-of-a-test"]
    if subprocess.run([*prefix, sys.executable, "-c", "pass"], capture_output=True).returncode:
        pytest.skip("other users cannot reach the interpreter, and no mount namespace is to be had")
    return prefix
