"""From a path to a state dict: which file is meant, what format it has, and what its wrappers are.

Training scripts do not save `model.state_dict()` alone. Taken off are the dicts and the prefixes that PyTorch
(DataParallel, torch.compile, swa_utils.AveragedModel), torchvision, timm, BasicSR, ema-pytorch and Lightning put around
it.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from weightformer.checkpoints import shards
from weightformer.checkpoints.error import CheckpointError, one_line
from weightformer.checkpoints.writing import SUFFIX

# Where training scripts put the state dict inside the file, the more specific name first; the averaged weights are the
# ones that those scripts evaluate.
_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "params_ema", "ema_model", "ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params")
_DEEPEST = 4  # dicts in dicts; a pickle may hold one that holds itself
# What the hub's libraries write into a folder, in the order in which they look for it.
_IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_CONVERT = "convert it to safetensors where you trust it: safetensors.torch.save_file(model.state_dict(), ...)"


def load(path: str | os.PathLike[str], *, ema: bool = True) -> dict[str, Tensor]:
    """Read the state dict in a weight file onto the CPU, without running anything that the file holds.

    The content decides the format of a file. Of several shards, their index (`*.index.json`) or the folder with
    `model.safetensors`, `pytorch_model.bin` or an index of either is given. Taken off are

    * dicts: "state_dict", "model_state_dict", "model", "net" and "params"; before them the averaged weights that are
      kept beside the others, unless `ema` is False: "state_dict_ema", "ema_state_dict", "model_ema", "params_ema",
      "ema_model" and "ema", where there are named tensors in it;
    * the network that ema-pytorch averages beside the average: of "ema_model." and "online_model." the first, and with
      `ema` False the second;
    * in names: "_orig_mod." (torch.compile) anywhere, "module." (DataParallel, AveragedModel with its counter
      "n_averaged") before every name and, in a checkpoint of Lightning, "model." or "net." before every name.

    Raises CheckpointError where a file is missing, no file, empty, truncated, of another format, holds more than
    tensors (a pickle that could run code is refused, never run) or no tensors at all, and where shards and index do not
    fit together or the index leads out of its folder.
    """
    path = _file(Path(path))
    if shards.is_index(path):
        content: Any = shards.read(path, lambda file: _tensors(file, _read(file)))
    elif shards.is_one_of_several(path):
        raise CheckpointError(f"{path}: is one of several shards; give their index (*.index.json) or the folder")
    else:
        content = _read(path)
    lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    state = _tensors(path, _unwrapped(content, (*_AVERAGED, *_WRAPPERS) if ema else _WRAPPERS))
    state = _one_of_two(state, ema)
    return _plain_names(path, state, ("module.", "model.", "net.") if lightning else ("module.",))


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the text that a safetensors file holds beside its tensors; none for any other weight file.

    Raises CheckpointError as `load` does.
    """
    path = _file(Path(path))
    if shards.is_index(path) or not _is_safetensors(path):
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _incomplete(path, error) from error


def _file(path: Path) -> Path:
    """Return the file that is meant: `path` itself, or the weights or their index in this folder."""
    try:
        if not path.is_dir():
            return path
        inside = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {one_line(error)}; check the path") from error
    if inside is None:
        raise CheckpointError(
            f"{path}: is a folder without model.safetensors, pytorch_model.bin or an index of either;"
            " name the weight file itself"
        )
    return inside


def _read(path: Path) -> Any:
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)


def _is_safetensors(path: Path) -> bool:
    """Whether to read `path` as safetensors; raise CheckpointError where it is no file that can be read at all."""
    try:
        if not path.is_file():
            what = "is not a file; name the weight file itself" if path.exists() else "no such file; check the path"
            raise CheckpointError(f"{path}: {what}")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {one_line(error)}; check the path") from error
    if not start:
        raise CheckpointError(f"{path}: is empty; copy or save it again")
    # Eight bytes for the length of the header, then the header, a JSON object.
    return path.suffix == SUFFIX or start[8:] == b"{"


def _incomplete(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: is not a complete safetensors file ({one_line(error)}); copy or save it again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
        raise _incomplete(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        # Training scripts of torchvision and timm keep their arguments in the checkpoint. A Namespace runs nothing: it
        # holds what else the file is allowed to hold, and is dropped here.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # Of TorchScript archives torch says the same twice, as a warning and as the error below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"names {found[1]}, which could run code" if found else "holds more than tensors, or is damaged"
        raise CheckpointError(f"{path}: refused, and nothing was run: its pickle {what}; {_CONVERT}") from error
    except RuntimeError as error:
        if "weights_only" in str(error):
            raise CheckpointError(f"{path}: is a TorchScript or old tar file, not plain weights; {_CONVERT}") from error
        raise CheckpointError(f"{path}: is truncated or damaged; copy or save it again") from error
    except Exception as error:  # a foreign file can fail the reader in any way: KeyError, EOFError, struct.error, ...
        raise CheckpointError(
            f"{path}: is neither a safetensors nor a torch weight file, or is damaged; copy or save it again"
        ) from error


def _unwrapped(content: Any, wrappers: tuple[str, ...], depth: int = _DEEPEST) -> Any:
    """Return what lies inside the dicts that training scripts put around a state dict.

    A dict without tensors is passed over: under "ema", some keep a decay and a list of weights without names.
    """
    if isinstance(content, Mapping) and depth:
        for name in wrappers:
            inner = _unwrapped(content.get(name), wrappers, depth - 1)
            if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
                return inner
    return content


def _one_of_two(state: dict[str, Tensor], ema: bool) -> dict[str, Tensor]:
    """Return the average, or the network beside it, of a state dict of ema-pytorch's EMA; any other as it is."""
    average, online = "ema_model.", "online_model."
    others = [name for name in state if not name.startswith((average, online))]
    if len(others) == len(state) or not set(others) <= {"initted", "step"}:
        return state
    chosen = average if ema else online
    found = {name.removeprefix(chosen): tensor for name, tensor in state.items() if name.startswith(chosen)}
    return found or state


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the dict of tensors that a file held; raise CheckpointError where it is none, or holds anything else."""
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no dict of tensors; save model.state_dict()")
    state = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {name!r} is {type(value).__name__}, not a named tensor; save model.state_dict() alone"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            kind = value.device.type if value.device.type != "cpu" else "quantized" if value.is_quantized else "sparse"
            raise CheckpointError(f"{path}: tensor {name!r} is {kind}; save it as a plain dense tensor")
        state[name] = value.detach()
    return state


def _plain_names(path: Path, state: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return `state` without what wrappers of the network put into its names, and without their counters."""
    plain = {name: ".".join(part for part in name.split(".") if part != "_orig_mod") for name in state}
    while True:
        counter = next((name for name, short in plain.items() if short == "n_averaged"), None)
        others = [short for name, short in plain.items() if name != counter]
        prefix = next((p for p in prefixes if others and all(short.startswith(p) for short in others)), None)
        if prefix is None:
            break
        if counter is not None:
            if prefix != "module." or state[counter].numel() != 1:
                break
            del plain[counter]
        plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
    names: dict[str, str] = {}
    for name, short in plain.items():
        if short in names:
            raise CheckpointError(
                f"{path}: {names[short]!r} and {name!r} both mean {short!r}; save model.state_dict() again"
            )
        names[short] = name
    return {short: state[name] for short, name in names.items()}
