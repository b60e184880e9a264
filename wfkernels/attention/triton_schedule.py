"""How the work of an attention call is cut into programs. Grids follow from shapes: nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.attention.triton_arguments import Problem
from wfkernels.gpu import Config

T = TypeVar("T")
# A program of the schedule: sequences that it reads at a time, no columns, 4 warps, 1 stage.
SCHEDULE = Config(512, 0, 0, 4, 1)
MOST_SEQUENCES = 4096


class Tiles(NamedTuple):
    """The tiles of a ragged call, longest sequence first."""

    sequence: Tensor  # [slots], -1 where a slot is not used
    tile: Tensor  # [slots]


def schedule(p: Problem, offsets: Tensor | None, tokens: int, size: int, batch_heads: int) -> tuple[Tiles | None, int]:
    """Return the tiles of `size` tokens, and how many programs run them for `batch_heads` heads.

    A dense call has as many tiles in every sequence. A ragged one has at most tokens / size + N of them.
    """
    if offsets is None:
        return None, p.count * batch_heads * -(-tokens // size)
    slots = tokens // size + p.count
    found = _found(offsets, slots, size) if p.count <= MOST_SEQUENCES else by_sorting(offsets, slots, size)
    return found, slots * batch_heads


def _found(offsets: Tensor, slots: int, size: int) -> Tiles:
    from wfkernels.attention.triton_tiles import _attention_tiles_kernel

    sequence, tile = (torch.empty(slots, dtype=torch.int64, device=offsets.device) for _ in range(2))
    count = offsets.numel() - 1
    gpu.launch(
        _attention_tiles_kernel,
        count + 1,
        SCHEDULE,
        offsets.device,
        offsets=offsets.contiguous(),
        sequences=sequence,
        tiles=tile,
        count=count,
        slots=slots,
        SIZE=size,
        BLOCK=SCHEDULE.block_m,
    )
    return Tiles(sequence, tile)


def by_sorting(offsets: Tensor, slots: int, size: int) -> Tiles:
    """Return the same as one launch finds, in a dozen, for so many sequences that their square counts."""
    lengths = offsets.long().diff()
    count = lengths.numel()
    lengths, order = lengths.sort(descending=True, stable=True)
    tiles = (lengths + (size - 1)) // size
    ends = tiles.cumsum(0)
    slot = torch.arange(slots, device=offsets.device)
    place = torch.searchsorted(ends, slot, right=True)
    found = place.clamp(max=count - 1)
    sequence = torch.where(place < count, order[found], -1)
    return Tiles(sequence, slot - (ends - tiles)[found])


def blocks(config: Config, p: Problem) -> dict[str, int]:
    """Return the sizes of the tiles by the names of the kernels."""
    width, value_width = (max(16, 1 << (n - 1).bit_length()) for n in (p.width, p.value_width))
    return {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_D": width, "BLOCK_V": value_width}


def tuned(kernel: str, p: Problem, step: Callable[[Config], T], heavy: bool = False) -> T:
    """Run a step with the config of a kernel of this room."""
    name = f"attention_{kernel}{'_heavy' if heavy else ''}"
    return gpu.tuned(name, p.device, max(p.width, p.value_width), p.bits, step)
