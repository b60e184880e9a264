"""Small models for the tests: every form of output, normalisation, gate and cross-layer mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wfkernels import Block, Parameters, RowLayout, Settings
from wfkernels.layout import Layer, Parameter, TokenLayout

D, FFN, HEADS, BUCKETS = 8, 12, 2, 5


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
    name: str
    settings: Settings
    cross: int = 0
    gate: str = "none"
    base: bool = False
    codes: bool = True
    teachers: tuple[int, ...] = (2, 3)


CASES = [
    Case("paper", Settings(HEADS, dropout_p=0.0), cross=1, gate="dense"),
    Case("recipe", Settings(HEADS, "pre", "none", "gelu", output="prior", cross_layer="none")),
    Case("specialists", Settings(HEADS, "pre", read="mean", output="gated"), base=True, codes=False),
    Case("bucketed", Settings(HEADS, "pre", "gelu", output="anchor"), cross=2, gate="bucketed"),
    Case("mean", Settings(HEADS, "post", "relu", "gelu", output="mean", read="mean"), cross=2, base=True),
    Case("shared", Settings(HEADS, "pre", output="mean", projections=(0, 1, 1), positions=(0, 3, 4)), teachers=(1,)),
    Case("keep-all", Settings(HEADS, "post", recompute="none"), cross=1, gate="bucketed"),
    Case("keep-all-pre", Settings(HEADS, "pre", output="prior", recompute="none"), cross=2),
]


def tensors(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Parameters, TokenLayout, Tensor | None]:
    """Random rows, parameters that all require grad, the layout and the bucket lookup of a case."""
    generator = torch.Generator().manual_seed(sum(map(ord, case.name)))

    def random(*size: int, scale: float = 0.5, offset: float = 0.0) -> Tensor:
        values = torch.randn(size, generator=generator, dtype=torch.float64) * scale + offset
        return values.to(dtype).requires_grad_()

    rows_layout = layout()
    tokens = rows_layout.tokens(case.teachers, case.cross)
    groups = 2 if case.settings.projections else 3
    widths = rows_layout.widths[:groups]
    blocks = [
        Block(
            *(random(D, scale=0.1, offset=1.0), random(D)),
            *(random(3 * D, D), random(3 * D), random(D, D), random(D)),
            *(random(D, scale=0.1, offset=1.0), random(D)),
            *(random(FFN, D), random(FFN), random(D, FFN), random(D)),
        )
        for _ in range(2)
    ]
    gate = lookup = None
    if case.gate == "dense":
        gate = torch.rand(1, tokens.max_length, tokens.max_length, generator=generator, dtype=torch.float64)
    if case.gate == "bucketed":
        gate = torch.rand(HEADS, 2, 2, 2, BUCKETS, generator=generator, dtype=torch.float64)
        lookup = torch.tensor([0, 1, 2, 3, 4])
    pre, output = case.settings.norm == "pre", case.settings.output
    gated, prior = output == "gated", output == "prior"
    parameters = Parameters(
        embedding_weights=[random(w, D) for w in widths],
        embedding_biases=random(groups, D),
        shift=random(rows_layout.column_numel),
        scale=random(rows_layout.column_numel, scale=0.1, offset=1.0),
        position=random(8, D),
        gamma=random(D, scale=0.1, offset=1.0),
        beta=random(D),
        blocks=blocks,
        projection_weights=[random(D, w) for w in widths],
        projection_biases=[random(w) for w in widths],
        strength=random(3),
        teacher=random(4, D) if case.codes else None,
        layer=random(3, D) if case.codes else None,
        cross=random(case.cross, D) if case.cross else None,
        gate=None if gate is None else gate.to(dtype).requires_grad_(),
        final_weight=random(D) if pre else None,
        final_bias=random(D) if pre else None,
        base=random(rows_layout.row_numel) if case.base else None,
        prior=random(rows_layout.row_numel) if prior else None,
        blend=random(3) if prior else None,
        gate_weight=random(groups, D) if gated else None,
        gate_bias=random(groups) if gated else None,
    )
    return random(sum(case.teachers) * rows_layout.row_numel), parameters, tokens, lookup
