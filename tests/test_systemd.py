# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from unittest import mock

import pytest

from gunicorn import systemd


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("unset", [True, False])
def test_sockets_for_another_process(monkeypatch: pytest.MonkeyPatch, unset: bool) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "5")
    assert systemd.listen_fds(unset) == 0
    assert os.environ["LISTEN_FDS"] == "5"


@pytest.mark.parametrize("unset", [True, False])
def test_sockets_for_this_process(monkeypatch: pytest.MonkeyPatch, unset: bool) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "5")
    assert systemd.listen_fds(unset) == 5
    assert ("LISTEN_FDS" in os.environ) is not unset
    assert ("LISTEN_PID" in os.environ) is not unset


def test_no_sockets() -> None:
    assert systemd.listen_fds() == 0
    assert systemd.SD_LISTEN_FDS_START == 3


def receiver(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(5)
    return sock


@pytest.mark.parametrize("unset", [True, False])
def test_notify(monkeypatch: pytest.MonkeyPatch, short_dir: Path, unset: bool) -> None:
    path = str(short_dir / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with receiver(path) as manager:
        systemd.sd_notify("READY=1\nSTATUS=dä", mock.Mock(), unset)
        assert manager.recv(100) == b"READY=1\nSTATUS=d\xc3\xa4"
    assert ("NOTIFY_SOCKET" in os.environ) is not unset


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the abstract namespace is Linux's")
def test_notify_by_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"gunicorn-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with receiver(f"\0{name}") as manager:
        systemd.sd_notify("READY=1", mock.Mock())
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["/nothing/there", "x" * 300])
def test_nobody_hears(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    logger = mock.Mock()
    systemd.sd_notify("READY=1", logger)
    assert [call[0] for call in logger.mock_calls] == ["debug"]


def test_no_service_manager() -> None:
    logger = mock.Mock()
    systemd.sd_notify("READY=1", logger)
    assert not logger.mock_calls
