"""The calls of attention in Triton's interpreter: python -m tests.attention.interpreted PART, or their names."""

from __future__ import annotations

import sys
from functools import partial

import torch

from tests import interpreted
from tests.attention.cases import CASES, Call, Case, build, draw
from wfkernels import gpu
from wfkernels.attention import ops, triton_open_launch, triton_schedule, validate
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.triton_arguments import problem

SEEDS = range(4)
# Over the borders of tiles of 32 x 32, and of several programs that share a sum.
LARGE = {
    "several tiles": Case(lead=(2,), queries=(65,), keys=(70,), bias=(65, 70), gate=(2, 65, 1), closed=0.2),
    "several tiles, causal": Case(lead=None, queries=(40, 0, 33), bias="table", gate="rich", is_causal=True),
    "sums that are split": Case(lead=(5,), queries=(33,), heads=2, key_heads=1, bias=(33, 33), dropout_p=0.2),
    "a table that is split": Case(lead=(5,), queries=(33,), heads=2, key_heads=1, bias="table"),
    "wide": Case(lead=(), queries=(5,), heads=1, key_heads=1, width=80, value_width=40, bias="full"),
    "widest": Case(lead=(), queries=(17,), heads=1, key_heads=1, width=256, value_width=129, gate="full"),
}
# Of which half of the tiles of 32 x 32 are closed: bigger than what is worth a look at the terms.
CLOSED = {
    "closed tiles, one gate": Case(lead=(2,), queries=(100,), keys=(110,), gate=(100, 110), closed=0.2),
    "closed tiles, a gate per head": Case(lead=(2,), queries=(110,), heads=2, key_heads=1, gate=(2, 110, 110)),
    "closed tiles, bias and gate": Case(
        lead=(4,), queries=(100,), bias=(100, 100), gate=(4, 1, 100, 100), is_causal=True, dropout_p=0.2
    ),
    "closed tiles, one bias": Case(
        lead=(4,), queries=(50,), keys=(140,), start=(2, 70, 9, 90), bias=(50, 140), is_causal=True
    ),
    "closed tiles, ragged": Case(lead=None, queries=(97, 0, 140, 33), gate=(1, 140, 150), is_causal=True),
    "closed tiles, ragged terms": Case(
        lead=None, queries=(130, 66, 1, 0), keys=(40, 140, 3, 2), bias=(1, 150, 145), gate="full"
    ),
}
HALVES = (*CASES, "several tiles, causal")


def calls() -> interpreted.Calls:
    cases = CASES | LARGE
    for name, case in cases.items():
        yield name, partial(wrongs, build(case, dtype=torch.float32))
    for name in HALVES:
        yield f"{name}, float16", partial(wrongs, build(cases[name], dtype=torch.float16))
    for name, case in CLOSED.items():
        yield name, partial(wrongs, closed(build(case, dtype=torch.float32)))
        yield f"{name}: what is listed", partial(wrong_lists, closed(build(case, dtype=torch.float32)))
    for count, dtype in ((1, torch.int64), (2, torch.int32), (7, torch.int64), (530, torch.int32)):
        yield f"tiles of {count} sequences", partial(wrong_tiles, count, dtype)
    for seed in SEEDS:
        yield f"draw({seed})", partial(wrongs, build(draw(seed), seed, torch.float32))


def closed(call: Call, size: int = 32, share: float = 0.5) -> Call:
    """Close half of the tiles of the terms of a call."""
    generator = torch.Generator().manual_seed(1)
    leaves = call.leaves()
    for name, value in (("bias", -torch.inf), ("gate", 0.0)):
        if name in leaves:
            term = leaves[name]
            lead, (rows, columns) = term.shape[:-2], term.shape[-2:]
            drawn = torch.rand(*lead, rows // size + 1, columns // size + 1, generator=generator) < share
            whole = drawn.repeat_interleave(size, -1).repeat_interleave(size, -2)[..., :rows, :columns]
            leaves[name] = term.detach().masked_fill(whole, value).requires_grad_()
    return call.with_leaves(leaves)


def wrongs(call: Call) -> list[str]:
    """Return every disagreement of forward and backward with the reference."""
    options = call.options
    if "offsets" in options:
        lengths = (options["offsets"], options.get("key_offsets"), options.get("query_start"), None)
        options["max_length"] = validate.lengths(call.query, call.key, *lengths)
    args = (*call.arguments()[:-1], "triton")
    out, lse = ops.attention_forward(*args)
    found = interpreted.wrongs("attention", args, (out, lse))
    grads = [torch.randn_like(x) for x in (out, lse)]
    needs = [True, True, True, call.bias is not None, call.gate is not None]
    args = (*grads, needs, *args[:3], out, lse, *args[3:])
    return found + interpreted.wrongs("attention_backward", args, ops.attention_backward(*args))


def wrong_lists(call: Call) -> list[str]:
    """Return every tile of which it is wrong that the walks go to it, or that they do not."""
    args = call.arguments()
    p = problem(*args[:3], Arguments.unflatten(args[3:]), "ieee")
    terms = [(t, value) for t, value in ((call.bias, -torch.inf), (call.gate, 0.0)) if isinstance(t, torch.Tensor)]
    rows, columns = (min(t.shape[side] for t, _ in terms) for side in (-2, -1))
    pairs = torch.ones(1 if p.form.is_ragged else p.count, p.heads, rows, columns, dtype=torch.bool)
    for term, value in terms:
        pairs = pairs & (term[..., :rows, :columns] != value)
    # Padded to whole tiles of 16 x 32.
    padded = torch.nn.functional.pad(pairs, (0, -columns % 32, 0, -rows % 16))
    is_open = padded.unflatten(-1, (-1, 32)).unflatten(-3, (-1, 16)).any(-1).any(-2)  # [N, H, row tiles, column tiles]
    found = []
    for of_keys in (False, True):
        walk = triton_open_launch.walk(p, gpu.Config(16, 32, 0, 4, 1), of_keys)
        expected = is_open.mT if of_keys else is_open
        for sequence, head, tile in (expected.sum(-1) >= 0).nonzero().tolist():
            line = expected[sequence, head, tile]
            assert walk is not None
            owner = sequence * walk.batch + head * walk.head
            before = [0, *line.cumsum(0).tolist()]
            places = walk.places[owner, tile, : before[-1]]
            if walk.before[owner, tile].tolist() != before or places.tolist() != line.nonzero().flatten().tolist():
                found.append(f"sequence {sequence}, head {head}, tile {tile}, of keys: {of_keys}")
    return found


def wrong_tiles(count: int, dtype: torch.dtype, size: int = 4) -> list[str]:
    """Return how the schedule of a ragged call differs from that by sorting: many equal lengths, one very long."""
    lengths = torch.randint(0, 9, (count,), generator=torch.Generator().manual_seed(count))
    lengths[count // 2] = 2100
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    p = problem(*(torch.zeros(total, 3, 4) for _ in range(3)), Arguments(offsets=offsets), "ieee")
    tiles, programs = triton_schedule.schedule(p, offsets.to(dtype), total, size, 3)
    expected = triton_schedule.by_sorting(offsets, total // size + count, size)
    assert tiles is not None and programs == 3 * tiles.sequence.numel()
    used = expected.sequence >= 0  # what a slot without use names as its tile is never read
    same = torch.equal(tiles.sequence, expected.sequence) and torch.equal(tiles.tile[used], expected.tile[used])
    return [] if same else [f"{tiles} instead of {expected}"]


if __name__ == "__main__":
    sys.exit(interpreted.main(calls(), sys.argv[1:]) > 0)
