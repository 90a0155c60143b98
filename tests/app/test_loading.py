# SPDX-License-Identifier: MIT
"""Applications and classes by name, and what is said when there is none."""

from __future__ import annotations

import functools
import gc
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gunicorn.app.base import BaseApplication
from gunicorn.companion.spawn import import_target
from gunicorn.errors import AppImportError
from gunicorn.loading import check_protocol, getcwd, import_app, is_asgi, load_class, load_entry_point

MODULE = """
    HOST = "localhost"
    nothing = None

    def app(environ, start_response):
        return [b"app"]

    application = app

    def create_app(name="shop", count=1, **more):
        def made(environ, start_response):
            return [name, count, more]
        return made

    def strict(name):
        return app

    def failing():
        raise TypeError("inner trouble")

    def empty():
        return None

    class Site:
        def __call__(self, environ, start_response):
            return [b"site"]
        @staticmethod
        def make(n):
            return app
        wsgi = staticmethod(app)

    site = Site()
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    files = {
        "lshop.py": MODULE,
        "lpkg/__init__.py": "",
        "lpkg/wsgi.py": MODULE,
        "lbroken.py": "import a_module_that_is_missing",
        "lbroken2.py": "import lpkg.not_there",
        "lfail.py": "1 / 0",
        "lapp.py": "def app(environ, start_response): ...",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0].removesuffix("2") in MODULES]:
        del sys.modules[name]


MODULES = {"lshop", "lpkg", "lbroken", "lfail", "lapp"}


@pytest.mark.parametrize(
    ("uri", "result"),
    [
        ("lshop", [b"app"]),
        ("lshop:app", [b"app"]),
        ("lpkg.wsgi:app", [b"app"]),
        ("lshop:site", [b"site"]),
        ("lshop:site.wsgi", [b"app"]),
        ("lshop:Site()", [b"site"]),
        ("lshop:Site.make(3)", [b"app"]),
        ("lshop:create_app()", ["shop", 1, {}]),
        ("lshop:create_app('x:y', 3)", ["x:y", 3, {}]),
        (
            "lshop:create_app(count=-3, tags=['a', {'b': (1, None)}])",
            ["shop", -3, {"tags": ["a", {"b": (1, None)}]}],
        ),
    ],
)
def test_applications(modules: Path, uri: str, result: list[Any]) -> None:
    assert import_app(uri)({}, None) == result


@pytest.mark.parametrize(
    ("uri", "error", "said"),
    [
        # the module, or the attribute: which of the two was not found
        ("no_such_module:app", AppImportError, "module 'no_such_module' was not found"),
        ("no_such_module:app", ImportError, "was not found"),
        ("lpkg.not_there:app", AppImportError, "module 'lpkg.not_there' was not found"),
        ("lshop.sub:app", AppImportError, "module 'lshop.sub' was not found"),
        ("lshop.py", AppImportError, "did you mean lshop:application"),
        ("lpkg/wsgi:app", AppImportError, "with dots"),
        ("lshop:ap", AppImportError, "module 'lshop' was found, but it has no attribute 'ap'"),
        ("lshop:aplication", AppImportError, "did you mean 'application'"),
        (
            "lshop:site.wsg",
            AppImportError,
            "'site' of module 'lshop' was found, but it has no attribute 'wsg'",
        ),
        ("lapp", AppImportError, "did you mean 'app'"),
        ("lshop:missing()", AppImportError, "no attribute 'missing'"),
        # an import in the module that fails is told as such
        ("lbroken:app", ModuleNotFoundError, "a_module_that_is_missing"),
        ("lbroken2:app", ModuleNotFoundError, "lpkg.not_there"),
        ("lfail:app", ZeroDivisionError, "division"),
        # expressions
        ("lshop:create_app(", AppImportError, "cannot read"),
        ("lshop:1 + 1", AppImportError, "neither"),
        ("lshop:app[0]", AppImportError, "neither"),
        ("lshop:", AppImportError, ""),
        (":app", AppImportError, "no module"),
        ("lshop:create_app(HOST)", AppImportError, "literal"),
        ("lshop:create_app(*[1])", AppImportError, "literal"),
        ("lshop:create_app(**{})", AppImportError, "literal"),
        ("lshop:create_app()()", AppImportError, "name"),
        ("lshop:(lambda: 1)()", AppImportError, "name"),
        # what is found does not fit
        ("lshop:HOST", AppImportError, "not callable"),
        ("lshop:HOST()", AppImportError, "cannot be called"),
        ("lshop:nothing", AppImportError, "None"),
        ("lshop:empty()", AppImportError, "None"),
        ("lshop:strict()", AppImportError, "strict() missing"),
        ("lshop:strict(1, 2)", AppImportError, "strict() takes"),
        ("lshop:failing()", TypeError, "inner trouble"),
    ],
)
def test_what_is_wrong(modules: Path, uri: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as info:
        import_app(uri)
    assert said in str(info.value)
    if not issubclass(error, AppImportError) and error is not ImportError:
        assert not isinstance(info.value, AppImportError)


# -- ASGI ----------------------------------------------------------------------------------------


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


async def asgi_of_any_arguments(*args: Any) -> None: ...


def asgi_in_front_of_another(scope: Any, receive: Any, send: Any) -> Any:
    return asgi(scope, receive, send)


class AsgiSite:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


def wsgi_with_an_option(environ: Any, start_response: Any, debug: bool = False) -> list[bytes]:
    return []


def decorated(*args: Any, **kwargs: Any) -> Any:
    return wsgi(*args, **kwargs)


class WsgiSite:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def method(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


class WsgiResponse:
    """One is made for each request."""

    def __init__(self, environ: Any, start_response: Any, more: Any = None) -> None: ...

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


async def aiohttp_factory() -> None: ...


ASGI = [asgi, asgi_of_any_arguments, asgi_in_front_of_another, AsgiSite(), AsgiSite().method]
WSGI = [
    wsgi,
    wsgi_with_an_option,
    decorated,
    WsgiSite(),
    WsgiSite().method,
    WsgiResponse,
    AsgiSite,
    functools.partial(wsgi),
    functools.partial(asgi),
    print,
    aiohttp_factory,
]


@pytest.mark.parametrize("app", ASGI)
def test_an_asgi_application_is_refused_by_our_worker_classes(app: Any) -> None:
    assert is_asgi(app)
    for worker_class in ("sync", "gthread", "gunicorn.workers.sync.SyncWorker"):
        with pytest.raises(AppImportError, match=r"an ASGI application.*-k asgi"):
            check_protocol(app, worker_class)
    # A user's worker class knows what it serves.
    check_protocol(app, Own)


def test_a_wsgi_application_is_refused_by_the_asgi_worker() -> None:
    for app in (wsgi, WsgiSite().method):
        with pytest.raises(AppImportError, match=r"a WSGI application.*-k gthread"):
            check_protocol(app, "asgi")
    for app in (*ASGI, functools.partial(wsgi), aiohttp_factory, print):
        check_protocol(app, "asgi")


@pytest.mark.parametrize("name", ["asgi", "egg:gunicorn#asgi", "gunicorn.workers.gasgi.ASGIWorker"])
def test_names_of_the_asgi_worker(name: str) -> None:
    assert load_class(name).__name__ == "ASGIWorker"


@pytest.mark.parametrize("app", WSGI)
def test_what_may_be_wsgi_is_left_alone(app: Any) -> None:
    assert not is_asgi(app)
    check_protocol(app, "sync")


def test_applications_of_frameworks() -> None:
    fastapi = pytest.importorskip("fastapi")
    starlette = pytest.importorskip("starlette.applications")
    flask = pytest.importorskip("flask")
    assert is_asgi(fastapi.FastAPI()) and is_asgi(starlette.Starlette())
    assert not is_asgi(flask.Flask(__name__))


class Own:
    pass


@pytest.mark.parametrize("uri", [Own, f"{__name__}.Own"])
def test_load_class(uri: Any) -> None:
    assert load_class(uri).__name__ == "Own"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("unheard_of", "unheard_of"),
        ("no_such_package.Worker", "module 'no_such_package' was not found"),
        (f"{__name__}.Other", "has no 'Other'"),
        ("lbroken.Worker", "a_module_that_is_missing"),
        ("egg:no-such-distribution#worker", "no-such-distribution"),
        ("egg:pytest#worker", "'worker'"),
        ("eventlet", "gevent"),
        ("egg:gunicorn#eventlet", "gevent"),
        (3, "3"),
    ],
)
def test_classes_that_are_not_there(modules: Path, uri: Any, said: str) -> None:
    with pytest.raises(RuntimeError) as info:
        load_class(uri)
    assert said in str(info.value)


def test_entry_points_of_other_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "somewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gunicorn.workers]\nmine = {__name__}:Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_class("mine").__name__ == "Own"
    assert load_class("egg:somewhere#mine").__name__ == "Own"
    assert load_entry_point("somewhere", "gunicorn.workers", "mine").__name__ == "Own"


def test_getcwd_keeps_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    assert getcwd() == str(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path))
    assert getcwd() == str(tmp_path / "release")
    monkeypatch.setenv("PWD", "/no/such/directory")
    assert getcwd() == str(tmp_path / "release")


@pytest.mark.parametrize(
    ("before", "own", "meanwhile", "after"),
    [
        ((700, 10, 10), None, 10_000, 700),
        # Whoever collects more seldom still, never, or as the application says, goes on so.
        ((50_000, 10, 10), None, 50_000, 50_000),
        ((0, 10, 10), None, 0, 0),
        ((700, 10, 10), 5_000, 10_000, 5_000),
        ((700, 10, 10), 0, 10_000, 0),
    ],
)
def test_garbage_is_collected_more_seldom_while_an_application_loads(
    before: tuple[int, int, int], own: int | None, meanwhile: int, after: int
) -> None:
    found = []

    class Shop(BaseApplication):
        def load_config(self) -> None:
            pass

        def load(self) -> Any:
            found.append(gc.get_threshold()[0])
            if own is not None:
                gc.set_threshold(own)
            return lambda environ, start_response: []

    kept = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        Shop().wsgi()
        assert (found, gc.get_threshold()[0]) == ([meanwhile], after)
    finally:
        gc.set_threshold(*kept)


def test_the_module_of_a_companion_is_loaded_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shopjobs.py").write_text(
        "import gc\nfound = gc.get_threshold()[0]\ndef run(): return found\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = gc.get_threshold()
    assert import_target("shopjobs:run")() == 10_000
    assert gc.get_threshold() == before
