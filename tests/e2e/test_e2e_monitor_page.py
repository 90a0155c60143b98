# SPDX-License-Identifier: MIT
"""The monitor's page in a browser: how it looks, what it follows, and who may act on it."""

from __future__ import annotations

import json
import os
import signal
import urllib.parse
from collections.abc import Iterator

import pytest
from browser import Browser
from e2e_companions import companion_server
from harness import Background, Server, free_port, wait_until
from proctools import program

TOKEN = "open sesame"
# Shown as it is, or it has run.
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"

APP = """
import time

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/hang"):
        time.sleep(2)
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"<title>the shop</title>"]
"""

# The lowest contrast of a text on the page with what is behind it.
CONTRAST = """(() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parsed = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = parsed(getComputedStyle(one).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let worst = [21, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const color = parsed(element.namespaceURI.endsWith("svg") ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(color), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data];
  }
  return worst;
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(program("chromium")) as found:
        yield found


@pytest.fixture(autouse=True)
def quiet_console(browser: Browser, server: Server) -> Iterator[None]:
    """Fail a test whose page complains; a test that provokes complaints clears them."""
    browser.problems.clear()
    yield
    assert browser.problems == []


@pytest.fixture(scope="module")
def url() -> str:
    """The monitor's."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def server(url: str) -> Iterator[Server]:
    evil = {"name": "evil", "command": ["sh", "-c", f'echo "{EVIL}"; exec sleep 600'], "startsecs": 0}
    quick = {"startsecs": 0, "restart_delay": 2}
    with companion_server(
        evil,
        {"name": "rq", "command": ["sleep", "600"], "numprocs": 2, **quick},
        {"name": "broken", "command": ["false"], "autorestart": "never"},
        monitor=url.removeprefix("http://"),
        monitor_token=TOKEN,
        workers=2,
        app_option=APP,
    ) as found:
        wait_until(lambda: found.companion("monitor")["state"] == "RUNNING", 10, "the monitor")
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_looks_right(browser: Browser, url: str, width: int, scheme: str) -> None:
    browser.look(width, scheme=scheme)
    for path in ("/", "/companion/rq%3A0"):
        browser.open(url + path)
        browser.wait_text("live", "#head .live")
        browser.wait_text("sleep 600" if path != "/" else "evil", "#main")
        assert browser.js("document.documentElement.scrollWidth") <= width
        ratio, text = browser.js(CONTRAST)
        assert ratio >= 4.5, text
    if width == 1440:
        browser.open(url)
        browser.wait("document.querySelectorAll('#charts svg[role=img]').length === 5")
        labels = browser.js(
            "[...document.querySelectorAll('#charts svg')].map(s => s.getAttribute('aria-label'))"
        )
        assert [label.partition(",")[0] for label in labels] == [
            "Requests",
            "Duration",
            "Errors (5xx)",
            "Private memory",
            "Restarts",
        ]
        browser.wait_text("broken", "#verdict")
        assert "2 wanted" in browser.text("#workers h2")
    background = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 380) == (scheme == "light")


def test_it_follows_within_a_second(browser: Browser, server: Server, url: str) -> None:
    browser.look(1440)
    browser.open(url)
    browser.wait_text("RUNNING", "#companions tr[data-key='rq:1']")
    os.kill(server.companion("rq:1")["pid"], signal.SIGKILL)
    # 1 s on a machine without other work.
    browser.wait_text("killed", "#companions tr[data-key='rq:1']", 2.0)
    browser.wait_text("killed by SIGKILL", "#events", 3.0)
    # Screen readers hear of it.
    browser.wait_text("rq:1", "#said", 5.0)
    browser.wait_text("RUNNING", "#companions tr[data-key='rq:1']", 5.0)


def test_the_keyboard_alone_and_a_token(browser: Browser, server: Server, url: str) -> None:
    browser.look(1440)
    browser.open(url)
    browser.wait_text("Unlock actions", "#head")
    browser.press("Tab")
    assert browser.focused() == "Skip to content"
    # Without a token there is nothing to press.
    assert browser.js("document.querySelectorAll('[data-request]').length") == 0
    browser.tab_to("Unlock actions")
    assert browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    browser.write("wrong")
    browser.press("Enter")
    browser.wait_text("Refused: this is not the token", "#notice")
    assert browser.js("document.querySelectorAll('[data-request]').length") == 0
    assert browser.focused() == "Unlock actions"
    browser.press("Space")
    browser.wait("document.activeElement.id === 'answer'")
    browser.write(TOKEN)
    browser.press("Enter")
    browser.wait_text("unlocked", "#notice")
    browser.wait("document.querySelectorAll('[data-request]').length > 5")
    browser.tab_to("rq:0")
    browser.press("Enter")
    browser.wait("document.body?.dataset.companion === 'rq:0' && document.querySelector('.title button')")
    # The token stays in this tab, and in no address.
    assert TOKEN.split()[0] not in browser.js("location.href")

    browser.tab_to("Stop rq:0")
    browser.press("Enter")
    browser.wait_text("Stop rq:0?", "dialog")
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog')")
    assert browser.js("document.activeElement.getAttribute('aria-label')") == "Stop rq:0"
    assert server.companion("rq:0")["state"] == "RUNNING"
    browser.press("Enter")
    browser.wait_text("Stop rq:0?", "dialog")
    browser.tab_to("Stop")
    browser.press("Enter")
    browser.wait_text("STOPPED", ".title")
    assert server.companion("rq:0")["manual_stop"]
    browser.wait("document.querySelector('[aria-label=\"Start rq:0\"]')")
    browser.js("document.querySelector('[aria-label=\"Start rq:0\"]').click()")
    browser.wait_text("RUNNING", ".title")
    # A token that has become wrong is forgotten.
    browser.js("sessionStorage.setItem('gunicorn-monitor-token', 'old')")
    browser.open(f"{url}/companion/rq%3A0")
    browser.wait("document.querySelector('[aria-label=\"Restart rq:0\"]')")
    browser.js("document.querySelector('[aria-label=\"Restart rq:0\"]').click()")
    browser.wait_text("Refused: The token is wrong", "#notice")
    browser.wait("!document.querySelector('[data-request]')")
    browser.problems.clear()  # the browser tells of the refusal


def test_workers_are_added_dumped_and_killed(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.js(f"sessionStorage.setItem('gunicorn-monitor-token', {json.dumps(TOKEN)})")
    browser.open(url)
    browser.wait("document.querySelectorAll('#workers tbody tr').length === 2")
    press = "[...document.querySelectorAll('{}')].find(b => b.innerText === {!r}).click()"
    browser.wait("document.querySelector('#workers button')")
    browser.js(press.format("#workers button", "Add a worker"))
    browser.wait("document.querySelectorAll('#workers tbody tr').length === 3")
    browser.js(press.format("#workers button", "Remove a worker"))
    browser.js(press.format("dialog button", "Remove a worker"))
    browser.wait("document.querySelectorAll('#workers tbody tr').length === 2")
    first = browser.js("document.querySelector('#workers tbody tr').dataset.key")
    browser.js(press.format("#workers td button", "Kill"))
    assert f"Kill worker {first}?" in browser.text("dialog")
    browser.js(press.format("dialog button", "Kill"))
    browser.wait(f"!document.querySelector('#workers tr[data-key=\"{first}\"]')")
    browser.wait("document.querySelectorAll('#workers tbody tr').length === 2")


def test_text_is_text(browser: Browser, server: Server, url: str) -> None:
    browser.look(1440)
    browser.open(url)
    hanging = Background(server, "/hang" + urllib.parse.quote(EVIL))
    browser.wait_text("/hang", "#workers", 3)
    row = browser.text("#workers")
    assert "<script>window" in row or "%3Cscript" in row, row
    assert browser.js("window.hacked === undefined")
    hanging.result()
    for scripts in (True, False):
        browser.scripts(scripts)
        browser.open(f"{url}/companion/evil")
        browser.wait_text(EVIL, ".log")
        browser.open(f"{url}/companion/" + urllib.parse.quote(EVIL, ""))
        browser.wait_text("hacked = 1")
        browser.scripts(True)
        assert browser.js("window.hacked === undefined")
    browser.open("about:blank")
    browser.problems.clear()  # there is no such companion


def test_without_scripts_it_is_a_page_to_read(browser: Browser, url: str) -> None:
    browser.look(360)
    browser.scripts(False)
    try:
        browser.open(url)
        text = browser.text("#main")
        for part in (
            "problem",
            "broken",
            "Companions",
            "rq:0",
            "RUNNING",
            "Web workers",
            "idle",
            "Load again",
        ):
            assert part in text
        assert browser.js("document.querySelectorAll('button').length") == 0
        assert browser.js("document.documentElement.scrollWidth") <= 360
        browser.open(f"{url}/companion/broken")
        assert "exited with status 1" in browser.text("#main")
    finally:
        browser.scripts(True)


def test_pages_elsewhere_cannot_act(browser: Browser, server: Server, url: str) -> None:
    before = server.companion("evil")["pid"]
    body = json.dumps(json.dumps({"action": "restart", "name": "evil"}))
    act = f"""fetch({url + "/api/action"!r}, {{method: "POST", body: {body}, HEADERS}})
        .then((answer) => answer.status || answer.type, (error) => "blocked")"""
    authorized = f'"Content-Type": "application/json", Authorization: "Bearer {TOKEN}"'
    browser.open(url)
    # On the page itself: without a token, and with a wrong one.
    assert browser.js(act.replace("HEADERS", 'headers: {"Content-Type": "application/json"}')) == 401
    assert browser.js(act.replace("HEADERS", f'headers: {{{authorized[:-2]}x"}}')) == 401
    # The application is another origin: even who knows the token gets nowhere.
    browser.open(f"http://127.0.0.1:{server.port}/")
    assert browser.js(act.replace("HEADERS", f"headers: {{{authorized}}}")) == "blocked"
    assert browser.js(act.replace("HEADERS", 'mode: "no-cors"')) == "blocked"
    assert browser.js(f"fetch({url + '/api/status'!r}).then((a) => a.status, () => 'blocked')") == "blocked"
    # A name of somebody else's that leads here.
    browser.open(f"http://rebound.example:{url.rpartition(':')[2]}/")
    assert "host name" in browser.text()
    assert server.companion("evil")["pid"] == before
    browser.problems.clear()


def test_a_lost_server_is_told_and_found_again(browser: Browser, server: Server, url: str) -> None:
    browser.open(url)
    browser.look(1440)
    browser.wait_text("RUNNING", "#companions tr[data-key=monitor]")
    os.kill(server.companion("monitor")["pid"], signal.SIGKILL)
    browser.wait_text("Not connected since", "#lost", 2.0)
    assert browser.text("#head .live") == "not connected"
    browser.wait("!document.getElementById('lost').innerText", 15.0)
    browser.wait_text("killed", "#companions tr[data-key=monitor]", 3.0)
    browser.problems.clear()
