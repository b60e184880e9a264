"""The gate: which pairs share an entry, what it lets through, what it learns, and how open it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.weightformer.tiny import SMALL, generic, students, teachers
from weightformer import rows
from weightformer.gates import Gate, log_buckets
from weightformer.model import WeightFormer
from wfkernels.layout import TokenLayout

SIZES = [(b, r) for b in (1, 2, 3, 8, 16) for r in (0, 1, 2, 5, 15, 16, 17, 64, 700)]


def entry(lookup: Tensor, difference: int) -> int:
    reach = len(lookup) // 2
    return int(lookup[max(-reach, min(reach, difference)) + reach])


@pytest.mark.parametrize(("buckets", "reach"), SIZES)
def test_entries_rise_with_the_difference_and_mirror_its_sign(buckets: int, reach: int) -> None:
    lookup = log_buckets(buckets, reach)
    assert lookup.dtype == torch.int64 and lookup.shape == (2 * reach + 1,)
    assert (lookup.diff() >= 0).all()
    assert (lookup + lookup.flip(0) == 2 * buckets).all()
    assert (lookup == buckets).sum() == 1, "difference 0 shares its entry with no other"
    assert lookup.min() >= 0 and lookup.max() <= 2 * buckets


@pytest.mark.parametrize(("buckets", "reach"), SIZES)
def test_every_entry_is_used_and_small_differences_are_told_apart(buckets: int, reach: int) -> None:
    lookup = log_buckets(buckets, reach)
    assert len(lookup.unique()) == min(2 * buckets, 2 * reach) + 1
    exact = min(max(buckets // 2, 1), reach)
    near = lookup[reach - exact : reach + exact + 1]
    assert near.tolist() == list(range(buckets - exact, buckets + exact + 1))


def test_larger_differences_share_entries_as_in_t5() -> None:
    """T5's formula (arXiv 1910.10683) for 16 buckets of one sign up to a distance of 128."""
    lookup = log_buckets(16, 128)
    for distance in range(9, 129):
        through = torch.tensor(distance / 8, dtype=torch.float64).log2() / 4
        t5 = min(8 + int(through * 8 + 1e-12), 15)
        assert entry(lookup, distance) == 17 + t5


def two_layers() -> nn.Sequential:
    """Two layers of three neurons each, so that one dense table can mean the same in both."""
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def gated_pair(cross: int = 1) -> tuple[WeightFormer, WeightFormer]:
    """A model with a bucketed and one with a dense gate whose tables say the same, for two teachers."""
    of, pool = rows.layout(two_layers()), teachers(3, two_layers())
    config = SMALL.but(gate="bucketed", gate_heads=True, cross_tokens=cross, max_teachers=2)
    bucketed, dense = generic(config, of, pool), generic(config.but(gate="dense"), of, pool)
    dense.load_state_dict({n: t for n, t in bucketed.state_dict().items() if n != "gate.theta"}, strict=False)
    assert bucketed.gate is not None and dense.gate is not None
    with torch.no_grad():
        for i, j, place in pairs(bucketed.gate, of.tokens((2,), cross)):
            dense.gate.theta[:, i, j] = bucketed.gate.theta[(slice(None), *place)]
    return bucketed, dense


def pairs(gate: Gate, layout: TokenLayout) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """All ordered pairs of different tokens of every sequence: places in it, and the entry of a bucketed gate."""
    lookup = log_buckets(gate.buckets, gate.reach)
    for n in layout.layout.rows:
        for t in layout.teachers:
            tokens = [(0, 0, k) for k in range(layout.cross)] + [(1, s, j) for s in range(1, t + 1) for j in range(n)]
            for i, (group, segment, position) in enumerate(tokens):
                for j, (other, another, place) in enumerate(tokens):
                    if i != j:
                        yield i, j, (group, other, int(segment == another), entry(lookup, position - place))


@pytest.mark.parametrize("cross", [0, 2])
def test_dense_and_bucketed_gates_agree_when_their_tables_say_the_same(cross: int) -> None:
    bucketed, dense = gated_pair(cross)
    pool = teachers(2, two_layers())
    found = []
    for model in (bucketed, dense):
        (student,) = model(model.pack([pool]), [2])
        sum(t.sin().sum() for t in student.values()).backward()
        found.append(student)
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name])

    assert bucketed.gate is not None and dense.gate is not None
    summed = torch.zeros_like(bucketed.gate.theta)
    seen = set()
    for i, j, place in pairs(bucketed.gate, bucketed.layout.tokens((2,), cross)):
        if (i, j) not in seen:  # both layers use the same entry of the dense table
            summed[(slice(None), *place)] += dense.gate.theta.grad[:, i, j]
        seen.add((i, j))
    torch.testing.assert_close(bucketed.gate.theta.grad, summed)
    assert (bucketed.gate.theta.grad != 0).any()


@pytest.mark.parametrize("kind", ["dense", "bucketed"])
@pytest.mark.parametrize("hard", [False, True])
def test_the_own_token_is_always_open_and_gives_no_gradient(kind: str, hard: bool) -> None:
    model = generic(SMALL.but(gate=kind, hard=hard))
    gate, group = model.gate, teachers(3)
    assert gate is not None
    own = torch.zeros_like(gate.theta, dtype=torch.bool)
    if kind == "dense":
        own.diagonal(dim1=1, dim2=2).fill_(True)
    else:  # the entries that no other pair uses
        own[:, 1, 1, 1, gate.buckets] = True
        own[:, 0, 0, 1, gate.buckets] = True
    (before,) = students(model, [group])
    (student,) = model(model.pack([group]), [3])
    sum(t.sin().sum() for t in student.values()).backward()
    assert (gate.theta.grad[own] == 0).all() and (gate.theta.grad[~own] != 0).any()
    with torch.no_grad():
        gate.theta[own] = -100.0
    (after,) = students(model, [group])
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["dense", "bucketed"])
@pytest.mark.parametrize("cross", [0, 1, 2])
@pytest.mark.parametrize("counts", [(1,), (3,), (2, 4, 1)])
@pytest.mark.parametrize("hard", [False, True])
def test_openness_is_the_mean_over_all_pairs_of_different_tokens(
    kind: str, cross: int, counts: tuple[int, ...], hard: bool
) -> None:
    mode = "parallel" if cross else "none"
    model = generic(SMALL.but(gate=kind, gate_heads=True, cross_tokens=cross, cross_layer=mode, hard=hard))
    gate, tokens = model.gate, model.layout.tokens(counts, cross)
    assert gate is not None
    gate.theta.data.normal_()
    values = gate.theta.sigmoid().mean(0)
    present = [values[i, j] if kind == "dense" else values[place] for i, j, place in pairs(gate, tokens)]
    expected = torch.stack(present).mean()
    torch.testing.assert_close(gate.openness(tokens), expected)
    (found,) = torch.autograd.grad(gate.openness(tokens), gate.theta)
    (wanted,) = torch.autograd.grad(expected, gate.theta)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["dense", "bucketed"])
def test_openness_without_any_pair_is_zero(kind: str) -> None:
    of = rows.layout(nn.Linear(3, 1))
    gate = Gate(SMALL.but(gate=kind, cross_tokens=0), 1)
    assert gate.openness(of.tokens((1,), 0)) == 0


@pytest.mark.parametrize("kind", ["dense", "bucketed"])
def test_a_hard_gate_is_zero_or_one_with_the_gradient_of_the_soft_one(kind: str) -> None:
    torch.manual_seed(1)
    hard, soft = (Gate(SMALL.but(gate=kind, hard=h), 40) for h in (True, False))
    hard.theta.data.normal_()
    soft.theta.data.copy_(hard.theta)
    found, expected = hard(), soft()
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found, (expected >= 0.5).float())
    upstream = torch.randn_like(found)
    (straight,) = torch.autograd.grad((found * upstream).sum(), hard.theta)
    (through,) = torch.autograd.grad((expected * upstream).sum(), soft.theta)
    assert torch.equal(straight, through) and (straight[found == 0] != 0).any()


def test_a_closed_pair_of_a_hard_gate_still_learns_from_the_students() -> None:
    model = generic(SMALL.but(gate="bucketed", hard=True))
    assert model.gate is not None
    model.gate.theta.data.fill_(-1.0)
    (student,) = model(model.pack([teachers(2)]), [2])
    sum(t.sin().sum() for t in student.values()).backward()
    assert (model.gate.theta.grad[:, 1, 1, 0] != 0).any()


def test_a_bucketed_gate_fits_students_of_any_size() -> None:
    small, large = Gate(SMALL.but(gate="bucketed"), 3), Gate(SMALL.but(gate="bucketed"), 500)
    large.load_state_dict(small.state_dict())
    assert large.lookup is not None and len(large.lookup) == 999


def test_gates_start_nearly_open_and_one_for_all_heads_unless_asked() -> None:
    gate = Gate(SMALL.but(gate="bucketed"), 3)
    assert gate.theta.shape == (1, 2, 2, 2, 9) and 0.8 < gate().min() < 1
    assert Gate(SMALL.but(gate="bucketed", gate_heads=True), 3).theta.shape[0] == 2
    assert Gate(SMALL.but(gate="dense"), 3).theta.shape == (1, 13, 13)
