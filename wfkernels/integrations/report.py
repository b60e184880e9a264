"""What `patch` and `unpatch` say they did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Status = Literal["replaced", "restored", "already", "left"]


class Entry(NamedTuple):
    """What happened to one module.

    Attributes:
        path: its name in `model.named_modules()`, "" for the model itself.
        kind: what it is, "BEiT attention (timm)".
        status: "replaced", "restored", "already" (patched before, nothing done) or "left".
        detail: the form of the bias where it is replaced, the reason where it is left.
    """

    path: str
    kind: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Report:
    """The entries of one call of `patch` or `unpatch`, one for each module that was looked at; `print` it."""

    entries: tuple[Entry, ...]

    @property
    def replaced(self) -> int:
        """How many modules this call replaced."""
        return self._count("replaced")

    @property
    def restored(self) -> int:
        """How many modules this call restored."""
        return self._count("restored")

    @property
    def already(self) -> int:
        """How many modules had been replaced by an earlier call."""
        return self._count("already")

    @property
    def left(self) -> int:
        """How many modules were left as they are; their entries say why."""
        return self._count("left")

    def __str__(self) -> str:
        summary = ", ".join(f"{count} {name}" for name in get_args(Status) if (count := self._count(name)))
        if not summary:
            return "nothing to do: no module was found that patch or unpatch would change"
        alike: dict[tuple[Status, str, str], list[str]] = {}
        for path, kind, status, detail in self.entries:
            alike.setdefault((status, kind, detail), []).append(path or "(the model itself)")
        lines = [summary if self.replaced or self.restored else f"nothing changed: {summary}"]
        for (status, kind, detail), paths in alike.items():
            lines += [f"  {status:<9} {_several(paths)}", f"{'':12}{kind}: {detail}"]
        return "\n".join(lines)

    def _count(self, status: str) -> int:
        return sum(entry.status == status for entry in self.entries)


def _several(paths: list[str]) -> str:
    if len(paths) <= 2:
        return ", ".join(paths)
    return f"{paths[0]} ... {paths[-1]} ({len(paths)} modules)"
