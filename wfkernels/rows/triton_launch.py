"""The Triton implementation of rows_pack on NVIDIA GPUs: when it can run, and its launches.

Tensors are found through a table of their addresses, so that one launch serves all of them, whatever their dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.cached import kept
from wfkernels.gpu import Config
from wfkernels.layout import ALIGNMENT, aligned, starts
from wfkernels.rows import reference

KEPT = 64  # calls whose tables stay on the device


class Tables(NamedTuple):
    """What follows from the integers of a call, int64."""

    tiles: Tensor  # [programs, 3]: layer, teacher, first group of 8 columns
    layers: Tensor  # [layers, 5]: first element in the buffer, rows, groups of a row, first parameter, last and one
    parameters: Tensor  # [parameters, 2]: first column, width


# What a tile's table says of a layer: first element, rows, groups of a row, first parameter, last and one.
Layer = tuple[int, int, int, int, int]


def why_not(tensors: Sequence[Tensor], rows: Any, parameters: Any, widths: Any, dtype: torch.dtype) -> str | None:
    """Return why the call cannot run in Triton, None where it can."""
    reason = gpu.why_not(*tensors)
    if reason is None and dtype not in gpu.DTYPES:
        return f"it writes float32, float16 and bfloat16, not {dtype}"
    return reason


def why_not_backward(grad: Tensor, *rest: Any) -> str | None:
    return gpu.why_not(grad)


def forward(
    tensors: Sequence[Tensor],  # teachers * parameters, teacher by teacher
    rows: Sequence[int],  # [layers]
    parameters: Sequence[int],  # [layers], how many parameters stand side by side in a row
    widths: Sequence[int],  # [parameters]
    dtype: torch.dtype,
) -> Tensor:  # [teachers * row_numel]
    """Return the rows buffer as wfkernels.rows.reference does."""
    teachers = len(tensors) // len(widths)
    out = tensors[0].new_empty(teachers * reference.row_numel(rows, parameters, widths), dtype=dtype)
    counts = [n for n, count in zip(rows, parameters, strict=True) for _ in range(count)]
    # They live until the launch.
    given = [_blocks(t, n, width) for t, n, width in zip(tensors, teachers * counts, teachers * [*widths], strict=True)]
    _launch("pack", out, given, teachers, rows, parameters, widths)
    return out


def backward(
    grad: Tensor,  # [teachers * row_numel]
    teachers: int,
    rows: Sequence[int],
    parameters: Sequence[int],
    widths: Sequence[int],
    needed: Sequence[bool],  # [teachers * parameters]
) -> list[Tensor]:  # for every tensor [n, width] in the dtype of grad, or [0] where it is not needed
    """Return the gradients as wfkernels.rows.reference does."""
    counts = [n for n, count in zip(rows, parameters, strict=True) for _ in range(count)]
    shapes = teachers * [*zip(counts, widths, strict=True)]
    grads = [grad.new_empty(shape if need else 0) for shape, need in zip(shapes, needed, strict=True)]
    if any(needed):
        _launch("pack_backward", grad.contiguous(), grads, teachers, rows, parameters, widths)
    return grads


def _launch(
    name: str,
    buffer: Tensor,
    tensors: Sequence[Tensor],  # [rows, width], or blocks of it
    teachers: int,
    rows: Sequence[int],
    parameters: Sequence[int],
    widths: Sequence[int],
) -> None:
    if buffer.numel() == 0:
        return
    from wfkernels.rows import triton_kernels

    starts_of = [start for layer in _layers_of(parameters, widths) for start in starts(layer)[:-1]]
    anchor = _anchor(buffer.device)
    numbers = tuple(n for t, start in zip(tensors, teachers * starts_of, strict=True) for n in _entry(t, start, anchor))
    anchors = {"anchor": anchor.view(buffer.dtype)}
    if name == "pack":
        anchors = {str(dtype).removeprefix("torch."): anchor.view(dtype) for dtype in gpu.DTYPES}

    def step(config: Config) -> None:
        tables = _tables(tuple(rows), tuple(parameters), tuple(widths), teachers, config.block_m, buffer.device)
        gpu.launch(
            getattr(triton_kernels, f"_rows_{name}_kernel"),
            tables.tiles.shape[0],
            config,
            buffer.device,
            tensors=_on_device(numbers, buffer.device),
            buffer=buffer,
            count=len(widths),
            BLOCK_M=config.block_m,
            **anchors,
            **tables._asdict(),
        )

    gpu.tuned(f"rows_{name}", buffer.device, 0, 8 * buffer.element_size(), step)


def _blocks(tensor: Tensor, rows: int, width: int) -> Tensor:
    """Return the rows of a tensor as blocks of columns, [rows, blocks, size], as a view where its strides allow one.

    A tensor in torch.channels_last has a block for every channel; most others have one. What has neither is copied.
    """
    inner = tensor[0, 0].numel() if tensor.ndim > 1 and tensor.shape[0] == rows and tensor.numel() else width
    for size in (width, inner):
        try:
            return tensor.view(rows, width // max(1, size), size)
        except RuntimeError:
            continue
    return tensor.contiguous().view(rows, 1, width)


def _layers_of(parameters: Sequence[int], widths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the widths of every layer's parameters."""
    rest = iter(widths)
    return (list(islice(rest, count)) for count in parameters)


def _entry(tensor: Tensor, start: int, anchor: Tensor) -> tuple[int, int, int, int, int, int]:
    """Return place, stride of rows, of blocks, their size, stride of columns, and kind: how to read.

    The kind of a tensor without elements is -1. start: its first column in the buffer.
    """
    if tensor.numel() == 0:
        return 0, 0, 0, 1, 0, -1
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(1)
    # All memory begins at a multiple of the size of its elements.
    place = (tensor.data_ptr() - anchor.data_ptr()) // tensor.element_size()
    kind = gpu.DTYPES.index(tensor.dtype)
    rows, blocks, size = tensor.shape
    across, outer, along = tensor.stride()
    numbers = (place, start, size, across if rows > 1 else 0)
    if blocks > 1 or along != 1 or any(n % ALIGNMENT for n in numbers):
        kind += len(gpu.DTYPES)
    return place, across, outer, size, along, kind


@lru_cache
def _anchor(device: torch.device) -> Tensor:
    """Return memory from which the places of all tensors are counted."""
    return torch.empty(16, dtype=torch.uint8, device=device)


@kept(KEPT)
def _tables(
    rows: tuple[int, ...],
    parameters: tuple[int, ...],
    widths: tuple[int, ...],
    teachers: int,
    block_m: int,
    device: torch.device,
) -> Tables:
    first = starts(parameters)
    layers: list[Layer] = []
    tiles: list[tuple[int, int, int]] = []
    columns: list[tuple[int, int]] = []
    begin = 0
    for i, (n, own) in enumerate(zip(rows, _layers_of(parameters, widths), strict=True)):
        stride = aligned(sum(own))
        across = stride // ALIGNMENT
        layers.append((begin, n, across, first[i], first[i + 1]))
        tiles += [(i, t, group) for t in range(teachers) for group in range(0, n * across, block_m)]
        columns += zip(starts(own)[:-1], own, strict=True)
        begin += teachers * n * stride
    return Tables(*(torch.tensor(table, device=device) for table in (tiles, layers, columns)))


def _on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return numbers as an int64 tensor; nothing waits for it."""
    if device.type != "cuda":
        return torch.tensor(numbers)
    if not torch.cuda.is_current_stream_capturing():
        # What another stream copied may not be there yet.
        return _kept(numbers, device, torch.cuda.current_stream(device).cuda_stream)
    # A graph copies from here whenever it is replayed, and until then its table holds nothing.
    _captured.append(torch.tensor(numbers).pin_memory())
    return _captured[-1].to(device, non_blocking=True)


_captured: list[Tensor] = []


@lru_cache(KEPT)
def _kept(numbers: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return torch.tensor(numbers).pin_memory().to(device, non_blocking=True)
