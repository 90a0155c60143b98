# SPDX-License-Identifier: MIT
"""What the monitor has from the processes that it is forked from; the manager sets it, or the fork of it."""

from __future__ import annotations

from typing import Any

#: The path of the control socket; None without one.
control_path: str | None = None
#: The socket to accept on.
listener: Any = None
#: The `Scoreboard` of the master.
scoreboard: Any = None
#: The `Timeline` of the master.
timeline: Any = None
