"""The rule for kernels: twice (gradients three times) the eager error and one unit in the last place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import fakes
from tests.attention.cases import CASES, DENSE, build
from wfkernels import dispatch, judge
from wfkernels.attention import ops as ops
from wfkernels.judge import Contract, Verdict, examine, named

INF, NAN = float("inf"), float("nan")


def mean(x: Tensor) -> Tensor:
    """An op of a thousand additions per result."""
    return x.mean(-1)


def one(contract: Contract, found: Any, *args: Any, reference: Any = mean) -> Verdict:
    (verdict,) = examine(contract, reference, args, found)
    return verdict


def sample(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 1000, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_reference_itself_is_within_what_is_allowed(dtype: torch.dtype) -> None:
    x = sample(65, dtype=dtype)
    assert one(Contract(), mean(x), x).share <= 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (64,)])
def test_another_order_of_summation_is_never_accused(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for seed in range(100):
        x = sample(*shape, dtype=dtype, seed=seed)
        order = torch.randperm(1000)
        assert one(Contract(), x[..., order].mean(-1), x).share <= 1


def test_one_lucky_eager_run_would_accuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "NEIGHBOURS", 0)
    samples = [sample(seed=seed) for seed in range(100)]
    accused = [one(Contract(), x[torch.randperm(1000)].mean(-1), x).share > 1 for x in samples]
    assert any(accused)


def test_the_verdict_names_place_values_and_bound() -> None:
    x = sample(4, 3)
    found = mean(x)
    found[2, 1] += 0.25
    verdict = one(Contract(named("average")), found, x)
    assert verdict.name == "average" and verdict.share > 1e3
    exact = x.double().mean(-1)[2, 1]
    assert verdict.detail.startswith(f"{float(found[2, 1]):.9g} at [2, 1], the float64 reference says {exact:.9g}; off")
    assert "off by 0.25, allowed " in verdict.detail


@pytest.mark.parametrize(("gradient", "most"), [(False, 2.0), (True, 3.0)])
def test_largest_error_of_eager_times_two_or_three_and_a_unit(
    gradient: bool, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "NEIGHBOURS", 0)
    x = sample(65, dtype=torch.bfloat16)
    exact = x.double().mean(-1)
    eager = (mean(x).double() - exact).abs().max()
    unit = torch.finfo(torch.bfloat16).eps * exact.abs().max()
    place = int(exact.abs().argmin())  # where bfloat16 is fine enough to hit the bound from both sides
    for share, within in ((0.95, True), (1.05, False)):
        found = mean(x)
        found[place] = exact[place] + share * (most * eager + unit)
        assert (one(Contract(gradient=gradient), found, x).share <= 1) == within


def test_a_small_error_everywhere_is_found_by_the_mean() -> None:
    x = sample(500)
    exact = x.double().mean(-1)
    largest = (mean(x).double() - exact).abs().max()
    shifted = (exact + 1.5 * largest).float()
    verdict = one(Contract(), shifted, x)
    assert verdict.share > 1 and "on average" in verdict.detail
    assert (shifted.double() - exact).abs().max() < 2 * largest


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (torch.zeros(3), "torch.float32 [3] on cpu instead of torch.float32 [2] on cpu"),
        (torch.zeros(2, dtype=torch.float64), "torch.float64 [2] on cpu instead of torch.float32 [2] on cpu"),
        (torch.zeros(2, device="meta"), "torch.float32 [2] on meta instead of torch.float32 [2] on cpu"),
        ((torch.zeros(2), torch.zeros(2)), "2 tensors instead of 1"),
    ],
)
def test_another_kind_of_result(found: Any, reason: str) -> None:
    verdict = one(Contract(), found, sample(2))
    assert verdict.share == INF and verdict.detail == reason


def test_results_without_a_name_are_numbered() -> None:
    def three(x: Tensor) -> tuple[Tensor, ...]:
        return x, 2 * x, 3 * x

    x = torch.ones(2)
    assert [v.name for v in examine(Contract(named("y")), three, (x,), three(x))] == ["y", "result 1", "result 2"]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_a_number_is_an_error(value: float) -> None:
    x = sample(5)
    found = mean(x)
    found[3] = value
    assert one(Contract(), found, x).share == INF


def test_infinities_have_to_agree_and_nan_allows_anything() -> None:
    x = torch.tensor([1.0, INF, -INF, NAN])

    def same(x: Tensor) -> Tensor:
        return x.clone()

    assert one(Contract(), torch.tensor([1.0, INF, -INF, 7.0]), x, reference=same).share == 0
    assert one(Contract(), torch.tensor([1.0, INF, INF, 7.0]), x, reference=same).share == INF
    assert one(Contract(), torch.tensor([1.0, 3e38, -INF, 7.0]), x, reference=same).share == INF


def test_where_the_dtype_overflows_nothing_is_asked() -> None:
    x = torch.full((2, 3), 6e4, dtype=torch.float16)
    x[1] = 1.0

    def total(x: Tensor) -> Tensor:
        return x.sum(-1)

    assert total(x)[0] == INF
    assert one(Contract(), torch.tensor([INF, 3.0]).half(), x, reference=total).share == 0
    assert one(Contract(), torch.tensor([65504.0, 3.0]).half(), x, reference=total).share == 0
    assert one(Contract(), torch.tensor([INF, 3.1]).half(), x, reference=total).share > 1


def test_zero_has_to_be_zero() -> None:
    x = torch.zeros(2, 1000)
    assert one(Contract(), mean(x), x).share == 0
    assert one(Contract(), torch.tensor([0.0, 1e-30]), x).share == INF


@pytest.mark.parametrize(("by", "within"), [(2e-17, True), (1e-15, False)])
def test_float64_is_held_against_the_scaled_error_of_float32(by: float, within: bool) -> None:
    x = sample(64, dtype=torch.float64)
    found = mean(x) + by
    assert (one(Contract(), found, x).share <= 1) == within


@pytest.mark.parametrize(("units", "within"), [(20, True), (200, False)])
def test_long_sums_that_the_reference_takes_in_float64_anyway(units: int, within: bool) -> None:
    def total(x: Tensor) -> Tensor:
        return x.double().sum(-1, keepdim=True).to(x.dtype)

    x = sample(3, 10000, dtype=torch.float64).abs()
    found = total(x) * (1 + units * torch.finfo(torch.float64).eps)
    (verdict,) = examine(Contract(), total, (x,), found)
    assert (verdict.share <= 1) == within


def test_float64_results_of_a_call_in_which_others_are_float32() -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return mean(x), mean(x).float()

    x = sample(65, dtype=torch.float64)
    fine, coarse = mean(x), mean(x).float()
    assert all(v.share <= 1 for v in examine(Contract(), both, (x,), (fine, coarse)))
    coarse[3] *= 1 + 1e-5
    assert [v.share <= 1 for v in examine(Contract(), both, (x,), (fine + 1e-15, coarse))] == [False, False]


def test_parts_are_judged_apart() -> None:
    def scaled(x: Tensor, size: Tensor) -> Tensor:
        return mean(x) * size

    x, size = sample(64), torch.ones(64)
    size[::2] = 1e-6
    contract = Contract(named("y"), parts=lambda x, size: {"y": {"large": size == 1, "small": size < 1}})
    found = scaled(x, size)
    found[0] += 1e-8  # nothing beside the large ones
    assert one(Contract(), found, x, size, reference=scaled).share <= 1
    large, small = examine(contract, scaled, (x, size), found)
    assert (large.name, large.share <= 1) == ("y, large entries", True)
    assert (small.name, small.share <= 1) == ("y, small entries", False)


def test_a_part_without_entries_is_left_out() -> None:
    x = sample(3)
    contract = Contract(named("y"), parts=lambda x: {"y": {"all": mean(x) < INF, "none": mean(x) > INF}})
    assert [v.name for v in examine(contract, mean, (x,), mean(x))] == ["y, all entries"]


@pytest.mark.parametrize(("value", "same"), [(2.0, True), (2.0 + 2**-22, False), (-0.0, False), (NAN, False)], ids=str)
def test_an_exact_op_has_to_agree_to_the_bit(value: float, same: bool) -> None:
    x = torch.tensor([[0.0, NAN], [2.0, INF]])
    found = x.clone()
    found[(0, 0) if value == 0 else (1, 0)] = value
    verdict = one(Contract(exact=True), found, x, reference=torch.clone)
    assert (verdict.share == 0) == same
    if not same:
        assert "every bit has to agree" in verdict.detail and "[0, 0]" in verdict.detail or "[1, 0]" in verdict.detail


def test_one_nan_is_as_good_as_another() -> None:
    x = torch.tensor([NAN])
    other = (x.view(torch.int32) ^ 1).view(torch.float32)
    assert other.isnan() and one(Contract(exact=True), other, x, reference=torch.clone).share == 0


def test_judging_leaves_arguments_and_random_numbers_alone() -> None:
    x = sample(3).requires_grad_()
    before, state = x.detach().clone(), torch.get_rng_state()
    found = mean(x.detach()) + 1.0  # wrong, so that neighbouring inputs are tried
    assert one(Contract(), found, x).share > 1
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["dense", "dense bias of one head", "evoformer", "dense bias, one number"])
def test_attention_in_chunks_with_a_running_softmax_passes(name: str, dtype: torch.dtype) -> None:
    contract = dispatch.contract("attention")
    reference = dispatch.implementations("attention")[-1].run
    for seed in range(3):
        args = build(CASES[name], seed, dtype).to(dtype, requires_grad=False).arguments()
        verdicts = examine(contract, reference, args, fakes.reordered_attention(*args))
        assert [v.name for v in verdicts] == ["out", "lse"]
        assert all(v.share <= 1 for v in verdicts), verdicts


def test_attention_that_forgets_the_scale_of_one_head_does_not() -> None:
    args = build(DENSE, 0, torch.float32).to(torch.float32, requires_grad=False).arguments()
    out, lse = fakes.reordered_attention(*args)
    wrong, _ = fakes.reordered_attention(2 * args[0], *args[1:])
    out[:, 3] = wrong[:, 3]
    verdict, _ = examine(
        dispatch.contract("attention"), dispatch.implementations("attention")[-1].run, args, (out, lse)
    )
    assert verdict.share > 1e3 and ", 3, " in verdict.detail
