"""Calls of projection, and the op written out one student and layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from tests.embedding.cases import (
    columns,
    normalised,
    one_network,
    row_layout,
    shared_by_width,
    teacher_rows,
    weights_of,
)
from tests.properties import DTYPES, Call, Leaves
from wfkernels import projection
from wfkernels.layout import TokenLayout
from wfkernels.projection.api import NEEDS
from wfkernels.projection.reference import OUTPUTS, READS


def naive(
    leaves: Mapping[str, Tensor | None],
    tokens: Mapping[tuple[int, int], Tensor],  # (layer, group) -> [T read, n, d]
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    layout: TokenLayout,
    projections: Sequence[int] | None,
    output: str,
) -> Tensor:
    student = layout.layout
    strength, shift, scale = (leaves[name] for name in ("strength", "shift", "scale"))
    assert strength is not None and shift is not None and scale is not None
    base, prior, blend, gate_weight, gate_bias = (
        leaves.get(name) for name in ("base", "prior", "blend", "gate_weight", "gate_bias")
    )
    raw = teacher_rows(leaves["rows"], layout) if leaves.get("rows") is not None else {}
    x = normalised(leaves, layout) if raw else {}
    bases = None if base is None else one_network(base, student)
    students = []
    for g, teachers in enumerate(layout.teachers):
        pieces = []
        for i, layer in enumerate(student.layers):
            p = i if projections is None else projections[i]
            z = tokens[i, g]
            value = strength[i] * (z.mean(0) @ weights[p] + biases[p])
            own = [x[i, g, t] for t in range(teachers)] if x else []
            a, b = columns(shift, student)[i], columns(scale, student)[i]
            if output == "gated":
                # By its other form: base + sum_t w_t (row_t - base) + scale * strength * (...).
                assert bases is not None and gate_weight is not None and gate_bias is not None
                result = bases[i] + b * value
                for t in range(teachers):
                    count = 1 / teachers + z[t] @ gate_weight[p] + gate_bias[p]
                    result = result + count[:, None] * (raw[i, g, t] - bases[i])
            else:
                if output == "anchor":
                    value = value + own[0]
                if output == "mean":
                    value = value + sum(own) / teachers
                if output == "prior":
                    assert prior is not None and blend is not None
                    learned = one_network(prior, student)[i]
                    value = value + learned + blend[i] * (sum(own) / teachers - learned)
                result = b * value + a
                result = result if bases is None else result + bases[i]
            for q in layer.parameters:
                flat = result[:, q.start : q.start + q.width].flatten()
                pieces.append(torch.nn.functional.pad(flat, (0, -len(flat) % 8)))
        students.append(torch.cat(pieces))
    return torch.stack(students)


@dataclass(frozen=True)
class Case:
    """One form of the call. `layers` as for row_layout."""

    output: str = "plain"
    read: str = "anchor"
    layers: tuple[tuple[int, tuple[int, ...]], ...] = ((3, (9, 1)), (1, (5,)), (4, (5,)))
    teachers: tuple[int, ...] = (2, 3)
    d: int = 6
    projections: tuple[int, ...] | None = None
    base: bool = False
    rows: bool = False  # given although the output does not need them

    @property
    def layout(self) -> TokenLayout:
        return row_layout(*self.layers).tokens(self.teachers)


ODD = (1, 3, 17, 65, 127)
CASES = {
    **{
        f"{output}, {read}{', base' * base}": Case(output, read, base=base)
        for output in ("plain", "anchor", "mean", "prior")
        for read in ("anchor", "mean")
        for base in (False, True)
    },
    "gated": Case("gated", "mean", base=True),
    "gated, groups of different size": Case("gated", "mean", base=True, teachers=(3, 1, 4)),
    "prior, one teacher": Case("prior", teachers=(1,)),
    "mean, groups of different size": Case("mean", "mean", teachers=(1, 3, 2)),
    "shared projections": Case("prior", projections=(0, 1, 1), base=True),
    "gated, shared projections": Case("gated", "mean", projections=(1, 0, 0), base=True),
    "rows that are not needed": Case("plain", rows=True, base=True),
    "empty layer": Case("mean", layers=((0, (4,)), (3, (0, 2)))),
    "odd sizes": Case("gated", "mean", layers=tuple((n, (128 - n,)) for n in ODD), d=17, teachers=(3, 1), base=True),
    **{f"d {d}": Case("anchor", d=d) for d in ODD},
}


def draw(seed: int) -> tuple[Case, torch.dtype]:
    """A random case, and the dtype to run it in."""
    pick = Random(seed)
    layers = tuple(
        (pick.choice((0, 1, 2, 3, 8, 17)), tuple(pick.choice((1, 3, 8)) for _ in range(pick.choice((1, 1, 2)))))
        for _ in range(pick.choice((1, 2, 4)))
    )
    output = pick.choice(OUTPUTS)
    case = Case(
        output=output,
        read="mean" if output == "gated" else pick.choice(READS),
        layers=layers,
        teachers=tuple(pick.choice((1, 2, 4)) for _ in range(pick.choice((1, 2, 3)))),
        d=pick.choice((1, 3, 8, 17, 32)),
        projections=shared_by_width([sum(widths) for _, widths in layers], pick) if pick.random() < 0.5 else None,
        base=output == "gated" or pick.random() < 0.5,
        rows=pick.random() < 0.3,
    )
    return case, pick.choice(DTYPES)


def call(case: Case, seed: int | None = None) -> Call:
    layout, d = case.layout, case.d
    student = layout.layout
    generator = torch.Generator().manual_seed(d if seed is None else seed)
    order = case.projections or tuple(range(len(student.layers)))
    widths = [student.widths[order.index(g)] for g in range(max(order) + 1)]
    copies = sum(case.teachers) if case.read == "mean" else len(case.teachers)

    def random(*size: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale + offset).requires_grad_()

    sizes = {
        "rows": (sum(case.teachers) * student.row_numel,),
        "base": (student.row_numel,),
        "prior": (student.row_numel,),
        "blend": (len(student.layers),),
        "gate_weight": (len(widths), d),
        "gate_bias": (len(widths),),
    }
    present = {*NEEDS[case.output], *(["base"] if case.base else []), *(["rows"] if case.rows else [])}
    leaves = {
        "tokens": random(copies * sum(student.rows), d),
        **{f"weights[{i}]": random(d, w, scale=0.5) for i, w in enumerate(widths)},
        **{f"biases[{i}]": random(w) for i, w in enumerate(widths)},
        "strength": random(len(student.layers)),
        "shift": random(student.column_numel),
        "scale": random(student.column_numel, scale=0.1, offset=1.0),
        **{name: random(*size) for name, size in sizes.items() if name in present},
    }

    def run(leaves: Leaves, impl: str = "auto") -> tuple[Tensor]:
        rest = {name: t for name, t in leaves.items() if "[" not in name}
        lists = {name: weights_of(leaves, name) for name in ("weights", "biases")}
        options = {"layout": layout, "projections": case.projections, "read": case.read, "output": case.output}
        return (projection(**rest, **lists, **options, impl=impl),)

    def written_out(leaves: Leaves) -> tuple[Tensor]:
        tokens, position = {}, 0
        for i, layer in enumerate(student.layers):
            for g, teachers in enumerate(case.teachers):
                count = teachers if case.read == "mean" else 1
                block = leaves["tokens"][position : position + count * layer.rows]
                tokens[i, g], position = block.reshape(count, layer.rows, d), position + count * layer.rows
        lists = (weights_of(leaves), weights_of(leaves, "biases"))
        return (naive(leaves, tokens, *lists, layout, case.projections, case.output),)

    return Call(leaves, run, written_out)


def library_arguments(case: Case, leaves: Leaves) -> tuple[object, ...]:
    """The positional arguments of wfkernels::projection."""
    student = case.layout.layout
    names = ("strength", "shift", "scale", "rows", "base", "prior", "blend", "gate_weight", "gate_bias")
    return (
        leaves["tokens"],
        weights_of(leaves),
        weights_of(leaves, "biases"),
        *(leaves.get(name) for name in names),
        student.rows,
        [p.width for p in student.parameters],
        [len(layer.parameters) for layer in student.layers],
        case.projections or tuple(range(len(student.layers))),
        case.teachers,
        case.read,
        case.output,
    )
