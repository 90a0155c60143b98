# SPDX-License-Identifier: MIT
"""Tell a companion of the lease that it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Grant(NamedTuple):
    """What a companion gets at its start; *left*: see `Lease.expires_in`."""

    name: str
    token: int
    left: Callable[[], float]


class Lease:
    """The lease of this process. ``token`` never changes: another one means another process."""

    def __init__(self, grant: Grant) -> None:
        self.name, self.token, self._left = grant

    def __repr__(self) -> str:
        return f"<lease {self.name} token={self.token} expires_in={self.expires_in():.1f}>"

    def expires_in(self) -> float:
        """Seconds until the lease ends, unless it is renewed; 0 if it is lost."""
        return self._left()

    @property
    def held(self) -> bool:
        """Whether it is still held. It may end just after: have what you write to check the token."""
        return self.expires_in() > 0


_granted: Lease | None = None


def take(grant: Grant | None) -> None:
    """Make *grant* that of this process."""
    global _granted
    _granted = None if grant is None else Lease(grant)


def lease() -> Lease | None:
    """Return the lease of this companion, or None if it has none.

    Only a `target` has it, and what it forks; a `command` finds the token in GUNICORN_LEASE_TOKEN.
    """
    return _granted
