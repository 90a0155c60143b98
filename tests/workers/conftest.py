# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
from workertools import make_certificate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of a server with TLS."""
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"))
    return {"certfile": cert, "keyfile": key}
