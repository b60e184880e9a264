"""Calls of linear, and the op written out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from tests.properties import Call, Leaves
from wfkernels.linear import ops


@dataclass(frozen=True)
class Case:
    """One form of the call."""

    rows: int
    inputs: int
    outputs: int
    activation: str = "none"
    bias: bool = True
    transposed: bool = False  # the weight lies by columns


# Around the borders of vectors, panels of 128 rows, blocks of 128 outputs and of 256 inputs.
CASES = {
    "one": Case(1, 1, 1),
    "small": Case(3, 5, 17, "relu"),
    "odd": Case(65, 127, 3, "gelu"),
    "no rows": Case(0, 5, 3),
    "whole": Case(128, 256, 128, "relu"),
    "one more": Case(129, 257, 129, "gelu"),
    "no bias": Case(17, 33, 65, bias=False),
    "by columns": Case(33, 300, 65, transposed=True),
    "deep": Case(5, 1000, 20),
}


def naive(leaves: Leaves, activation: str) -> Tensor:
    x = leaves["x"]
    if activation == "relu":
        x = x.clamp(min=0)
    elif activation == "gelu":
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    # The library's own product, as in eager code: sums in another order may be off by more than twice its error.
    return torch.nn.functional.linear(x, leaves["weight"], leaves.get("bias"))


def draw(seed: int) -> tuple[Case, torch.dtype]:
    """A random case, and the dtype to run it in."""
    pick = Random(seed)
    dtype = pick.choice((torch.float32, torch.float64))
    sizes = (1, 2, 3, 8, 17, 65, 127, 128, 200)
    rows, inputs, outputs = pick.choice((0, *sizes)), pick.choice((*sizes, 600)), pick.choice(sizes)
    activation = pick.choice(("none", "relu", "gelu"))
    return Case(rows, inputs, outputs, activation, pick.random() < 0.8, pick.random() < 0.3), dtype


def build(case: Case, seed: int) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    weight = normal(case.inputs, case.outputs).mT if case.transposed else normal(case.outputs, case.inputs)
    leaves = {"x": normal(case.rows, case.inputs), "weight": weight.detach() * case.inputs**-0.5}
    if case.bias:
        leaves["bias"] = normal(case.outputs)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}

    def run(leaves: Leaves, impl: str = "auto") -> tuple[Tensor]:
        return (ops.linear(leaves["x"], leaves["weight"], leaves.get("bias"), case.activation, impl),)

    return Call(leaves, run, lambda leaves: (naive(leaves, case.activation),))
