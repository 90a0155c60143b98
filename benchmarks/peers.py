# SPDX-License-Identifier: MIT
"""Who is measured: each in a virtual environment of its own below a cache directory.

Peers are installed by ``pip`` as anybody would, from wherever it is set up to find packages, and run as
they are. Ours is installed from this working tree, anew each time, so that what is edited during a run
does not change what is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = "ours"
INSTALL_LIMIT = 600.0
# Whose views are measured under each server.
FRAMEWORKS = ("flask", "django")
# What servers of ASGI need, and whose view they run.
ASGI = ("uvicorn>=0.38", "httptools", "uvloop", "websockets", "fastapi")


class NotAvailable(Exception):
    """A peer cannot be had; the text says why."""


@dataclass(frozen=True)
class Peer:
    """What is installed for *label*; the first requirement is the peer itself."""

    label: str
    title: str
    requirements: tuple[str, ...]
    # The distribution whose version is reported.
    distribution: str


PEERS = {
    peer.label: peer
    for peer in (
        Peer(OURS, "this server", ("setuptools>=61.2", "wheel", "gevent", *FRAMEWORKS, *ASGI), "gunicorn"),
        Peer(
            "gunicorn27",
            "Gunicorn 27.0.1",
            ("gunicorn==27.0.1", "gevent", "packaging", *FRAMEWORKS, "uvloop", "fastapi"),
            "gunicorn",
        ),
        Peer("gunicorn23", "Gunicorn 23.0.0", ("gunicorn==23.0.0", "gevent", *FRAMEWORKS), "gunicorn"),
        Peer("waitress", "waitress", ("waitress", *FRAMEWORKS), "waitress"),
        Peer("uwsgi", "uWSGI", ("uwsgi", *FRAMEWORKS), "uWSGI"),
        Peer("granian", "Granian", ("granian", *FRAMEWORKS), "granian"),
        Peer("uvicorn", "uvicorn", ASGI, "uvicorn"),
        Peer("supervisor", "supervisord", ("supervisor",), "supervisor"),
        Peer("circus", "circus", ("circus",), "circus"),
    )
}


def title(label: str) -> str:
    peer = PEERS.get(label)
    return peer.title if peer is not None else label


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "gunicorn-benchmarks"


@dataclass
class Environments:
    """The environments below *cache*, made when first asked for."""

    cache: Path
    # The working tree of ours.
    tree: Path = ROOT
    allowed: frozenset[str] = frozenset(PEERS)
    failures: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    _ready: dict[str, Path] = field(default_factory=dict)

    def available(self, labels: Iterable[str]) -> list[str]:
        """Those of *labels* that can be run. A failure is said once, and remembered in ``failures``."""
        found = []
        for label in labels:
            try:
                self.bin(label)
            except NotAvailable:
                continue
            found.append(label)
        return found

    def bin(self, label: str) -> Path:
        """The directory of the commands of *label*'s environment. Raises NotAvailable."""
        if label not in self._ready:
            if label not in self.allowed:
                raise NotAvailable("left out by --peers")
            if label in self.failures:
                raise NotAvailable(self.failures[label])
            try:
                self._ready[label] = self._prepare(PEERS[label])
            except NotAvailable as exc:
                self.failures[label] = str(exc)
                print(f"left out: {title(label)}: {exc}", file=sys.stderr)
                raise
        return self._ready[label]

    def _prepare(self, peer: Peer) -> Path:
        home = self.cache / f"python{sys.version_info[0]}.{sys.version_info[1]}" / peer.label
        stamp, wanted = home / "installed", " ".join(peer.requirements) + "\n" + sys.base_prefix
        try:
            if not stamp.exists() or stamp.read_text() != wanted:
                print(f"setting up {peer.title} …", file=sys.stderr)
                shutil.rmtree(home, ignore_errors=True)
                home.parent.mkdir(parents=True, exist_ok=True)
                _run([sys.executable, "-I", "-m", "venv", str(home)])
                _pip(home, "install", *peer.requirements)
                stamp.write_text(wanted)
            if peer.label == OURS:
                _install_ours(home, self.tree)
        except OSError as exc:
            raise NotAvailable(str(exc)) from None
        self.versions[peer.label] = _version(home, peer.distribution)
        return home / "bin"


def _install_ours(home: Path, tree: Path) -> None:
    """As a user would have it: copied, compiled, with its commands; not the working tree itself."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        copy = Path(name)
        for file in ("pyproject.toml", "README.rst", "LICENSE", "NOTICE"):
            shutil.copy(tree / file, copy / file)
        shutil.copytree(tree / "gunicorn", copy / "gunicorn", ignore=shutil.ignore_patterns("__pycache__"))
        _pip(home, "install", "--no-deps", "--no-build-isolation", "--force-reinstall", str(copy))


def _pip(home: Path, *arguments: str) -> None:
    # Isolated: what lies in the current directory is not taken for installed.
    _run([str(home / "bin" / "python"), "-I", "-m", "pip", "-q", "--disable-pip-version-check", *arguments])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"the installation took longer than {INSTALL_LIMIT:g} s") from None
    if done.returncode != 0:
        raise NotAvailable(reason(done.stderr or done.stdout))
    return done.stdout


def reason(output: str) -> str:
    """One line that says why an installation failed: the last error that was named, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["it gave no reason"])[-1][:200]


def _version(home: Path, distribution: str) -> str:
    program = f"from importlib.metadata import version; print(version({distribution!r}))"
    return _run([str(home / "bin" / "python"), "-I", "-c", program]).strip()
