"""The Triton attention without a GPU: its kernels in Triton's interpreter, its choice, and what it launches."""

from __future__ import annotations

import pytest
import torch

from tests import interpreted
from tests.aot import recording
from tests.attention.cases import CASES, Case, build
from wfkernels import attention, dispatch
from wfkernels.attention import triton_launch, triton_open_launch, triton_schedule
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.triton_arguments import problem
from wfkernels.dispatch import ImplementationError
from wfkernels.gpu import Config

pytest.importorskip("triton")


@pytest.mark.parametrize("part", range(interpreted.PARTS))
def test_calls_are_no_worse_than_eager(part: int) -> None:
    interpreted.check("tests.attention.interpreted", part)


def test_it_wants_a_gpu() -> None:
    call = build(CASES["dense"], dtype=torch.float32)
    with pytest.raises(ImplementationError, match=r"it needs an NVIDIA GPU \(sm_80 or newer\) and these .* lie on cpu"):
        call.run(attention, impl="triton")


def test_auto_does_not_choose_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    args = build(CASES["dense"], dtype=torch.float32).arguments()
    reason = dispatch.verdicts("attention", *args)["triton"]
    assert reason is not None and "TRITON_INTERPRET=1 runs it in Python, slowly" in reason
    assert dispatch.verdicts("attention", *args[:-1], "triton")["triton"] is None


@pytest.mark.parametrize(
    ("case", "dtype", "words"),
    [
        (CASES["dense"], torch.float64, "float32, float16 and bfloat16, not torch.float64"),
        (Case(width=257), torch.float32, "heads are at most 256 wide and these are 257"),
    ],
)
def test_what_it_refuses(case: Case, dtype: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    args = (*build(case, dtype=dtype).arguments()[:-1], "triton")
    assert words in str(dispatch.verdicts("attention", *args)["triton"])


@pytest.mark.parametrize("seed", range(20))
def test_every_tile_of_every_sequence_is_scheduled_once(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (1 + seed % 7,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to((torch.int32, torch.int64)[seed % 2])
    tiles = triton_schedule.by_sorting(offsets, int(lengths.sum()) // 4 + lengths.numel(), 4)
    found = [(s, t) for s, t in zip(tiles.sequence.tolist(), tiles.tile.tolist(), strict=True) if s >= 0]
    assert sorted(found) == [(s, t) for s, n in enumerate(lengths.tolist()) for t in range(-(-n // 4))]
    sizes = [int(lengths[s]) for s, _ in found]
    assert sizes == sorted(sizes, reverse=True)


WALKED = Config(32, 32, 0, 4, 1)


@pytest.mark.parametrize(
    ("case", "looks"),
    [
        (Case(lead=(2,), queries=(128,), gate=(128, 128)), True),
        (Case(lead=(2,), queries=(96,), gate=(96, 96)), False),  # few tiles
        (Case(lead=(2,), queries=(128,), gate=(1, 128)), False),  # no entry per pair
        (Case(lead=(2,), queries=(128,), gate="table"), False),
        (Case(lead=(4,), queries=(128,), bias=(128, 128)), True),
        (Case(lead=(4,), queries=(128,), bias=(2, 128, 128)), False),  # read by four: looking would cost a quarter
        (Case(lead=(2, 3), queries=(128,), gate=(2, 1, 2, 128, 128)), False),  # at no even distance
        (Case(lead=None, queries=(128, 1), gate=(1, 128, 128)), True),
        (Case(lead=None, queries=(64, 1), keys=(128, 1), start=(64, 0), gate=(1, 128, 128)), False),
    ],
)
def test_where_the_walks_skip_closed_tiles(case: Case, looks: bool) -> None:
    args = build(case, dtype=torch.float32).arguments()
    with recording(90) as launches:
        walk = triton_open_launch.walk(problem(*args[:3], Arguments.unflatten(args[3:]), "ieee"), WALKED)
    assert [launch.name for launch in launches] == ["attention_open_tiles"] * looks
    assert (walk is not None) == looks


@pytest.mark.parametrize("sequences", [2, 30])
def test_launches_of_a_long_dense_gate(sequences: int) -> None:
    args = build(Case(lead=None, queries=(5,) * sequences, gate=(1, 600, 600)), dtype=torch.float32).arguments()
    with torch.no_grad(), recording(90) as launches:
        out, lse = triton_launch.forward(*args)
        triton_launch.backward(out, None, [True] * 5, *args[:3], out, lse, *args[3:])
    assert [launch.name for launch in launches] == [
        "attention_tiles",
        "attention_open_tiles",
        "attention_forward",
        "attention_tiles",
        "attention_backward_delta",
        "attention_tiles",
        "attention_open_tiles",
        "attention_backward_queries",
        "attention_tiles",
        "attention_open_tiles",
        "attention_backward_keys",
        "attention_backward_dense_term",
    ]


@pytest.mark.parametrize("sequences", [1, 30])
def test_launches_do_not_grow_with_the_number_of_sequences(sequences: int) -> None:
    case = Case(lead=None, queries=(5,) * sequences, bias="full", gate="table")
    args = build(case, dtype=torch.float32).arguments()
    with torch.no_grad(), recording(90) as launches:
        out, lse = triton_launch.forward(*args)
        triton_launch.backward(out, None, [True] * 5, *args[:3], out, lse, *args[3:])
    assert [launch.name for launch in launches] == [
        "attention_tiles",
        "attention_forward",
        "attention_tiles",
        "attention_backward_delta",
        "attention_tiles",
        "attention_backward_queries",
        "attention_tiles",
        "attention_backward_keys",
        "attention_backward_dense_term",
        "attention_tiles",
        "attention_backward_table",
    ]
