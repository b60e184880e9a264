"""Small models for the tests: every form of output, normalisation, gate and cross-layer mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.predict.naive import naive_predict
from tests.properties import DTYPES, Call, Leaves
from wfkernels import Block, Parameters, RowLayout, Settings, predict
from wfkernels.layout import Layer, Parameter, TokenLayout
from wfkernels.projection.reference import OUTPUTS, READS

HEADS, BUCKETS = 2, 5
SEED = torch.tensor([(3 << 32) + 11])


def layout(rows: Sequence[int] = (3, 1, 4)) -> RowLayout:
    """Layers with odd widths, the first with two parameters side by side, the others of equal width."""
    n = rows[0]
    conv = Layer("conv", "conv", n, (Parameter("conv.weight", (n, 1, 3, 3), 0, 9), Parameter("bn", (n,), 9, 1)))
    linear = (Layer(f"l{i}", "linear", n, (Parameter(f"l{i}", (n, 5), 0, 5),)) for i, n in enumerate(rows[1:], 1))
    return RowLayout((conv, *linear))


@dataclass(frozen=True)
class Case:
    """One form of the call. rows: of every layer of the student."""

    settings: Settings
    cross: int = 0
    gate: str = "none"
    base: bool = False
    center: bool = False
    built_on: bool = False
    codes: bool = True
    own_cross: bool = False  # cross tokens of every group, as they are handed on in a recurrent pass
    teachers: tuple[int, ...] = (2, 3)
    rows: tuple[int, ...] = (3, 1, 4)
    blocks: int = 2
    d: int = 8

    @property
    def layout(self) -> TokenLayout:
        return layout(self.rows).tokens(self.teachers, self.cross)

    def but(self, **changes: Any) -> Case:
        return replace(self, settings=replace(self.settings, **changes))


CASES = {
    # What a layer learns of an earlier one takes three blocks: a cross token reads its own rows in the first, another
    # layer's cross token reads it in the second, and rows read that one in the last.
    "paper": Case(Settings(HEADS), cross=1, gate="dense", blocks=3),
    "recipe": Case(Settings(HEADS, "pre", "none", "gelu", output="prior", cross_layer="none")),
    "specialists": Case(Settings(HEADS, "pre", read="mean", output="gated"), base=True, center=True, codes=False),
    "bucketed": Case(Settings(HEADS, "pre", "gelu", output="anchor"), cross=2, gate="bucketed"),
    "mean": Case(Settings(HEADS, "post", "relu", "gelu", output="mean", read="mean"), cross=2, base=True),
    "shared": Case(Settings(HEADS, "pre", output="mean", projections=(0, 1, 1), positions=(0, 3, 4)), teachers=(1,)),
    "keep all": Case(Settings(HEADS, "post", recompute="none"), cross=1, gate="bucketed"),
    "keep all, pre": Case(Settings(HEADS, "pre", output="prior", recompute="none"), cross=2, built_on=True),
    "dropout": Case(Settings(HEADS, "pre", dropout_p=0.3, output="prior"), cross=2, gate="bucketed", own_cross=True),
    "dropout, post": Case(Settings(HEADS, "post", dropout_p=0.3, read="mean"), cross=1, teachers=(1, 4)),
    "one teacher each": Case(Settings(HEADS, "post", output="anchor"), teachers=(1, 1), gate="dense"),
    "one layer": Case(Settings(HEADS, "pre"), cross=2, own_cross=True, rows=(3,), gate="bucketed", built_on=True),
    "one block": Case(Settings(HEADS, "pre", feed_forward="none"), cross=1, blocks=1),
    "odd width": Case(Settings(1, "pre", "relu", output="mean"), cross=3, gate="dense", teachers=(3, 1), d=17),
    "odd rows": Case(Settings(HEADS, "pre", output="anchor"), cross=1, gate="dense", rows=(1, 17, 65, 127)),
    "odd rows, bucketed": Case(Settings(HEADS, read="mean"), gate="bucketed", rows=(127, 65, 17, 1), teachers=(2, 1)),
    "empty layer": Case(Settings(HEADS, "pre", output="anchor"), gate="dense", rows=(3, 0, 4)),
    "empty layer, bucketed": Case(Settings(HEADS, read="mean", output="mean"), gate="bucketed", rows=(0, 2)),
    "empty layer with cross tokens": Case(Settings(HEADS, "pre", output="prior"), cross=2, rows=(3, 0, 4)),
    "no rows at all": Case(Settings(HEADS), gate="dense", rows=(0, 0)),
    "no rows but cross tokens": Case(Settings(HEADS, "pre"), cross=1, gate="bucketed", rows=(0, 0)),
    "base without center": Case(Settings(1, "post", output="prior", eps=0.1), base=True, teachers=(3, 1, 2)),
}


def draw(seed: int) -> tuple[Case, torch.dtype]:
    """A random case, and the dtype to run it in."""
    pick = Random(seed)
    dtype = pick.choice(DTYPES)
    # A relu near 0 opens for one rounding and not for another.
    activations = ("none", "relu", "gelu") if dtype == torch.float64 else ("none", "gelu")
    rows = tuple(pick.choice((0, 1, 2, 3, 5)) for _ in range(pick.choice((1, 2, 4))))
    output, cross = pick.choice(OUTPUTS), pick.choice((0, 0, 1, 2))
    settings = Settings(
        heads=pick.choice((1, 2, 4)),
        norm=pick.choice(("pre", "post")),
        activation=pick.choice(activations),
        feed_forward=pick.choice(activations),
        cross_layer=pick.choice(("none", "parallel")),
        read="mean" if output == "gated" else pick.choice(READS),
        output=output,
        projections=pick.choice((None, (0, *(1 for _ in rows[1:])))),
        positions=pick.choice((None, tuple(pick.choice((0, 1, 5)) for _ in rows))),
        dropout_p=pick.choice((0.0, 0.0, 0.3)),
        eps=pick.choice((1e-5, 0.1)),
        recompute=pick.choice(("full", "none")),
    )
    case = Case(
        settings,
        cross=cross,
        gate=pick.choice(("none", "dense", "bucketed")),
        base=output == "gated" or pick.random() < 0.5,
        center=pick.random() < 0.3,
        built_on=pick.random() < 0.3,
        codes=pick.random() < 0.7,
        own_cross=cross > 0 and pick.random() < 0.3,
        teachers=tuple(pick.choice((1, 2, 3)) for _ in range(pick.choice((1, 2)))),
        rows=rows,
        blocks=pick.choice((1, 2, 3)),
        d=pick.choice((8, 20, 32)),
    )
    return case, dtype


def tensors(case: Case, seed: int = 5) -> tuple[Tensor, Parameters, TokenLayout, Tensor | None]:
    """Random rows, parameters that all require grad, the layout and the bucket lookup of a case."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int, scale: float = 0.5, offset: float = 0.0) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale + offset).requires_grad_()

    def matrix(outputs: int, inputs: int) -> Tensor:
        return random(outputs, inputs, scale=inputs**-0.5)

    d, ffn = case.d, 3 * case.d // 2
    tokens = case.layout
    student, layers = tokens.layout, len(case.rows)
    order = case.settings.projections or range(layers)
    starts = case.settings.positions or [0] * layers
    widths = [student.widths[list(order).index(g)] for g in range(max(order) + 1)]
    groups = len(widths)
    blocks = [
        Block(
            *(random(d, scale=0.1, offset=1.0), random(d)),
            *(matrix(3 * d, d), random(3 * d), matrix(d, d), random(d)),
            *(random(d, scale=0.1, offset=1.0), random(d)),
            *(matrix(ffn, d), random(ffn), matrix(d, ffn), random(d)),
        )
        for _ in range(case.blocks)
    ]
    gate = lookup = None
    if case.gate == "dense":
        gate = torch.rand(1, tokens.max_length, tokens.max_length, generator=generator, dtype=torch.float64)
    if case.gate == "bucketed":
        gate = torch.rand(case.settings.heads, 2, 2, 2, BUCKETS, generator=generator, dtype=torch.float64)
        lookup = torch.tensor([0, 1, 2, 3, 4])
    pre, output = case.settings.norm == "pre", case.settings.output
    gated, prior = output == "gated", output == "prior"
    all_rows = sum(case.teachers) * student.row_numel
    parameters = Parameters(
        embedding_weights=[matrix(d, w).T.detach().contiguous().requires_grad_() for w in widths],
        embedding_biases=random(groups, d),
        shift=random(student.column_numel),
        scale=random(student.column_numel, scale=0.1, offset=1.0),
        position=random(max(8, *(start + n for start, n in zip(starts, case.rows, strict=True))), d),
        gamma=random(d, scale=0.1, offset=1.0),
        beta=random(d),
        blocks=blocks,
        projection_weights=[matrix(w, d).T.detach().contiguous().requires_grad_() for w in widths],
        projection_biases=[random(w) for w in widths],
        strength=random(layers),
        teacher=random(5, d) if case.codes else None,
        layer=random(layers, d) if case.codes else None,
        cross=random(*[len(case.teachers)] * case.own_cross, case.cross, d) if case.cross else None,
        # Away from 0 and 1, so that finite differences have room on both sides.
        gate=None if gate is None else (gate * 0.8 + 0.1).requires_grad_(),
        final_weight=random(d) if pre else None,
        final_bias=random(d) if pre else None,
        base=random(student.row_numel) if case.base else None,
        center=random(student.row_numel) if case.center else None,
        prior=random(student.row_numel) if prior else None,
        blend=random(layers) if prior else None,
        gate_weight=random(groups, d) if gated else None,
        gate_bias=random(groups) if gated else None,
        built_on=random(all_rows) if case.built_on else None,
    )
    return random(all_rows), parameters, tokens, lookup


def call(case: Case, seed: int = 5) -> Call:
    """The case as a call: of one layer with its cross tokens as a second output."""
    rows, parameters, tokens, lookup = tensors(case, seed)
    names, flat = parameters.names(), parameters.flatten()
    leaves = {"rows": rows} | {name: t for name, t in zip(names, flat, strict=True) if t is not None}
    return_cross = len(case.rows) == 1 and case.cross > 0

    def parameters_of(leaves: Leaves) -> Parameters:
        return parameters.unflatten([leaves.get(name) for name in names])

    def run(leaves: Leaves, impl: str = "auto") -> tuple[Tensor, ...]:
        found = predict(
            leaves["rows"],
            parameters_of(leaves),
            case.settings,
            layout=tokens,
            gate_lookup=lookup,
            seed=SEED,
            return_cross=return_cross,
            impl=impl,
        )
        return found if isinstance(found, tuple) else (found,)

    def written_out(leaves: Leaves) -> tuple[Tensor, ...]:
        students, cross = naive_predict(
            leaves["rows"],
            parameters_of(leaves),
            case.settings,
            tokens,
            lookup,
            seed=SEED,
            return_cross=return_cross,
        )
        return (students,) if cross is None else (students, cross)

    return Call(leaves, run, written_out)
