"""Small layouts with every shape of parameter there is, and teachers for them."""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels.layout import Layer, Parameter, RowLayout


def layer(name: str, rows: int, *shapes: tuple[int, ...]) -> Layer:
    """A layer of `rows` rows in which parameters of these shapes stand side by side."""
    parameters, column = [], 0
    for index, shape in enumerate(shapes):
        numel = torch.Size(shape).numel()
        width = numel // rows if rows else torch.Size(shape[1:]).numel()
        parameters.append(Parameter(f"{name}.{index}", shape, column, width))
        column += width
    return Layer(name, "test", rows, tuple(parameters))


LAYOUTS = {
    "convolution with bias and norm": RowLayout((layer("conv", 5, (5, 3, 3, 3), (5,), (5,), (5,)),)),
    "linear": RowLayout((layer("linear", 7, (7, 16)),)),
    "scalar": RowLayout((layer("scale", 1, ()),)),
    "table and class token": RowLayout((layer("table", 6, (1, 6, 9)), layer("token", 1, (1, 1, 9)))),
    "odd sizes": RowLayout(tuple(layer(f"l{n}", n, (n, 130 - n), (n,)) for n in (1, 3, 17, 65, 127))),
    "empty layers": RowLayout((layer("none", 0, (0, 4)), layer("some", 3, (3, 0), (3, 2)), layer("no", 2, (2, 0)))),
}


def teachers(layout: RowLayout, count: int = 3, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Random contiguous tensors for every parameter of every teacher."""
    return [[torch.randn(p.shape).to(dtype) for p in layout.parameters] for _ in range(count)]


def packed(given: list[list[Tensor]], layout: RowLayout, dtype: torch.dtype) -> Tensor:
    """The rows buffer put together row by row, straight from the definition."""
    pieces = []
    position = 0
    for member in layout.layers:
        for tensors in given:
            parts = tensors[position : position + len(member.parameters)]
            for row in range(member.rows):
                columns = [t.reshape(member.rows, -1)[row].to(dtype) for t in parts]
                pieces += [*columns, torch.zeros(member.stride - member.width, dtype=dtype)]
        position += len(member.parameters)
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=dtype)
