"""Mistakes in calls of embedding, projection and residual_norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

import wfkernels
from tests.bad_input.table import Arguments, Bad, Table, put, wrong_tensors
from tests.embedding.cases import row_layout
from wfkernels.dispatch import ImplementationError

NAN, INF = float("nan"), float("inf")
D = 8
LAYOUT = row_layout((3, (9, 1)), (1, (5,)), (4, (5,))).tokens((2, 3), 2)
STUDENT = LAYOUT.layout
WIDTHS = STUDENT.widths
LAYERS, COPIES = len(WIDTHS), 5
SEED = torch.zeros(1, dtype=torch.int64)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def embedding() -> Arguments:
    return {
        "rows": zeros(COPIES * STUDENT.row_numel),
        "weights": [zeros(r, D) for r in WIDTHS],
        "biases": zeros(LAYERS, D),
        "shift": zeros(STUDENT.column_numel),
        "scale": zeros(STUDENT.column_numel) + 1,
        "position": zeros(4, D),
        "gamma": zeros(D),
        "beta": zeros(D),
        "base": zeros(STUDENT.row_numel),
        "teacher": zeros(4, D),
        "layer": zeros(LAYERS, D),
        "cross": zeros(2 * LAYERS, 2, D),
        "layout": LAYOUT,
    }


def projection() -> Arguments:
    return {
        "tokens": zeros(COPIES * sum(STUDENT.rows), D),
        "weights": [zeros(D, r) for r in WIDTHS],
        "biases": [zeros(r) for r in WIDTHS],
        "strength": zeros(LAYERS),
        "shift": zeros(STUDENT.column_numel),
        "scale": zeros(STUDENT.column_numel),
        "rows": zeros(COPIES * STUDENT.row_numel),
        "base": zeros(STUDENT.row_numel),
        "prior": zeros(STUDENT.row_numel),
        "blend": zeros(LAYERS),
        "gate_weight": zeros(LAYERS, D),
        "gate_bias": zeros(LAYERS),
        "layout": LAYOUT,
        "read": "mean",
        "output": "gated",
    }


def residual_norm() -> Arguments:
    return {"x": zeros(2, 5, D), "residual": zeros(2, 5, D), "weight": zeros(D), "bias": zeros(D)}


def first(name: str) -> Callable[[Any], Callable[[Arguments], None]]:
    """Put a value in place of the first entry of a list."""
    return lambda value: lambda call: call.update({name: [value, *call[name][1:]]})


def values(name: str, expected: str, error: type[Exception], *given: Any, **more: Any) -> list[Bad]:
    """One entry for every wrong value of an argument."""
    return [Bad(f"{name} is {value!r}", put(**{name: value}, **more), error, name, expected) for value in given]


def shapes(sizes: dict[str, tuple[int, ...]], make: Callable[[], Arguments]) -> list[Bad]:
    """Entries of the arguments named, each one too long in its last dimension, and with one dimension too many."""
    good = make()
    longer = {name: zeros(*size[:-1], size[-1] + 1) for name, size in sizes.items()}
    deeper = {name: zeros(1, *size) for name, size in sizes.items()}
    assert all(tuple(good[name].shape) == size for name, size in sizes.items())
    kinds = {"too long": longer, "with a dimension too many": deeper}
    return [
        Bad(f"{name} {kind}", put(**{name: tensor}), ValueError, name, r"shape \[.*\]")
        for kind, tensors in kinds.items()
        for name, tensor in tensors.items()
    ]


def implementations() -> list[Bad]:
    return [
        *values("impl", "str", TypeError, None, 3, b"auto"),
        Bad("unknown impl", put(impl="fastest"), ImplementationError, "impl='fastest' cannot run here", ""),
    ]


def layouts(one_of: str) -> list[Bad]:
    empty = replace(LAYOUT, layout=STUDENT.select([]))
    return [
        *values("layout", r"a TokenLayout \(RowLayout.tokens\)", TypeError, STUDENT, None, "vgg", (3, 1, 4)),
        Bad("no layer", put(layout=empty), ValueError, "layout", "at least one layer"),
        Bad("another network", put(layout=row_layout((3, (9,))).tokens((2, 3), 2)), ValueError, one_of, "shape"),
        Bad("another number of teachers", put(layout=replace(LAYOUT, teachers=(2, 2))), ValueError, one_of, "shape"),
    ]


def indices(name: str) -> list[Bad]:
    return [
        *values(name, "a list or tuple of integers", TypeError, 3, "012", torch.arange(3), {0: 0}),
        *(
            Bad(f"{name} of {v!r}", put(**{name: (v, 1, 2)}), TypeError, f"{name}[0]", "int")
            for v in (0.0, "0", None, True)
        ),
        *values(name, "one .* for each of 3 layers", ValueError, (), (0, 1), (0, 1, 2, 3)),
    ]


LAYER, INDEX = "projections: layer {}", "an index into the 3 weights given"
VECTORS = "None, a list, integers, float8, sparse"
EMBEDDING = (
    *wrong_tensors("rows", zeros(COPIES * STUDENT.row_numel), but="float8, on another device"),
    *wrong_tensors("weights[0]", zeros(WIDTHS[0], D), first("weights"), kinds="None, a list, bools, float8, sparse"),
    *wrong_tensors("gamma", zeros(D), kinds=VECTORS),
    *wrong_tensors("scale", zeros(STUDENT.column_numel), kinds="None, complex numbers, quantized, on another device"),
    *wrong_tensors("base", zeros(STUDENT.row_numel), optional=True, kinds="a numpy array, integers, sparse"),
    *wrong_tensors("cross", zeros(6, 2, D), optional=True, kinds="a number, bools, float8, on another device"),
    *wrong_tensors("teacher", zeros(4, D), optional=True, kinds="text, integers"),
    *values("weights", "a list or tuple of tensors", TypeError, None, zeros(3, 10, D), {}, "w"),
    *values("weights", "at least one tensor", ValueError, []),
    Bad("weights of another dtype", first("weights")(zeros(10, D).double()), ValueError, "weights[1]", "dtype"),
    Bad("half codes", put(position=zeros(4, D).half()), ValueError, "position", "dtype torch.float32"),
    *shapes(
        {
            "rows": (COPIES * STUDENT.row_numel,),
            "shift": (STUDENT.column_numel,),
            "scale": (STUDENT.column_numel,),
            "biases": (LAYERS, D),
            "position": (4, D),
            "beta": (D,),
            "base": (STUDENT.row_numel,),
            "teacher": (4, D),
            "layer": (LAYERS, D),
            "cross": (2 * LAYERS, 2, D),
        },
        embedding,
    ),
    Bad("gamma 0-D", put(gamma=torch.ones(())), ValueError, "gamma", r"shape \[d\]"),
    Bad("no width", put(gamma=zeros(0), weights=[zeros(r, 0) for r in WIDTHS]), ValueError, "gamma", "d at least 1"),
    Bad("weights transposed", first("weights")(zeros(D, 10)), ValueError, "weights[0]", r"shape \[r, 8\]"),
    Bad("weights of another width", first("weights")(zeros(11, D)), ValueError, LAYER.format(0), ".*10 columns"),
    Bad("more weights", put(weights=[zeros(10, D)] * 4), ValueError, "biases", r"shape \[4, 8\]"),
    *indices("projections"),
    *(Bad(f"projections to {g}", put(projections=(0, 1, g)), ValueError, LAYER.format(2), INDEX) for g in (3, -1)),
    Bad("a projection of another width", put(projections=(0, 0, 2)), ValueError, LAYER.format(1), "rows of 5 columns"),
    *indices("positions"),
    *(
        Bad(f"positions from {start}", put(positions=(0, 0, start)), ValueError, "positions: layer 2", "from 0 to 0")
        for start in (1, -1, 2**63)
    ),
    Bad("too few codes", put(position=zeros(3, D)), ValueError, "positions: layer 2", "at least 4 position codes"),
    Bad("too few teacher codes", put(teacher=zeros(3, D)), ValueError, "teacher", "at least 4 codes"),
    Bad("no cross tokens", put(cross=None), ValueError, "cross", "a tensor, because the layout has 2 cross tokens"),
    Bad("cross tokens", put(layout=replace(LAYOUT, cross=0), cross=zeros(6, 0, D)), ValueError, "cross", "None"),
    Bad("other cross tokens", put(layout=replace(LAYOUT, cross=1)), ValueError, "cross", r"shape \[6, 1, 8\]"),
    *values("activation", "one of none, relu, gelu", ValueError, "silu", "ReLU", ""),
    *values("activation", "str", TypeError, None, torch.relu, 1),
    *values("eps", "float", TypeError, None, "1e-5", True, torch.tensor(1e-5)),
    *values("eps", "a finite number", ValueError, NAN, INF),
    *values("eps", "zero or more", ValueError, -1e-5),
    *layouts("rows"),
    *implementations(),
)
NAMES = ("rows", "base", "gate_weight", "gate_bias")
PROJECTION = (
    *wrong_tensors("tokens", zeros(40, D), but="on another device"),
    *wrong_tensors("weights[0]", zeros(D, WIDTHS[0]), first("weights"), kinds="None, a numpy array, integers, sparse"),
    *wrong_tensors("biases[0]", zeros(WIDTHS[0]), first("biases"), kinds="None, a number, complex numbers, float8"),
    *wrong_tensors("strength", zeros(LAYERS), kinds=f"{VECTORS}, on another device"),
    *wrong_tensors("blend", zeros(LAYERS), optional=True, kinds="a list, bools, quantized"),
    *wrong_tensors("gate_weight", zeros(LAYERS, D), optional=True, kinds="a number, integers, float8"),
    *values("weights", "a list or tuple of tensors", TypeError, None, zeros(3, D, 10), iter(())),
    *values("biases", "a list or tuple of tensors", TypeError, None, zeros(LAYERS, 5), 0.0),
    *values("weights", "at least one tensor", ValueError, ()),
    *values("biases", "at least one tensor", ValueError, []),
    Bad("fewer biases", put(biases=[zeros(10)]), ValueError, "biases", "3 tensors like weights"),
    Bad("another dtype", put(tokens=zeros(40, D).double()), ValueError, "weights[0]", "dtype torch.float64"),
    Bad("gates of another dtype", put(gate_bias=zeros(LAYERS).half()), ValueError, "gate_bias", "dtype torch.float32"),
    *shapes(
        {
            "strength": (LAYERS,),
            "shift": (STUDENT.column_numel,),
            "scale": (STUDENT.column_numel,),
            "rows": (COPIES * STUDENT.row_numel,),
            "base": (STUDENT.row_numel,),
            "prior": (STUDENT.row_numel,),
            "blend": (LAYERS,),
            "gate_weight": (LAYERS, D),
            "gate_bias": (LAYERS,),
        },
        projection,
    ),
    Bad("tokens of the anchor only", put(tokens=zeros(16, D)), ValueError, "tokens", r"shape \[40, d\]"),
    Bad("tokens 3-D", put(tokens=zeros(5, 8, D)), ValueError, "tokens", r"shape \[40, d\]"),
    Bad("weights transposed", first("weights")(zeros(10, D)), ValueError, "weights[0]", r"shape \[8, r\]"),
    Bad("bias of another width", first("biases")(zeros(9)), ValueError, "biases[0]", r"shape \[10\]"),
    *indices("projections"),
    *(Bad(f"projections to {g}", put(projections=(0, 1, g)), ValueError, LAYER.format(2), INDEX) for g in (3, -1)),
    Bad("a projection of another width", put(projections=(1, 1, 2)), ValueError, LAYER.format(0), "rows of 10 columns"),
    *(Bad(f"no {name}", put(**{name: None}), ValueError, name, "a tensor, because output='gated'") for name in NAMES),
    Bad("no prior", put(output="prior", prior=None), ValueError, "prior", "a tensor, because output='prior'"),
    Bad("no blend", put(output="prior", blend=None), ValueError, "blend", "a tensor, because output='prior'"),
    Bad("gates on the anchor", put(read="anchor"), ValueError, "read", "'mean', because output='gated' reads all"),
    *values("read", "one of anchor, mean", ValueError, "all", "Mean", ""),
    *values("read", "str", TypeError, None, 0),
    *values("output", "one of plain, anchor, mean, prior, gated", ValueError, "best", "plain "),
    *values("output", "str", TypeError, None, ["plain"]),
    *layouts("tokens"),
    *implementations(),
)
RESIDUAL_NORM = (
    *wrong_tensors("x", zeros(2, 5, D), but="on another device"),
    *wrong_tensors("residual", zeros(2, 5, D)),
    *wrong_tensors("weight", zeros(D)),
    *wrong_tensors("bias", zeros(D), kinds="None, a number, integers, sparse"),
    Bad("a number", put(x=zeros()), ValueError, "x", r"shape \[\.\.\., d\]"),
    Bad("no width", put(x=zeros(5, 0)), ValueError, "x", "d at least 1"),
    Bad("another shape", put(residual=zeros(2, 4, D)), ValueError, "residual", r"shape \[2, 5, 8\]"),
    Bad("a residual that broadcasts", put(residual=zeros(D)), ValueError, "residual", r"shape \[2, 5, 8\]"),
    Bad("a half residual", put(residual=zeros(2, 5, D).half()), ValueError, "residual", "dtype torch.float32"),
    Bad("a longer weight", put(weight=zeros(D + 1)), ValueError, "weight", r"shape \[8\]"),
    Bad("a weight that broadcasts", put(weight=zeros(1)), ValueError, "weight", r"shape \[8\]"),
    Bad("a 2-D bias", put(bias=zeros(1, D)), ValueError, "bias", r"shape \[8\]"),
    Bad("a bias in float64", put(bias=zeros(D).double()), ValueError, "bias", "dtype torch.float32"),
    *values("eps", "float", TypeError, None, "small", False, [1e-5]),
    *values("eps", "a finite number", ValueError, NAN, -INF),
    *values("eps", "zero or more", ValueError, -1.0),
    *values("dropout_p", "float", TypeError, None, "0.1", True, zeros(1)),
    *values("dropout_p", r"a probability in \[0, 1\)", ValueError, 1.0, 2, -0.5, NAN),
    *values("seed", "an int64 tensor of one element", TypeError, 3, SEED.int(), SEED[:0], zeros(1), dropout_p=0.5),
    *values("seed", "a tensor on cpu", ValueError, SEED.to("meta"), dropout_p=0.5),
    *values("seed", "a dense tensor", TypeError, SEED.to_sparse(), dropout_p=0.5),
    *implementations(),
)


def table(op: str, good: Callable[[], Arguments], entries: Sequence[Bad]) -> Table:
    return Table(op, getattr(wfkernels, op), good, tuple(entries))


TABLES = (
    table("embedding", embedding, EMBEDDING),
    table("projection", projection, PROJECTION),
    table("residual_norm", residual_norm, RESIDUAL_NORM),
)
