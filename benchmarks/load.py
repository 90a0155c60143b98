# SPDX-License-Identifier: MIT
"""What loads a server: ``wrk`` where it is installed, else the generator in ``client``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import ROOT

# The requests are made in advance and sent in turn. wrk calls done() at its end; the figures go to stderr,
# its own report to stdout.
WRK_SCRIPT = """
local file, requests, last = io.open("{file}", "rb"), {{}}, 0
for size in function() return file:read("*l") end do
  requests[#requests + 1] = file:read(tonumber(size))
end
file:close()
function request()
  last = last % #requests + 1
  return requests[last]
end
function done(summary, latency, requests)
  io.stderr:write(string.format(
    '{{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout))
end
"""

# So many requests are made in advance, fewer where their bodies are large: more than there are connections.
VARIANTS, PREPARED_BYTES = 997, 64 << 20
# As a proxy passes them on. With Host there are eight.
PROXIED = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Cookie": "session={id}; theme=dark",
    "X-Forwarded-For": "{address}",
    "X-Forwarded-Proto": "http",
    "X-Request-ID": "{id}",
}


@dataclass(frozen=True)
class Request:
    """A kind of request. No two heads in a row are alike: only a load generator repeats itself.

    In the path and in the values of headers ``{number}``, ``{page}``, ``{id}`` and ``{address}`` vary;
    ``{pace}`` is "slow" in one of twenty, "quick" in the others.
    """

    path: str = "/books/{number}?page={page}"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=lambda: PROXIED)
    body: bytes = b""
    chunked: bool = False

    @property
    def variants(self) -> int:
        """How many different ones there are."""
        return max(5, min(VARIANTS, PREPARED_BYTES // (len(self.body) + 1024)))

    def framed_body(self) -> bytes:
        return chunks(self.body) if self.chunked else self.body

    def head(self, n: int, host: str) -> bytes:
        """The head of number *n*."""
        lines = [f"{self.method} {fill(self.path, n)} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {fill(value, n)}" for name, value in self.headers.items()]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def to_bytes(self, n: int, host: str) -> bytes:
        return self.head(n, host) + self.framed_body()

    def write(self, file: Path, host: str) -> None:
        """All of them, the length of each in a line before it."""
        with file.open("wb") as out:
            for n in range(self.variants):
                raw = self.to_bytes(n, host)
                out.write(b"%d\n%b" % (len(raw), raw))


def number(n: int) -> int:
    """The number that request *n* has in its path."""
    return n + 1


def page(n: int) -> int:
    """The page that request *n* asks for in its query."""
    return n % 13 + 1


def fill(text: str, n: int) -> str:
    """*text* as request *n* has it."""
    unique = str(uuid.UUID(int=(n + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)))
    pace = "slow" if n % 20 == 0 else "quick"
    values = {
        "pace": pace,
        "number": number(n),
        "page": page(n),
        "id": unique,
        "address": f"198.51.100.{n % 254 + 1}",
    }
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def chunks(body: bytes, size: int = 16 * 1024) -> bytes:
    """*body* in the chunked coding (RFC 9112 section 7.1)."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@dataclass(frozen=True)
class Sample:
    """One run: how many requests in how long, and how long one took, in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int = 0

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def closed_loop(port: int, request: Request, connections: int, seconds: float, tls: bool = False) -> Sample:
    """As many requests as the server answers, each connection with one at a time."""
    if not has_wrk():
        if tls:
            raise RuntimeError("only wrk speaks TLS")
        return run_client(port, request, connections, seconds)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        return _run_wrk(Path(name), port, request, connections, seconds, "https" if tls else "http")


def open_loop(
    port: int, request: Request, connections: int, seconds: float, rate: float, timed: str = ""
) -> Sample:
    """*rate* requests a second whether the server keeps up or not.

    The time of a request counts from when it was due: one that had to wait because those before it were
    slow is not made to look quick. Only requests with *timed* in them are timed.
    """
    return run_client(port, request, connections, seconds, rate, timed)


def _run_wrk(
    directory: Path, port: int, request: Request, connections: int, seconds: float, scheme: str
) -> Sample:
    script, requests = directory / "load.lua", directory / "requests"
    request.write(requests, f"127.0.0.1:{port}")
    script.write_text(WRK_SCRIPT.format(file=requests))
    # It knows whole seconds alone.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    done = subprocess.run(
        [*command, "-s", str(script), f"{scheme}://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
    try:
        return Sample(**json.loads(done.stderr.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        raise RuntimeError(f"wrk failed: {(done.stderr or done.stdout).strip()[:300]}") from None


def run_client(
    port: int,
    request: Request,
    connections: int,
    seconds: float,
    rate: float | None = None,
    timed: str = "",
) -> Sample:
    """The own generator, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        file = Path(name) / "requests"
        request.write(file, f"127.0.0.1:{port}")
        command = [sys.executable, "-m", "benchmarks.client", str(port), str(file)]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        if rate is not None:
            command += ["--rate", str(rate), "--timed", timed]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 90)
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed: {done.stderr.strip()[-300:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return Sample(**figures)
