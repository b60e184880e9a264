"""The library op wfkernels::predict_indices: which token is what, as index tensors.

It exists for torch.compile, which sees one node whose sizes follow from symbolic lengths; eager calls keep its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from wfkernels.layout import starts


def build(
    rows: Sequence[int],  # [layers]
    teachers: Sequence[int],  # [groups]
    cross: int,
    anchor: bool,
    keep_cross: bool,
    device: torch.device,
) -> list[Tensor]:
    """Return the fields of `plan.Indices` for sequences of `cross` tokens and then T * n rows.

    The last block computes the first teacher's rows (`anchor`) or all rows, and with `keep_cross` the cross tokens.
    """
    spans = [(n, t) for n in rows for t in teachers]
    first = starts([cross + t * n for n, t in spans])
    head = cross if keep_cross else 0
    read = [head + (n if anchor else t * n) for n, t in spans]
    read_first = starts(read)

    def tokens(ranges: list[tuple[int, int]]) -> Tensor:
        return torch.cat([torch.arange(start, end, device="cpu") for start, end in ranges])

    def integers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device="cpu")

    group, segment, position = [], [], []
    heads, own = torch.arange(cross, device="cpu"), torch.zeros(cross, dtype=torch.int64, device="cpu")
    for n, t in spans:
        group += [own, torch.ones(t * n, dtype=torch.int64, device="cpu")]
        segment += [own, torch.arange(1, t + 1, device="cpu").repeat_interleave(n)]
        position += [heads, torch.arange(n, device="cpu").repeat(t)]
    by_group = integers(first[:-1]).view(len(rows), len(teachers)).T
    depth = torch.arange(len(rows), device="cpu").repeat_interleave(cross)
    never = torch.full((depth.numel(), depth.numel()), float("-inf"), device="cpu")
    built = [
        integers(first),
        tokens([(start + cross - head, start + cross - head + n) for start, n in zip(first, read, strict=False)]),
        integers(read_first),
        integers([cross - head] * len(spans)),
        tokens([(start + head, end) for start, end in pairwise(read_first)]),
        tokens([(start, start + head) for start in read_first[:-1]]),
        (by_group[..., None] + heads).flatten(1).contiguous(),
        never.masked_fill(depth[:, None] > depth, 0.0),
        torch.cat(group),
        torch.cat(segment),
        torch.cat(position),
    ]
    return [t.to(device) for t in built]


@torch.library.custom_op(
    "wfkernels::predict_indices",
    mutates_args=(),
    schema="(SymInt[] rows, SymInt[] teachers, SymInt cross, bool anchor, bool keep_cross, Device device) -> Tensor[]",
)
def predict_indices(
    rows: Sequence[int],
    teachers: Sequence[int],
    cross: int,
    anchor: bool,
    keep_cross: bool,
    device: torch.device,
) -> list[Tensor]:
    return build(rows, teachers, cross, anchor, keep_cross, device)


@predict_indices.register_fake
def _(
    rows: Sequence[int],
    teachers: Sequence[int],
    cross: int,
    anchor: bool,
    keep_cross: bool,
    device: torch.device,
) -> list[Tensor]:
    layers, groups = len(rows), len(teachers)
    sequences, crosses = layers * groups, layers * groups * cross
    total = sum(rows) * sum(teachers) + crosses
    read = sum(rows) * (groups if anchor else sum(teachers))
    kept = crosses if keep_cross else 0

    def integers(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, device=device)

    return [
        integers(sequences + 1),
        integers(read + kept),
        integers(sequences + 1),
        integers(sequences),
        integers(read),
        integers(kept),
        integers(groups, layers * cross),
        torch.empty(layers * cross, layers * cross, device=device),
        *(integers(total) for _ in range(3)),
    ]
