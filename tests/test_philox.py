"""Philox-4x32-10: the published known answers, and the mask made of its words."""

from __future__ import annotations

import pytest
import torch

from wfkernels.philox import keep_mask, philox

# Random123 (D. E. Shaw Research), kat_vectors, "philox4x32 10": counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    found = philox(words(counter), words(key))
    assert [int(word) for word in found] == [int(word) for word in words(expected)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
@pytest.mark.parametrize("site", [0, 5, -3])
def test_mask_keeps_where_the_first_word_reaches_the_threshold(
    counter: str, key: str, expected: str, site: int
) -> None:
    column, row, head, sequence = words(counter)
    low, high = (int(word) for word in words(key))
    unsigned = low | ((high - site) % 2**32) << 32
    seed = torch.tensor([unsigned - 2**64 if unsigned >= 2**63 else unsigned])
    word = int(words(expected)[0])
    for threshold, kept in ((word - 1, True), (word, True), (word + 1, False)):
        mask = keep_mask(seed, site, sequence, head, row, column, threshold / 2**32)
        assert bool(mask) is kept


def test_coordinates_broadcast_and_each_one_matters() -> None:
    ranges = [torch.arange(n).view([-1 if i == d else 1 for i in range(4)]) for d, n in enumerate((3, 4, 5, 6))]
    seed = torch.tensor(12345)
    mask = keep_mask(seed, 0, *ranges, p=0.5)
    assert mask.shape == (3, 4, 5, 6) and mask.dtype == torch.bool
    one = keep_mask(seed, 0, torch.tensor(2), torch.tensor(1), torch.tensor(4), torch.tensor(3), p=0.5)
    assert bool(one) == bool(mask[2, 1, 4, 3])
    for dimension, size in enumerate(mask.shape):
        lines = mask.movedim(dimension, 0).reshape(size, -1)
        assert len({tuple(line.tolist()) for line in lines}) == size
    assert not torch.equal(mask, keep_mask(seed, 1, *ranges, p=0.5))
    assert not torch.equal(mask, keep_mask(seed + 1, 0, *ranges, p=0.5))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_share_that_is_kept(p: float) -> None:
    n = 1 << 16
    mask = keep_mask(torch.tensor([7]), 0, *(torch.tensor(0),) * 3, torch.arange(n), p)
    # Five standard deviations of a binomial share.
    assert abs(float(mask.double().mean()) - (1 - p)) <= 5 * (p * (1 - p) / n) ** 0.5
