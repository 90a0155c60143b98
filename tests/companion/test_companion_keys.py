# SPDX-License-Identifier: MIT
"""The table of keys fits the settings that set defaults for all companions."""

from __future__ import annotations

import pytest

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.keys import GLOBAL_KEYS, KEYS, KNOWN_KEYS
from gunicorn.settings import KNOWN_SETTINGS

SETTINGS = {str(cls.name): cls for cls in KNOWN_SETTINGS}


def test_every_field_but_the_index_is_a_key() -> None:
    assert [*KNOWN_KEYS, "index"] == list(CompanionConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", KNOWN_KEYS)
def test_a_key_is_global_if_there_is_a_setting_of_its_name(name: str) -> None:
    assert KEYS[name].setting is SETTINGS.get(f"companion_{name}")


@pytest.mark.parametrize("name", GLOBAL_KEYS)
def test_a_global_setting_sets_the_default(name: str) -> None:
    setting = SETTINGS[f"companion_{name}"]
    assert KEYS[name].default == setting.default
    assert getattr(CompanionConfig("rq", "app:run"), name) == KEYS[name].check(setting.default)


def test_companions_do_not_share_a_default() -> None:
    one, two = CompanionConfig("one", "app:run"), CompanionConfig("two", "app:run")
    assert one.env == two.env == {}
    assert one.env is not two.env
