"""Whether state dicts are teachers of one architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import commonprefix

import torch
from torch import Tensor, nn

from weightformer.checkpoints.error import CheckpointError
from weightformer.rows import layout
from wfkernels.layout import RowLayout

_NAMED = 3  # how many wrong names a message lists


def check_teachers(states: Mapping[str, Mapping[str, Tensor]], expected: nn.Module | RowLayout) -> None:
    """Check that every teacher's state dict, keyed by its file, has finite weights of the expected architecture.

    A module also says which buffers there must be; of a layout, only the parameters are known. A tied parameter may
    stand under one of its names or, with equal values, under several. Dtypes may differ from teacher to teacher and
    from tensor to tensor. Buffers may be of any dtype and infinite (masks), but not NaN; the counters
    `num_batches_tracked` may be missing.

    Raises CheckpointError naming the file and the first tensors that are missing, unexpected, of another shape, not
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
    if not missing and not unexpected:
        return
    found = "; ".join(
        f"{word} {_listed(names)}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names
    )
    prefix = commonprefix(list(state)).rpartition(".")[0]
    if missing and prefix and all(f"{prefix}.{name}" in state for name in missing):
        advice = f"its names stand behind {prefix + '.'!r}: save the state dict of the inner network"
    elif missing:
        advice = "name the one they were trained with"
    else:
        advice = "name the one they were trained with, or save model.state_dict() alone"
    raise CheckpointError(f"{path}: the weights are of another architecture ({found}); {advice}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


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
