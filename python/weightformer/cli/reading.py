"""What commands read besides settings: data, and networks that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightformer.source import Source

if TYPE_CHECKING:
    from weightformer.data import Dataset
    from weightformer.state import State


@dataclass(frozen=True)
class Inputs:
    """The settings of a command that only reads data."""

    data: Source = Source()


def shape_of(data: Dataset) -> dict[str, int]:
    """Return what `students.create` must know about the data."""
    return {"classes": data.classes, "channels": data.channels, "size": data.size}


def read_networks(paths: Sequence[Path], arch: str, data: Dataset, device: str) -> dict[str, State]:
    """Return the networks in some files, on a device, after checking that each is of the architecture and finite."""
    from weightformer import checkpoints, students
    from weightformer.compare.device import on

    expected = students.create(arch, **shape_of(data), seed=0)
    states: dict[str, State] = {str(path): dict(checkpoints.load(path)) for path in paths}
    checkpoints.check_teachers(states, expected)
    return on(states, device)
