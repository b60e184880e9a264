"""How the work of an attention call is cut into programs. Grids follow from shapes: nothing waits for the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wfkernels.attention.triton_arguments import Problem
from wfkernels.attention.triton_configs import Config


class Tiles(NamedTuple):
    """The tiles of a ragged call, longest sequence first."""

    sequence: Tensor  # [slots], -1 where a slot is not used
    tile: Tensor  # [slots]


def launch(kernel: Any, programs: int, config: Config, device: torch.device, **arguments: Any) -> None:
    """Run a kernel on `programs` programs; every launch of this room passes here."""
    # Pinned, so that no version's default decides which products and sums are rounded as one.
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](**arguments, **options)


def schedule(p: Problem, offsets: Tensor | None, tokens: int, size: int, batch_heads: int) -> tuple[Tiles | None, int]:
    """Return the tiles of `size` tokens, and how many programs run them for `batch_heads` heads.

    A dense call has as many tiles in every sequence. A ragged one has at most tokens / size + N of them.
    """
    if offsets is None:
        return None, p.count * batch_heads * -(-tokens // size)
    lengths = offsets.long().diff()
    lengths, order = lengths.sort(descending=True, stable=True)
    tiles = (lengths + (size - 1)) // size
    ends = tiles.cumsum(0)
    slots = torch.arange(tokens // size + p.count, device=offsets.device)
    place = torch.searchsorted(ends, slots, right=True)
    found = place.clamp(max=p.count - 1)
    sequence = torch.where(place < p.count, order[found], -1)
    return Tiles(sequence, slots - (ends - tiles)[found]), slots.numel() * batch_heads


def blocks(config: Config, p: Problem) -> dict[str, int]:
    """Return the sizes of the tiles by the names of the kernels."""
    width, value_width = (max(16, 1 << (n - 1).bit_length()) for n in (p.width, p.value_width))
    return {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_D": width, "BLOCK_V": value_width}
