# SPDX-License-Identifier: MIT
"""WhiteNoise in front of an application, with a map of files that is made at the start.

Only a path that is a key of the map reaches a file, so no way of writing a path can lead out of a directory.
"""

from __future__ import annotations

import asyncio
import os
import re
from functools import partial
from http import HTTPStatus
from typing import Any

from whitenoise import WhiteNoise
from whitenoise.responders import Response, SlicedFile, StaticFile

from gunicorn.static import servable, status_of

# A hash in hexadecimal between dots or a dash and a dot. With a letter and a digit: a date has no letter, a
# word no digit.
HASHED_NAME = r"[.-](?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,64}(\.[^./]+)+$"
ENDINGS = ("", ".gz", ".br")

# How much of a file is read at once for an ASGI server.
CHUNK = 1 << 18
# The fields of a request that matter, as WSGI names them.
FIELDS = {
    name.lower().replace("_", "-").encode(): f"HTTP_{name}"
    for name in ("RANGE", "IF_RANGE", "IF_NONE_MATCH", "IF_MODIFIED_SINCE", "ACCEPT_ENCODING")
}


class File(StaticFile):  # type: ignore[misc]
    """Answers as the library does, but for what RFC 9110 says of ranges and entity tags."""

    #: What tells a changed file from the one that was found, by path.
    marks: dict[str, object]
    #: Looks for the file anew; returns None if it is gone.
    again: Any

    def get_response(self, method: str, environ: dict[str, Any]) -> Any:
        file: File | None = self
        if any(mark != _mark(_stat(path)) for path, mark in self.marks.items()):
            file = self.again()
        try:
            if file is not None:
                return file.answer(method, environ)
        except FileNotFoundError:  # removed just now
            pass
        return Response(HTTPStatus.NOT_FOUND, [("Content-Length", "0")], None)

    def answer(self, method: str, environ: dict[str, Any]) -> Any:
        asked = dict(environ)
        # Ranges are for GET, and for the very file of which the client has a part.
        if method != "GET" or asked.get("HTTP_IF_RANGE", self.etag) != self.etag:
            asked.pop("HTTP_RANGE", None)
        # A coding with the weight 0 is one that the client refuses.
        codings = asked.get("HTTP_ACCEPT_ENCODING", "").split(",")
        asked["HTTP_ACCEPT_ENCODING"] = ",".join(
            coding for coding in codings if not re.search(r";\s*q=0(\.0*)?\s*$", coding)
        )
        return super().get_response(method, asked)

    def is_not_modified(self, environ: dict[str, Any]) -> Any:
        tags = environ.get("HTTP_IF_NONE_MATCH")
        if tags is None:
            return super().is_not_modified(environ)
        # Several are possible, and weak ones: a proxy that compresses makes them weak.
        return tags.strip() == "*" or self.etag in re.findall(r'"[^"]*"', tags)

    def get_range_response(self, asked: str, base: list[tuple[str, str]], file: Any) -> Any:
        headers = dict(base)
        size = int(headers["Content-Length"])
        spec = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", asked.strip())
        # After a ValueError, also one of int(), the library sends the whole file.
        if spec is None:
            raise ValueError(asked)
        first, last = spec.groups()
        if first and last and int(last) < int(first):
            raise ValueError(asked)
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last), size - 1) if first and last else size - 1
        if start > end:
            return self.get_range_not_satisfiable_response(file, size)
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        headers["Content-Length"] = str(end - start + 1)
        file.seek(start)
        # A plain file can be sent by the system.
        body = file if end == size - 1 else SlicedFile(file, start, end)
        return Response(HTTPStatus.PARTIAL_CONTENT, list(headers.items()), body)


class WSGI(WhiteNoise):  # type: ignore[misc]
    """A WSGI application: the library's middleware, with the files that `servable` names."""

    def __init__(self, app: Any, max_age: int, follow: bool) -> None:
        self.follow = follow
        super().__init__(app, max_age=max_age, allow_all_origins=False, immutable_file_test=HASHED_NAME)

    def update_files_dictionary(self, root: str, prefix: str) -> None:
        directory = root.rstrip("/") or "/"
        found = dict(servable(directory, self.follow))
        for path in found:
            if not self.is_compressed_variant(path, found):
                self._add(directory, path, prefix + path[len(root) :], found)

    def _add(self, directory: str, path: str, url: str, found: dict[str, os.stat_result]) -> File:
        file = self.get_static_file(path, url, found)
        # The library has no place to name the class.
        file.__class__ = File
        file.marks = {name: _mark(found[name]) for name in _with_endings(path) if name in found}
        file.again = partial(self._find_again, directory, path, url)
        self.files[url] = file
        return file  # type: ignore[no-any-return]

    def _find_again(self, directory: str, path: str, url: str) -> File | None:
        """Put a file that has changed into the map anew, by the same rules."""
        statuses = {name: status_of(directory, name, self.follow) for name in _with_endings(path)}
        found = {name: status for name, status in statuses.items() if status is not None}
        return self._add(directory, path, url, found) if path in found else None


class ASGI(WSGI):
    """An ASGI application that answers from the same map."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        file = None
        if scope["type"] == "http":
            file = self.files.get(scope["path"].removeprefix(scope.get("root_path") or ""))
        if file is None:
            await self.application(scope, receive, send)
        else:
            await _send(file, scope, send)


async def _send(file: File, scope: Any, send: Any) -> None:
    environ: dict[str, str] = {}
    for name, value in scope["headers"]:
        if key := FIELDS.get(name):
            text = value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text
    # In threads, because a disk may be slow and the loop serves all clients.
    response = await asyncio.to_thread(file.get_response, scope["method"], environ)
    fields = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    body = response.file
    try:
        await send({"type": "http.response.start", "status": int(response.status), "headers": fields})
        left, more = int(dict(fields)[b"content-length"]) if body is not None else 0, True
        while more:
            chunk = await asyncio.to_thread(body.read, min(left, CHUNK)) if left else b""
            left -= len(chunk)
            more = left > 0 and bool(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
    finally:
        if body is not None:
            body.close()


def _with_endings(path: str) -> list[str]:
    return [path + ending for ending in ENDINGS]


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _mark(status: os.stat_result | None) -> object:
    return status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
