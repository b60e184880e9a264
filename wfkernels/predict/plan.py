"""Everything about one predict call that follows from the layout and the settings: lengths and index tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wfkernels.cached import kept
from wfkernels.layout import TokenLayout
from wfkernels.predict.ops import build, predict_indices
from wfkernels.predict.parameters import Settings


class Indices(NamedTuple):
    """Integer tensors on the device of the tokens; none of them is ever read back."""

    offsets: Tensor  # [N+1] sequences in the token buffer
    read: Tensor  # [tokens of the last block] which tokens the last block computes
    read_offsets: Tensor  # [N+1] sequences among those
    query_start: Tensor  # [N] first row of a sequence that the last block computes
    rows: Tensor  # [tokens read] which of the last block's tokens the projection reads
    heads: Tensor  # [N * c] which of the last block's tokens are cross tokens (return_cross)
    cross: Tensor  # [G, L * c] cross tokens of every group, by layer
    earlier: Tensor  # [L * c, L * c] 0 where the key's layer is strictly earlier, else -inf
    group: Tensor  # [tokens] 0 cross, 1 row
    segment: Tensor  # [tokens] 1 ... T the teacher, 0 cross
    position: Tensor  # [tokens] row within its teacher


@dataclass(frozen=True)
class Plan:
    """A layout with its settings: all that predict needs beside tensors."""

    layout: TokenLayout
    settings: Settings
    return_cross: bool
    impl: str

    @property
    def parallel(self) -> bool:
        """True when cross tokens attend to those of earlier layers."""
        return self.settings.cross_layer == "parallel" and self.layout.cross > 0 and len(self.layout.layout.layers) > 1

    @property
    def projections(self) -> Sequence[int]:
        """The projection group of every layer."""
        given = self.settings.projections
        return range(len(self.layout.layout.layers)) if given is None else given

    @property
    def positions(self) -> Sequence[int]:
        """The first position code of every layer."""
        given = self.settings.positions
        return [0] * len(self.layout.layout.layers) if given is None else given

    @property
    def reads_all(self) -> bool:
        """True when the last block computes every token, so that nothing has to be gathered."""
        every_row = self.settings.read == "mean" or max(self.layout.teachers) == 1
        return every_row and (self.return_cross or not self.layout.cross)

    def pruned(self, i: int, blocks: int) -> bool:
        """True when block i of `blocks` computes only the tokens that are read."""
        return i == blocks - 1 and not self.reads_all


def indices(plan: Plan, rows: Tensor) -> Indices:
    """Return the index tensors of `plan` on the device of `rows`; eager calls build them once."""
    layout = plan.layout
    arguments = (layout.layout.rows, layout.teachers, layout.cross, plan.settings.read == "anchor", plan.return_cross)
    # A tensor subclass may stand for a tracer, whose tensors are not to be kept.
    if torch.compiler.is_compiling() or type(rows) not in (Tensor, torch.nn.Parameter):
        return Indices(*predict_indices(*arguments, rows.device))
    return _kept(*arguments, rows.device)


@kept(64)
def _kept(
    rows: tuple[int, ...], teachers: tuple[int, ...], cross: int, anchor: bool, keep_cross: bool, device: torch.device
) -> Indices:
    # Tensors made in inference mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        return Indices(*build(rows, teachers, cross, anchor, keep_cross, device))


def forget_indices() -> None:
    """Drop the index tensors that eager calls keep."""
    _kept.forget()
