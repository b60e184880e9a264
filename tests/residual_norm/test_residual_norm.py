"""residual_norm is LayerNorm(residual + dropout(x)) and keeps all that the rooms promise."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tests import properties
from tests.residual_norm.cases import SEED, SHAPES, call
from wfkernels import residual_norm
from wfkernels.residual_norm import ops

DROPOUT = pytest.mark.parametrize("dropout_p", [0.0, 0.3])


@DROPOUT
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: str, dropout_p: float) -> None:
    properties.agrees_with_definition(call(shape, dropout_p))


def test_eps_counts() -> None:
    properties.agrees_with_definition(call("17 x 127", eps=0.5))


@DROPOUT
@pytest.mark.parametrize("shape", ["3 x 65", "leading dimensions"])
def test_gradcheck(shape: str, dropout_p: float) -> None:
    properties.passes_gradcheck(call(shape, dropout_p))


@DROPOUT
def test_any_strides(dropout_p: float) -> None:
    properties.takes_any_strides(call("leading dimensions", dropout_p))
    properties.takes_expanded_gradients(call("leading dimensions", dropout_p))


@DROPOUT
def test_only_gradients_asked_for(dropout_p: float) -> None:
    properties.gives_only_gradients_asked_for(call("3 x 65", dropout_p))


@pytest.mark.parametrize("used", [0, 1], ids=["h", "y"])
@DROPOUT
def test_one_output_may_be_used_alone(used: int, dropout_p: float) -> None:
    c = call("3 x 65", dropout_p)
    leaves = list(c.leaves.values())
    found, wanted = (
        torch.autograd.grad(function(c.leaves)[used].square().sum(), leaves, materialize_grads=True)
        for function in (c.run, c.naive)
    )
    torch.testing.assert_close(found, wanted)


@DROPOUT
def test_inputs_untouched_and_runs_repeat(dropout_p: float) -> None:
    properties.leaves_inputs_alone_and_repeats(call("17 x 127", dropout_p))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", ["17 x 127", "no rows"])
def test_every_element_is_written(shape: str) -> None:
    properties.writes_every_element(call(shape, 0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@DROPOUT
def test_error_is_that_of_eager(dtype: torch.dtype, dropout_p: float) -> None:
    properties.is_no_worse_than_eager([call("17 x 127", dropout_p)], dtype)


def test_dropout_zeroes_or_scales_with_the_probability_asked_for() -> None:
    x = torch.ones(300, 400)
    h, _ = residual_norm(x, torch.zeros_like(x), torch.ones(400), torch.zeros(400), dropout_p=0.25, seed=SEED)
    kept = h != 0
    torch.testing.assert_close(h[kept], torch.full_like(h[kept], 1 / 0.75))
    assert abs(float(kept.double().mean()) - 0.75) <= 5 * (0.25 * 0.75 / x.numel()) ** 0.5


def test_mask_is_that_of_its_seed_and_site() -> None:
    x = torch.randn(8, 64)
    rest = (torch.zeros_like(x), torch.ones(64), torch.zeros(64))
    masks = [
        ops.residual_norm(x, *rest, 1e-5, 0.5, torch.tensor([seed]), site, "auto")[0] == 0
        for seed, site in ((1, 0), (1, 0), (2, 0), (1 << 32 | 1, 0), (1, 1))
    ]
    assert torch.equal(masks[0], masks[1])
    assert all(not torch.equal(masks[0], other) for other in masks[2:])
    assert not torch.equal(masks[0], masks[0].roll(1, 0)) and not torch.equal(masks[0], masks[0].roll(1, 1))


def test_seed_is_drawn_from_the_default_generator() -> None:
    x = torch.randn(4, 32)
    rest = (x, torch.ones(32), torch.zeros(32))

    def drawn() -> Tensor:
        return residual_norm(x, *rest, dropout_p=0.5)[0]

    torch.manual_seed(3)
    first, second = drawn(), drawn()
    torch.manual_seed(3)
    assert torch.equal(first, drawn()) and not torch.equal(first, second)


def library_arguments(layout: Any = lambda x: x, dropout_p: float = 0.3) -> tuple[Any, ...]:
    tensors = [layout(t.detach()) for t in call("17 x 127").leaves.values()]
    return (*tensors, 1e-5, dropout_p, SEED, 2, "auto")


@pytest.mark.parametrize("layout", [lambda x: x.requires_grad_(), properties.permuted], ids=["contiguous", "permuted"])
@DROPOUT
def test_opcheck(layout: Any, dropout_p: float) -> None:
    torch.library.opcheck(ops.residual_norm, library_arguments(layout, dropout_p))


@pytest.mark.parametrize("given", list(product([True, False], repeat=2)), ids=str)
@pytest.mark.parametrize("layout", [lambda x: x, properties.permuted], ids=["contiguous", "permuted"])
@DROPOUT
def test_opcheck_backward(given: tuple[bool, bool], layout: Any, dropout_p: float) -> None:
    arguments = library_arguments(dropout_p=dropout_p)
    h, y, mean, rstd = ops.residual_norm(*arguments)
    grads = [layout(torch.randn_like(t)).detach() if wanted else None for t, wanted in zip((h, y), given, strict=True)]
    torch.library.opcheck(
        ops.residual_norm_backward,
        (*grads, layout(h).detach(), mean, rstd, arguments[2], dropout_p, SEED, 2, "auto"),
        test_utils=("test_schema", "test_faketensor"),
    )


@DROPOUT
def test_compiled(dropout_p: float) -> None:
    properties.compiles_in_one_graph(call("leading dimensions", dropout_p))


def test_other_sizes_do_not_compile_again() -> None:
    counter = CompileCounter()
    compiled = torch.compile(residual_norm, fullgraph=True, dynamic=True, backend=counter)
    for rows in (3, 8, 127):
        tensors = [torch.randn(rows, 16), torch.randn(rows, 16), torch.randn(16), torch.randn(16)]
        torch.testing.assert_close(compiled(*tensors), residual_norm(*tensors))
    assert counter.frame_count == 1


def test_exported() -> None:
    properties.exports_with_gradients(call("leading dimensions", 0.3))


def test_not_differentiable_twice() -> None:
    properties.is_not_differentiable_twice(call("3 x 65"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    half = call("17 x 127", 0.3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = properties.results(half)
    single = half.to(torch.float32)
    wanted = properties.results(single)
    for name, tensor in found.items():
        assert tensor.dtype == (dtype if name.startswith("gradient") else torch.float32)
        assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name


def test_statistics_are_float32_for_halves() -> None:
    _, _, mean, rstd = ops.residual_norm(
        *(t.bfloat16() if isinstance(t, Tensor) and t.is_floating_point() else t for t in library_arguments())
    )
    assert mean.dtype == rstd.dtype == torch.float32


def test_sizes_beyond_two_to_the_31() -> None:
    with torch.device("meta"):
        x, residual = (torch.empty(2**25, 128, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        weight, bias = torch.empty(128, requires_grad=True), torch.empty(128)
        seed = torch.empty(1, dtype=torch.int64)
    assert x.numel() > 2**31
    h, y = residual_norm(x, residual, weight, bias, dropout_p=0.1, seed=seed)
    assert h.shape == y.shape == x.shape and y.dtype == x.dtype
    (h.sum() + y.sum()).backward()
    for leaf in (x, residual, weight):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape


def test_named_implementations() -> None:
    properties.refuses_other_implementations(call("3 x 65"), "residual_norm")


GOOD: dict[str, Any] = {
    "x": torch.zeros(2, 3),
    "residual": torch.zeros(2, 3),
    "weight": torch.zeros(3),
    "bias": torch.zeros(3),
}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [[0.0]]}, TypeError, "x: expected a torch.Tensor, got list"),
    ({"bias": None}, TypeError, "bias: expected a torch.Tensor, got NoneType"),
    ({"x": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "x: expected a floating-point tensor, got torch.int32"),
    ({"weight": torch.zeros(3, device="meta")}, ValueError, "weight: expected a tensor on cpu like x, got one on meta"),
    ({"residual": torch.zeros(2, 3).double()}, ValueError, "residual: expected dtype torch.float32 like x, got"),
    ({"bias": torch.zeros(3).half()}, ValueError, "bias: expected dtype torch.float32 like weight, got torch.float16"),
    ({"x": torch.zeros(())}, ValueError, "x: expected shape [..., d] with d at least 1, got []"),
    ({"x": torch.zeros(2, 0)}, ValueError, "x: expected shape [..., d] with d at least 1, got [2, 0]"),
    ({"residual": torch.zeros(3)}, ValueError, "residual: expected shape [2, 3], got [3]"),
    ({"weight": torch.zeros(2)}, ValueError, "weight: expected shape [3], got [2]"),
    ({"bias": torch.zeros(3, 1)}, ValueError, "bias: expected shape [3], got [3, 1]"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p: expected a probability in [0, 1), got 1.0"),
    ({"dropout_p": -0.1}, ValueError, "dropout_p: expected a probability in [0, 1), got -0.1"),
    ({"dropout_p": 0.1, "seed": 3}, TypeError, "seed: expected an int64 tensor of one element or None, got int"),
    ({"dropout_p": 0.1, "seed": torch.zeros(1)}, TypeError, "seed: expected an int64 tensor of one element or None"),
    (
        {"dropout_p": 0.1, "seed": torch.zeros(1, dtype=torch.int64, device="meta")},
        ValueError,
        "seed: expected a tensor on cpu, got one on meta",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    residual_norm(**GOOD)
    with pytest.raises(error, match=f"^residual_norm: {re.escape(message)}") as caught:
        residual_norm(**{**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_autocast_takes_mixed_dtypes_but_not_float64() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        residual_norm(**{**GOOD, "x": torch.zeros(2, 3).bfloat16()})
        with pytest.raises(ValueError, match="residual: expected dtype torch.float32 like x, got torch.float64"):
            residual_norm(**{**GOOD, "residual": torch.zeros(2, 3).double()})
