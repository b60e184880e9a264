"""Rows of weights as tokens: the parameters of `wfkernels.embedding` in a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wfkernels import check
from wfkernels.activation import ACTIVATIONS
from wfkernels.embedding.api import embedding
from wfkernels.layout import RowLayout
from wfkernels.nn.common import at_least, group_widths, projection_groups, row_layout

OP = "WeightTokenEmbedding"


class WeightTokenEmbedding(nn.Module):
    """Turns the rows that `wfkernels.pack` writes into tokens [tokens, width] (arXiv 2210.01973, section 3.1).

    Parameters and buffers have the names and shapes that they have in `weightformer.WeightFormer`.

    Args:
        layout: the rows of the architecture.
        width: of a token, d.
        activation: "none", "relu" or "gelu", on the product of a row.
        cross_tokens: tokens in front of every sequence that carry no row; their first values are learned.
        max_teachers: codes for so many teachers of a group and the cross tokens; 0 for none, then teachers are
            interchangeable.
        positions: "shared" gives row j one code in all layers, "layer" one per layer.
        share_projections: layers of one kind and width share their product.
        center: rows [row_numel] that are subtracted from every teacher's, a common ancestor's for example: tokens are
            then task vectors.

    Raises:
        TypeError, ValueError: a setting that is none of these.
    """

    shift: Tensor
    scale: Tensor
    center: Tensor | None

    def __init__(
        self,
        layout: RowLayout,
        width: int,
        *,
        activation: str = "none",
        cross_tokens: int = 0,
        max_teachers: int = 0,
        positions: str = "shared",
        share_projections: bool = False,
        center: Tensor | None = None,  # [row_numel]
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        row_layout(OP, layout)
        at_least(OP, 1, width=width)
        at_least(OP, 0, cross_tokens=cross_tokens, max_teachers=max_teachers)
        check.one_of(OP, "activation", activation, ACTIVATIONS)
        check.one_of(OP, "positions", positions, ("shared", "layer"))
        if center is not None:
            check.floating(OP, center=center)
            check.shape(OP, "center", center, (layout.row_numel,))
        self.layout, self.activation = layout, activation
        self.cross_tokens, self.max_teachers = cross_tokens, max_teachers
        self.projections = projection_groups(layout, share_projections)
        per_layer = positions == "layer"
        layers = len(layout.layers)
        self.positions = tuple(sum(layout.rows[:i]) if per_layer else 0 for i in range(layers))

        def code(count: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(count, width, device=device, dtype=dtype) * 0.5)

        self.embeddings = nn.ModuleList(
            nn.Linear(w, width, device=device, dtype=dtype) for w in group_widths(layout, self.projections)
        )
        self.position = code(sum(layout.rows) if per_layer else max(layout.rows))
        self.teacher = code(max_teachers + 1) if max_teachers else None
        self.layer = code(layers)
        self.cross = code(cross_tokens) if cross_tokens else None
        self.norm = nn.LayerNorm(width, eps=eps, device=device, dtype=dtype)
        self.register_buffer("shift", torch.zeros(layout.column_numel, device=device, dtype=dtype))
        self.register_buffer("scale", torch.ones(layout.column_numel, device=device, dtype=dtype))
        self.register_buffer("center", None if center is None else center.detach().clone().to(device, dtype))

    def tensors(self) -> dict[str, Any]:
        """Return parameters and buffers under their names in `wfkernels.Parameters`."""
        return {
            "embedding_weights": [m.get_parameter("weight").T for m in self.embeddings],
            "embedding_biases": torch.stack([m.get_parameter("bias") for m in self.embeddings]),
            "shift": self.shift,
            "scale": self.scale,
            "position": self.position,
            "gamma": self.norm.weight,
            "beta": self.norm.bias,
            "teacher": self.teacher,
            "layer": self.layer,
            "cross": self.cross,
            "center": self.center,
        }

    def forward(self, rows: Tensor, teachers: Sequence[int]) -> Tensor:
        """Return the tokens of groups of teachers, [self.layout.tokens(teachers, cross_tokens).total, width].

        rows: [sum(teachers) * row_numel] as `wfkernels.pack` gives them; teachers: how many every group has.
        """
        if self.max_teachers and max(teachers, default=0) > self.max_teachers:
            raise ValueError(
                f"{OP}: teachers: expected at most {self.max_teachers} (max_teachers), got {max(teachers)}"
            )
        layout = self.layout.tokens(teachers, self.cross_tokens)
        given = self.tensors()
        cross = None if self.cross is None else self.cross.expand(len(layout.lengths), -1, -1)
        return embedding(
            rows,
            given["embedding_weights"],
            given["embedding_biases"],
            self.shift,
            self.scale,
            self.position,
            self.norm.weight,
            self.norm.bias,
            layout=layout,
            projections=self.projections,
            positions=self.positions,
            base=self.center,
            teacher=self.teacher,
            layer=self.layer,
            cross=cross,
            activation=self.activation,
            eps=self.norm.eps,
        )

    def extra_repr(self) -> str:
        kind = f"{len(self.layout.layers)} layers, width={self.position.shape[1]}, activation={self.activation!r}"
        return f"{kind}, cross_tokens={self.cross_tokens}, max_teachers={self.max_teachers}"
