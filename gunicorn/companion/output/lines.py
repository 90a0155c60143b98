# SPDX-License-Identifier: MIT
"""Whole lines out of a stream of bytes, and how they look at their destination."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gunicorn.companion.output.ring import KINDS, Record

# The most that is held back while the end of a line is missing.
LONGEST = 64 * 1024

STAMP_FORMAT = "%(asctime)s %(message)s"

_COLORS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class Lines(NamedTuple):
    """Whole lines of one companion; the last one may lack its newline: see `Cutter`."""

    text: bytes
    name: str
    pid: int
    kind: int
    time: float

    @property
    def number(self) -> int:
        return self.text.count(b"\n") + (not self.text.endswith(b"\n"))


@dataclass(eq=False)
class Cutter:
    """Cuts a stream at the ends of its lines.

    A line longer than LONGEST comes in several pieces. Only these, and what the stream ends with, may lack
    a newline.
    """

    rest: bytes = b""
    # For the user of this: the record in which the rest begins.
    begin: int = 0

    def feed(self, data: bytes) -> bytes:
        """Return the lines that are complete."""
        end = data.rfind(b"\n") + 1
        if len(data) - end + (0 if end else len(self.rest)) > LONGEST:
            end = len(data)
        if not end:
            self.rest += data
            return b""
        lines, self.rest = self.rest + data[:end], data[end:]
        return lines

    def end(self) -> bytes:
        rest, self.rest = self.rest, b""
        return rest


def lines_of(
    records: Iterable[tuple[Record, bytes]], unfinished: bool = True
) -> Iterator[tuple[Record, bytes]]:
    """The lines of *records*, without their newlines, each with the record that it ends in.

    What is left of a line whose beginning is lost is omitted. The unfinished lines, if they are wanted, come
    last.
    """
    cutters: dict[tuple[int, int], tuple[Cutter, Record]] = {}
    for record, data in records:
        source = record.pid, record.kind
        if source not in cutters:
            if record.continues:
                _, newline, data = data.partition(b"\n")
                if not newline:
                    continue
            cutters[source] = Cutter(), record
        cutter, _ = cutters[source]
        cutters[source] = cutter, record
        text = cutter.feed(data)
        yield from ((record, line) for line in split(text))
    for cutter, record in cutters.values() if unfinished else ():
        yield from ((record, line) for line in split(cutter.end()))


def split(text: bytes) -> list[bytes]:
    """*text* as lines without newlines."""
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


Format = Callable[[Lines], bytes]


def make_format(text: str, colored: bool = False) -> Format:
    """The function that renders `Lines`, which end with a newline then, except as ``raw``."""
    if text == "raw":
        return lambda lines: lines.text
    if text == "json":
        return _as_json
    before, _, after = text.partition("%(message)s")

    def render(lines: Lines) -> bytes:
        values = {
            "asctime": stamp(lines.time) if "asctime" in text else "",
            "name": lines.name,
            "pid": lines.pid,
            "stream": KINDS[lines.kind],
        }
        prefix, suffix = before % values, after % values
        if colored and prefix:
            body = prefix.rstrip()
            prefix = f"\x1b[{color_of(lines.name)}m{body}\x1b[0m{prefix[len(body) :]}"
        begin, end = prefix.encode(), suffix.encode() + b"\n"
        text_of_lines = lines.text.removesuffix(b"\n")
        return begin + text_of_lines.replace(b"\n", end + begin) + end

    return render


def color_of(name: str) -> int:
    """The same colour for a companion at every place."""
    return _COLORS[sum(name.encode()) % len(_COLORS)]


def _as_json(lines: Lines) -> bytes:
    head = {"time": iso(lines.time), "name": lines.name, "pid": lines.pid, "stream": KINDS[lines.kind]}
    start = json.dumps(head)[:-1]
    shown = (json.dumps(line.decode("utf-8", "backslashreplace")) for line in split(lines.text))
    return "".join(f'{start}, "message": {line}}}\n' for line in shown).encode()


def stamp(moment: float) -> str:
    """The local time, as `logging` shows it."""
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    return f"{text},{int(moment % 1 * 1000):03d}"


def iso(moment: float) -> str:
    at = time.localtime(moment)
    zone = time.strftime("%z", at)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', at)}.{int(moment % 1 * 1000):03d}{zone[:3]}:{zone[3:]}"
