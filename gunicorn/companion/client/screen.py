# SPDX-License-Identifier: MIT
"""The live screen of ``top``, drawn with textual: companions, web workers, and the output of one."""

from __future__ import annotations

import asyncio
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from rich.style import Style
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.message import Message
from textual.widgets import Footer, Input, RichLog, Static

from gunicorn.companion.client import live, rows
from gunicorn.companion.client.bindings import KEYS, show_keys
from gunicorn.companion.client.connection import Failure, Reply, refusal
from gunicorn.companion.client.widgets import LEVEL_STYLES, Help, Question, Table

INTERRUPTED = 130
# Seconds for which a row stays selected before its output is asked for: somebody may be scrolling.
SETTLED = 0.12
OUTPUT_INTERVAL = 0.2
# Seconds for which a message is shown.
MESSAGE_TIME = 6.0
# Lines of output that are drawn at a time, so that a flood leaves time for the keys.
LINES_AT_ONCE = 300


class TopApp(App[int]):
    """The whole screen."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #server, #facts { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    #title { height: 1; text-style: bold; text-wrap: nowrap; }
    Table { height: 4; }
    #log { height: 1fr; min-height: 1; scrollbar-size-vertical: 1; }
    #message { height: auto; max-height: 3; display: none; }
    #words { height: 1; border: none; padding: 0; display: none; }
    Footer { height: 1; }
    Question, Help { align: center middle; }
    #box { width: auto; max-width: 96%; height: auto; max-height: 96%; padding: 0 2;
           border: round ansi_default; background: ansi_default; }
    #box Static { width: auto; max-width: 100%; }
    #box Horizontal { height: auto; width: auto; margin-top: 1; }
    #box Button { margin-right: 3; }
    .zoomed #companions, .zoomed #workers, .zoomed #server { display: none; }
    """
    BINDINGS: ClassVar = [
        Binding(
            key.keys,
            key.action,
            key.short,
            show=bool(key.short),
            # What is typed next belongs to the filter, however fast it comes.
            priority=key.action == "filter",
            # Its opposite is not shown apart.
            key_display="+-" if key.action == "more" else show_keys(key.keys.split(",")[0]),
        )
        for key in KEYS
    ]

    class Seen(Message):
        def __init__(self, found: rows.Look | live.Gone) -> None:
            super().__init__()
            self.found = found

    class Told(Message):
        """The answer to an action, or to the question for details."""

        def __init__(self, then: Callable[[], None]) -> None:
            super().__init__()
            self.then = then

    def __init__(self, find: live.Find, interval: float) -> None:
        # The terminal's own colours, be it dark or light.
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.find = find
        self.interval = interval
        self.over = threading.Event()
        self.rates = rows.Rates()
        self.look: rows.Look | None = None
        self.gone: live.Gone | None = None
        self.companions = Table(rows.COMPANION_COLUMNS, id="companions")
        self.workers_table = Table(rows.WORKER_COLUMNS, id="workers")
        # The table that has, or had, the keys.
        self.last = self.companions
        # What is shown below the tables: the table's id and the row's key.
        self.shown: tuple[str | None, str | None] = ("", None)
        self.details: list[str] = []
        self.output: live.Output | None = None
        self.drawn = 0
        self.output_width = 0
        self.output_height = 0
        self.follows = True
        self.stacks: str | None = None
        # Ends the message that is shown.
        self.silence: Any = None
        # The keys of somebody fast are answered in their order.
        self.acting = threading.Lock()

    def run_until_left(self) -> int:
        try:
            return self.run() or 0
        finally:
            self.over.set()

    # -- the parts of the screen ----------------------------------------------------

    def compose(self) -> ComposeResult:
        yield Static("Connecting …", id="server", markup=False)
        yield self.companions
        yield self.workers_table
        yield Static(id="title", markup=False)
        yield Static(id="facts", markup=False)
        yield RichLog(id="log", max_lines=live.KEPT_LINES, wrap=True, auto_scroll=False)
        yield Static(id="message", markup=False)
        yield Input(id="words", placeholder="words that a row must contain; Escape: all rows")
        yield Footer()

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            # So that the terminal is left as it was.
            loop.add_signal_handler(number, self.exit, 128 + number)
        self.companions.active = True
        self.companions.focus()
        self.set_interval(OUTPUT_INTERVAL, self.draw_output)
        self.set_interval(1.0, self.draw_summary)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        for found in live.looks(self.find, self.interval, self.over):
            self.post_message(self.Seen(found))

    def on_resize(self) -> None:
        self.call_after_refresh(self.arrange)
        # The terminal has moved or cut what it showed.
        self.call_after_refresh(self.screen.refresh)

    def arrange(self) -> None:
        """Give the tables the height that they need, as far as there is room."""
        room = self.size.height
        # What it said last needs some lines too.
        self.query_one("#facts", Static).styles.max_height = 6 if room >= 30 else 3
        if self.look is None or self.look.web is None:
            self.workers_table.display = False
            self.companions.styles.height = min(len(self.companions.rows) + 1, max(4, room // 2))
        else:
            self.workers_table.display = True
            workers = min(len(self.workers_table.rows) + 1, max(3, room // 5))
            self.workers_table.styles.height = workers
            self.companions.styles.height = min(len(self.companions.rows) + 1, max(4, room * 2 // 5))
        self.draw_summary()
        if self.output_width != self.size.width:
            self.output_width = self.size.width
            self.draw_all_output()

    def on_top_app_seen(self, message: Seen) -> None:
        if isinstance(message.found, live.Gone):
            self.gone = message.found
            # Its successor counts from zero.
            self.rates = rows.Rates()
            self.draw_summary()
            return
        self.gone = None
        self.look = look = message.found
        self.rates.add(look)
        before = len(self.companions.rows), len(self.workers_table.rows)
        self.companions.show(rows.companion_rows(look, self.rates))
        self.workers_table.show(rows.worker_rows(look, self.rates))
        if (len(self.companions.rows), len(self.workers_table.rows)) != before:
            self.arrange()
        self.draw_summary()
        self.ask_details()

    def draw_summary(self) -> None:
        width = self.size.width
        text = Text(no_wrap=True, overflow="ellipsis")
        if self.gone is not None:
            since = time.strftime("%H:%M:%S", time.localtime(self.gone.since))
            ago = rows.show_age(time.time() - self.gone.since)
            text.append(f"No answer since {since} ({ago})\n", LEVEL_STYLES[rows.BAD])
            # It may be longer than a line.
            text.append("\n".join(textwrap.wrap(self.gone.problem, width - 1)) + "\n")
        if self.look is not None:
            lines = rows.summary(self.look, self.rates, width)
            for level, line in lines[1:] if self.gone else lines:
                text.append(f"{line}\n", Style(dim=True) if self.gone else LEVEL_STYLES[level])
        text.rstrip()
        self.query_one("#server", Static).update(text)

    # -- what is selected -----------------------------------------------------------

    def on_table_moved(self, message: Table.Moved) -> None:
        table = message.table
        if table is not self.current:
            return
        for each in (self.companions, self.workers_table):
            if each.active != (each is table):
                each.active = each is table
                each.refresh()
        shown = (table.id, table.selected)
        if shown == self.shown:
            # It has only got the keys back, from the help for instance.
            return
        self.shown = shown
        self.stacks = None
        self.details = []
        self.draw_facts()
        self._close_output()
        self.query_one("#log", RichLog).clear()
        self.follows = True
        self.set_timer(SETTLED, self.open_selected)

    def on_table_sorted(self, message: Table.Sorted) -> None:
        self._sort(message.table, message.column)

    @property
    def current(self) -> Table:
        """The table whose row keys act on, whatever has not been drawn yet."""
        if isinstance(self.focused, Table):
            self.last = self.focused
        return self.last

    @property
    def selected(self) -> str | None:
        return self.current.selected

    @property
    def companion(self) -> str | None:
        """The name of the companion that is selected; None if it is a web worker."""
        return self.companions.selected if self.current is self.companions else None

    def open_selected(self) -> None:
        """Follow the output of the companion that is selected, once."""
        name = self.companion
        if self.output is not None and self.output.companion == name:
            return
        self._close_output()
        if name is not None:
            self.output = live.Output(self.find, name)
            self.output.start()
            self.ask_details()
        self.draw_facts()

    def _close_output(self) -> None:
        if self.output is not None:
            self.output.end()
            self.output = None
        self.drawn = 0

    def ask_details(self) -> None:
        name = self.companion
        if name is None:
            self.draw_facts()
            return

        def ask() -> None:
            try:
                with self.find() as connection:
                    reply = connection.ask(cmd="status", name=name, details=True)
            except Failure:
                return
            if reply.get("ok"):
                found = rows.companion_details(reply["companions"][0], time.time())
                self.post_message(self.Told(lambda: self._take_details(name, found)))

        self.run_worker(ask, thread=True, group="details", exclusive=True, exit_on_error=False)

    def _take_details(self, name: str, found: list[str]) -> None:
        if name == self.companion:
            self.details = found
            self.draw_facts()

    def on_top_app_told(self, message: Told) -> None:
        message.then()

    def draw_facts(self) -> None:
        if self.stacks is not None:
            return
        lines = self.details
        if self.selected is None:
            self.draw_title("nothing is selected")
            lines = []
        elif self.companion is not None:
            self.draw_title(self.selected)
            if not lines and self.look is not None:
                found = [one for one in self.look.companions if one["name"] == self.selected]
                lines = rows.companion_details(found[0], time.time()) if found else []
        else:
            self.draw_title(f"web worker {self.selected}")
            workers = (self.look.web or {}).get("workers", ()) if self.look else ()
            found = [one for one in workers if str(one["pid"]) == self.selected]
            lines = rows.worker_details(found[0], time.time()) if found else []
            lines = [*lines, "its output is in the server's own log; d shows its stacks"]
        self.query_one("#facts", Static).update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def draw_title(self, text: str) -> None:
        """Draw the line between the tables and what is known of the selected row."""
        self.query_one("#title", Static).update(f"── {text} ".ljust(self.size.width, "─"))

    def draw_output(self) -> None:
        """Draw what has come since the last time."""
        log = self.query_one("#log", RichLog)
        if log.size.height == self.output_height:
            # Whoever has scrolled back stays there.
            self.follows = log.is_vertical_scroll_end
        elif self.follows:
            log.scroll_end(animate=False)
        self.output_height = log.size.height
        output = self.output
        if output is None or self.stacks is not None or output.count == self.drawn:
            return
        count = output.count
        news = min(count - self.drawn, len(output.lines), LINES_AT_ONCE if self.drawn else live.KEPT_LINES)
        lines = list(output.lines)[-news:]
        self.drawn = count
        log.write(Text("\n".join(lines)), scroll_end=self.follows)

    def draw_all_output(self) -> None:
        """Draw again, for another width."""
        log = self.query_one("#log", RichLog)
        log.clear()
        if self.stacks is not None:
            log.write(Text(self.stacks), scroll_end=False)
        else:
            self.drawn = 0
            self.follows = True
            self.draw_output()
            log.scroll_end(animate=False)

    # -- keys -----------------------------------------------------------------------

    def _sort(self, table: Table, column: str) -> None:
        known = rows.orders(table.columns)
        if column not in known:
            return
        table.backwards = table.order == column and not table.backwards
        table.order = column
        table.show()

    def action_order(self) -> None:
        known = rows.orders(self.current.columns)
        following = known[(known.index(self.current.order) + 1) % len(known)]
        self.current.backwards = False
        self.current.order = following
        self.current.show()
        self.say(f"sorted by {following}")

    def action_invert(self) -> None:
        self.current.backwards = not self.current.backwards
        self.current.show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the key of the filter to whoever types text, or has to answer first."""
        return action != "filter" or (len(self.screen_stack) == 1 and not isinstance(self.focused, Input))

    def action_filter(self) -> None:
        words = self.query_one("#words", Input)
        words.display = True
        self.screen.set_focus(words)

    def on_input_changed(self, event: Input.Changed) -> None:
        for table in (self.companions, self.workers_table):
            table.words = event.value
            table.show()
        self.arrange()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.query_one("#words", Input).display = bool(event.value)
        self.current.focus()

    def action_next(self) -> None:
        shown = [self.companions, self.workers_table, self.query_one("#log", RichLog)]
        shown = [widget for widget in shown if widget.display and not self.has_class("zoomed")] or shown[2:]
        place = shown.index(self.focused) if self.focused in shown else -1
        self.screen.set_focus(shown[(place + 1) % len(shown)])

    def action_zoom(self) -> None:
        self.toggle_class("zoomed")
        self.call_after_refresh(self.draw_all_output)
        (self.query_one("#log", RichLog) if self.has_class("zoomed") else self.current).focus()

    def action_back(self) -> None:
        words = self.query_one("#words", Input)
        if self.stacks is not None:
            self.stacks = None
            self.draw_all_output()
            self.draw_facts()
        elif self.has_class("zoomed"):
            self.action_zoom()
        elif words.display:
            words.value = ""
            words.display = False
            self.current.focus()

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_leave(self) -> None:
        self.exit(0)

    # -- commands -------------------------------------------------------------------

    def action_restart(self) -> None:
        if self.companion is not None:
            name = self.companion
            self._ask_then(f"Restart {name}?", lambda: self._send(cmd="restart", name=name))
        elif self.selected is not None:
            question = "Reload the web workers? New ones start, and the old ones end after their requests."
            self._ask_then(question, lambda: self._send(cmd="web", do="reload"))

    def action_stop(self) -> None:
        name = self.companion
        if name is not None:
            self._ask_then(f"Stop {name}, and keep it stopped?", lambda: self._send(cmd="stop", name=name))
        else:
            self.say("web workers are not stopped: k kills this one, - ends one after its requests")

    def action_start(self) -> None:
        if self.companion is not None:
            self._send(cmd="start", name=self.companion)

    def action_kill(self) -> None:
        pid = self.selected
        if self.companion is None and pid is not None:
            question = f"Kill web worker {pid}? Its requests are lost."
            self._ask_then(question, lambda: self._send(cmd="web", do="kill", pid=int(pid)))
        elif pid is not None:
            self.say("k kills a web worker; s stops a companion")

    def action_more(self) -> None:
        if self.companion is not None:
            self._scale(self.companion, +1)
        elif self.selected is not None:
            self._send(cmd="web", do="add", count=1)

    def action_fewer(self) -> None:
        name = self.companion
        if name is not None:
            self._ask_then(
                f"Stop the last copy of {name.rpartition(':')[0] or name}?", lambda: self._scale(name, -1)
            )
        elif self.selected is not None:
            self._ask_then("Run one web worker fewer?", lambda: self._send(cmd="web", do="remove", count=1))

    def action_dump(self) -> None:
        what = self.selected
        if what is None:
            return

        def take(reply: Reply) -> None:
            text = "\n\n".join(
                f"{one['name']}, pid {one['pid']}\n{one['stacks'] or one['error']}" for one in reply["dumps"]
            )
            self.post_message(self.Told(lambda: self._show_stacks(what, text)))

        self._send(take, cmd="dump", what=what if self.companion else int(what))

    def _show_stacks(self, what: str, text: str) -> None:
        if what == self.selected:
            self.stacks = "\n".join(map(rows.clean, text.splitlines()))
            self.draw_title(f"stacks of {what} at {time.strftime('%H:%M:%S')}; Escape: back to its output")
            self.draw_all_output()

    def _ask_then(self, question: str, act: Callable[[], None]) -> None:
        self.push_screen(Question(question), lambda yes: act() if yes else None)

    def _scale(self, name: str, by: int) -> None:
        group = name.rpartition(":")[0] or name

        def request(ask: Callable[..., Reply]) -> Reply:
            count = len(ask(cmd="status", name=group).get("companions", ()))
            return ask(cmd="scale", name=group, numprocs=count + by)

        def take(reply: Reply) -> None:
            changed = [f"{one} {kind}" for kind in ("added", "removed") for one in reply.get(kind, ())]
            self._tell(", ".join(changed) or "nothing changed")

        self._act(request, take)

    def _send(self, take: Callable[[Reply], None] | None = None, **request: Any) -> None:
        def tell(reply: Reply) -> None:
            self._tell(str(reply.get("message") or "done"))

        self._act(lambda ask: ask(**request), take or tell)

    def _act(self, request: Callable[[Callable[..., Reply]], Reply], take: Callable[[Reply], None]) -> None:
        """Send requests in a thread, since the server may be slow; *take* gets the answer."""

        def run() -> None:
            try:
                with self.acting, self.find() as connection:
                    # A dump of a busy process takes its time.
                    connection.sock.settimeout(10 * live.TIMEOUT)
                    reply = request(connection.ask)
            except Failure as exc:
                self._tell(str(exc), bad=True)
                return
            if reply.get("ok"):
                take(reply)
            else:
                self._tell(refusal(reply), bad=True)

        threading.Thread(target=run, daemon=True).start()

    def _tell(self, text: str, bad: bool = False) -> None:
        self.post_message(self.Told(lambda: self.say(text, bad)))

    def say(self, text: str, bad: bool = False) -> None:
        """Show a message above the keys for some seconds."""
        message = self.query_one("#message", Static)
        message.update(Text(rows.clean(text), LEVEL_STYLES[rows.BAD] if bad else Style(bold=True)))
        message.display = True
        if self.silence is not None:
            self.silence.stop()
        self.silence = self.set_timer(MESSAGE_TIME, self.be_silent)

    def be_silent(self) -> None:
        self.query_one("#message", Static).display = False
