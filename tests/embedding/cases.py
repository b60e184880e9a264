"""Calls of embedding, and the op written out one sequence at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from tests.properties import DTYPES, Call, Leaves
from wfkernels import RowLayout, embedding
from wfkernels.layout import Layer, Parameter, TokenLayout, starts

ACTIVATE = {"none": lambda x: x, "relu": torch.relu, "gelu": gelu}
Sequences = dict[tuple[int, int], Tensor]  # (layer, group) -> tokens [S, d]


def row_layout(*layers: tuple[int, tuple[int, ...]]) -> RowLayout:
    """Layers of (rows, widths of the parameters side by side)."""
    return RowLayout(
        tuple(
            Layer(
                f"l{i}",
                "linear",
                n,
                tuple(
                    Parameter(f"l{i}.{k}", (n, w), start, w)
                    for k, (w, start) in enumerate(zip(widths, starts(widths), strict=False))
                ),
            )
            for i, (n, widths) in enumerate(layers)
        )
    )


def teacher_rows(buffer: Tensor, layout: TokenLayout) -> dict[tuple[int, int, int], Tensor]:
    """(layer, group, teacher) -> rows [n, r] of a rows buffer."""
    found, position = {}, 0
    for i, layer in enumerate(layout.layout.layers):
        for g, teachers in enumerate(layout.teachers):
            for t in range(teachers):
                size = layer.rows * layer.stride
                block = buffer[position : position + size].reshape(layer.rows, layer.stride)
                found[i, g, t], position = block[:, : layer.width], position + size
    assert position == buffer.shape[0]
    return found


def one_network(buffer: Tensor, layout: RowLayout) -> list[Tensor]:
    """Rows [n, r] of every layer of a rows buffer of one network."""
    return list(teacher_rows(buffer, layout.tokens([1])).values())


def columns(buffer: Tensor, layout: RowLayout) -> list[Tensor]:
    """Columns [r] of every layer of a column buffer."""
    first = starts([layer.stride for layer in layout.layers])
    return [buffer[start : start + layer.width] for start, layer in zip(first, layout.layers, strict=False)]


def normalised(leaves: Mapping[str, Tensor | None], layout: TokenLayout) -> dict[tuple[int, int, int], Tensor]:
    """(layer, group, teacher) -> (rows - base - shift) / scale."""
    rows, base, shift, scale = (leaves.get(name) for name in ("rows", "base", "shift", "scale"))
    assert rows is not None and shift is not None and scale is not None
    shifts, scales = columns(shift, layout.layout), columns(scale, layout.layout)
    bases = None if base is None else one_network(base, layout.layout)
    return {
        (i, g, t): ((x if bases is None else x - bases[i]) - shifts[i]) / scales[i]
        for (i, g, t), x in teacher_rows(rows, layout).items()
    }


def naive(
    leaves: Mapping[str, Tensor | None],
    weights: Sequence[Tensor],
    layout: TokenLayout,
    projections: Sequence[int] | None,
    positions: Sequence[int] | None,
    activation: str,
    eps: float,
) -> Sequences:
    layers = layout.layout.layers
    x = normalised(leaves, layout)
    biases, position, gamma, beta = (leaves[name] for name in ("biases", "position", "gamma", "beta"))
    assert biases is not None and position is not None and gamma is not None and beta is not None
    teacher, layer, cross = (leaves.get(name) for name in ("teacher", "layer", "cross"))
    found = {}
    for i in range(len(layers)):
        p = i if projections is None else projections[i]
        first = 0 if positions is None else positions[i]
        for g, teachers in enumerate(layout.teachers):
            tokens = []
            for k in range(layout.cross):
                assert cross is not None
                token = cross[i * layout.groups + g, k]
                token = token if teacher is None else token + teacher[0]
                tokens.append((token if layer is None else token + layer[i])[None])
            for t in range(teachers):
                token = ACTIVATE[activation](x[i, g, t] @ weights[p] + biases[p])
                token = token + position[first : first + layers[i].rows]
                token = token if teacher is None else token + teacher[t + 1]
                tokens.append(token if layer is None else token + layer[i])
            found[i, g] = layer_norm(torch.cat(tokens), gamma.shape, gamma, beta, eps)
    return found


@dataclass(frozen=True)
class Case:
    """One form of the call. `layers` as for row_layout."""

    layers: tuple[tuple[int, tuple[int, ...]], ...] = ((3, (9, 1)), (1, (5,)), (4, (5,)))
    teachers: tuple[int, ...] = (2, 3)
    cross: int = 0
    d: int = 8
    projections: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    base: bool = False
    teacher: bool = True
    layer: bool = True
    activation: str = "none"
    eps: float = 1e-5

    @property
    def layout(self) -> TokenLayout:
        return row_layout(*self.layers).tokens(self.teachers, self.cross)


ODD = (1, 3, 17, 65, 127)
CASES = {
    "one teacher": Case(teachers=(1,)),
    "groups of different size": Case(teachers=(3, 1, 2)),
    "cross tokens": Case(cross=1),
    "two cross tokens, one teacher": Case(cross=2, teachers=(1, 1), activation="relu"),
    "base": Case(base=True, activation="gelu"),
    "shared projections": Case(projections=(0, 1, 1), positions=(0, 3, 4)),
    "projections in another order": Case(projections=(1, 0, 0)),
    "no teacher codes": Case(teacher=False, cross=1),
    "no layer codes": Case(layer=False, cross=2),
    "no codes": Case(teacher=False, layer=False, base=True),
    "relu": Case(activation="relu", eps=0.1),
    "gelu": Case(activation="gelu", cross=1, base=True),
    "empty layer": Case(layers=((0, (4,)), (3, (0, 2))), cross=1),
    "odd sizes": Case(layers=tuple((n, (128 - n,)) for n in ODD), d=17, teachers=(3, 1), cross=3),
    **{f"d {d}": Case(d=d) for d in ODD},
}


def draw(seed: int) -> tuple[Case, torch.dtype]:
    """A random case, and the dtype to run it in."""
    pick = Random(seed)
    dtype = pick.choice(DTYPES)
    exact = dtype == torch.float64
    layers = tuple(
        (pick.choice((0, 1, 2, 3, 8, 17)), tuple(pick.choice((1, 3, 8)) for _ in range(pick.choice((1, 1, 2)))))
        for _ in range(pick.choice((1, 2, 4)))
    )
    case = Case(
        layers=layers,
        teachers=tuple(pick.choice((1, 2, 4)) for _ in range(pick.choice((1, 2, 3)))),
        cross=pick.choice((0, 0, 1, 3)),
        # One number is its own mean: what remains of it and its gradients is rounding.
        d=pick.choice((1, 3, 8, 17, 32) if exact else (3, 8, 17, 32)),
        projections=shared_by_width([sum(widths) for _, widths in layers], pick) if pick.random() < 0.5 else None,
        positions=tuple(pick.choice((0, 1, 5)) for _ in layers) if pick.random() < 0.5 else None,
        base=pick.random() < 0.5,
        teacher=pick.random() < 0.7,
        layer=pick.random() < 0.7,
        # A relu near 0 opens for one rounding and not for another.
        activation=pick.choice(("none", "relu", "gelu") if exact else ("none", "gelu")),
        eps=pick.choice((1e-5, 0.1)),
    )
    return case, dtype


def shared_by_width(widths: Sequence[int], pick: Random) -> tuple[int, ...]:
    """One projection group for each width, in random order: the group of every layer."""
    known = sorted(set(widths))
    pick.shuffle(known)
    return tuple(known.index(width) for width in widths)


def call(case: Case, seed: int | None = None) -> Call:
    layout = case.layout
    student, d = layout.layout, case.d
    generator = torch.Generator().manual_seed(d if seed is None else seed)
    order = case.projections or tuple(range(len(student.layers)))
    widths = [student.widths[order.index(g)] for g in range(max(order) + 1)]

    def random(*size: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale + offset).requires_grad_()

    ends = [start + n for start, n in zip(case.positions or [0] * len(student.rows), student.rows, strict=True)]
    leaves = {
        "rows": random(sum(case.teachers) * student.row_numel),
        "biases": random(len(widths), d),
        "shift": random(student.column_numel),
        "scale": random(student.column_numel, scale=0.1, offset=1.0),
        "position": random(max(ends) + 1, d),
        "gamma": random(d),
        "beta": random(d),
        **{f"weights[{i}]": random(w, d, scale=0.5) for i, w in enumerate(widths)},
    }
    if case.base:
        leaves["base"] = random(student.row_numel)
    if case.teacher:
        leaves["teacher"] = random(max(case.teachers) + 2, d)
    if case.layer:
        leaves["layer"] = random(len(student.layers), d)
    if case.cross:
        leaves["cross"] = random(len(layout.lengths), case.cross, d)
    options = {
        "projections": case.projections,
        "positions": case.positions,
        "activation": case.activation,
        "eps": case.eps,
    }

    def run(leaves: Leaves, impl: str = "auto") -> tuple[Tensor]:
        rest = {name: t for name, t in leaves.items() if not name.startswith("weights")}
        return (embedding(**rest, weights=weights_of(leaves), layout=layout, **options, impl=impl),)

    def written_out(leaves: Leaves) -> tuple[Tensor]:
        return (torch.cat(list(naive(leaves, weights_of(leaves), layout, **options).values())),)

    return Call(leaves, run, written_out)


def weights_of(leaves: Leaves, name: str = "weights") -> list[Tensor]:
    return [t for label, t in leaves.items() if label.startswith(f"{name}[")]


def library_arguments(case: Case, leaves: Leaves) -> tuple[object, ...]:
    """The positional arguments of wfkernels::embedding."""
    layout = case.layout
    student = layout.layout
    names = ("base", "shift", "scale", "position", "teacher", "layer", "cross", "gamma", "beta")
    layers = len(student.layers)
    return (
        leaves["rows"],
        weights_of(leaves),
        leaves["biases"],
        *(leaves.get(name) for name in names),
        student.rows,
        student.widths,
        case.projections or tuple(range(layers)),
        case.positions or (0,) * layers,
        case.teachers,
        case.activation,
        case.eps,
    )
