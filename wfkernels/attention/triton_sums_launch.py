"""The launches that add up the gradients of bias, gate and tables."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.attention import triton_schedule as work
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable
from wfkernels.attention.triton_arguments import Problem
from wfkernels.gpu import Config

# Sums are split until there are about so many programs: a few for every multiprocessor of the largest GPU.
PROGRAMS = 512
# Entries of a table that one program counts; a larger table is counted in several launches.
MOST_ENTRIES = 1024


def _splits(programs: int, shares: int) -> int:
    """Return into how many parts to split a sum over `shares`."""
    return max(1, min(shares, PROGRAMS // max(1, programs)))


def of_dense(
    p: Problem, arguments: Arguments, term: Tensor, query: Tensor, of_gate: bool, read: dict[str, Any]
) -> Tensor:
    """Return the gradient of a dense bias or gate, summed over every dimension along which it was broadcast."""
    return work.tuned("terms", p, lambda config: _of_dense(p, config, arguments, term, query, of_gate, read))


def of_table(p: Problem, arguments: Arguments, bucket: BucketTable, of_gate: bool, read: dict[str, Any]) -> Tensor:
    """Return the gradient of a table: every program counts its pairs by entry, then all programs are added up."""
    return work.tuned("tables", p, lambda config: _of_table(p, config, arguments, bucket, of_gate, read))


def _of_dense(
    p: Problem, config: Config, arguments: Arguments, term: Tensor, query: Tensor, of_gate: bool, read: dict[str, Any]
) -> Tensor:
    from wfkernels.attention.triton_sums import _attention_backward_dense_term_kernel

    device = term.device
    sum_rows = sum_columns = False
    lead: tuple[int, ...]
    shape: tuple[int, ...]
    if p.form.is_ragged:
        # Every sequence reads the top-left corner; no sequence reaches beyond max_length.
        rows = columns = min(arguments.max_length, term.shape[1])
        lead, shape = (p.count, p.heads), (1, term.shape[0])
    else:
        rows, columns = p.queries, p.keys
        lead = (*query.shape[:-3], p.heads)
        full = (1,) * (len(lead) + 2 - term.ndim) + tuple(term.shape)
        shape = full[:-2]
        sum_rows, sum_columns = full[-2] < rows, full[-1] < columns
    pairs = _pairs(lead, shape, device)
    owners, shares = pairs.shape
    row_tiles, column_tiles = -(-rows // config.block_m), -(-columns // config.block_n)
    programs = row_tiles * column_tiles * owners
    splits = _splits(programs, shares)
    height, breadth = row_tiles if sum_rows else rows, column_tiles if sum_columns else columns
    whole = splits == 1 and not (sum_rows or sum_columns)
    sums = torch.empty((splits, owners, height, breadth), dtype=term.dtype if whole else torch.float32, device=device)
    gpu.launch(
        _attention_backward_dense_term_kernel,
        programs * splits,
        config,
        device,
        **read,
        pairs=pairs,
        sums=sums,
        rows=rows,
        columns=columns,
        shares=shares,
        splits=splits,
        OF_GATE=of_gate,
        SUM_ROWS=sum_rows,
        SUM_COLUMNS=sum_columns,
        **p.scalars(),
        **work.blocks(config, p),
    )
    if not whole:
        summed = [0] + [2] * sum_rows + [3] * sum_columns
        sums = sums.sum(summed, keepdim=True).to(term.dtype)
    if not p.form.is_ragged:
        return sums.view(term.shape)
    corner = sums[0]  # [H|1, rows, columns]
    if corner.shape == term.shape:
        return corner
    gradient = term.new_zeros(term.shape)
    gradient[:, :rows, :columns] = corner
    return gradient


def _of_table(
    p: Problem, config: Config, arguments: Arguments, bucket: BucketTable, of_gate: bool, read: dict[str, Any]
) -> Tensor:
    from wfkernels.attention.triton_sums import _attention_backward_table_kernel

    table = bucket.table
    device = table.device
    owners, entries = table.shape[0], table[0].numel()
    tiles, slots = work.schedule(p, arguments.offsets, p.queries, config.block_m, 1)
    if p.form.is_ragged:
        pairs = torch.arange(p.heads, dtype=torch.int32, device=device).view(owners, -1)
    else:
        slots = -(-p.queries // config.block_m)
        pairs = _pairs((p.count, p.heads), (1, owners), device)
    shares = pairs.shape[1]
    splits = 1 if p.form.is_ragged else _splits(slots * owners, shares)
    if not p.form.is_ragged and p.sequences.start_stride:
        splits = shares  # rows, and so buckets, differ from one batch entry to the next
    sums = torch.empty((slots * splits, owners, entries), dtype=torch.float32, device=device)
    size = min(MOST_ENTRIES, max(16, 1 << (entries - 1).bit_length()))
    for first in range(0, entries, size):
        gpu.launch(
            _attention_backward_table_kernel,
            slots * splits * owners,
            config,
            device,
            **read,
            pairs=pairs,
            sums=sums,
            tiles=tiles,
            owners=owners,
            shares=shares,
            splits=splits,
            entries=entries,
            first=first,
            OF_GATE=of_gate,
            BLOCK_E=size,
            **p.scalars(),
            **work.blocks(config, p),
        )
    # One entry may hold every pair: float64, as in the other implementations.
    return sums.sum(0, dtype=torch.float64).view(table.shape).to(table.dtype)


def _pairs(lead: tuple[int, ...], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return [owners, shares] int32: the pairs of batch entry and head, flattened, that share an entry of `shape`.

    lead: all leading dimensions and the heads; shape: those of the bias, 1 where it is broadcast.
    """
    own = [i for i, n in enumerate(shape) if n > 1]
    shared = [i for i, n in enumerate(shape) if n == 1]
    owners = math.prod(lead[i] for i in own)
    pairs = torch.arange(math.prod(lead), dtype=torch.int32, device=device).view(lead)
    return pairs.permute(*own, *shared).reshape(owners, -1).contiguous()
