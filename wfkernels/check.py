"""Checks that the public functions share. Each names op, argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wfkernels import autocast
from wfkernels.layout import TokenLayout


def token_layout(op: str, layout: object) -> None:
    """Raise TypeError unless `layout` is a TokenLayout."""
    if not isinstance(layout, TokenLayout):
        raise TypeError(f"{op}: layout: expected a TokenLayout (RowLayout.tokens), got {type(layout).__name__}")


def sequence(op: str, name: str, values: object) -> None:
    """Raise unless `values` is a list or tuple with at least one entry."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{op}: {name}: expected a list or tuple of tensors, got {type(values).__name__}")
    if not values:
        raise ValueError(f"{op}: {name}: expected at least one tensor, got none")


def floating(op: str, **tensors: Tensor | None) -> None:
    """Raise TypeError for the first argument that is not a real floating-point tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name}: expected a floating-point tensor, got {tensor.dtype}; cast it first")


def same_device(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all given tensors lie on the device of the first."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first, *rest = given
    for name in rest:
        if given[name].device != given[first].device:
            raise ValueError(
                f"{op}: {name}: expected a tensor on {given[first].device} like {first}, got one on"
                f" {given[name].device}; move it with .to()"
            )


def same_dtype(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all given tensors share the dtype of the first, as they are or once autocast."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first, *rest = given
    for name in rest:
        if autocast.dtype(given[name]) != autocast.dtype(given[first]):
            raise ValueError(
                f"{op}: {name}: expected dtype {given[first].dtype} like {first}, got {given[name].dtype}; cast one of"
                " them or call under torch.autocast"
            )


def shape(op: str, name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    """Raise ValueError unless `tensor` has the shape `expected`, in which a word stands for any size."""
    fits = tensor.ndim == len(expected) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(tensor.shape, expected, strict=True)
    )
    if not fits:
        sizes = ", ".join(str(wanted) for wanted in expected)
        raise ValueError(f"{op}: {name}: expected shape [{sizes}], got {list(tensor.shape)}")


def one_of(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{op}: {name}: expected one of {', '.join(choices)}, got {value!r}")


def projections(
    op: str, name: str, given: Sequence[int] | None, groups: Sequence[int], widths: Sequence[int]
) -> tuple[int, ...]:
    """Return the projection group of every layer, after checking that the group's width is the layer's.

    `groups` holds the width of every projection group; None gives every layer its own.
    """
    chosen = tuple(range(len(widths))) if given is None else tuple(given)
    if len(chosen) != len(widths):
        raise ValueError(f"{op}: {name}: expected one index for each of {len(widths)} layers, got {len(chosen)}")
    for layer, (g, width) in enumerate(zip(chosen, widths, strict=True)):
        if not 0 <= g < len(groups):
            raise ValueError(
                f"{op}: {name}: layer {layer}: expected an index into the {len(groups)} weights given, got {g}"
            )
        if groups[g] != width:
            raise ValueError(
                f"{op}: {name}: layer {layer}: expected weights for rows of {width} columns, got weights[{g}] for rows"
                f" of {groups[g]}"
            )
    return chosen


def positions(op: str, name: str, given: Sequence[int] | None, rows: Sequence[int], codes: Tensor) -> tuple[int, ...]:
    """Return the first position code of every layer, after checking that `codes` [positions, d] holds all it uses."""
    chosen = (0,) * len(rows) if given is None else tuple(given)
    if len(chosen) != len(rows):
        raise ValueError(f"{op}: {name}: expected one start for each of {len(rows)} layers, got {len(chosen)}")
    for layer, (start, n) in enumerate(zip(chosen, rows, strict=True)):
        if start < 0 or start + n > codes.shape[0]:
            raise ValueError(
                f"{op}: {name}: layer {layer}: expected a start from 0 to {codes.shape[0] - n}, because position has"
                f" {codes.shape[0]} codes and the layer {n} rows, got {start}"
            )
    return chosen


def teacher_codes(op: str, name: str, codes: Tensor, teachers: Sequence[int]) -> None:
    """Raise ValueError unless there is a code for cross tokens and for every teacher of a group."""
    if codes.shape[0] <= max(teachers):
        raise ValueError(
            f"{op}: {name}: expected at least {max(teachers) + 1} codes, for cross tokens and {max(teachers)} teachers,"
            f" got {codes.shape[0]}"
        )


def cross_tokens(op: str, name: str, cross: Tensor | None, layout: TokenLayout) -> None:
    """Raise ValueError unless there are cross tokens exactly where the layout has some."""
    because = f"because the layout has {layout.cross} cross tokens per layer"
    if cross is None and layout.cross > 0:
        raise ValueError(f"{op}: {name}: expected a tensor, {because}, got None")
    if cross is not None and layout.cross == 0:
        raise ValueError(f"{op}: {name}: expected None, {because}, got {list(cross.shape)}")


def dropout(op: str, dropout_p: float, seed: Tensor | None, device: torch.device) -> Tensor | None:
    """Check a dropout probability and return its seed: the given one, a fresh one, or None without dropout."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{op}: dropout_p: expected a probability in [0, 1), got {dropout_p}")
    if dropout_p == 0.0:
        return None
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device="cpu").to(device)
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.numel() != 1:
        what = f"{seed.dtype} {list(seed.shape)}" if isinstance(seed, Tensor) else type(seed).__name__
        raise TypeError(f"{op}: seed: expected an int64 tensor of one element or None, got {what}")
    if seed.device != device:
        raise ValueError(f"{op}: seed: expected a tensor on {device}, got one on {seed.device}; move it with .to()")
    return seed.reshape(1)
