"""Settings as files: nested dataclasses out to YAML and back, every value checked against its annotation.

A file may name as few settings as it likes; what it leaves out stays as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

Settings = TypeVar("Settings")


def plain(settings: Any) -> dict[str, Any]:
    """Return a dataclass instance as nested dicts and lists of plain values."""
    return {name: _plain(value) for name, value in asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, os.PathLike) else value


def changed(settings: Settings, changes: Mapping[str, Any], path: str = "") -> Settings:
    """Return a dataclass instance with some settings changed, at any depth.

    Raises ValueError, in one line with the setting's full name, for one that does not exist (with the nearest that
    does), for a value that its annotation does not take, and whatever the dataclass itself refuses.
    """
    hints = get_type_hints(type(settings))
    known = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        full = f"{path}{name}"
        if name not in known:
            raise ValueError(f"{full}: there is no such setting{nearest(str(name), known)}")
        current = getattr(settings, name)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(f"{full}: expected settings of its own ({_names(current)}), got {value!r}")
            values[name] = changed(current, value, f"{full}.")
        else:
            values[name] = _checked(full, value, hints[name])
    return replace(settings, **values)  # type: ignore[type-var]


def _names(settings: Any) -> str:
    return ", ".join(field.name for field in fields(settings))


def _checked(name: str, value: Any, hint: Any) -> Any:
    refusal = f"{name}: expected {_spelled(hint)}, got {value!r}"
    if isinstance(value, bool) and hint is not bool:  # which pydantic takes for 0 or 1
        raise ValueError(refusal)
    try:
        # Not strict: YAML 1.1 reads 1e-3 as text, and has lists where we have tuples.
        return TypeAdapter(hint).validate_python(value)
    except ValidationError:
        raise ValueError(refusal) from None


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def _spelled(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(hint) is tuple:
        return f"a list, each entry {_spelled(inner[0])}"
    return " or ".join(map(_spelled, inner)) if inner else str(hint)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name that looks most alike, or nothing."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def assigned(assignments: Iterable[str]) -> dict[str, Any]:
    """Return KEY=VALUE texts as nested dicts, values read as YAML: ["recipe.steps=100"] -> {"recipe": {"steps": 100}}.

    Raises ValueError for one without a key or without "=", for a broken value, and for a key that is also a section.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        *sections, last = key.split(".")
        if not equals or not all((*sections, last)):
            raise ValueError(f"{assignment!r}: expected KEY=VALUE, such as recipe.steps=100")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"{assignment!r}: {section} has a value and settings of its own; keep one of them")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{assignment!r}: the value is no YAML ({_line(error)})") from None
    return tree


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return two nested dicts as one; where both have a value, the second's."""
    tree = dict(first)
    for name, value in second.items():
        below = tree.get(name)
        tree[name] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return tree


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file of settings; ValueError, in one line, where it cannot be read or holds something else."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no text"
        raise ValueError(f"{path}: cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is no YAML: {_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: is nested too deeply") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path}: expected lines of `name: value`, as a run writes them next to its result")
    return content


def write(path: str | os.PathLike[str], settings: Mapping[str, Any], about: str) -> None:
    """Write settings as YAML under a comment, the whole file or none."""
    text = f"# {about}\n" + yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True, width=110)
    write_text(path, text)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, the whole or none: to a temporary name first, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
