"""Settings as files: what is written is read, and every mistake is named in full."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from weightformer import settings
from weightformer.compare.presets import PRESETS


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["near", "far"] = "near"
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"Inner: rate: expected at least 0, got {self.rate}")


@dataclass(frozen=True)
class Outer:
    steps: int = 3
    folder: str | None = None
    fast: bool = False
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_plan_survives_the_way_through_a_file(preset: str, tmp_path: Path) -> None:
    plan = PRESETS[preset].plan
    settings.write(tmp_path / "plan.yaml", settings.plain(plan), "about it")
    assert (tmp_path / "plan.yaml").read_text().startswith("# about it\n")
    other = settings.changed(plan, {"title": "another"})
    assert settings.changed(other, settings.read(tmp_path / "plan.yaml")) == plan


def test_what_is_not_named_stays() -> None:
    found = settings.changed(Outer(steps=9), {"inner": {"sizes": [4]}, "folder": "here"})
    assert found == Outer(9, "here", False, Inner(sizes=(4,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stesp": 1}, "stesp: there is no such setting; did you mean steps?"),
        ({"inner": {"wholly-else": 1}}, "inner.wholly-else: there is no such setting"),
        ({"inner": 3}, "inner: expected settings of its own (rate, kind, sizes), got 3"),
        ({"steps": "many"}, "steps: expected a whole number, got 'many'"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"steps": 1.5}, "steps: expected a whole number, got 1.5"),
        ({"folder": 3}, "folder: expected a text or null, got 3"),
        ({"fast": "perhaps"}, "fast: expected true or false, got 'perhaps'"),
        ({"inner": {"kind": "off"}}, "inner.kind: expected one of near, far, got 'off'"),
        ({"inner": {"sizes": [1, "x"]}}, "inner.sizes: expected a list, each entry a whole number, got [1, 'x']"),
        ({"inner": {"rate": -1}}, "Inner: rate: expected at least 0, got -1.0"),
    ],
)
def test_a_mistake_is_named_in_full(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        settings.changed(Outer(), changes)
    assert str(error.value) == message


def test_numbers_may_be_written_as_yaml_reads_them_as_text() -> None:
    assert settings.changed(Outer(), settings.assigned(["inner.rate=1e-3"])).inner.rate == 1e-3


def test_assignments_nest_and_the_last_one_wins() -> None:
    found = settings.assigned(["a.b=1", "a.c=[1, 2]", "a.b=null", "d=x=y"])
    assert found == {"a": {"b": None, "c": [1, 2]}, "d": "x=y"}
    assert settings.merged({"a": {"b": 1, "e": 2}, "d": 3}, found) == {
        "a": {"b": None, "c": [1, 2], "e": 2},
        "d": "x=y",
    }


@pytest.mark.parametrize("assignment", ["a", "=1", "a..b=1", ".=1", "a=[1"])
def test_an_assignment_that_is_none_is_refused(assignment: str) -> None:
    with pytest.raises(ValueError, match="^'.*': "):
        settings.assigned([assignment])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    settings.write_text(path, "first")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(settings.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        settings.write_text(path, "second")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "first"
