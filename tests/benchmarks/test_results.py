# SPDX-License-Identifier: MIT
"""Rows, reports, tables and charts: what is shown is what was measured."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from benchmarks import charts, cli, report
from benchmarks.results import Measured, Report, Row, make_row
from benchmarks.stats import ITSELF, Spread, Target
from benchmarks.svg import Bar, Group, chart

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str = "hello", ours: float = 30.0) -> Row:
    measured = {
        "this server": Measured([ours, ours], [10.0, 12.0]),
        "peer_1": Measured([10.0, 10.0], [40.0, 44.0]),
        "peer *2*": Measured([60.0, 60.0]),
    }
    targets = {"peer_1": Target(">=", 2), "peer *2*": Target(">=", 1)}
    return make_row("http", name, "a <case> & more", "requests/s", measured, targets, "a note")


def full_report() -> Report:
    machine = {
        "cpu": "A CPU",
        "cores": 2,
        "system": "Linux 6.1",
        "architecture": "x86_64",
        "python": "3.11.7",
        "pinned": "yes",
    }
    conditions = {
        "date": "2026-01-02",
        "machine": machine,
        "versions": {"peer": "1.0"},
        "left_out": {"another": "no compiler"},
        "load": "wrk",
    }
    failed = Row("http", "failed", "failed", "", error="it_did not start")
    absolute = make_row(
        "companions", "idle", "idle", "wake-ups", {"us": Measured([0.0])}, {ITSELF: Target("<=", 0)}
    )
    return Report((row(), failed, absolute), {"http": conditions})


def test_a_row_compares_ours_with_each_of_the_others() -> None:
    compared = {c.against: (c.ratio.median, c.met) for c in row().comparisons}
    assert compared == {"peer_1": (3, True), "peer *2*": (0.5, False)}
    assert row().figures[0].cpu == Spread(11, 10, 12)
    assert row().figures[2].cpu is None
    assert row().runs == 2


def test_a_figure_can_be_judged_by_itself() -> None:
    made = make_row("g", "n", "t", "ms", {"us": Measured([19.0, 30.0])}, {ITSELF: Target("<=", 20)})
    [compared] = made.comparisons
    assert (compared.ratio.median, compared.met) == (24.5, False)


def test_a_figure_of_zero_is_shown_and_not_compared() -> None:
    made = make_row("g", "n", "t", "ms", {"us": Measured([1.0]), "them": Measured([0.0])})
    assert made.comparisons == ()
    assert "them" in report.text_table(Report((made,)))
    assert "them" in report.rst(Report((made,)))


def test_a_report_survives_its_json() -> None:
    found = full_report()
    assert Report.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_results_of_another_format_are_refused() -> None:
    with pytest.raises(ValueError, match="format 0"):
        Report.from_json({"format": 0})


def test_newer_rows_take_the_place_of_older_ones() -> None:
    old = Report((row("a", 1), row("b", 1)), {"http": {"date": "1"}, "startup": {"date": "1"}})
    new = Report((row("b", 2), row("c", 2)), {"http": {"date": "2"}})
    merged = old.merged(new)
    assert [(r.name, r.figures[0].value.median) for r in merged.rows] == [("a", 1), ("b", 2), ("c", 2)]
    assert {group: found["date"] for group, found in merged.conditions.items()} == {
        "http": "2",
        "startup": "1",
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.00"), (0.123, "0.12"), (9.994, "9.99"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")],
)
def test_numbers_for_people(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_the_table_of_the_terminal() -> None:
    text = report.text_table(full_report())
    lines = text.splitlines()
    assert lines[0] == "hello: a <case> & more [requests/s, 2 runs]"
    assert [*lines[3].split()[:2], *lines[3].split()[-3:]] == ["peer_1", "10.0", "≥", "2", "met"]
    assert lines[4].endswith("≥ 1  not met")
    assert "not measured: it_did not start" in text
    assert lines[-3:] == [
        "2 of 3 targets met",
        "  not met: hello against peer *2*: 0.50, target ≥ 1",
        "  not measured: failed: it_did not start",
    ]


def test_columns_are_aligned() -> None:
    assert report.columns([("a", "1", "x"), ("bcd", "234", "")]) == ["a      1  x", "bcd  234"]


def test_the_page_is_plain_text_where_names_hold_markup() -> None:
    text = report.rst(full_report(), ["http"])
    assert "peer\\_1" in text and "peer \\*2\\*" in text
    assert ".. image:: benchmarks-http.svg" in text
    assert "benchmarks-companions.svg" not in text
    assert "Left out: another: no compiler." in text
    assert "Python 3.11.7" in text and "peer 1.0" in text


def test_a_table_row_has_as_many_cells_as_its_head() -> None:
    lines = report.rst(full_report()).splitlines()
    sizes, starts = [], [i for i, line in enumerate(lines) if line.startswith("   * -")]
    for start in starts:
        end = start + 1
        while end < len(lines) and lines[end].startswith("     -"):
            end += 1
        sizes.append(end - start)
    assert starts and set(sizes) == {7}


def test_a_figure_that_is_judged_by_itself_has_a_line_of_the_page() -> None:
    lines = report.rst(full_report()).splitlines()
    at = lines.index("   * - ``idle``: idle")
    assert lines[at + 1 : at + 7] == [
        "     -",
        "     -",
        "     - ≤ 0",
        "     - 0.00 wake-ups",
        "     -",
        "     - met",
    ]


def test_the_chart_is_xml_with_a_bar_for_each_figure() -> None:
    root = ElementTree.fromstring(charts.draw(full_report())["http"])
    bars = [rect for rect in root.iter(SVG + "rect") if rect.get("class") in ("bar", "ours")]
    assert [bar.get("class") for bar in bars] == ["ours", "bar", "bar"]
    widths = [float(bar.get("width", 0)) for bar in bars]
    assert widths[0] / widths[2] == pytest.approx(0.5, abs=0.01)
    texts = [text.text for text in root.iter(SVG + "text")]
    assert "a <case> & more [requests/s]" in texts


def test_no_bar_leaves_the_picture() -> None:
    picture = chart(
        "Title", [Group("one", (Bar("a", 1e9, "many"), Bar("b", 0, "none")), mark=5e8), Group("none", ())]
    )
    root = ElementTree.fromstring(picture)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for rect in root.iter(SVG + "rect"):
        assert float(rect.get("x", 0)) + float(rect.get("width", 0)) <= width
        assert float(rect.get("y", 0)) + float(rect.get("height", 0)) <= height


def test_a_chart_has_colours_for_a_dark_page() -> None:
    assert "prefers-color-scheme: dark" in chart("Title", [])


def test_the_documentation_shows_what_the_results_file_says() -> None:
    if not cli.RESULTS.exists():
        pytest.skip("no results have been put into the documentation")
    for name, text in cli.rendered(cli.read_report(cli.RESULTS)).items():
        assert (cli.DOCS / name).read_text() == text, f"{name}: python -m benchmarks --render"
