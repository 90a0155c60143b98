#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Take the pictures of the monitor and of ``top`` in these docs: run a shop under some load and look at it.

    python docs/screenshots.py [DIRECTORY]

Wants Chromium, the extra ``gunicorn[top]``, and Pillow to make the files small. The pictures take three
minutes, so that the charts have something to show; SECONDS=10 is enough for a look.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from browser import Browser  # noqa: E402
from harness import Server, free_port, wait_until  # noqa: E402

from gunicorn.companion.client.connection import connect  # noqa: E402
from gunicorn.companion.client.live import finder  # noqa: E402
from gunicorn.companion.client.screen import TopApp  # noqa: E402

APP = """
import random, time

catalogue = [{"name": f"tea {number}", "price": number} for number in range(120_000)]

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/report":
        time.sleep(25)
    else:
        time.sleep(random.expovariate(1 / 0.012))
    start_response("503 Busy" if path == "/cart" and random.random() < 0.3 else "200 OK", [])
    return [b"tea\\n" * 100]
"""
CHORES = """
import itertools, random, time

def worker():
    for number in itertools.count(8213):
        time.sleep(random.uniform(0.5, 1.5))
        print(f"mail: job {number} done in {random.uniform(0.1, 0.6):.1f} s")

def prices():
    from app import catalogue
    time.sleep(random.uniform(1, 4))
    print("asking for", len(catalogue), "prices")
    raise KeyError("price")

def index():
    end = time.monotonic() + 1
    while True:
        sum(range(200_000))
        time.sleep(0.05)

def scheduler():
    from gunicorn.companion import notify
    notify(ready=True)
    for number in itertools.count():
        notify(watchdog=True, status=f"{number} jobs queued")
        time.sleep(5)

def migrate():
    print("nothing to migrate")
"""
CONFIG = """
wsgi_app = "app:app"
workers = 4
worker_class = "gthread"
threads = 4
preload_app = True
graceful_timeout = 5
monitor = "127.0.0.1:{port}"
monitor_token = "open sesame"
companion_workers = [
    {{"name": "migrate", "target": "chores:migrate", "autorestart": "on-failure"}},
    {{"name": "rq", "target": "chores:worker", "numprocs": 3, "after": ["migrate"]}},
    {{"name": "scheduler", "target": "chores:scheduler", "watchdog": 60, "ready": "notify"}},
    {{"name": "search-index", "target": "chores:index", "max_memory": "200M"}},
    {{"name": "prices", "target": "chores:prices", "restart_delay": 8}},
    {{"name": "socketio", "command": ["sleep", "infinity"], "bind": "127.0.0.1:{other}"}},
]
"""


def visit(server: Server, done: threading.Event) -> None:
    """Ask for pages until *done*, more of them now than later."""
    random.seed()
    while not done.is_set():
        path = random.choices(["/", "/tea/7", "/cart", "/report"], [60, 30, 10, 0.03])[0]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=60).read()
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(random.uniform(0, 0.06) * (1.2 + random.random()))


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "pictures"
    seconds = float(os.environ.get("SECONDS", "120"))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no Chromium.")
    target.mkdir(exist_ok=True)
    port = free_port()
    config = CONFIG.format(port=port, other=free_port())
    with Server(app=APP, config=config, files={"chores.py": CHORES}, target="") as server:
        done = threading.Event()
        visitors = [threading.Thread(target=visit, args=(server, done), daemon=True) for _ in range(8)]
        for visitor in visitors:
            visitor.start()
        wait_until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/live").status == 200, 10)
        try:
            with Browser(chromium) as browser:
                take(browser, f"http://127.0.0.1:{port}", target, seconds)
            asyncio.run(take_top(server, target))
        finally:
            done.set()


def take(browser: Browser, url: str, target: Path, seconds: float) -> None:
    browser.look(1280, 960)
    browser.open(url)
    time.sleep(seconds)
    for name, width, height, scheme in (
        ("monitor-light", 1280, 960, "light"),
        ("monitor-dark", 1280, 960, "dark"),
        ("monitor-phone", 390, 844, "dark"),
    ):
        browser.look(width, height, scheme, 2 if width < 600 else 1)
        time.sleep(1)
        picture(browser, target / f"{name}.png")
    browser.look(1280, 800)
    browser.open(url)
    browser.js("sessionStorage.setItem('gunicorn-monitor-token', 'open sesame')")
    browser.open(f"{url}/companion/prices")
    time.sleep(12)
    picture(browser, target / "monitor-companion.png")


def picture(browser: Browser, path: Path) -> None:
    browser.screenshot(path)
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


async def take_top(server: Server, target: Path) -> None:
    app = TopApp(finder(connect(str(server.control_path()), 5.0), None), 1.0)
    async with app.run_test(size=(110, 34)) as pilot:
        # Until there are rates, and the bars of some seconds.
        await pilot.pause(20)
        picture = app.export_screenshot(title="gunicorn-companion top")
    # Nothing is fetched from elsewhere: any font of this width will do.
    (target / "top.svg").write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
