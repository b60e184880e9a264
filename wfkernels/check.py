"""Checks that the public functions share. Each names op, argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wfkernels import autocast
from wfkernels.layout import RowLayout, TokenLayout

# What ops compute with, and what may hold weights that are only read or written.
COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)
STORED = (*COMPUTED, *FLOAT8)


def row_layout(op: str, layout: object) -> None:
    """Raise TypeError unless `layout` is a RowLayout."""
    if not isinstance(layout, RowLayout):
        raise TypeError(f"{op}: layout: expected a RowLayout, got {type(layout).__name__}")


def token_layout(op: str, layout: object) -> None:
    """Raise unless `layout` is a TokenLayout of at least one layer."""
    if not isinstance(layout, TokenLayout):
        raise TypeError(f"{op}: layout: expected a TokenLayout (RowLayout.tokens), got {type(layout).__name__}")
    if not layout.layout.layers:
        raise ValueError(f"{op}: layout: expected at least one layer, got none")


def sequence(op: str, name: str, values: object) -> None:
    """Raise unless `values` is a list or tuple with at least one entry."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{op}: {name}: expected a list or tuple of tensors, got {type(values).__name__}")
    if not values:
        raise ValueError(f"{op}: {name}: expected at least one tensor, got none")


def floating(op: str, **tensors: Tensor | None) -> None:
    """Raise TypeError for the first argument that is not a dense tensor of a dtype that ops compute with."""
    for name, tensor in tensors.items():
        stored(op, **{name: tensor})
        if tensor is not None and tensor.dtype not in COMPUTED:
            raise TypeError(
                f"{op}: {name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}; cast it first"
            )


def stored(op: str, **tensors: Tensor | None) -> None:
    """Raise TypeError for the first argument that is not a dense tensor of a real float dtype, however small."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in STORED:
            raise TypeError(f"{op}: {name}: expected a floating-point tensor, got {tensor.dtype}; cast it first")
        dense(op, name, tensor)


def dense(op: str, name: str, tensor: Tensor) -> None:
    """Raise TypeError for a sparse, nested or otherwise special layout."""
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "a nested one" if tensor.is_nested else f"{tensor.layout}; call .to_dense() first"
        raise TypeError(f"{op}: {name}: expected a dense tensor, got {kind}")


def flag(op: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name}: expected bool, got {type(value).__name__}")


def text(op: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is a str."""
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name}: expected str, got {type(value).__name__}")


def integer(op: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is an int; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name}: expected int, got {type(value).__name__}")


def number(op: str, name: str, value: object) -> None:
    """Raise unless `value` is a finite number; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (float, int, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{op}: {name}: expected float, got {type(value).__name__}")
    # Not math.isfinite, which cannot be traced.
    if not float("-inf") < value < float("inf"):
        raise ValueError(f"{op}: {name}: expected a finite number, got {value}")


def eps(op: str, name: str, value: float) -> None:
    """Raise unless `value` may be added to a variance."""
    number(op, name, value)
    if value < 0:
        raise ValueError(f"{op}: {name}: expected zero or more, because it is added to a variance, got {value}")


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
    """Raise ValueError unless `value` is one of `choices`, TypeError unless it is text."""
    text(op, name, value)
    if value not in choices:
        raise ValueError(f"{op}: {name}: expected one of {', '.join(choices)}, got {value!r}")


def projections(
    op: str, name: str, given: Sequence[int] | None, groups: Sequence[int], widths: Sequence[int]
) -> tuple[int, ...]:
    """Return the projection group of every layer, after checking that the group's width is the layer's.

    `groups` holds the width of every projection group; None gives every layer its own.
    """
    chosen = tuple(range(len(widths))) if given is None else _integers(op, name, given)
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


def _integers(op: str, name: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple, range)):
        raise TypeError(f"{op}: {name}: expected a list or tuple of integers or None, got {type(values).__name__}")
    for i, value in enumerate(values):
        integer(op, f"{name}[{i}]", value)
    return tuple(values)


def positions(op: str, name: str, given: Sequence[int] | None, rows: Sequence[int], codes: Tensor) -> tuple[int, ...]:
    """Return the first position code of every layer, after checking that `codes` [positions, d] holds all it uses."""
    chosen = (0,) * len(rows) if given is None else _integers(op, name, given)
    if len(chosen) != len(rows):
        raise ValueError(f"{op}: {name}: expected one start for each of {len(rows)} layers, got {len(chosen)}")
    for layer, (start, n) in enumerate(zip(chosen, rows, strict=True)):
        if codes.shape[0] < n:
            raise ValueError(
                f"{op}: {name}: layer {layer}: expected at least {n} position codes, one per row, got {codes.shape[0]}"
            )
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


def dropout(
    op: str, dropout_p: float, seed: Tensor | None, device: torch.device, name: str = "dropout_p"
) -> Tensor | None:
    """Check a dropout probability and return its seed: the given one, a fresh one, or None without dropout."""
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, (float, int, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{op}: {name}: expected float, got {type(dropout_p).__name__}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{op}: {name}: expected a probability in [0, 1), got {dropout_p}")
    # The dtype first: a nested tensor cannot say how many entries it has.
    if seed is not None and not (isinstance(seed, Tensor) and seed.dtype == torch.int64 and seed.numel() == 1):
        what = type(seed).__name__
        if isinstance(seed, Tensor):
            what = f"{seed.dtype}, nested" if seed.is_nested else f"{seed.dtype} {list(seed.shape)}"
        raise TypeError(f"{op}: seed: expected an int64 tensor of one element or None, got {what}")
    if dropout_p == 0.0:
        return None
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device="cpu").to(device)
    dense(op, "seed", seed)
    if seed.device != device:
        raise ValueError(f"{op}: seed: expected a tensor on {device}, got one on {seed.device}; move it with .to()")
    return seed.reshape(1)
