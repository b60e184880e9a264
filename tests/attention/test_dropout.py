"""Dropout of the attention weights: one seed, one mask, wherever and however the call runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.attention.cases import DENSE, PRUNED, RAGGED, build
from wfkernels import attention
from wfkernels.attention import ops
from wfkernels.attention.arguments import Arguments


def weights(seed: int | None, site: int = 0, sequences: int = 3, heads: int = 2, length: int = 16) -> Tensor:
    """The dropped weights [N, H, S, S] of equal scores, read off through an identity as values."""
    query = torch.zeros(sequences * length, heads, 1)
    value = torch.eye(length).repeat(sequences, 1).unsqueeze(1).expand(-1, heads, -1)
    arguments = Arguments(
        offsets=torch.arange(sequences + 1) * length,
        max_length=length,
        dropout_p=0.25,
        seed=None if seed is None else torch.tensor([seed]),
        site=site,
    )
    out, _ = ops.forward(query, query, value, arguments)
    return out.view(sequences, length, heads, length).transpose(1, 2)


def test_weights_are_dropped_or_scaled_up() -> None:
    found = weights(1)
    kept = found != 0
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / 16 / 0.75))
    n = found.numel()
    assert abs(float(kept.double().mean()) - 0.75) <= 5 * (0.25 * 0.75 / n) ** 0.5


def test_mask_depends_on_seed_site_sequence_head_and_row() -> None:
    one = weights(1)
    assert torch.equal(one, weights(1))
    others = [weights(2), weights(1 << 32 | 1), weights(1, site=1), one.roll(1, 0), one.roll(1, 1), one.roll(1, 2)]
    assert all(not torch.equal(one, other) for other in others)


def test_seed_is_drawn_from_the_default_generator() -> None:
    call = build(replace(DENSE, keys=(30,)))
    torch.manual_seed(5)
    first, second = (call.run(attention, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(call.run(attention, dropout_p=0.5), first)
    assert not torch.equal(first, second)
    assert torch.equal(call.run(attention, dropout_p=0.0), call.run(attention))


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_pruned_queries_equal_the_slice_of_all_queries(dropout_p: float) -> None:
    case = replace(PRUNED, bias="full", gate="rich", closed=0.2, is_causal=True, dropout_p=dropout_p)
    pruned = build(case)
    keys = pruned.options["key_offsets"]
    # Where the pruned queries stand among one query per key.
    rows = torch.cat(
        [
            keys[n] + start + torch.arange(count)
            for n, (start, count) in enumerate(zip(case.start or (), case.queries, strict=True))
        ]
    )
    everything = torch.randn(int(keys[-1]), 4, 3, dtype=torch.float64)
    everything[rows] = pruned.query.detach()
    full = pruned.with_leaves({**pruned.leaves(), "query": everything.requires_grad_()})
    full.options = {k: v for k, v in pruned.options.items() if k not in ("query_start", "key_offsets")}
    full.options["offsets"] = keys
    found, wanted = pruned.run(attention, return_lse=True), full.run(attention, return_lse=True)
    torch.testing.assert_close(found, tuple(x[rows] for x in wanted))
    grad = torch.randn_like(found[0])
    ours = torch.autograd.grad(found[0], list(pruned.leaves().values()), grad)
    theirs = torch.autograd.grad(wanted[0][rows], list(full.leaves().values()), grad)
    torch.testing.assert_close(ours, (theirs[0][rows], *theirs[1:]))


def test_dense_and_ragged_drop_the_same() -> None:
    dense = build(replace(DENSE, lead=(2, 2), keys=None, dropout_p=0.5))
    ragged = build(replace(RAGGED, queries=(5,) * 4, dropout_p=0.5))
    flat = {n: t.detach().flatten(0, 1).transpose(1, 2).flatten(0, 1) for n, t in dense.leaves().items()}
    out = ragged.with_leaves(flat).run(attention)
    expected = dense.run(attention).detach().flatten(0, 1).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(out, expected)


def test_cached_keys_drop_like_the_whole_sequence() -> None:
    # A dense call for the last two queries, as in generation, against the call for all of them.
    call = build(replace(DENSE, queries=(7,), is_causal=True, bias="table", dropout_p=0.3))
    whole = call.run(attention)
    last = call.with_leaves({**call.leaves(), "query": call.query[..., 5:, :]})
    last.options = {**call.options, "query_start": torch.tensor([5])}
    torch.testing.assert_close(last.run(attention), whole[..., 5:, :])
