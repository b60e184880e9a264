"""Tokens back to weights: the parameters of `wfkernels.projection` in a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wfkernels import check
from wfkernels.layout import RowLayout, TokenLayout
from wfkernels.nn.common import at_least, group_widths, projection_groups, row_layout
from wfkernels.projection.api import projection, suits
from wfkernels.projection.reference import OUTPUTS, READS

OP = "WeightProjection"


class WeightProjection(nn.Module):
    """Turns tokens into one student per group of teachers (arXiv 2210.01973, section 3.3).

    Parameters and buffers have the names and shapes that they have in `weightformer.WeightFormer`. Except for output
    "plain" the products start at 0, so that the student starts as what the output builds on.

    Args:
        layout: the rows of the architecture.
        width: of a token, d.
        output: "plain", "anchor", "mean", "prior" or "gated"; read: "anchor" or "mean"; as `wfkernels.projection`.
        cross_tokens: tokens in front of every sequence that carry no row and are not read.
        share_projections: layers of one kind and width share their product.
        base: rows [row_numel] of the network that all teachers come from; output "gated" needs it.

    Raises:
        TypeError, ValueError: a setting that is none of these.
    """

    shift: Tensor
    scale: Tensor
    base: Tensor | None

    def __init__(
        self,
        layout: RowLayout,
        width: int,
        *,
        output: str = "plain",
        read: str = "anchor",
        cross_tokens: int = 0,
        share_projections: bool = False,
        base: Tensor | None = None,  # [row_numel]
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        row_layout(OP, layout)
        at_least(OP, 1, width=width)
        at_least(OP, 0, cross_tokens=cross_tokens)
        check.one_of(OP, "output", output, OUTPUTS)
        check.one_of(OP, "read", read, READS)
        suits(OP, "read", read, output)
        if base is not None:
            check.floating(OP, base=base)
            check.shape(OP, "base", base, (layout.row_numel,))
        elif output == "gated":
            raise ValueError(f"{OP}: base: expected a tensor, because output='gated' builds on it, got None")
        self.layout, self.output, self.read, self.cross_tokens = layout, output, read, cross_tokens
        self.projections = projection_groups(layout, share_projections)
        widths = group_widths(layout, self.projections)

        def parameter(*size: int, value: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.full(size, value, device=device, dtype=dtype or torch.get_default_dtype()))

        self.outputs = nn.ModuleList(nn.Linear(width, w, device=device, dtype=dtype) for w in widths)
        self.strength = parameter(len(layout.layers), value=1.0)
        self.prior = parameter(layout.row_numel) if output == "prior" else None
        self.blend = parameter(len(layout.layers)) if output == "prior" else None
        self.gate_weight = parameter(len(widths), width) if output == "gated" else None
        self.gate_bias = parameter(len(widths)) if output == "gated" else None
        if output != "plain":
            for weight in self.outputs.parameters():
                nn.init.zeros_(weight)
        self.register_buffer("shift", torch.zeros(layout.column_numel, device=device, dtype=dtype))
        self.register_buffer("scale", torch.ones(layout.column_numel, device=device, dtype=dtype))
        self.register_buffer("base", None if base is None else base.detach().clone().to(device, dtype))

    def tensors(self) -> dict[str, Any]:
        """Return parameters and buffers under their names in `wfkernels.Parameters`."""
        return {
            "projection_weights": [m.get_parameter("weight").T for m in self.outputs],
            "projection_biases": [m.get_parameter("bias") for m in self.outputs],
            "strength": self.strength,
            "shift": self.shift,
            "scale": self.scale,
            "base": self.base,
            "prior": self.prior,
            "blend": self.blend,
            "gate_weight": self.gate_weight,
            "gate_bias": self.gate_bias,
        }

    def forward(self, tokens: Tensor, teachers: Sequence[int], *, rows: Tensor | None = None) -> Tensor:
        """Return the students, [groups, numel]; `wfkernels.unpack(student, layout)` gives tensors by name.

        tokens: all of them, [self.layout.tokens(teachers, cross_tokens).total, width]; those that are not read take no
        part. teachers: how many every group has. rows: the teachers' [sum(teachers) * row_numel], for every output but
        "plain".
        """
        layout = self.layout.tokens(teachers, self.cross_tokens)
        check.floating(OP, tokens=tokens)
        check.shape(OP, "tokens", tokens, (layout.total, "width"))
        return projection(
            tokens if self._reads_all(layout) else tokens[self._read(layout, tokens.device)],
            [m.get_parameter("weight").T for m in self.outputs],
            [m.get_parameter("bias") for m in self.outputs],
            self.strength,
            self.shift,
            self.scale,
            layout=layout,
            projections=self.projections,
            rows=rows,
            base=self.base,
            prior=self.prior,
            blend=self.blend,
            gate_weight=self.gate_weight,
            gate_bias=self.gate_bias,
            read=self.read,
            output=self.output,
        )

    def _reads_all(self, layout: TokenLayout) -> bool:
        return not layout.cross and (self.read == "mean" or max(layout.teachers) == 1)

    def _read(self, layout: TokenLayout, device: torch.device) -> Tensor:
        """Return which tokens are read, int64, in the order of the sequences."""
        copies = layout.teachers if self.read == "mean" else (1,) * layout.groups
        counts = [t * n for n in layout.layout.rows for t in copies]
        first = [start + layout.cross for start in layout.starts[:-1]]
        return torch.cat([torch.arange(a, a + n, device=device) for a, n in zip(first, counts, strict=True)])

    def extra_repr(self) -> str:
        return f"{len(self.layout.layers)} layers, output={self.output!r}, read={self.read!r}"
