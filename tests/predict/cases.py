"""Small models for the tests: every form of output, normalisation, gate and cross-layer mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.predict.naive import naive_predict
from tests.properties import Call, Leaves
from wfkernels import Block, Parameters, RowLayout, Settings, predict
from wfkernels.layout import Layer, Parameter, TokenLayout

HEADS, BUCKETS = 2, 5
SEED = torch.tensor([(3 << 32) + 11])


def layout() -> RowLayout:
    """Three layers with odd widths, the first with two parameters side by side, the last two of equal width."""
    return RowLayout(
        (
            Layer("conv", "conv", 3, (Parameter("conv.weight", (3, 1, 3, 3), 0, 9), Parameter("bn", (3,), 9, 1))),
            Layer("one", "linear", 1, (Parameter("one.weight", (1, 5), 0, 5),)),
            Layer("head", "linear", 4, (Parameter("head.weight", (4, 5), 0, 5),)),
        )
    )


@dataclass(frozen=True)
class Case:
    """One form of the call. layers: how many of the layout's layers the student has."""

    settings: Settings
    cross: int = 0
    gate: str = "none"
    base: bool = False
    center: bool = False
    built_on: bool = False
    codes: bool = True
    own_cross: bool = False  # cross tokens of every group, as they are handed on in a recurrent pass
    teachers: tuple[int, ...] = (2, 3)
    layers: int = 3
    blocks: int = 2
    d: int = 8

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
    "one layer": Case(Settings(HEADS, "pre"), cross=2, own_cross=True, layers=1, gate="bucketed", built_on=True),
    "one block": Case(Settings(HEADS, "pre", feed_forward="none"), cross=1, blocks=1),
    "odd width": Case(Settings(1, "pre", "relu", output="mean"), cross=3, gate="dense", teachers=(3, 1), d=17),
    "base without center": Case(Settings(1, "post", output="prior", eps=0.1), base=True, teachers=(3, 1, 2)),
}


def tensors(case: Case, seed: int = 5) -> tuple[Tensor, Parameters, TokenLayout, Tensor | None]:
    """Random rows, parameters that all require grad, the layout and the bucket lookup of a case."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int, scale: float = 0.5, offset: float = 0.0) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale + offset).requires_grad_()

    def matrix(outputs: int, inputs: int) -> Tensor:
        return random(outputs, inputs, scale=inputs**-0.5)

    d, ffn = case.d, 3 * case.d // 2
    student = layout().select(range(case.layers))
    tokens = student.tokens(case.teachers, case.cross)
    order = case.settings.projections or range(case.layers)
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
        gate = torch.rand(HEADS, 2, 2, 2, BUCKETS, generator=generator, dtype=torch.float64)
        lookup = torch.tensor([0, 1, 2, 3, 4])
    pre, output = case.settings.norm == "pre", case.settings.output
    gated, prior = output == "gated", output == "prior"
    all_rows = sum(case.teachers) * student.row_numel
    parameters = Parameters(
        embedding_weights=[matrix(d, w).T.detach().contiguous().requires_grad_() for w in widths],
        embedding_biases=random(groups, d),
        shift=random(student.column_numel),
        scale=random(student.column_numel, scale=0.1, offset=1.0),
        position=random(8, d),
        gamma=random(d, scale=0.1, offset=1.0),
        beta=random(d),
        blocks=blocks,
        projection_weights=[matrix(w, d).T.detach().contiguous().requires_grad_() for w in widths],
        projection_biases=[random(w) for w in widths],
        strength=random(case.layers),
        teacher=random(5, d) if case.codes else None,
        layer=random(case.layers, d) if case.codes else None,
        cross=random(*[len(case.teachers)] * case.own_cross, case.cross, d) if case.cross else None,
        # Away from 0 and 1, so that finite differences have room on both sides.
        gate=None if gate is None else (gate * 0.8 + 0.1).requires_grad_(),
        final_weight=random(d) if pre else None,
        final_bias=random(d) if pre else None,
        base=random(student.row_numel) if case.base else None,
        center=random(student.row_numel) if case.center else None,
        prior=random(student.row_numel) if prior else None,
        blend=random(case.layers) if prior else None,
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
    return_cross = case.layers == 1

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
