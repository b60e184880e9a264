"""A projection call in the words of the Triton kernels, and how those are launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.gpu import Config
from wfkernels.layout import ALIGNMENT
from wfkernels.projection import triton_tables as tables
from wfkernels.projection.reference import Shape
from wfkernels.projection.triton_tables import Sizes

T = TypeVar("T")


class Form(NamedTuple):
    """What a kernel is compiled for; no length is in it."""

    output: str
    read: str
    reads_all: bool  # multiplies all teachers' tokens, not their mean
    precision: str  # of float32 products: ieee or tf32


@dataclass(frozen=True)
class Problem:
    """A call in the words of the kernels."""

    tokens: Tensor  # [rows read, d]
    weight: Tensor  # [d, joined]: all weights side by side, each with zeros up to a multiple of ALIGNMENT
    bias: Tensor  # [joined]
    strength: Tensor
    shift: Tensor
    scale: Tensor
    rows: Tensor | None
    base: Tensor | None
    prior: Tensor | None
    blend: Tensor | None
    gate_weight: Tensor | None
    gate_bias: Tensor | None
    sizes: Sizes
    read: str
    output: str

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @property
    def averages(self) -> bool:
        """Are there several tokens of a row to take the mean of?"""
        return self.read == "mean" and max(self.sizes.teachers) > 1

    def form(self, reads_all: bool = False) -> Form:
        return Form(self.output, self.read, reads_all, gpu.precision())

    def reads_all(self, *results: Tensor) -> bool:
        """Are all teachers' tokens multiplied for results of these dtypes?

        A mean in 16 bits is exact enough for results that have no more.
        """
        rounding = torch.finfo(self.tokens.dtype).eps
        finer = min(torch.finfo(t.dtype).eps for t in results) < rounding
        return self.averages and finer and self.tokens.dtype != torch.float32

    def scalars(self) -> dict[str, Any]:
        """Return the arguments that most kernels take under these names."""
        return {
            "layers": tables.layers(self.sizes, self.device),
            "groups": tables.groups(self.sizes, self.device),
            "copies": self.sizes.copies,
            "count": self.sizes.groups,
        }

    def students(self) -> dict[str, Any]:
        """Return the arguments that say where rows stand in a student."""
        return {"columns": tables.columns(self.sizes, self.device), "numel": sum(self.sizes.students)}


def problem(
    tokens: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    strength: Tensor,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None,
    base: Tensor | None,
    prior: Tensor | None,
    blend: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    shape: Shape,
) -> Problem:
    """Return the call in the words of the kernels."""
    optional = (rows, base, prior, blend, gate_weight, gate_bias)
    rows, base, prior, blend, gate_weight, gate_bias = (None if t is None else t.contiguous() for t in optional)
    zeros = tokens.new_zeros(max(1, tokens.shape[1]) * ALIGNMENT)
    return Problem(
        tokens.contiguous(),
        _joined(weights, zeros),
        _joined(biases, zeros),
        strength.contiguous(),
        shift.contiguous(),
        scale.contiguous(),
        rows,
        base,
        prior,
        blend,
        gate_weight,
        gate_bias,
        Sizes.of(shape, weights),
        shape.read,
        shape.output,
    )


def _joined(tensors: Sequence[Tensor], zeros: Tensor) -> Tensor:
    """Return tensors side by side along their last dimension, each with zeros up to a multiple of ALIGNMENT."""
    pieces = []
    for t in tensors:
        lead, unused = t.shape[:-1], -t.shape[-1] % ALIGNMENT
        pieces += [t, zeros[: lead.numel() * unused].view(*lead, unused)]
    return torch.cat(pieces, -1)


def tuned(kernel: str, p: Problem, step: Callable[[Config], T]) -> T:
    """Run a step with the config of a kernel of this room."""
    # Nothing limits a tile: d and the columns of a layer are walked over.
    return gpu.tuned(f"projection_{kernel}", p.device, 0, 8 * p.tokens.element_size(), step)


def launch(kernel: Any, programs: int, config: Config, device: torch.device, **arguments: Any) -> None:
    """Run a kernel where there is anything to do."""
    if programs > 0:
        gpu.launch(kernel, programs, config, device, **arguments)


def blocks(config: Config) -> dict[str, int]:
    """Return the sides of a tile by the names of the kernels."""
    sides = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    return {name: side for name, side in sides.items() if side}
