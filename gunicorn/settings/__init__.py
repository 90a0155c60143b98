# SPDX-License-Identifier: MIT
"""The settings, one section in each file; importing this package defines all of them."""

from __future__ import annotations

# ruff: noqa: F403, I001
from gunicorn.settings.base import *
from gunicorn.settings.server import *
from gunicorn.settings.worker import *
from gunicorn.settings.asgi import *
from gunicorn.settings.static import *
from gunicorn.settings.http import *
from gunicorn.settings.logging import *
from gunicorn.settings.hooks import *
from gunicorn.settings.tls import *
from gunicorn.settings.companion import *
from gunicorn.settings.monitor import *
from gunicorn.settings.later import *
from gunicorn.settings.validators import *
