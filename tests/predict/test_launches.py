"""What a whole predict launches on a GPU: as much for a deep student and many teachers as for a small one.

Without a GPU: launches of Triton kernels are recorded, and every aten operator that would launch one is counted, those
inside the library's ops too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.aot import recording
from tests.predict.cases import CASES, SEED, Case, tensors
from wfkernels import dispatch, gpu, predict
from wfkernels.predict import validate
from wfkernels.predict.parameters import Parameters

pytest.importorskip("triton")

# Operators that launch nothing: they make tensors, or views of them.
MEMORY = ("empty", "new_empty", "empty_like", "empty_strided", "detach")
# Operators by which Python reads a tensor, or makes one of its own numbers: on a GPU the one waits, the other uploads.
OF_HOST = ("_local_scalar_dense", "nonzero", "lift_fresh", "scalar_tensor", "_to_copy")
NAMES = ("paper", "recipe", "specialists", "bucketed", "mean", "keep all, pre", "dropout")


class Counting(TorchDispatchMode):
    """Counts operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not name.startswith("wfkernels::") and not views and name not in MEMORY:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what the calls made inside the block would launch."""
    mode = Counting()

    def inside(run: Callable[..., Any]) -> Callable[..., Any]:
        # A mode sees an op of the library as one; this makes it look into it.
        def counted(*args: Any) -> Any:
            with mode:
                return run(*args)

        return counted

    ops = {
        op: tuple(replace(one, run=inside(one.run)) for one in dispatch.implementations(op)) for op in dispatch.ops()
    }
    with (
        mock.patch.dict(dispatch._registry, ops),
        mock.patch.object(gpu, "interpreted", lambda: True),
        mock.patch.object(validate, "readable", lambda tensor: False),  # as of a tensor on a GPU
        recording(90) as launches,
        mode,
    ):
        yield mode.found
    mode.found.update(launch.name for launch in launches)


def counts(case: Case) -> tuple[Counter[str], Counter[str]]:
    """Return what forward and backward launch when they are called for the second time."""
    rows, parameters, layout, lookup = tensors(case)
    rows = rows.detach().float().requires_grad_()
    flat = [None if t is None else t.detach().float().requires_grad_() for t in parameters.flatten()]
    given: Parameters = parameters.unflatten(flat)
    leaves = [rows, *(t for t in flat if t is not None)]
    for _ in range(2):
        with counting() as forward:
            students = predict(rows, given, case.settings, layout=layout, gate_lookup=lookup, seed=SEED)
        assert isinstance(students, torch.Tensor)
        with counting() as backward:
            torch.autograd.grad(students, leaves, torch.zeros_like(students), allow_unused=True)
    return forward, backward


@pytest.mark.parametrize("name", NAMES)
def test_launches_grow_neither_with_layers_nor_with_teachers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    case = CASES[name]
    small = counts(replace(case, rows=(3,) * 2, teachers=(2, 3)))
    large = counts(replace(case, rows=(3,) * 12, teachers=(4, 1)))
    for part, few, many in zip(("forward", "backward"), small, large, strict=True):
        print(f"{name}, {part}: {few.total()} launches:", dict(few))
        assert not (many - few), f"{part}: beyond those of a small student: {many - few}"
        assert few == many


@pytest.mark.parametrize("name", NAMES)
def test_a_second_call_neither_waits_for_the_device_nor_uploads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a CUDA graph can capture it."""
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    for found in counts(CASES[name]):
        assert not [op for op in OF_HOST if op in found]


def test_autocast_casts_all_parameters_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFKERNELS_IMPL", "triton")
    case = CASES["recipe"]
    with torch.autocast("cpu", torch.bfloat16):
        small, large = (counts(replace(case, rows=(3,) * layers)) for layers in (2, 12))
    assert small == large
    assert not any(found["_to_copy"] for found in large)
