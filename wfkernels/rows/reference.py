"""rows_pack in plain PyTorch: the definition of correct."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from wfkernels.layout import aligned


def row_numel(rows: Sequence[int], parameters: Sequence[int], widths: Sequence[int]) -> int:
    """Return the elements that one teacher's rows take, padding included."""
    rest = iter(widths)
    return sum(n * aligned(sum(islice(rest, count))) for n, count in zip(rows, parameters, strict=True))


def _places(
    buffer: Tensor,  # [teachers * row_numel]
    teachers: int,
    rows: Sequence[int],
    parameters: Sequence[int],
    widths: Sequence[int],
) -> Iterator[Tensor]:
    """Yield, parameter by parameter, its place [teachers, n, width] in the buffer, as a view."""
    begin = first = 0
    for n, count in zip(rows, parameters, strict=True):
        columns = widths[first : first + count]
        stride = aligned(sum(columns))
        block = buffer.narrow(0, begin, teachers * n * stride).view(teachers, n, stride)
        yield from block.split([*columns, stride - sum(columns)], dim=-1)[:-1]
        begin += teachers * n * stride
        first += count


def forward(
    tensors: Sequence[Tensor],  # teachers * parameters, teacher by teacher
    rows: Sequence[int],  # [layers]
    parameters: Sequence[int],  # [layers], how many parameters stand side by side in a row
    widths: Sequence[int],  # [parameters]
    dtype: torch.dtype,
) -> Tensor:  # [teachers * row_numel]
    teachers = len(tensors) // len(widths)
    out = tensors[0].new_zeros(teachers * row_numel(rows, parameters, widths), dtype=dtype)
    for index, place in enumerate(_places(out, teachers, rows, parameters, widths)):
        for target, tensor in zip(place, tensors[index :: len(widths)], strict=True):
            target.copy_(tensor.reshape(target.shape))
    return out


def backward(
    grad: Tensor,  # [teachers * row_numel]
    teachers: int,
    rows: Sequence[int],
    parameters: Sequence[int],
    widths: Sequence[int],
    needed: Sequence[bool],  # [teachers * parameters]
) -> list[Tensor]:  # for every tensor [n, width] in the dtype of grad, or [0] where it is not needed
    grads = [grad.new_empty(0) for _ in needed]
    for index, place in enumerate(_places(grad, teachers, rows, parameters, widths)):
        for teacher in range(teachers):
            position = teacher * len(widths) + index
            if needed[position]:
                grads[position] = place[teacher].clone(memory_format=torch.contiguous_format)
    return grads
