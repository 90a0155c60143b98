# SPDX-License-Identifier: MIT
"""The parts of the live screen: a table, a question, the help."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Click, Key, Resize
from textual.geometry import Size
from textual.message import Message
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Button, Static

from gunicorn.companion.client import rows
from gunicorn.companion.client.bindings import KEYS, show_keys

LEVEL_STYLES = (Style(), Style(color="yellow"), Style(color="red", bold=True))
STATE_STYLES = {
    "RUNNING": Style(color="green"),
    "STOPPED": Style(dim=True),
    "busy": Style(color="cyan"),
    "idle": Style(color="green"),
}
HEAD = Style(bold=True, dim=True)
SORTED_HEAD = Style(bold=True, underline=True)
CURSOR = Style(reverse=True)


class Table(ScrollView):
    """Rows with a cursor, which stays on its row wherever that moves. Draws only what is visible."""

    DEFAULT_CSS = "Table { scrollbar-size-vertical: 1; overflow-x: hidden; }"

    class Moved(Message):
        """Another row is selected, or another table has the cursor."""

        def __init__(self, table: Table) -> None:
            super().__init__()
            self.table = table

    class Sorted(Message):
        """Somebody has clicked on a title."""

        def __init__(self, table: Table, column: str) -> None:
            super().__init__()
            self.table = table
            self.column = column

    BINDINGS: ClassVar = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "move(-1000000)", show=False),
        Binding("end", "move(1000000)", show=False),
    ]

    def __init__(self, columns: tuple[rows.Column, ...], **options: Any) -> None:
        super().__init__(**options)
        self.can_focus = True
        self.columns = columns
        self.all_rows: list[rows.Row] = []
        self.rows: list[rows.Row] = []
        self.order = rows.PROBLEMS
        self.backwards = False
        self.words = ""
        self.place = 0
        self.active = False
        # Whether somebody has chosen a row.
        self.touched = False
        self._layout_of_columns: list[tuple[rows.Column, int]] = []

    @property
    def selected(self) -> str | None:
        """The key of the row with the cursor."""
        return self.rows[self.place].key if self.rows else None

    def show(self, found: list[rows.Row] | None = None) -> None:
        """Show *found*, or the same rows as they are to be sorted and filtered now."""
        before = self.selected
        if found is not None:
            self.all_rows = found
        self.rows = rows.in_order(
            rows.matching(self.all_rows, self.words), self.columns, self.order, self.backwards
        )
        places = {row.key: place for place, row in enumerate(self.rows)}
        if not self.touched:
            # Until somebody chooses, the first row is the one to look at: the worst.
            self.place = 0
        else:
            self.place = places.get(before or "", min(self.place, max(0, len(self.rows) - 1)))
        self._arrange()
        if self.selected != before:
            self.post_message(self.Moved(self))

    def _arrange(self) -> None:
        width = self.scrollable_content_region.width or self.size.width
        self._layout_of_columns = rows.widths(self.columns, self.all_rows, width)
        self.virtual_size = Size(width, len(self.rows) + 1)
        self.refresh()

    def on_resize(self, event: Resize) -> None:
        self._arrange()
        self._reveal()

    def on_focus(self) -> None:
        self.post_message(self.Moved(self))

    def action_move(self, by: int) -> None:
        self._select(self.place + by)

    def action_page(self, pages: int) -> None:
        self._select(self.place + pages * max(1, self.size.height - 2))

    def _select(self, place: int) -> None:
        self.touched = True
        self.place = max(0, min(place, len(self.rows) - 1))
        self._reveal()
        self.refresh()
        self.post_message(self.Moved(self))

    def _reveal(self) -> None:
        # The title stays, so the row below it is the first one.
        top, height = self.scroll_offset.y, max(1, self.size.height - 1)
        target = min(max(top, self.place - height + 1), self.place)
        if target != top:
            self.scroll_to(y=target, animate=False, force=True)

    def on_click(self, event: Click) -> None:
        if event.y > 0:
            place = event.y - 1 + self.scroll_offset.y
            if place < len(self.rows):
                self._select(place)
            return
        left = 2
        for column, width in self._layout_of_columns:
            left += width + 1
            if event.x < left:
                self.post_message(self.Sorted(self, column.name))
                return

    def render_line(self, y: int) -> Strip:
        if y == 0:
            return self._strip([Segment("  "), *self._head()], Style())
        place = y - 1 + self.scroll_offset.y
        if place >= len(self.rows):
            return Strip.blank(self.size.width)
        row = self.rows[place]
        segments = [Segment(f"{rows.MARKS[row.level]} ", LEVEL_STYLES[row.level])]
        plain = LEVEL_STYLES[rows.BAD] if row.level == rows.BAD else Style()
        for column, width in self._layout_of_columns:
            style = plain
            if column.name == "state" and row.level != rows.BAD:
                style = STATE_STYLES.get(row.cells["state"], LEVEL_STYLES[row.level])
            segments.append(Segment(rows.fit(row.cells[column.name], width, column.right), style))
            segments.append(Segment(" ", plain))
        return self._strip(segments, CURSOR if self.active and place == self.place else Style())

    def _head(self) -> list[Segment]:
        found = []
        for column, width in self._layout_of_columns:
            style = SORTED_HEAD if column.name == self.order else HEAD
            found += [Segment(rows.fit(column.title, width, column.right), style), Segment(" ")]
        return found

    def _strip(self, segments: list[Segment], style: Style) -> Strip:
        # The terminal counts some characters as two columns.
        strip = Strip(segments).adjust_cell_length(self.size.width)
        return strip.apply_style(self.rich_style + style)


class Question(ModalScreen[bool]):
    """Asks once before something ends."""

    BINDINGS: ClassVar = [
        Binding("y,enter", "answer(True)", "Yes", show=False),
        Binding("n,escape,q,ctrl+c", "answer(False)", "No", show=False),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Static(self.text, markup=False)
            with Horizontal():
                yield Button("Yes (y)", id="yes", compact=True)
                yield Button("No (n)", id="no", compact=True)

    def on_mount(self) -> None:
        # Enter answers yes, whatever button was last in use.
        self.set_focus(None)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class Help(ModalScreen[None]):
    """All keys, and what the marks mean."""

    def compose(self) -> ComposeResult:
        table = Text()
        for key in KEYS:
            table.append(f"{show_keys(key.keys):<12}", "bold")
            table.append(f"{key.help}\n")
        table.append(f"{'↑ ↓ PgUp …':<12}", "bold")
        table.append("move; a click selects, the wheel scrolls\n\n")
        table.append("! ", LEVEL_STYLES[rows.BAD])
        table.append("does not run as it should, or has a request of over 5 s    ")
        table.append("* ", LEVEL_STYLES[rows.MOVING])
        table.append("starts, stops, or runs again after a failure\n")
        table.append("MEM is private memory, SAVED what sharing saves. Any key closes this.", "dim")
        with VerticalScroll(id="box"):
            yield Static(table)

    def on_key(self, event: Key) -> None:
        if event.key not in ("up", "down", "pageup", "pagedown"):
            event.stop()
            self.dismiss()

    def on_click(self) -> None:
        self.dismiss()
