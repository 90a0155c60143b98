# SPDX-License-Identifier: MIT
"""Bar charts as SVG: groups of horizontal bars, readable on a light and on a dark page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH = 860
LABELS = 190
VALUES = 150
BAR, GAP, GROUP_GAP, TITLE = 15, 3, 18, 20
MARGIN = 16

# The page decides nothing here: an image has its own background, and follows the reader's preference.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .chart { font-size: 15px; font-weight: 600 } .label { text-anchor: end }
.back { fill: #ffffff } .bar { fill: #9aa5b1 } .ours { fill: #2563c9 } .line { stroke: #1f2328; opacity: .35 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .back { fill: #14181d } .bar { fill: #5d6875 } .ours { fill: #5b9bff }
.line { stroke: #e6edf3 } }
"""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    shown: str
    ours: bool = False


@dataclass(frozen=True)
class Group:
    """Bars on one scale. *mark*: a value at which a line is drawn through them."""

    title: str
    bars: tuple[Bar, ...]
    mark: float | None = None


def chart(title: str, groups: Sequence[Group]) -> str:
    """Each group has a scale of its own, from zero to its largest bar."""
    body: list[str] = []
    y = MARGIN + TITLE
    body.append(_text(MARGIN, y - 4, title, "chart"))
    y += GROUP_GAP
    for group in groups:
        body.append(_text(MARGIN, y, group.title, "title"))
        y += 8
        top = y
        scale = (WIDTH - 2 * MARGIN - LABELS - VALUES) / (max((b.value for b in group.bars), default=0) or 1)
        left = MARGIN + LABELS
        for bar in group.bars:
            width = max(1.0, bar.value * scale)
            kind = "ours" if bar.ours else "bar"
            body.append(
                f'<rect class="{kind}" x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2">'
                f"<title>{escape(f'{bar.label}: {bar.shown}')}</title></rect>"
            )
            body.append(_text(left - 8, y + 12, bar.label, "label"))
            body.append(_text(round(left + width + 6, 1), y + 12, bar.shown))
            y += BAR + GAP
        if group.mark is not None:
            x = f"{left + group.mark * scale:.1f}"
            body.append(
                f'<line class="line" x1="{x}" y1="{top - 2}" x2="{x}" y2="{y}" stroke-dasharray="3 3"/>'
            )
        y += GROUP_GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        f'role="img" aria-label={quoteattr(title)}>\n<style>{STYLE}</style>\n'
        f'<rect class="back" width="{WIDTH}" height="{y}" rx="6"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(text)}</text>'
