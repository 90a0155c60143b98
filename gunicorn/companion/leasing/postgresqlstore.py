# SPDX-License-Identifier: MIT
"""Leases in PostgreSQL: one row each of the table ``gunicorn_lease``, by the clock of the database.

A row is changed by single statements that compare owner and token. No advisory lock, no prepared statement
and no setting of the session is used, so PgBouncer may stand in between, in transaction mode too.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg

from gunicorn.companion.leasing.remote import RemoteStore
from gunicorn.companion.leasing.store import Answer, LeaseError, Store, StoreError, hide_password

CREATE = """CREATE TABLE IF NOT EXISTS gunicorn_lease (
    name text PRIMARY KEY,
    owner text NOT NULL,
    token bigint NOT NULL,
    expires timestamptz NOT NULL,
    note text NOT NULL DEFAULT ''
)"""

_LOOK = """SELECT owner, token, extract(epoch FROM expires - clock_timestamp())::float8 AS rest, note
FROM gunicorn_lease WHERE name = %(name)s"""

# Tokens are milliseconds of the clock, or one more than the last: they grow even when an older copy of the
# database is restored.
_ACQUIRE = """INSERT INTO gunicorn_lease AS lease (name, owner, token, expires)
VALUES (
    %(name)s, %(owner)s, (extract(epoch FROM clock_timestamp()) * 1000)::bigint, clock_timestamp() + %(ttl)s
)
ON CONFLICT (name) DO UPDATE SET
    owner = excluded.owner, token = greatest(lease.token + 1, excluded.token),
    expires = clock_timestamp() + %(ttl)s
WHERE lease.owner IN ('', excluded.owner) OR lease.expires <= clock_timestamp()
RETURNING token, note"""

_RENEW = """UPDATE gunicorn_lease SET expires = clock_timestamp() + %(ttl)s, note = coalesce(%(note)s, note)
WHERE name = %(name)s AND owner = %(owner)s AND token = %(token)s RETURNING name"""

_RELEASE = """UPDATE gunicorn_lease SET owner = '', note = coalesce(%(note)s, note)
WHERE name = %(name)s AND owner = %(owner)s AND token = %(token)s RETURNING name"""

_ANY_FREE = """SELECT 1 FROM unnest(%(names)s::text[]) AS wanted (name) LEFT JOIN gunicorn_lease USING (name)
WHERE coalesce(owner, '') = '' OR expires <= clock_timestamp() LIMIT 1"""


def connect(url: str, timeout: float) -> Store:
    return RemoteStore(lambda: PostgreSQLClient(url, timeout), timeout)


def check(url: str) -> None:
    """Raise ValueError with what to change."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as exc:
        raise ValueError(f"is no valid URL of a store: {_sentence(exc)}") from None
    if not parts.get("dbname"):
        raise ValueError("names no database: write it as in postgresql://user@db.internal/shop")


def _sentence(error: Exception) -> str:
    return hide_password(" ".join(str(error).split())) or type(error).__name__


class PostgreSQLClient:
    """One connection, made when it is needed."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._connection: Any = None
        self._cut = False

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        # Look first: the other statement locks the row, which is written to the log of the database.
        answer = self._look(name)
        if answer is not None and answer.owner not in ("", owner) and (answer.expires_in or 0) > 0:
            return answer
        rows = self._execute(_ACQUIRE, name=name, owner=owner, ttl=timedelta(seconds=ttl))
        if rows:
            return Answer(True, owner, rows[0][0], ttl, rows[0][1])
        # Somebody else was faster.
        return self._look(name) or Answer(False, "", 0, None, "")

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        return bool(
            self._execute(_RENEW, name=name, owner=owner, token=token, ttl=timedelta(seconds=ttl), note=note)
        )

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        self._execute(_RELEASE, name=name, owner=owner, token=token, note=note)

    def any_free(self, names: Sequence[str]) -> bool:
        return bool(self._execute(_ANY_FREE, names=list(names)))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cut(self) -> None:
        self._cut = True
        # The connection itself must not be touched from another thread.
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(self._connection.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)

    def _look(self, name: str) -> Answer | None:
        for owner, token, rest, note in self._execute(_LOOK, name=name):
            return Answer(False, owner, token, max(0.0, rest), note)
        return None

    def _execute(self, statement: str, **values: object) -> list[Any]:
        was_connected = self._connection is not None
        try:
            try:
                return self._run(statement, values)
            except psycopg.errors.UndefinedTable:
                self._create_table()
                return self._run(statement, values)
        except psycopg.Error as exc:
            lost = self._connection is not None and self._connection.closed
            # Whatever it was, begin anew.
            self.close()
            if was_connected and lost and not self._cut:
                # The server was restarted since the last call.
                return self._execute(statement, **values)
            if isinstance(exc, (psycopg.errors.QueryCanceled, psycopg.errors.ConnectionTimeout)):
                raise StoreError(f"no answer within {self._timeout:g}s") from exc
            # A token that has become too large, for instance.
            kind = LeaseError if isinstance(exc, psycopg.DataError) else StoreError
            raise kind(_sentence(exc)) from exc

    def _run(self, statement: str, values: dict[str, object] | None = None) -> list[Any]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                # Sends a statement whole, with its values in it.
                cursor_factory=psycopg.ClientCursor,
                # Otherwise a database in SQL_ASCII gives bytes.
                client_encoding="UTF8",
                connect_timeout=max(2, math.ceil(self._timeout)),
                fallback_application_name="gunicorn",
            )
        # Both go in one message, which is one transaction: LOCAL ends with it.
        limit = f"SET LOCAL statement_timeout = {round(self._timeout * 1000)};"
        cursor = self._connection.execute(limit + statement, values)
        cursor.nextset()
        return list(cursor.fetchall()) if cursor.description else []

    def _create_table(self) -> None:
        try:
            self._run(CREATE)
        except psycopg.errors.UniqueViolation:
            # Another server created it at the same moment.
            pass
        except psycopg.errors.InsufficientPrivilege:
            self.close()
            raise StoreError(
                "table gunicorn_lease does not exist and this user may not create it; "
                f"let its owner run: {' '.join(CREATE.split())}; "
                "GRANT SELECT, INSERT, UPDATE ON gunicorn_lease TO ..."
            ) from None
