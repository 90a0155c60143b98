# SPDX-License-Identifier: MIT
"""Which files are served, to which requests, with which headers."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from gunicorn.config import Config
from gunicorn.errors import ConfigError
from gunicorn.static import check, servable, wrap
from gunicorn.staticfiles import ASGI, CHUNK

SECRET = b"the secret outside"
SCRIPT = b"let a = 1\n" * 100


def shop(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [("X-From", "shop")])
    return [b"the application"]


async def asgi_shop(scope: Any, receive: Any, send: Any) -> None:
    fields = [(b"x-from", b"shop")]
    await send({"type": "http.response.start", "status": 404, "headers": fields})
    await send({"type": "http.response.body", "body": b"the application"})


BOTH = [shop, asgi_shop]


def configured(static: Any, **settings: Any) -> Config:
    cfg = Config()
    cfg.set("static", static)
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def make_root(tmp_path: Path) -> Path:
    """A directory with everything that may be in one, and a secret beside it."""
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_bytes(SECRET)
    # Its name begins as that of the directory.
    (tmp_path / "static-old").mkdir()
    (tmp_path / "static-old" / "secret.txt").write_bytes(SECRET)
    root = tmp_path / "static"
    for directory in ("css", "css/deep", ".git", "a b"):
        (root / directory).mkdir(parents=True)
    (root / "app.js").write_bytes(SCRIPT)
    (root / "app.js.gz").write_bytes(gzip.compress(SCRIPT))
    (root / "app.js.br").write_bytes(b"brotli")
    (root / "empty.txt").write_bytes(b"")
    (root / "css" / "main.css").write_bytes(b"main")
    (root / "css" / "deep" / "x.css").write_bytes(b"deep")
    (root / "a b" / "c%2e.txt").write_bytes(b"odd")
    (root / "é.txt").write_bytes(b"accent")
    (root / ".env").write_bytes(SECRET)
    (root / ".git" / "config").write_bytes(SECRET)
    for link, target in {
        "inside.css": "css/main.css",
        "inside": "css",
        "loop": ".",
        "css/up": "..",
        "out.txt": "../secret.txt",
        "absolute.txt": tmp_path / "secret.txt",
        "out": "../outside",
        "old": "../static-old",
        "parent": "..",
        "hidden.txt": ".env",
        "git": ".git",
        "gone.txt": "nowhere",
        "self.txt": "self.txt",
        "null": "/dev/null",
        "zero": "/dev/zero",
        "proc": "/proc/self",
    }.items():
        (root / link).symlink_to(target)
    os.mkfifo(root / "fifo")
    here = os.getcwd()
    os.chdir(root)  # the path of a socket is limited
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket")
    os.chdir(here)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("static"))


class Answer:
    """What an application answers; *path* as WSGI has it. Names of header fields are those of `str.title`."""

    def __init__(self, app: Any, path: str, method: str = "GET", **headers: str) -> None:
        self.body = b""
        if isinstance(app, ASGI):
            fields = [
                (name.replace("_", "-").encode(), value.encode("latin-1", "replace"))
                for name, value in headers.items()
            ]
            text = path.encode("latin-1").decode("utf-8", "replace")
            asyncio.run(
                app({"type": "http", "method": method, "path": text, "headers": fields}, None, self._take)
            )
            return
        environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path}
        environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
        setup_testing_defaults(environ)
        result = app(environ, self._start)
        self.body = b"".join(result)
        if hasattr(result, "close"):
            result.close()

    def _start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status = int(status.split()[0])
        self.headers = {name.title(): value for name, value in headers}

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]
            ]
            assert all(name == name.lower() for name, _ in headers)
            self._start(str(message["status"]), headers)
        else:
            self.body += message["body"]

    @property
    def is_shops(self) -> bool:
        return self.headers.get("X-From") == "shop"


@pytest.fixture(scope="module", params=BOTH, ids=["wsgi", "asgi"])
def app(root: Path, request: pytest.FixtureRequest) -> Any:
    return wrap(request.param, configured({"/static": str(root)}))


def test_what_is_served(root: Path) -> None:
    """Regular files and links within the directory; nothing hidden, and no end of a link to itself."""
    found = {os.path.relpath(path, root) for path, _ in servable(str(root))}
    inside = {"inside/main.css", "inside/deep/x.css", "inside.css"}
    plain = {"app.js", "app.js.gz", "app.js.br", "empty.txt", "css/main.css", "css/deep/x.css", "é.txt"}
    assert found == {*plain, *inside, "a b/c%2e.txt"}


ATTACKS = [
    "/static",
    "/static/",
    "/static/css",
    "/static/css/",
    "/static/..",
    "/static/../secret.txt",
    "/static/css/../app.js",
    "/static/./app.js",
    "/static//app.js",
    "//static/app.js",
    "/static/../static/app.js",
    "/static/css/../../../secret.txt",
    # Encoded twice: what the server has decoded once.
    "/static/%2e%2e/secret.txt",
    "/static/%2e%2e%2fsecret.txt",
    "/static/..%2fsecret.txt",
    "/static/%252e%252e/secret.txt",
    "/static/%c0%ae%c0%ae/secret.txt",
    "/static/\xc0\xae\xc0\xae/secret.txt",
    "/static/..\\secret.txt",
    "/static\\..\\secret.txt",
    "/static/css\\main.css",
    "/static/..;/secret.txt",
    "/static/\0",
    "/static/app.js\0",
    "/static/app.js\0.txt",
    "/static/../secret.txt\0.js",
    "/static/app.js/",
    "/static/app.js/.",
    "/static/app.js/../../secret.txt",
    "/static/APP.JS",
    "/STATIC/app.js",
    "/static/app.js ",
    "/static/app.js.",
    "/static/app.js::$DATA",
    "/static/app.js.gz",
    "/static/.env",
    "/static/.git/config",
    "/static/css/up/.env",
    "/static/hidden.txt",
    "/static/git/config",
    "/static/out.txt",
    "/static/absolute.txt",
    "/static/out/secret.txt",
    "/static/old/secret.txt",
    "/static/parent/secret.txt",
    "/static/proc/environ",
    "/static/gone.txt",
    "/static/self.txt",
    "/static/null",
    "/static/zero",
    "/static/fifo",
    "/static/socket",
    "/static-old/secret.txt",
    "/static/static-old/secret.txt",
    "/static//etc/passwd",
    "/static/" + "a" * 100_000,
    "/static/" + "../" * 10_000 + "etc/passwd",
    "/static" + "/" * 10_000 + "app.js",
    "/etc/passwd",
    "app.js",
    "static/app.js",
    "~/static/app.js",
    "*",
    "",
]


@pytest.mark.parametrize("shop", BOTH)
@pytest.mark.parametrize("prefix", ["/static", "/static/"])
def test_all_else_is_passed_on(root: Path, prefix: str, shop: Any) -> None:
    app = wrap(shop, configured({prefix: str(root)}))
    assert Answer(app, "/static/app.js").body == SCRIPT
    served = [path[:80] for path in ATTACKS if not Answer(app, path).is_shops]
    assert served == []


def test_at_the_root_of_the_site_nothing_else_is_open(root: Path) -> None:
    app = wrap(shop, configured([f"/={root}"]))
    assert Answer(app, "/app.js").body == SCRIPT
    for path in ATTACKS:
        below = "/" + path.removeprefix("/static").lstrip("/")
        if below != "/app.js" or path.startswith("/static//"):
            assert Answer(app, path).is_shops, path


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/static/app.js", SCRIPT, 'text/javascript; charset="utf-8"'),
        ("/static/css/main.css", b"main", 'text/css; charset="utf-8"'),
        ("/static/inside.css", b"main", 'text/css; charset="utf-8"'),
        ("/static/inside/deep/x.css", b"deep", 'text/css; charset="utf-8"'),
        ("/static/empty.txt", b"", 'text/plain; charset="utf-8"'),
        ("/static/a b/c%2e.txt", b"odd", 'text/plain; charset="utf-8"'),
        ("/static/\xc3\xa9.txt", b"accent", 'text/plain; charset="utf-8"'),
    ],
)
def test_files(app: Any, path: str, body: bytes, kind: str) -> None:
    answer = Answer(app, path)
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, body, kind)
    assert answer.headers["Content-Length"] == str(len(body))
    assert "Access-Control-Allow-Origin" not in answer.headers
    head = Answer(app, path, "HEAD")
    assert (head.status, head.body, head.headers) == (200, b"", answer.headers)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get"])
def test_other_methods(app: Any, method: str) -> None:
    answer = Answer(app, "/static/app.js", method)
    assert (answer.status, answer.headers["Allow"], answer.body) == (405, "GET, HEAD", b"")
    assert Answer(app, "/static/new", method).is_shops


LAST = len(SCRIPT) - 1


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-", 0, LAST),
        ("bytes=0-0", 0, 0),
        ("bytes=5-5", 5, 5),
        ("bytes=5-9", 5, 9),
        (f"bytes={LAST}-", LAST, LAST),
        (f"bytes=5-{10**18}", 5, LAST),
        ("bytes=-1", LAST, LAST),
        (f"bytes=-{10**18}", 0, LAST),
    ],
)
def test_ranges(app: Any, asked: str, first: int, last: int) -> None:
    answer = Answer(app, "/static/app.js", range=asked)
    assert (answer.status, answer.body) == (206, SCRIPT[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(SCRIPT)}"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    # Ranges are for GET.
    assert Answer(app, "/static/app.js", "HEAD", range=asked).status == 200


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (f"bytes={LAST + 1}-", 416),
        (f"bytes={10**18}-{10**18}", 416),
        (f"bytes={10**100}-", 416),
        ("bytes=-0", 416),
        ("bytes=", 200),
        ("bytes=-", 200),
        ("bytes=9-5", 200),
        ("bytes=a-b", 200),
        ("bytes=--5", 200),
        ("bytes=1-2,4-5", 200),
        ("bytes=\u0661-\u0662", 200),
        ("lines=1-2", 200),
    ],
)
def test_ranges_that_are_none(app: Any, asked: str, status: int) -> None:
    answer = Answer(app, "/static/app.js", range=asked)
    assert (answer.status, answer.body) == (status, SCRIPT if status == 200 else b"")
    if status == 416:
        assert answer.headers["Content-Range"] == f"bytes */{len(SCRIPT)}"


def test_a_range_of_an_empty_file(app: Any) -> None:
    assert Answer(app, "/static/empty.txt", range="bytes=0-").status == 416


def test_validators(app: Any) -> None:
    found = Answer(app, "/static/app.js").headers
    tag, date = found["Etag"], found["Last-Modified"]
    old, path = "Thu, 01 Jan 1998 00:00:00 GMT", "/static/app.js"
    for same in (tag, f"W/{tag}", f'"x", {tag}', f'"x",W/{tag} , "y"', "*"):
        answer = Answer(app, path, if_none_match=same)
        assert (answer.status, answer.body, answer.headers["Etag"]) == (304, b"", tag), same
    assert Answer(app, path, if_none_match='"x"').status == 200
    # The tag counts, not the date.
    assert Answer(app, path, if_none_match='"x"', if_modified_since=date).status == 200
    assert Answer(app, path, if_modified_since=date).status == 304
    assert Answer(app, path, "HEAD", if_modified_since=date).status == 304
    for other in (old, "yesterday", ""):
        assert Answer(app, path, if_modified_since=other).status == 200
    # A resumed download gets the rest of the same file, or all of another one.
    assert Answer(app, path, range="bytes=5-", if_range=tag).status == 206
    for other in ('"x"', f"W/{tag}", old):
        answer = Answer(app, path, range="bytes=5-", if_range=other)
        assert (answer.status, answer.body) == (200, SCRIPT)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("gzip, br", "br"),
        ("gzip;q=0.5, br;q=0", "gzip"),
        ("gzip; q=0.000 , identity", None),
        ("deflate", None),
        ("xgzip", None),
        ("*", None),
        ("", None),
    ],
)
def test_precompressed_files(app: Any, root: Path, accepted: str, coding: str | None) -> None:
    answer = Answer(app, "/static/app.js", accept_encoding=accepted)
    name = {"gzip": "app.js.gz", "br": "app.js.br", None: "app.js"}[coding]
    assert answer.body == (root / name).read_bytes()
    assert (answer.headers.get("Content-Encoding"), answer.headers["Vary"]) == (coding, "Accept-Encoding")
    assert answer.headers["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize(
    ("name", "immutable"),
    [
        ("app.55e7cbb9ba48.js", True),
        ("app-3f2a9c1b.js", True),
        ("app.55e7cbb9ba48.js.map", True),
        ("app.55e7cbb9ba48.min.css", True),
        ("app.js", False),
        ("report-20261127.pdf", False),
        ("cafe-facade.js", False),
        ("cafe-deadbeef.js", False),
        ("app.55e7.js", False),
        ("55e7cbb9ba48.d/app.js", False),
        ("app.55e7cbb9ba48", False),
    ],
)
def test_how_long_it_may_be_kept(tmp_path: Path, name: str, immutable: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    app = wrap(shop, configured({"/s": str(tmp_path)}, static_max_age=300))
    expected = "max-age=315360000, public, immutable" if immutable else "max-age=300, public"
    assert Answer(app, f"/s/{name}").headers["Cache-Control"] == expected


@pytest.mark.parametrize("shop", BOTH)
def test_a_file_that_changes(tmp_path: Path, shop: Any) -> None:
    """A changed file is found with its new size, a removed one is not; new ones wait for the reload."""
    root = tmp_path / "static"
    root.mkdir()
    for name in ("app.js", "app.js.gz", "data"):
        (root / name).write_bytes(SCRIPT)
    app = wrap(shop, configured({"/static": str(root)}))
    old = Answer(app, "/static/app.js").headers
    (root / "app.js").write_bytes(b"longer than it was" * 1000)
    answer = Answer(app, "/static/app.js", if_none_match=old["Etag"])
    assert (answer.status, answer.body) == (200, b"longer than it was" * 1000)
    assert answer.headers["Content-Length"] == str(len(answer.body))
    (root / "app.js.gz").unlink()
    answer = Answer(app, "/static/app.js", accept_encoding="gzip")
    assert "Content-Encoding" not in answer.headers
    assert len(answer.body) == 18_000
    # The rules hold for what has taken its place.
    (tmp_path / "secret").write_bytes(SECRET)
    (root / ".env").write_bytes(SECRET)
    for target in ("../secret", ".env", "/etc/passwd", "/dev/zero"):
        (root / "data").unlink()
        (root / "data").symlink_to(target)
        answer = Answer(app, "/static/data")
        assert (answer.status, answer.is_shops, answer.body) == (404, False, b""), target
    (root / "data").unlink()
    os.mkfifo(root / "data")
    assert Answer(app, "/static/data").status == 404
    (root / "data").unlink()
    (root / "data").write_bytes(b"back")
    assert Answer(app, "/static/data").body == b"back"
    (root / "data").unlink()
    assert Answer(app, "/static/data").status == 404
    (root / "new").write_bytes(b"new")
    assert Answer(app, "/static/new").is_shops


def test_links_that_are_followed_if_asked(tmp_path: Path) -> None:
    """Except to devices and pipes, and in circles."""
    root, outside = tmp_path / "static", tmp_path / "outside"
    for directory in (root, outside):
        directory.mkdir()
        (directory / ".env").write_bytes(SECRET)
        (directory / "back").symlink_to("../static")
    (outside / "a.js").write_bytes(b"outside")
    os.mkfifo(outside / "fifo")
    for link, target in {
        "a.js": "../outside/a.js",
        "out": outside,
        "env.txt": ".env",
        "loop": ".",
        "zero": "/dev/zero",
        "fifo": "../outside/fifo",
        "gone": "nowhere",
    }.items():
        (root / link).symlink_to(target)
    cfg = configured({"/static": str(root)}, static_follow_symlinks=True)
    app = wrap(shop, cfg)
    assert set(app.files) == {"/static/a.js", "/static/out/a.js", "/static/env.txt"}
    (outside / "a.js").write_bytes(b"changed")
    for path in ("a.js", "out/a.js"):
        assert Answer(app, f"/static/{path}").body == b"changed"
    assert Answer(app, "/static/env.txt").body == SECRET


def test_an_asgi_server_gets_a_large_file_in_parts(tmp_path: Path) -> None:
    content = os.urandom(CHUNK) + b"rest"
    (tmp_path / "large").write_bytes(content)
    app = wrap(asgi_shop, configured({"/static": str(tmp_path)}))
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    # A proxy that has taken a part of the path away says so, and the server puts it before the path.
    scope = {
        "type": "http",
        "method": "GET",
        "root_path": "/shop",
        "path": "/shop/static/large",
        "headers": [],
    }
    asyncio.run(app(scope, None, send))
    parts = [(message["body"], message["more_body"]) for message in messages[1:]]
    assert parts == [(content[:CHUNK], True), (b"rest", False)]


def test_an_asgi_server_whose_client_has_gone(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(2 * CHUNK))
    app = wrap(asgi_shop, configured({"/static": str(tmp_path)}))

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise OSError("gone")

    scope = {"type": "http", "method": "GET", "path": "/static/large", "headers": []}
    # The error holds the frames, and so the file: it must have been closed.
    with pytest.raises(OSError, match="gone") as error:
        asyncio.run(app(scope, None, send))
    opened = [entry.frame.f_locals["body"] for entry in error.traceback if "body" in entry.frame.f_locals]
    assert [file.closed for file in opened] == [True]


def test_a_field_that_an_asgi_server_gives_twice(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    app = wrap(asgi_shop, configured({"/static": str(tmp_path)}))
    tag = Answer(app, "/static/a").headers["Etag"].encode()
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    fields = [(b"if-none-match", tag), (b"if-none-match", b'"x"')]
    asyncio.run(app({"type": "http", "method": "GET", "path": "/static/a", "headers": fields}, None, send))
    assert messages[0]["status"] == 304


def test_a_file_that_is_removed_just_now(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    app = wrap(shop, configured({"/static": str(tmp_path)}))
    (tmp_path / "a").unlink()
    app.files["/static/a"].marks = {}
    assert Answer(app, "/static/a").status == 404


def test_what_is_no_request_for_a_file_is_the_asgi_applications(root: Path) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], receive, send))

    wrapped = wrap(app, configured({"/static": str(root)}))
    for scope in ({"type": "lifespan"}, {"type": "websocket", "path": "/static/app.js"}):
        asyncio.run(wrapped(scope, 1, 2))
    assert seen == [("lifespan", 1, 2), ("websocket", 1, 2)]


def test_under_asgi_an_application_need_not_look_like_one(root: Path) -> None:
    """That of a C extension has no signature."""
    cfg = configured({"/static": str(root)}, worker_class="asgi")
    assert isinstance(wrap(print, cfg), ASGI)


def test_a_link_that_a_deploy_switches(root: Path, tmp_path: Path) -> None:
    """Workers know the sizes of the old files, and serve these until the reload."""
    current, new = tmp_path / "current", tmp_path / "new"
    current.symlink_to(root)
    new.mkdir()
    (new / "app.js").write_bytes(b"new")
    cfg = configured({"/static": str(current)})
    app = wrap(shop, cfg)
    current.unlink()
    current.symlink_to(new)
    assert Answer(app, "/static/app.js").body == SCRIPT
    assert Answer(wrap(shop, cfg), "/static/app.js").body == b"new"


def test_the_longest_prefix_wins(root: Path, tmp_path: Path) -> None:
    (tmp_path / "main.css").write_bytes(b"other")
    app = wrap(shop, configured([f"/s/css={tmp_path}", f"/s/={root}"]))
    assert Answer(app, "/s/css/main.css").body == b"other"
    assert Answer(app, "/s/css/deep/x.css").body == b"deep"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"static": "/srv"}, "begins with a slash, such as /static, not 'static'"),
        ({"/static": ""}, "/static: expected the path of a directory, not ''"),
        ({"/static": "a\0b"}, "/static: expected the path of a directory"),
        ({"/static": 3}, "expected a prefix and a directory as strings, not 3 (int)"),
        ({3: "/srv"}, "as strings, not 3 (int)"),
        (["/static"], "expected PREFIX=DIR, such as /static=/srv/shop/static, not '/static'"),
        ("/static", "expected PREFIX=DIR"),
        (7, "expected a list of strings, not 7 (int)"),
    ],
)
def test_values_that_are_refused(value: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        Config().set("static", value)
    assert said in str(error.value)


def test_values_that_are_taken() -> None:
    for value in ({"/s": "/srv/a=b"}, ["/s=/srv/a=b"], "/s=/srv/a=b", [" /s = /srv/a=b "]):
        assert configured(value).static == {"/s": "/srv/a=b"}
    for nothing in (None, {}, [], ""):
        assert configured(nothing).static == {}


def test_a_directory_that_is_not_one(root: Path) -> None:
    for name, why in (("none", "No such file"), ("app.js", "Not a directory")):
        with pytest.raises(ConfigError) as error:
            check(configured({"/static": str(root / name)}))
        assert f"static: /static: cannot read the directory {root / name}: {why}" in str(error.value)


def test_a_relative_directory_starts_at_chdir(root: Path) -> None:
    cfg = configured({"/static": "static"}, chdir=str(root.parent))
    assert check(cfg) == {"/static": os.path.realpath(root)}


def test_the_missing_library_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whitenoise", None)
    with pytest.raises(ConfigError, match=r"pip install 'gunicorn\[static\]'"):
        wrap(shop, configured({"/static": str(root)}))


def test_applications_of_other_servers(root: Path) -> None:
    from aiohttp import web as aiohttp_web
    from tornado import web as tornado_web

    for other in (tornado_web.Application(), aiohttp_web.Application()):
        with pytest.raises(ConfigError, match="static works with WSGI and ASGI applications"):
            wrap(other, configured({"/static": str(root)}))
