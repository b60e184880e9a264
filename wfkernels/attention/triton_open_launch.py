"""When the walks of attention skip closed tiles, and the launch that lists the open ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.attention.triton_arguments import DenseTerm, Problem, TableTerm
from wfkernels.gpu import Config

# A walk of fewer tiles is not worth a look.
FEWEST_TILES = 4
# Pairs of batch entry and head that read the same bias, from which on a look at it costs little beside reading it.
SHARED = 8
WARPS, STAGES = 8, 1


class Entries(NamedTuple):
    """A dense term that has an entry per pair. No field is None: Triton 3.6 cannot ask whether such a tuple is."""

    data: Tensor
    batch: int
    head: int
    row: int
    column: int


class Walk(NamedTuple):
    """The open tiles of every tile of an owner: of a head and batch entry, or of all that share its terms."""

    places: Tensor  # [owners, tiles, others + 1] int32: the open tiles, in their order
    before: Tensor  # [owners, tiles, others + 1] int32: how many of the first k tiles are open
    batch: int  # owners from one sequence to the next
    head: int
    tiles: int
    stride: int


def walk(p: Problem, config: Config, of_keys: bool = False) -> Walk | None:
    """Return what the walks of a kernel with these tiles go over, None where they go over all.

    of_keys: tiles of rows for every tile of columns, else tiles of columns for every tile of rows.
    """
    bias, gate = _looked_at(p)
    given = [term for term in (bias, gate) if term is not None]
    if not given:
        return None
    # A ragged call's terms count the rows of the longest sequence.
    rows, columns = p.queries, p.keys
    if p.form.is_ragged:
        rows, columns = (min(term.data.shape[side] for term in given) for side in (1, 2))
    tiles, others = -(-rows // config.block_m), -(-columns // config.block_n)
    tiles, others = (others, tiles) if of_keys else (tiles, others)
    if others < FEWEST_TILES:
        return None
    from wfkernels.attention.triton_open import _attention_open_tiles_kernel

    batches = p.count if any(term.batch for term in given) else 1
    heads = p.heads if any(term.head for term in given) else 1
    places, before = given[0].data.new_empty(2, batches * heads, tiles, others + 1, dtype=torch.int32)
    gpu.launch(
        _attention_open_tiles_kernel,
        batches * heads * tiles,
        config._replace(warps=WARPS, stages=STAGES),
        p.device,
        bias=bias,
        gate=gate,
        places=places,
        before=before,
        rows=rows,
        columns=columns,
        heads=heads,
        OF_KEYS=of_keys,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
    )
    return Walk(places, before, heads if batches > 1 else 0, int(heads > 1), tiles, others + 1)


def _looked_at(p: Problem) -> tuple[Entries | None, Entries | None]:
    """Return the bias and the gate whose entries say which tiles are closed, None where nobody looks."""
    bias, gate = (_with_pairs(p, term) for term in (p.bias, p.gate))
    if bias is not None:
        owners = (p.count if bias.batch else 1) * (p.heads if bias.head else 1)
        bias = bias if p.count * p.heads >= SHARED * owners else None
    return bias, gate


def _with_pairs(p: Problem, term: DenseTerm | TableTerm | None) -> Entries | None:
    """Return a term that has an entry per pair, in the same place for every sequence or at an even distance."""
    if not isinstance(term, DenseTerm) or term.places is not None or 0 in (term.row, term.column):
        return None
    # Sequences of a ragged call that begin at rows of their own have tiles of their own.
    if p.form.is_ragged and p.sequences.query_start is not None:
        return None
    return Entries(term.data, term.batch, term.head, term.row, term.column)
