"""The Triton residual_norm without a GPU: its kernels in Triton's interpreter, its choice, and what it launches."""

from __future__ import annotations

import pytest
import torch

from tests import interpreted
from tests.residual_norm import aot
from tests.residual_norm.cases import call
from wfkernels import dispatch
from wfkernels.dispatch import ImplementationError

pytest.importorskip("triton")


@pytest.mark.parametrize("part", range(interpreted.PARTS))
def test_calls_are_no_worse_than_eager(part: int) -> None:
    interpreted.check("tests.residual_norm.interpreted", part)


def test_it_wants_a_gpu() -> None:
    c = call("3 x 65").to(torch.float32)
    with pytest.raises(ImplementationError, match=r"it needs an NVIDIA GPU \(sm_80 or newer\) and these .* lie on cpu"):
        c.run(c.leaves, impl="triton")


def test_auto_does_not_choose_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("WFKERNELS_IMPL", raising=False)
    args = call("3 x 65").to(torch.float32).leaves.values()
    assert "set WFKERNELS_IMPL=triton too" in str(dispatch.verdicts("residual_norm", *args)["triton"])
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    assert dispatch.verdicts("residual_norm", *args)["triton"] is None


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    args = call("3 x 65").leaves.values()
    assert "float32, float16 and bfloat16, not torch.float64" in str(
        dispatch.verdicts("residual_norm", *args)["triton"]
    )


@pytest.mark.parametrize("rows", [1, 100_000])
def test_launches_do_not_grow_with_the_number_of_rows(rows: int) -> None:
    found = aot.launches(90, 8, torch.float32, 0.1, rows)
    assert [launch.name for launch in found] == ["residual_norm_forward", "residual_norm_backward"]


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 32_768, 32_769, 100_000])
def test_chunks_cover_every_row_once(rows: int) -> None:
    launch = aot.launches(90, 8, torch.float32, 0.0, rows)[-1]
    chunk = launch.arguments["chunk"]
    assert chunk % launch.config.block_m == 0 and launch.programs <= 1024
    assert (launch.programs - 1) * chunk < rows <= launch.programs * chunk
