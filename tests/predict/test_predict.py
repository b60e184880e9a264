"""predict against the whole model written out sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from tests.predict.cases import CASES, Case, tensors
from tests.predict.naive import naive_predict
from wfkernels import predict


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_output_and_every_gradient_agree_with_the_model_written_out(case: Case) -> None:
    rows, parameters, layout, lookup = tensors(case)
    students = predict(rows, parameters, case.settings, layout=layout, gate_lookup=lookup)
    expected, _ = naive_predict(rows, parameters, case.settings, layout, lookup)
    torch.testing.assert_close(students, expected)

    weights = torch.randn_like(expected)
    inputs = [rows, *(t for t in parameters.flatten() if t is not None)]
    names = ["rows", *(n for n, t in zip(parameters.names(), parameters.flatten(), strict=True) if t is not None)]
    found = torch.autograd.grad((students * weights).sum(), inputs, allow_unused=True)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True)
    for name, a, b in zip(names, found, wanted, strict=True):
        assert a is not None, name
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, msg=lambda m, name=name: f"{name}: {m}")
