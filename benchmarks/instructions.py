# SPDX-License-Identifier: MIT
"""What a request costs in instructions of the processor: ``python -m benchmarks.instructions``.

Counted by ``callgrind`` (of valgrind) in a worker that serves requests by itself. Two runs that differ in
the number of requests alone give the cost of one; what the system does for them is not in it. The count is
nearly the same whatever else the machine does, where times vary by more than most changes bring. Requests
have eight header fields, and no two heads in a row are alike.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import Request
from benchmarks.peers import ROOT

# In the tree that is measured: it knows where that has its modules.
DRIVER = Path("benchmarks", "apps", "inprocess.py")
CASES = {
    "gthread": "gthread",
    "gthread-access-log": "gthread, with the access log on",
    "gthread-scoreboard": "gthread, with companions configured",
    "sync": "sync, a connection each",
    "sync-access-log": "sync, with the access log on",
    "sync-scoreboard": "sync, with companions configured",
}
FEW, MANY = 1000, 3000
COLLECTED = re.compile(rb"Collected *: *(\d+)")


def main(argv: Sequence[str] | None = None) -> None:
    """Count, and print a table; with two trees the second column is the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=main.__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument(
        "--tree", type=Path, action="append", help="a checkout to measure (default: this one)"
    )
    options = parser.parse_args(argv)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    trees = [tree.resolve() for tree in options.tree or [ROOT]]
    for tree in trees:
        if not (tree / "gunicorn" / "__init__.py").exists():
            # An installed one would be measured in its place.
            parser.error(f"there is no server in {tree}")
    if shutil.which("valgrind") is None:
        sys.exit("this needs valgrind: install it from your distribution")
    for case in options.cases or CASES:
        try:
            counts = [instructions(case, tree) for tree in trees]
        except RuntimeError as exc:
            sys.exit(str(exc))
        print(row(CASES[case], counts), flush=True)


def row(title: str, counts: Sequence[int]) -> str:
    """A line of the table: a count for each tree, and each after the first as a part of that."""
    columns = [
        f"{count:>9,}" + (f" ({count / counts[0]:.2f})" if n else "") for n, count in enumerate(counts)
    ]
    return f"{title:<56}{''.join(columns)}"


def instructions(case: str, tree: Path = ROOT, python: str = sys.executable) -> int:
    """Instructions for one request of *case*, in the server of *tree*. Raises RuntimeError if it fails."""
    return round((collected(case, MANY, tree, python) - collected(case, FEW, tree, python)) / (MANY - FEW))


def collected(case: str, count: int, tree: Path, python: str) -> int:
    """Instructions of a whole run of *count* requests."""
    # The order of a set or a dict's look-ups is the same in each run.
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "1"}
    command = [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={os.devnull}",
        python,
        str(tree / DRIVER),
    ]
    with tempfile.NamedTemporaryFile(prefix="requests-") as file:
        Request().write(Path(file.name), "127.0.0.1:8000")
        command += [case, str(count), file.name]
        done = subprocess.run(command, env=env, capture_output=True, check=False)
    found = COLLECTED.search(done.stderr)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"{case} failed: {done.stderr.decode(errors='replace').strip()[-400:]}")
    return int(found[1])


if __name__ == "__main__":
    main()
