"""Relative position bias over a window of tokens as a BucketTable.

A window of Wh x Ww tokens has one entry for each of the E = (2 Wh - 1)(2 Ww - 1) offsets (dy, dx) between a query and a
key, stored at (dy + Wh - 1)(2 Ww - 1) + dx + Ww - 1. With position = y (2 Ww - 1) + x that index is the difference of
the positions plus R, R = (E - 1) / 2, so that the lookup is 0, 1, 2, ... and no tokens x tokens tensor is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels.attention.bucket import BucketTable, pair_index


def from_index(
    entries: Tensor,  # [H, E], or [H, E + 3] with a class token
    index: Tensor,  # [S, S] or [S * S], int64: which entry a pair of tokens has
    class_token: bool = False,
) -> BucketTable:
    """Return entries[:, index] in buckets, where `index` is the one that Swin, BEiT and timm's RelPosBias build.

    With a class token, token 0, the last three entries are for class to token, token to class and class to class.
    """
    tokens = int(index.numel() ** 0.5)
    index = index.view(tokens, tokens)
    if not class_token:
        # A column of the index is the position of each query, up to a shift that the difference does not see.
        return over_offsets(entries, index[:, 0])
    size = entries.shape[1] - 3
    position = index[:, 1]
    # The class token's row holds E there, which is its place behind the offsets: it makes a group of its own.
    return with_group(entries[:, :size], position, position // size, entries[:, size:])


def over_offsets(
    entries: Tensor,  # [H, E]
    position: Tensor,  # [S], integer
    reverse: bool = False,
) -> BucketTable:
    """Return the buckets of a window without a class token; `reverse` where offsets are key minus query."""
    lookup = torch.arange(entries.shape[1], device=entries.device)
    return BucketTable(entries[:, None, None, None], lookup.flip(0) if reverse else lookup, position=position)


def with_group(
    entries: Tensor,  # [H, E]
    position: Tensor,  # [S], integer
    group: Tensor,  # [S], integer: 0, or 1 for tokens outside of the window
    outside: Tensor,  # [H, 3]: for pairs (outside, window), (window, outside), (outside, outside)
) -> BucketTable:
    """Return the buckets of a window together with tokens outside of it, for which offsets mean nothing."""
    heads, size = entries.shape
    to_window, from_window, between = (entry.expand(heads, size) for entry in outside.split(1, dim=1))
    table = torch.stack([entries, from_window, to_window, between], 1).view(heads, 2, 2, 1, size)
    return BucketTable(table, torch.arange(size, device=entries.device), group=group, position=position)


def positions(window: tuple[int, int], device: torch.device) -> Tensor:
    """Return the position of every token of a window, row by row: int64 [Wh * Ww]."""
    height, width = window
    rows, columns = (torch.arange(size, device=device) for size in window)
    return (rows.unsqueeze(1) * (2 * width - 1) + columns).flatten()


def expand(
    bucket: BucketTable,  # without segments
    tokens: int,
) -> Tensor:
    """Return the dense bias [H, tokens, tokens] of a table, for what cannot stay one; gradients reach the table."""
    rows = torch.arange(tokens, device=bucket.table.device)
    return bucket.table.flatten(1)[:, pair_index(bucket, rows, rows)]


def index_obstacle(
    index: Tensor,  # [S, S] or [S * S]
    entries: int,
    class_token: bool = False,
) -> str | None:
    """Return why a module's index is not the one that `from_index` relies on, None where it is."""
    if index.is_meta:  # it has no values yet
        return None
    numbers = torch.arange(entries, device=index.device, dtype=torch.float64).unsqueeze(0)
    tokens = int(index.numel() ** 0.5)
    found = expand(from_index(numbers, index, class_token), tokens)
    same = torch.equal(found, index.view(1, tokens, tokens).to(found.dtype))
    return None if same else "relative_position_index is not the one that its class builds"
