"""attention is what its definition says: values and every gradient, dense and ragged, against the sums written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.attention.cases import CASES, Call, Case, build, draw
from tests.attention.naive import naive
from wfkernels import attention


def gradients(outputs: tuple[Tensor, Tensor], call: Call, seed: int = 7) -> dict[str, Tensor]:
    """Gradients of a random function of out and of the lse of rows that see something."""
    g = torch.Generator().manual_seed(seed)
    out, lse = outputs
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (out, lse)]
    alive = lse.isfinite()
    total = (out * weights[0]).sum() + (lse[alive] * weights[1][alive]).sum()
    leaves = call.leaves()
    if not total.requires_grad:  # written out, a call in which no pair exists does not depend on its inputs
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True), strict=True))


def check_against_definition(call: Call) -> None:
    found = call.run(attention, return_lse=True)
    assert all(output.requires_grad for output in found)
    wanted = call.run(naive)
    for name, a, b in zip(("out", "lse"), found, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
    expected = gradients(wanted, call)
    for name, gradient in gradients(found, call).items():
        assert gradient.shape == call.leaves()[name].shape
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f"gradient of {name}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    check_against_definition(build(CASES[name]))


@pytest.mark.parametrize("seed", range(60))
def test_random_calls(seed: int) -> None:
    case = draw(seed)
    try:
        check_against_definition(build(case, seed))
    except Exception as error:
        repro = "from tests.attention import cases, test_definition as t"
        line = f'python -c "{repro}; t.check_against_definition(cases.build(cases.draw({seed}), {seed}))"'
        raise AssertionError(f"{case}\nrepeat with: {line}") from error


@pytest.mark.parametrize("size", [1, 3, 17, 65, 127])
@pytest.mark.parametrize("lead", [(), None], ids=["dense", "ragged"])
def test_odd_sizes(size: int, lead: tuple[int, ...] | None) -> None:
    case = Case(lead, queries=(size,), gate="rich", bias="full", closed=0.3, is_causal=True, width=3, value_width=1)
    check_against_definition(build(case))


def test_same_as_torch_without_bias_and_gate() -> None:
    call = build(CASES["dense"])
    expected = torch.nn.functional.scaled_dot_product_attention(call.query, call.key, call.value, enable_gqa=True)
    torch.testing.assert_close(call.run(attention), expected)


def test_gate_is_a_bias_of_its_logarithm() -> None:
    call = build(CASES["ragged gate of one head"])
    assert isinstance(call.gate, Tensor)
    gate = call.gate.detach().clamp(min=0.01)
    call.gate = gate
    by_gate = call.run(attention)
    call.gate, call.bias = None, gate.log()
    torch.testing.assert_close(call.run(attention), by_gate)
