# SPDX-License-Identifier: MIT
"""Errors of TLS are recognized where ``ssl`` is imported, and nothing is where it is not."""

from __future__ import annotations

import ssl
import sys
from types import ModuleType

import pytest

from gunicorn.unix import maybessl


def test_the_names_are_those_of_ssl() -> None:
    assert maybessl.SSLWantReadError is ssl.SSLWantReadError
    assert maybessl.SSLSocket is ssl.SSLSocket
    with pytest.raises(RuntimeError) as caught:
        try:
            raise ssl.SSLWantReadError
        except maybessl.SSLWantReadError as error:
            raise RuntimeError from error
    assert isinstance(caught.value.__cause__, maybessl.SSLError)


@pytest.mark.parametrize("module", [None, ModuleType("ssl")], ids=["not imported", "half imported"])
def test_without_ssl_nothing_is_of_its_kind(
    module: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is None:
        monkeypatch.delitem(sys.modules, "ssl")
    else:
        monkeypatch.setitem(sys.modules, "ssl", module)
    assert not isinstance(OSError(), (ValueError, maybessl.SSLEOFError))
    with pytest.raises(BlockingIOError):
        try:
            raise BlockingIOError
        except (KeyError, maybessl.SSLWantReadError):
            pytest.fail("it is no error of TLS")
