# SPDX-License-Identifier: MIT
"""The table of keys fits the global settings, and the manual shows all of it."""

from __future__ import annotations

from pathlib import Path

import companion_keys
import pytest

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.keys import FIELDS, GLOBAL_KEYS, KEYS, KNOWN_KEYS
from gunicorn.settings import KNOWN_SETTINGS

SETTINGS = {str(cls.name): cls for cls in KNOWN_SETTINGS}


def test_every_field_but_the_index_is_a_key() -> None:
    fields = [FIELDS[key] for key in KNOWN_KEYS]
    assert [*fields, "index", "template"] == list(CompanionConfig.__dataclass_fields__)


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


PAGE = Path(__file__).resolve().parents[2] / "docs" / "companions.rst"


def columns(line: str) -> list[str]:
    """The cells of a line of the table in the manual."""
    rule = companion_keys.table().splitlines()[2]
    starts = [0, *(place + 1 for place, char in enumerate(rule) if char == " ")]
    ends = [*(start - 1 for start in starts[1:]), None]
    return [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def test_every_key_has_its_row_in_the_manual() -> None:
    assert ".. include:: companion_keys.inc" in PAGE.read_text()
    lines = companion_keys.table().splitlines()
    assert [columns(line)[0] for line in lines if line.startswith("``")] == [
        f"``{name}``" for name in KNOWN_KEYS
    ]
    assert all(columns(line)[4] for line in lines if line.startswith("``"))


@pytest.mark.parametrize(
    "row",
    [
        ["``name``", "", "", "", "its unique name in logs and commands"],
        ["``command``", "none", "", "yes", "the program to run instead: :doc:`programs`"],
        ["``env``", "``{}``", "yes", "yes", "variables to add to its environment; None removes one"],
        ["``stop_timeout``", "``60``", "yes", "", "seconds from the stop signal to SIGKILL"],
        ["``autorestart``", '``"always"``', "yes", "", "the exits that lead to a restart"],
    ],
)
def test_a_row_of_the_manual(row: list[str]) -> None:
    assert row in [columns(line) for line in companion_keys.table().splitlines()]
