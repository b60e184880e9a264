"""Models that must lose if a WeightFormer reads its teachers: they are trained like it, but ignore what it may read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightformer.model import StudentModel
from weightformer.rows import tensors
from weightformer.state import State
from wfkernels.layout import RowLayout


class ConstantStudent(StudentModel):
    """One learned student for every group of teachers, from a given start."""

    def __init__(self, layout: RowLayout, start: State) -> None:
        super().__init__(layout)
        self.names = [p.name for p in layout.parameters]
        self.weights = nn.ParameterList(t.detach().clone() for t in tensors(start, layout))

    def forward(self, rows: Tensor, teachers: Sequence[int]) -> list[dict[str, Tensor]]:
        student = dict(zip(self.names, self.weights, strict=True))
        student.update({alias: student[name] for alias, name in self.layout.tied})
        return [student for _ in teachers]


class MeanAndDelta(StudentModel):
    """The mean of the teachers with one learned factor and one learned difference per weight, the same for all groups.

    The classifier layer `head` is the mean as it is, because the order of the classes is not to be known.
    """

    def __init__(self, layout: RowLayout, head: int) -> None:
        super().__init__(layout)
        self.head = head
        self.factors = nn.ParameterList(torch.ones(n, w) for n, w in zip(layout.rows, layout.widths, strict=True))
        self.deltas = nn.ParameterList(torch.zeros(n, w) for n, w in zip(layout.rows, layout.widths, strict=True))

    def forward(self, rows: Tensor, teachers: Sequence[int]) -> list[dict[str, Tensor]]:
        blocks = self.layout.row_blocks(rows, sum(teachers))
        students: list[dict[str, Tensor]] = []
        first = 0
        for t in teachers:
            student: dict[str, Tensor] = {}
            for i, (layer, block) in enumerate(zip(self.layout.layers, blocks, strict=True)):
                value = block[first * layer.rows : (first + t) * layer.rows].reshape(t, layer.rows, -1).mean(0)
                if i != self.head:
                    value = value * self.factors[i] + self.deltas[i]
                for p in layer.parameters:
                    student[p.name] = value[:, p.start : p.start + p.width].reshape(p.shape)
            student.update({alias: student[name] for alias, name in self.layout.tied})
            students.append(student)
            first += t
        return students


def names_of(layout: RowLayout, layers: Sequence[int]) -> set[str]:
    """Return every name of the parameters of some layers, those of tied parameters included."""
    names = {p.name for i in layers for p in layout.layers[i].parameters}
    return names | {alias for alias, name in layout.tied if name in names}


def with_layer_of(state: State, other: State, layout: RowLayout, layers: Sequence[int]) -> dict[str, Tensor]:
    """Return `state` with the parameters of some layers taken from `other`."""
    names = names_of(layout, layers)
    return {name: (other if name in names else state)[name] for name in state}


def in_order(state: State, layout: RowLayout, head: int, order: Tensor) -> dict[str, Tensor]:
    """Return `state` with the rows of the classifier layer in the given order of classes [classes]."""
    names = names_of(layout, [head])
    return {name: tensor[order] if name in names else tensor for name, tensor in state.items()}
