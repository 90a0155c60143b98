# SPDX-License-Identifier: MIT
"""Both engines on real files: what counts as a change, and what does not."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until

from gunicorn import reloader
from gunicorn.reloader import InotifyReloader, Reloader, reloader_engines

needs_watchfiles = pytest.mark.skipif(
    importlib.util.find_spec("watchfiles") is None, reason="the extra 'reload' is not installed"
)


class Engine:
    """An engine at work, and what it has called back with."""

    def __init__(self, make: Callable[..., Reloader], *extra: str | Path) -> None:
        self.seen: list[str] = []
        self.reloader = make(extra_files=[str(path) for path in extra], callback=self.seen.append)

    def wait(self, path: Path, times: int = 1) -> None:
        wait_until(lambda: self.seen.count(str(path)) >= times, 10, lambda: f"{path}; seen {self.seen}")

    def __enter__(self) -> Engine:
        self.reloader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.reloader.stop()
        self.reloader.join(5)
        assert not self.reloader.is_alive()


def polling(**options: Any) -> Reloader:
    return Reloader(interval=0.05, **options)


@pytest.fixture(
    params=[polling, pytest.param(InotifyReloader, marks=needs_watchfiles)], ids=["poll", "native"]
)
def make(request: pytest.FixtureRequest) -> Callable[..., Reloader]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source of a module that can be imported by its stem."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / f"reloaded_{os.getpid()}.py"
    path.write_text("x = 1\n")
    yield path
    sys.modules.pop(path.stem, None)


def put(path: Path, text: str) -> None:
    """As most editors save: another file takes the place of the old one."""
    fresh = path.with_name(path.name + "~")
    fresh.write_text(text)
    os.replace(fresh, path)


def test_a_change_between_the_load_of_a_module_and_the_start(
    make: Callable[..., Reloader], module: Path
) -> None:
    engine = Engine(make)
    importlib.import_module(module.stem)
    module.write_text("x = 22\n")
    with engine:
        engine.wait(module)


def test_a_module_that_is_loaded(make: Callable[..., Reloader], module: Path) -> None:
    engine = Engine(make)
    importlib.import_module(module.stem)
    with engine:
        module.write_text("x = 22\n")
        engine.wait(module)
        put(module, "x = 333\n")
        engine.wait(module, 2)
        assert not engine.reloader.is_inherited(str(module))


def test_a_module_that_is_loaded_later(make: Callable[..., Reloader], module: Path) -> None:
    with Engine(make) as engine:
        module.write_text("x = 22\n")
        importlib.import_module(module.stem)
        wait_until(lambda: str(module) in engine.reloader._stamps, 5, "seen")
        assert engine.seen == []
        module.write_text("x = 333\n")
        engine.wait(module)


def test_who_was_there_before_is_inherited(make: Callable[..., Reloader], module: Path) -> None:
    importlib.import_module(module.stem)
    assert make().is_inherited(str(module))


def test_extra_files(make: Callable[..., Reloader], tmp_path: Path) -> None:
    page, later = tmp_path / "page.html", tmp_path / "later.txt"
    page.write_text("one")
    with Engine(make, page) as engine:
        page.write_text("three")
        engine.wait(page)
        later.write_text("one")
        engine.reloader.add_extra_file(str(later))
        later.write_text("three")
        engine.wait(later)
        page.unlink()
        put(page, "four")
        engine.wait(page, 2)
        assert set(engine.seen) == {str(page), str(later)}


def test_patterns(make: Callable[..., Reloader], tmp_path: Path) -> None:
    (tmp_path / "t" / "deep").mkdir(parents=True)
    old, new, deep = tmp_path / "t" / "a.html", tmp_path / "t" / "b.html", tmp_path / "t" / "deep" / "c.html"
    old.write_text("one")
    with Engine(make, tmp_path / "t" / "**" / "*.html") as engine:
        old.write_text("three")
        engine.wait(old)
        new.write_text("")
        engine.wait(new)
        deep.write_text("")
        engine.wait(deep)
        (tmp_path / "t" / "notes.txt").write_text("")
        (tmp_path / "t" / "fresh").mkdir()
        in_new_directory = tmp_path / "t" / "fresh" / "d.html"
        in_new_directory.write_text("")
        engine.wait(in_new_directory)
        assert set(engine.seen) == {str(old), str(new), str(deep), str(in_new_directory)}


def test_what_matched_at_the_start_has_not_changed(make: Callable[..., Reloader], tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("")
    engine = Engine(make)
    # As a worker does whose application does not load: before the start.
    engine.reloader.add_extra_file(str(tmp_path / "*.py"))
    (tmp_path / "b.py").write_text("changed meanwhile")
    with engine:
        engine.wait(tmp_path / "b.py")
        (tmp_path / "a.py").write_text("now")
        engine.wait(tmp_path / "a.py")
    assert str(tmp_path / "a.py") not in engine.seen[:1]


def test_a_file_behind_a_link(make: Callable[..., Reloader], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "file.py", tmp_path / "link.py"
    real.write_text("one")
    link.symlink_to(real)
    with Engine(make, link) as engine:
        real.write_text("three")
        engine.wait(link)


def test_a_stopped_one_is_silent(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for path in files:
        path.write_text("one")
    seen: list[str] = []
    engine = Reloader(map(str, files), 0.05)

    def once(path: str) -> None:
        seen.append(path)
        engine.stop()

    engine._callback = once
    engine.start()
    for path in files:
        path.write_text("three")
    engine.join(5)
    assert not engine.is_alive() and len(seen) == 1


def test_modules_without_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in (
        ("odd_none", None),
        ("odd_number", 7),
        ("odd_empty", ""),
        ("odd_compiled", "/x/y.pyc"),
    ):
        module = types.ModuleType(name)
        module.__file__ = path  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    files = Reloader().get_files()
    assert "/x/y.py" in files and None not in files and "" not in files


@needs_watchfiles
def test_native_events_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: InotifyReloader) -> None:
        raise OSError("the limit of watches")

    monkeypatch.setattr(InotifyReloader, "_run_native", refuse)
    path = tmp_path / "a"
    path.write_text("one")
    engine = Engine(InotifyReloader, path)
    engine.reloader._interval = 0.05
    with engine:
        path.write_text("three")
        engine.wait(path)
    assert "the limit of watches" in caplog.text


@needs_watchfiles
def test_a_log_beside_the_source_does_not_put_off_the_look_around(tmp_path: Path) -> None:
    first, later = tmp_path / "one" / "a.txt", tmp_path / "two" / "b.txt"
    for path in (first, later):
        path.parent.mkdir()
        path.write_text("one")
    done = threading.Event()
    looks: list[set[str]] = []

    class Watched(InotifyReloader):
        def get_directories(self) -> set[str]:
            looks.append(super().get_directories())
            return looks[-1]

    def write_log() -> None:
        while not done.wait(0.03):
            (first.parent / "app.log").write_text("line")

    writer = threading.Thread(target=write_log)
    writer.start()
    try:
        with Engine(Watched, first) as engine:
            first.write_text("three")
            engine.wait(first)
            wait_until(lambda: len(looks) > 1)
            # In a directory that is not watched yet.
            engine.reloader.add_extra_file(str(later))
            later.write_text("three")
            engine.wait(later)
            assert str(later.parent) in looks[-1] and str(later.parent) not in looks[0]
    finally:
        done.set()
        writer.join()


def test_the_package_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "watchfiles" in reloader._why_not_native()


@needs_watchfiles
def test_directories_of_the_standard_library_are_left_out(module: Path) -> None:
    importlib.import_module(module.stem)
    directories = InotifyReloader().get_directories()
    assert str(module.parent) in directories and os.path.dirname(os.__file__) not in directories
    assert os.path.dirname(pytest.__file__) in directories


def test_the_engines() -> None:
    assert set(reloader_engines) == {"auto", "poll", "inotify"}
    assert reloader_engines["poll"] is Reloader and reloader_engines["inotify"] is InotifyReloader
