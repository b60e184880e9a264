"""Weight files: what is trusted at the door, and how files are written.

Files come from strangers. Two formats are read, safetensors and what `torch.load(weights_only=True)` takes; nothing
else is ever unpickled, so no file can run code. Every refusal is one line that names the file and says what to do.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from weightformer.rows import layout
from wfkernels.layout import RowLayout

SUFFIX = ".safetensors"
# Where training scripts put the state dict inside the file, the more specific name first.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_CONVERT = "convert it to safetensors where you trust it: safetensors.torch.save_file(model.state_dict(), ...)"


class CheckpointError(ValueError):
    """A weight file cannot be used. The message is one line: the file, what is wrong with it, and what to do."""


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict in a weight file onto the CPU, without running anything that the file holds.

    The content decides the format. A state dict under "state_dict", "model_state_dict" or "model" is unwrapped, and
    what DataParallel ("module." before every name) and torch.compile ("_orig_mod.") put into the names is dropped.

    Raises CheckpointError where the file is missing, no file, empty, truncated, of another format, holds more than
    tensors (a pickle that could run code is refused, never run) or no tensors at all.
    """
    path = Path(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    return _plain_names(path, _state_dict(path, content))


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the text that a safetensors file holds beside its tensors; none for any other weight file.

    Raises CheckpointError as `load` does.
    """
    path = Path(path)
    if not _is_safetensors(path):
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not a complete safetensors file ({_one_line(error)}); copy or save it again"
        ) from error


def check_teachers(states: Mapping[str, Mapping[str, Tensor]], expected: nn.Module | RowLayout) -> None:
    """Check that every teacher's state dict, keyed by its file, has finite weights of the expected architecture.

    A module also says which buffers there must be; of a layout, only the parameters are known. A tied parameter may
    stand under one of its names or, with equal values, under several. Buffers may be infinite (masks), but not NaN.

    Raises CheckpointError naming the file and the first tensor that is missing, unexpected, of another shape, not
    floating point, NaN or infinite, or tied but not equal. Raises ValueError without any teacher.
    """
    if not states:
        raise ValueError("check_teachers: states: expected at least one teacher, got none")
    rows = expected if isinstance(expected, RowLayout) else layout(expected)
    shapes = {parameter.name: parameter.shape for parameter in rows.parameters}
    aliases = dict(rows.tied)
    buffers = _buffers(expected) if isinstance(expected, nn.Module) else None
    for path, state in states.items():
        _check_names(path, state, shapes, aliases, buffers)
        for name, shape in (shapes | {a: shapes[n] for a, n in aliases.items()} | (buffers or {})).items():
            if name in state and tuple(state[name].shape) != shape:
                raise CheckpointError(
                    f"{path}: {name!r} has shape {tuple(state[name].shape)}, expected {shape}; "
                    "all teachers must be of one architecture with the same widths and number of classes"
                )
        for name, tensor in state.items():
            _check_values(path, name, tensor, is_parameter=name in shapes or name in aliases)
        for alias, name in aliases.items():
            if alias in state and name in state and not torch.equal(state[alias], state[name]):
                raise CheckpointError(
                    f"{path}: {alias!r} and {name!r} are one tied parameter but hold different values; "
                    "save this teacher again from a network that ties them"
                )


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
        raise CheckpointError(f"{path}: cannot be written: {_one_line(error)}; nothing was changed") from error


def _is_safetensors(path: Path) -> bool:
    """Whether to read `path` as safetensors; raise CheckpointError where it is no file that can be read at all."""
    try:
        if not path.is_file():
            what = "is not a file; name the weight file itself" if path.exists() else "no such file; check the path"
            raise CheckpointError(f"{path}: {what}")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {_one_line(error)}; check the path") from error
    if not start:
        raise CheckpointError(f"{path}: is empty; copy or save it again")
    # Eight bytes for the length of the header, then the header, a JSON object.
    return path.suffix == SUFFIX or start[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: is not a complete safetensors file ({_one_line(error)}); copy or save it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
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


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the dict of tensors in what a file held."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
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


def _plain_names(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` without what wrappers of the network put into its names."""
    plain = {name: ".".join(part for part in name.split(".") if part != "_orig_mod") for name in state}
    while all(name.startswith("module.") for name in plain.values()):
        plain = {name: short.removeprefix("module.") for name, short in plain.items()}
    names: dict[str, str] = {}
    for name, short in plain.items():
        if short in names:
            raise CheckpointError(
                f"{path}: {names[short]!r} and {name!r} both mean {short!r}; save model.state_dict() again"
            )
        names[short] = name
    return {short: state[name] for short, name in names.items()}


def _buffers(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the buffers that a state dict of `module` holds."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state = module.state_dict()
    return {n: tuple(t.shape) for n, t in state.items() if n not in parameters and isinstance(t, Tensor)}


def _check_names(
    path: str,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    buffers: Mapping[str, tuple[int, ...]] | None,
) -> None:
    present = set(state) | {aliases[name] for name in state if name in aliases}
    # A counter that networks saved by old versions lack, and that the modules themselves do without too.
    required = [name for name in buffers or () if not name.endswith("num_batches_tracked")]
    missing = [name for name in (*shapes, *required) if name not in present]
    known = {*shapes, *aliases, *(buffers or ())}
    # Of a layout alone it is not known which further names are buffers.
    unexpected = [] if buffers is None else [name for name in state if name not in known]
    if missing or unexpected:
        parts = [
            f"{word} {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for word, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise CheckpointError(
            f"{path}: the weights are of another architecture ({'; '.join(parts)}); name the one they were trained with"
        )


def _check_values(path: str, name: str, tensor: Tensor, *, is_parameter: bool) -> None:
    if not tensor.is_floating_point():
        if is_parameter:
            raise CheckpointError(
                f"{path}: {name!r} is {tensor.dtype}, expected floating point; save the weights unquantized"
            )
        return
    if tensor.dtype.itemsize == 1:  # torch has no isinf for every float8 dtype
        tensor = tensor.float()
    wrong = "NaN" if tensor.isnan().any() else "Inf" if is_parameter and tensor.isinf().any() else None
    if wrong is not None:
        raise CheckpointError(f"{path}: {name!r} holds {wrong}; leave this teacher out or train it again")


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


def _one_line(error: BaseException) -> str:
    """Return the message of an error as one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
