"""What commands read besides settings: data, networks that fit them, and images of the user's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightformer.cli.options import UserError
from weightformer.source import Source

if TYPE_CHECKING:
    from torch import Tensor

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
    states = read_weights(paths)
    checkpoints.check_teachers(states, expected)
    return on(states, device)


def read_weights(paths: Sequence[Path]) -> dict[str, State]:
    """Return the weights in some files, by path; one that is named twice is refused, by whatever names."""
    from weightformer import checkpoints

    places: dict[str, Path] = {}
    for path in paths:
        other = places.setdefault(os.path.realpath(path), path)
        if other is not path:
            raise UserError(f"{path} is named twice ({other} is the same file); name every file once")
    return {str(path): dict(checkpoints.load(path)) for path in paths}


IMAGES = "images"  # what a file of several tensors has to call them


def read_images(path: Path) -> Tensor:
    """Return the images in a .npy or a .safetensors file, of any shape and type; neither format can run code."""
    from weightformer import checkpoints

    if path.suffix == ".npy":
        return _read_npy(path)
    if path.suffix != checkpoints.SUFFIX:
        raise UserError(f"{path}: images are read from .npy or {checkpoints.SUFFIX}; save them as one of these")
    state = checkpoints.load(path)
    if IMAGES not in state and len(state) > 1:
        raise UserError(f"{path}: holds {len(state)} tensors, none called {IMAGES!r}; save the images under that name")
    return state.get(IMAGES, next(iter(state.values())))


def _read_npy(path: Path) -> Tensor:
    import numpy as np
    import torch

    from weightformer.checkpoints.error import one_line

    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (EOFError, MemoryError, OSError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UserError(f"{path}: is no array that numpy.save wrote ({reason}); save the images again") from error
