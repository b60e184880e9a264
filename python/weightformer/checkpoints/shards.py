"""Weights in several files with an index, as the hub's libraries write them.

The index, `*.index.json`, holds {"weight_map": {name: file}}: which file beside it has which tensor. It is a stranger's
text: it may lead nowhere but into its own folder, and what it says must be what the shards hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from weightformer.checkpoints.error import CheckpointError, one_line

_SAVE = "copy or save index and shards again"


def is_index(path: Path) -> bool:
    return path.suffix == ".json"


def is_one_of_several(path: Path) -> bool:
    """Whether a file is named like one shard of several: model-00001-of-00002.safetensors."""
    found = re.search(r"-\d{5}-of-(\d{5})\.\w+$", path.name)
    return found is not None and int(found[1]) > 1


def read(index: Path, read_shard: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all shards that `index` lists.

    Raises CheckpointError where the index cannot be read, names the same tensor twice, a file outside its folder or one
    that is missing, and where a shard lacks a tensor that it should hold or holds one that it should not.
    """
    places = _weight_map(index)
    files = list(dict.fromkeys(places.values()))
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise CheckpointError(
                f"{index}: refused, and no shard was read: {file!r} leads out of the index's folder; {_SAVE}"
            )
    missing = [file for file in files if not _exists(index.parent / file)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{index}: the shard {missing[0]!r}{more} is missing; copy all shards beside the index")
    state = {}
    for file in files:
        shard = read_shard(index.parent / file)
        for name, tensor in shard.items():
            if places.get(name) != file:
                other = f"in {places[name]!r}" if name in places else "nowhere"
                raise CheckpointError(f"{index}: {name!r} stands in {file!r}, but is listed {other}; {_SAVE}")
            state[name] = tensor
        absent = next((name for name, place in places.items() if place == file and name not in shard), None)
        if absent is not None:
            raise CheckpointError(f"{index}: {absent!r} is listed in {file!r}, which does not hold it; {_SAVE}")
    return {name: state[name] for name in places}


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of every tensor."""
    try:
        if not index.is_file():
            what = "is not a file; name the index itself" if index.exists() else "no such file; check the path"
            raise CheckpointError(f"{index}: {what}")
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: cannot be read as an index of shards: {one_line(error)}; {_SAVE}") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(f, str) and f for f in places.values()):
        raise CheckpointError(
            f"{index}: is no index of shards, which has a 'weight_map' from names to files; name the weight file itself"
        )
    return places


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, which Python would otherwise take with the last of several entries of one name."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is listed twice")
        found[name] = value
    return found


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False
