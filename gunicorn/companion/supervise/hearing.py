# SPDX-License-Identifier: MIT
"""The notify sockets of running companions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

from gunicorn.companion.process import CompanionProcess, Event, State
from gunicorn.companion.supervise import notices
from gunicorn.companion.supervise.notices import Notice, NoticeSocket
from gunicorn.companion.table import ProcessTable
from gunicorn.unix.poller import Poller


class Hearing:
    """Turns each notice that a companion of *table* sends of itself into events, as the poller finds it."""

    def __init__(self, table: ProcessTable, log: Any, poller: Poller) -> None:
        self.table = table
        self.log = log
        self.poller = poller
        self._sockets: dict[str, NoticeSocket] = {}

    @staticmethod
    def tidy_up(run_dir: str | None) -> None:
        """Remove what dead managers left."""
        notices.remove_stale(run_dir)

    def open(self, process: CompanionProcess, run_dir: str | None) -> str | None:
        """The companion's ``NOTIFY_SOCKET``; none where there is no socket to be had, and it needs none.

        Raises OSError where it needs one.
        """
        name = process.name
        if name in self._sockets and not self._sockets[name].reachable:
            # The run directory was removed, and made again.
            self.close(name)
        if name not in self._sockets:
            try:
                self._sockets[name] = NoticeSocket.open(run_dir, name)
            except OSError as exc:
                if process.config.ready == "notify" or process.config.watchdog is not None:
                    reason = f"cannot make its notify socket: {exc.strerror or exc}"
                    raise OSError(exc.errno, reason) from None
                return None
            self.poller.add(self._sockets[name].fileno(), lambda events: self.hear(process))
        return self._sockets[name].address

    def renew(self, processes: Iterable[CompanionProcess], run_dir: str | None) -> None:
        """Listen again at the address that companions know, where somebody has removed the file."""
        for process in processes:
            notice_socket = self._sockets.get(process.name)
            if notice_socket is not None and not notice_socket.reachable:
                with contextlib.suppress(OSError):
                    self.open(process, run_dir)

    def hear(self, process: CompanionProcess) -> None:
        """Take in what *process* has said by now."""
        notice_socket = self._sockets.get(process.name)
        if notice_socket is None:
            return
        # Between two processes there is nobody whose word would count.
        for notice in notice_socket.receive(process.pid or 0):
            if process.pid is not None:
                self._take(process, notice)
        for sender in notice_socket.rejected:
            self.log.warning(
                "Companion %s: ignoring a notification: its sender, pid %d, is none of the companion's"
                " processes, or has already exited",
                process.name,
                sender,
            )

    def _take(self, process: CompanionProcess, notice: Notice) -> None:
        now = time.monotonic()
        if notice.status is not None:
            process.status_text = notice.status
        if notice.watchdog:
            self.table.send(process, Event.BEAT, now)
        if notice.ready:
            self.table.send(process, Event.READY, now)
        if notice.trigger and process.pid is not None and process.state is not State.STOPPING:
            self.table.send(process, Event.HUNG, now, reason="it sent WATCHDOG=trigger")

    def forget(self, name: str) -> None:
        """What the process has left unheard is no business of its successor."""
        notice_socket = self._sockets.get(name)
        if notice_socket is not None:
            notice_socket.discard()

    def close(self, name: str) -> None:
        """The process that would speak is gone."""
        notice_socket = self._sockets.pop(name, None)
        if notice_socket is not None:
            self.poller.remove(notice_socket.fileno())
            notice_socket.close()

    def descriptors(self) -> list[int]:
        return [notice_socket.fileno() for notice_socket in self._sockets.values()]
