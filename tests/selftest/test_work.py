"""What a computation consists of, and what it takes by given rates."""

from __future__ import annotations

import gc
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.predict.cases import CASES, tensors
from wfkernels import attention, pack, predict
from wfkernels.predict.plan import forget_indices
from wfkernels.selftest import Piece, Work, even, lengths_of, measure, seconds, trace, work
from wfkernels.selftest.measure import non_negative
from wfkernels.selftest.steps import STEPS, Step, model, training_step

META, CPU = torch.device("meta"), torch.device("cpu")


def step(name: str, device: torch.device, **more: Any) -> Any:
    """A training step of one of the cases of `predict`, on a device."""
    case = CASES[name]
    rows, parameters, layout, lookup = tensors(case)

    def to(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().to(device).requires_grad_(x.is_floating_point())

    given = parameters.unflatten([to(t) for t in parameters.flatten()])

    def run() -> None:
        found = predict(to(rows), given, case.settings, layout=layout, gate_lookup=to(lookup), **more)  # type: ignore[arg-type]
        students = found[0] if isinstance(found, tuple) else found
        students.sum().backward()

    return run, lengths_of(layout, case.settings, more.get("return_cross", False))


@pytest.mark.parametrize("name", ["bucketed", "dropout, post", "mean", "one teacher each", "paper"])
def test_meta_tensors_tell_the_same_work_without_doing_it(name: str) -> None:
    (real, _), (meta, lengths) = step(name, CPU, impl="reference"), step(name, META)
    forget_indices()  # which other tests may have left on one of the devices
    done, planned = trace(real), trace(meta, lengths)
    assert planned.flop == done.flop > 0
    ours = ("attention", "residual", "embedding", "projection")
    amounts = [[p.amounts for p in w.pieces if p.kind.startswith(ours)] for w in (done, planned)]
    assert amounts[0] == amounts[1]
    assert {p.implementation for p in done.pieces if p.kind.startswith(ours)} == {"reference"}
    # Moving the index tensors to the meta device is all that a plan does more.
    more = Counter(p.kind for p in planned.pieces) - Counter(p.kind for p in done.pieces)
    assert set(more) <= {"_to_copy", "detach"}


def test_products_of_attention_are_counted() -> None:
    q, k, v = (torch.zeros(2, 4, n, w) for n, w in ((5, 8), (7, 8), (7, 6)))
    assert trace(lambda: attention(q, k, v)).flop == 2 * 4 * 5 * 7 * (8 + 6) * 2
    for x in (q, k, v):
        x.requires_grad_()
    both = trace(lambda: attention(q, k, v).sum().backward())
    assert both.flop == 2 * 4 * 5 * 7 * (8 + 6) * (2 + 5)
    assert [p.flop > 0 for p in both.pieces if p.kind.startswith("attention")] == [True, True]


def test_ragged_work_follows_the_lengths() -> None:
    tokens, offsets = torch.zeros(10, 2, 4), torch.tensor([0, 1, 1, 10])
    assert trace(lambda: attention(tokens, tokens, tokens, offsets=offsets)).flop == (1 + 81) * 2 * 8 * 2
    meta, places = tokens.to(META), offsets.to(META)

    def call() -> Tensor:
        return attention(meta, meta, meta, offsets=places, max_length=9)

    assert trace(call, lambda tokens, sequences: [1, 0, 9]).flop == (1 + 81) * 2 * 8 * 2
    assert trace(call).flop == (16 + 9 + 9) * 2 * 8 * 2
    assert even(10, 3) == [4, 3, 3] and even(0, 0) == []


def test_products_of_embedding_and_projection_are_counted() -> None:
    one = Step(((6, 10),), d=8, heads=2, teachers=(3,), blocks=1)
    pieces = {p.kind: p for p in trace(training_step(one, CPU, "reference")).pieces}
    assert pieces["embedding"].flop == 2 * 3 * 6 * 10 * 8
    assert pieces["embedding_backward"].flop == 2 * 2 * 3 * 6 * 10 * 8
    assert pieces["projection"].flop == 2 * 6 * 10 * 8
    assert pieces["projection_backward"].flop == 3 * 2 * 6 * 10 * 8
    assert pieces["rows_pack"].amounts["tensors"] == 3


def test_views_are_no_work_and_aten_products_are_counted() -> None:
    a, b = torch.zeros(3, 4), torch.zeros(4, 5)
    done = trace(lambda: (a.T.T @ b[:, :5]).view(15).add_(1))
    assert [p.kind for p in done.pieces] == ["mm", "add_"]
    assert done.flop == 2 * 3 * 4 * 5 and done.held == 4 * 15
    assert done.bytes == 4 * (12 + 20 + 15) + 4 * (15 + 15)


def test_memory_is_counted_while_it_lives() -> None:
    x = torch.zeros(1000)

    def chain() -> None:
        y = x + 1
        for _ in range(5):
            y = y + 1  # two at a time

    assert trace(chain).held == 2 * 4000
    kept: list[Tensor] = []

    def keep() -> None:
        for _ in range(5):
            kept.append((x + 1).view(10, 100))

    assert trace(keep).held == 5 * 4000
    gc.collect()


def test_the_peak_holds_the_scores_of_the_reference() -> None:
    q = torch.zeros(1, 2, 300, 4)
    done = trace(lambda: attention(q, q, q))
    assert done.peak - done.held >= 2 * 4 * 2 * 300 * 300


@pytest.mark.parametrize(
    ("size", "share"), [(1, 1.0), (2**17, 1.0), (2**19.5, 0.5), (2**22, 0.0), (2**24, 0.0), (2**40, 0.0)]
)
def test_bytes_are_split_between_marks(size: float, share: float) -> None:
    parts = work.split("bytes", 10.0, size)
    assert sum(parts.values()) == pytest.approx(10.0)
    assert parts.get("bytes in 128 KB", 0.0) == pytest.approx(10 * share)
    if size >= 2**26:
        assert parts["bytes in 64 MB"] == 10.0


def test_non_negative_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        matrix = torch.rand(30, 6, generator=generator, dtype=torch.float64)
        wanted = torch.rand(30, generator=generator, dtype=torch.float64)
        found = non_negative(matrix, wanted)
        # Karush-Kuhn-Tucker: nothing negative, no gain from more of what is 0, none either way from the rest.
        gain = matrix.T @ (wanted - matrix @ found)
        assert (found >= 0).all() and (gain <= 1e-9).all() and (gain[found > 0].abs() <= 1e-9).all()
    exact = torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.allclose(non_negative(matrix[:, :3], matrix[:, :3] @ exact), exact)


def test_rates_are_recovered_from_times_that_follow_them() -> None:
    true = {"calls": 2e-5, "flop": 1e-11, "bytes in 4 MB": 3e-10}
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for kind, implementation in (("mm", None), ("embedding", "reference"), ("add", None)):
        for _ in range(20):
            size = 10 ** (6 + 3 * float(torch.rand((), generator=generator)))
            flop = 0.0 if kind == "add" else size * 10 * float(torch.rand((), generator=generator))
            amounts = {"calls": 1.0, "flop": flop, "bytes in 4 MB": size}
            pieces.append(Piece(kind, amounts, implementation, sum(true[k] * n for k, n in amounts.items())))
    fitted = dict(measure._fitted(pieces, 1.0))
    assert set(fitted) == {"mm", "embedding:reference", "add", "other"}
    assert fitted["mm"] == pytest.approx(true, rel=1e-6)
    assert fitted["embedding:reference"] == pytest.approx(true, rel=1e-6)
    assert fitted["add"] == pytest.approx({k: v for k, v in true.items() if k != "flop"}, rel=1e-6)


def test_products_too_small_to_be_told_from_calls_go_by_the_machine() -> None:
    pieces = [Piece("mm", {"calls": 1.0, "flop": 10.0}, None, 1e-5), Piece("add", {"calls": 1.0}, None, 1e-6)]
    assert dict(measure._fitted(pieces, 50.0))["mm"]["flop"] in (pytest.approx(2e-11), pytest.approx(1e-6))


RATES = {
    "glue": 1e-6,
    "kinds": {
        "mm": {"calls": 1e-5, "flop": 1e-11},
        "other": {"calls": 2e-6},
        "rows_pack:cpp": {"tensors": 1e-6},
        "rows_pack:reference": {"tensors": 3e-6},
    },
}


@pytest.mark.parametrize(("implementation", "each"), [("auto", 1e-6), ("cpp", 1e-6), ("reference", 3e-6)])
def test_seconds_are_amounts_times_rates(implementation: str, each: float) -> None:
    pieces = [Piece("mm", {"calls": 1, "flop": 1e6}), Piece("mm", {"calls": 1}), Piece("tanh", {"calls": 1})]
    pieces += [Piece("convolution", {"calls": 1, "flop": 1e6}), Piece("rows_pack", {"calls": 1, "tensors": 7})]
    assert pack.__name__ == "pack"  # its op is registered
    spent = seconds(Work(pieces), RATES, implementation)
    wanted = {"glue": 5e-6, "mm": 3e-5, "tanh": 2e-6, "convolution": 1.2e-5, "rows_pack": 7 * each}
    assert spent == pytest.approx(wanted)


def test_an_implementation_that_was_not_measured() -> None:
    message = r"seconds: implementation: expected one .* measured for rows_pack \(cpp, reference\), got 'cuda'"
    with pytest.raises(ValueError, match=message):
        seconds(Work([Piece("rows_pack", {"calls": 1})]), RATES, "cuda")


def test_the_steps_that_are_timed_hold_every_kind_of_gate_and_size() -> None:
    assert {s.gate for s in STEPS} == {"none", "dense", "bucketed"}
    assert {s.recompute for s in STEPS} == {"full", "none"} and {s.norm for s in STEPS} == {"pre", "post"}
    for one in STEPS:
        layout, parameters, settings, lookup = model(one, META)
        rows = torch.zeros(sum(one.teachers) * layout.layout.row_numel, device=META)
        found = predict(rows, parameters, settings, layout=layout, gate_lookup=lookup)
        assert isinstance(found, Tensor) and found.shape == (len(one.teachers), layout.layout.numel)
        assert math.isfinite(trace(lambda rows=rows: rows + 1).flop)  # type: ignore[misc]
