# SPDX-License-Identifier: MIT
"""Server-sent events: answers that last, of which there are a limited number."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

#: The rest of the server's connections is for requests that end.
MOST_STREAMS = 32

_places = threading.BoundedSemaphore(MOST_STREAMS)


class TooManyStreams(Exception):
    """There is no place left."""


class Stream:
    """The body of an answer: the events of *source*, which is closed at the end. Raises TooManyStreams."""

    def __init__(self, source: Iterator[bytes]) -> None:
        if not _places.acquire(blocking=False):
            raise TooManyStreams
        self._source = source
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        return self._source

    def close(self) -> None:
        if self._open:
            self._open = False
            _places.release()
            close = getattr(self._source, "close", None)
            if close is not None:
                close()


#: A comment: nothing for the client, but shows whether it is still there.
STILL_HERE = b": \n\n"


def event(name: str, value: Any) -> bytes:
    """Encode one event with a JSON value."""
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
