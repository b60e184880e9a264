"""The environment switches."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from wfkernels import env

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("switch", env.SWITCHES, ids=lambda s: s.name)
def test_a_switch_has_our_prefix_a_valid_default_and_a_row_in_the_readme(switch: env.Switch) -> None:
    assert switch.name.startswith("WFKERNELS_")
    assert not switch.choices or switch.default in switch.choices
    assert switch.help
    assert re.search(rf"^\|.*{switch.name}", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_every_switch_is_read_in_env_only() -> None:
    sources = [p for folder in ("wfkernels", "python") for p in (ROOT / folder).rglob("*.py") if p.name != "env.py"]
    assert sources
    for path in sources:
        assert not re.search(r"(environ|getenv)[^\n]*WFKERNELS_", path.read_text()), path


def test_the_value_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(env.IMPL.name, raising=False)
    assert env.IMPL.read() == "auto"
    monkeypatch.setenv(env.IMPL.name, "reference")
    assert env.IMPL.read() == "reference"
    monkeypatch.setenv(env.IMPL.name, "")
    assert env.IMPL.read() == "auto"


def test_a_wrong_value_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.IMPL.name, "fastest")
    with pytest.raises(
        ValueError, match="WFKERNELS_IMPL='fastest': expected one of auto, reference, cpp, triton, cuda"
    ):
        env.IMPL.read()


def test_a_switch_holds_a_value_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(env.IMPL.name, raising=False)
    with env.IMPL.holding("reference"):
        assert env.IMPL.read() == "reference"
        with env.IMPL.holding("cpp"):
            assert env.IMPL.read() == "cpp"
        assert env.IMPL.read() == "reference"
    assert env.IMPL.name not in os.environ


def test_a_switch_without_choices_takes_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFKERNELS_FREE", "anything")
    assert env.Switch("WFKERNELS_FREE", "", (), "free text").read() == "anything"
