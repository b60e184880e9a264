"""Counter-based random bits in plain integer tensor arithmetic: Philox-4x32-10.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The bits of a place depend
only on the key and on the place itself, so every implementation, block size and thread count drops the same elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of the 64-bit product."""
    # factor - 2^32 lies in (-2^30, 0), so the product keeps below 2^62: exact in int64, without signed overflow.
    product = word * (factor - (1 << 32))
    high = ((product >> 32) + word) & WORD
    low = product & WORD
    return high, low


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Return the four random 32-bit words of Philox-4x32-10.

    counter: four int64 tensors, key: two int64 tensors, each holding 32-bit words and broadcast together. Words that
    agree along a dimension stay unexpanded as long as the rounds let them, which makes the first rounds nearly free.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def keep_mask(
    seed: Tensor,  # [] or [1], int64
    site: int,
    sequence: Tensor,
    head: Tensor,
    row: Tensor,
    column: Tensor,
    p: float,
) -> Tensor:
    """Return which elements dropout keeps, a bool tensor of the broadcast shape of the four int64 coordinates.

    Key = (low word of seed, high word of seed + site), counter = (column, row, head, sequence); an element is kept
    where the first word is at least round(p * 2^32). `site` tells the calls inside one function apart.
    """
    seed = seed.reshape(())
    key = (seed & WORD, ((seed >> 32) + site) & WORD)
    counter = (column & WORD, row & WORD, head & WORD, sequence & WORD)
    first = philox(counter, key)[0]
    shape = torch.broadcast_shapes(sequence.shape, head.shape, row.shape, column.shape)
    return (first >= round(p * 2**32)).broadcast_to(shape)
