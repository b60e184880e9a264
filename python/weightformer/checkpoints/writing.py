"""From a state dict to a file: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from weightformer.checkpoints.error import CheckpointError, one_line

SUFFIX = ".safetensors"


def save(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a state dict as safetensors, with some text beside it (`metadata`): the whole file, or none.

    The file is written under a temporary name in the same folder and then renamed. Tensors may be on any device and of
    any stride; those that share memory (tied weights, views of one buffer) are stored once for every name.

    Raises TypeError for values that are not tensors, and CheckpointError where the file exists already (unless
    `overwrite`), its name does not end in .safetensors, its folder is missing or it cannot be written.
    """
    path = Path(path)
    wrong = next((f"{n!r} is {type(t).__name__}" for n, t in state.items() if not isinstance(t, Tensor)), None)
    if wrong is not None:
        raise TypeError(f"save: state: expected tensors only, but {wrong}")
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: weights are written as safetensors; choose a name that ends in {SUFFIX}")
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path}: exists already; choose another name or ask to overwrite it")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: the folder {path.parent} does not exist; create it first")
    try:
        content = safetensors.torch.save(_unshared(state), metadata={"format": "pt", **(metadata or {})})
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder, path.name)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written: {one_line(error)}; nothing was changed") from error


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors of which no two share memory."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return found
