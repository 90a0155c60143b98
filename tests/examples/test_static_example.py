# SPDX-License-Identifier: MIT
"""The page of examples/static and its files."""

from __future__ import annotations

import re

from exampletree import example_server


def test_a_page_and_its_files() -> None:
    with example_server("static", {}) as server:
        scripts = re.findall(r'src="([^"]+)"', server.get("/").text)
        found = {path: server.get(path).headers["Cache-Control"] for path in scripts}
        assert found == {
            "/static/price.3f2a9c1b.js": "max-age=315360000, public, immutable",
            "/static/shop.js": "max-age=300, public",
        }
        assert server.get("/static/missing.js").text == "There is no such page.\n"
