# SPDX-License-Identifier: MIT
"""What a start needs, made ready by the starter: here the sockets of `bind`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import Event, State
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.supervise.sockets import Listeners
from gunicorn.companion.supervise.starter import Starter
from gunicorn.companion.table import ProcessTable


class Departing(Listeners):
    """The manager of another master, which has the address, releases it just before somebody looks."""

    def __init__(self, owner: socket.socket, looks: int) -> None:
        super().__init__()
        self.owner = owner
        self.looks = looks

    def is_elsewhere(self, addresses: Iterable[str]) -> bool:
        self.looks -= 1
        if self.looks == 0:
            self.owner.close()
        return False


@pytest.mark.parametrize(("looks", "state"), [(1, State.STARTING), (0, State.BACKOFF)])
def test_an_address_that_was_released_meanwhile_is_no_failed_start(
    tmp_path: Path, looks: int, state: State
) -> None:
    """Else a companion could give up during an upgrade; what stays in use is a failed start."""
    table = ProcessTable([CompanionConfig("web", "app:run", bind=(f"unix:{tmp_path}/s",))])
    [process] = table.values()
    table.send(process, Event.START, 0.0)
    run = RunFile.claim(None, "web")
    assert run is not None
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(f"{tmp_path}/s")
        owner.listen()
        listeners = Departing(owner, looks)
        start_rights = SimpleNamespace(
            claim=lambda *_, **__: run,
            clear=lambda name: None,
            other_owner=lambda group: None,
            run_dir=str(tmp_path),
        )
        notifications = SimpleNamespace(open=lambda *_: None, discard=lambda name: None)
        others = cast(dict[str, Any], dict.fromkeys(("hooks", "watch", "descriptors")))
        starter = Starter(
            table,
            logging.getLogger("test"),
            start_rights=cast(Any, start_rights),
            listeners=listeners,
            notifications=cast(Any, notifications),
            leases=cast(Any, SimpleNamespace(may_start=lambda process: True)),
            kept=cast(Any, SimpleNamespace(must_follow_first=False)),
            spare_descriptors=cast(Any, None),
            **others,
        )
        prepared = starter._prepare(process)
        try:
            assert process.state is state
            assert (prepared is not None) == (state is State.STARTING)
            assert process.failed_starts == (0 if prepared else 1)
        finally:
            listeners.close_all()
            run.release()
