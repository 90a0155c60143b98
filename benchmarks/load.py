# SPDX-License-Identifier: MIT
"""What loads a server: ``wrk`` where it is installed, else the generator in ``client``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import ROOT

# wrk calls done() at its end; the figures go to stderr, its own report to stdout. A chunked body cannot be
# left to wrk, which would give its length.
WRK_SCRIPT = """
local file = io.open("{body}", "rb")
local body = file:read("*a")
file:close()
wrk.method = "{method}"
{headers}
if {chunked} then
  local whole
  function request()
    whole = whole or (wrk.format(wrk.method, wrk.path, wrk.headers, nil) .. body)
    return whole
  end
elseif #body > 0 then
  wrk.body = body
end
function done(summary, latency, requests)
  io.stderr:write(string.format(
    '{{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class Request:
    """One request, the same each time."""

    path: str = "/"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunked: bool = False

    def framed_body(self) -> bytes:
        return chunks(self.body) if self.chunked else self.body

    def head(self, host: str) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def to_bytes(self, host: str) -> bytes:
        return self.head(host) + self.framed_body()


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


def closed_loop(port: int, request: Request, connections: int, seconds: float) -> Sample:
    """As many requests as the server answers, each connection with one at a time."""
    if not has_wrk():
        return run_client(port, request, connections, seconds)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        return _run_wrk(Path(name), port, request, connections, seconds)


def open_loop(port: int, request: Request, connections: int, seconds: float, rate: float) -> Sample:
    """*rate* requests a second whether the server keeps up or not.

    The time of a request counts from when it was due: one that had to wait because those before it were
    slow is not made to look quick.
    """
    return run_client(port, request, connections, seconds, rate)


def _run_wrk(directory: Path, port: int, request: Request, connections: int, seconds: float) -> Sample:
    script = directory / "load.lua"
    body = directory / "body"
    body.write_bytes(request.framed_body())
    script.write_text(lua_script(request, body))
    # It knows whole seconds alone.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    url = f"http://127.0.0.1:{port}{request.path}"
    done = subprocess.run(
        [*command, "-s", str(script), url], capture_output=True, text=True, timeout=seconds + 60
    )
    try:
        return Sample(**json.loads(done.stderr.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        raise RuntimeError(f"wrk failed: {(done.stderr or done.stdout).strip()[:300]}") from None


def lua_script(request: Request, body: Path) -> str:
    """A script for wrk that sends *request*, the body of which is in the file *body*."""
    headers = dict(request.headers)
    if request.chunked:
        headers["Transfer-Encoding"] = "chunked"
    return WRK_SCRIPT.format(
        body=body,
        method=request.method,
        chunked="true" if request.chunked else "false",
        headers="\n".join(
            f"wrk.headers[{lua_string(name)}] = {lua_string(value)}" for name, value in headers.items()
        ),
    )


def lua_string(text: str) -> str:
    """A literal of Lua; what is not plain is written as decimal escapes, which hold every byte."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 -_/:;.,=+*()<>!?&%#@"
    return '"' + "".join(chr(b) if chr(b) in plain else f"\\{b:03}" for b in text.encode("latin-1")) + '"'


def run_client(
    port: int, request: Request, connections: int, seconds: float, rate: float | None = None
) -> Sample:
    """The own generator, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        file = Path(name) / "request"
        file.write_bytes(request.to_bytes(f"127.0.0.1:{port}"))
        command = [sys.executable, "-m", "benchmarks.client", str(port), str(file)]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        if rate is not None:
            command += ["--rate", str(rate)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 90)
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed: {done.stderr.strip()[-300:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return Sample(**figures)
