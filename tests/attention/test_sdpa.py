"""The adapter means what torch's scaled_dot_product_attention means; outputs and all gradients are the same."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import wfkernels
from wfkernels import scaled_dot_product_attention

Q, K, V = (2, 4, 5, 3), (2, 4, 7, 3), (2, 4, 7, 6)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def some(*shape: int) -> Tensor:
    """A mask that is True for about two pairs of three."""
    return torch.rand(shape) < 0.67


def some_forbidden(*shape: int) -> Tensor:
    return random(*shape).masked_fill(~some(*shape), -torch.inf)


def dead_row(*shape: int) -> Tensor:
    """A float mask in which the second query may see nothing."""
    mask = random(*shape)
    mask[..., 1, :] = -torch.inf
    return mask


CASES: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "plain": ((Q, K, V), {}),
    "scale": ((Q, K, V), {"scale": 0.3}),
    "scale of 0": ((Q, K, V), {"scale": 0.0}),
    "causal": ((Q, Q, Q), {"is_causal": True}),
    "causal, more keys than queries": ((Q, K, V), {"is_causal": True}),
    "causal, more queries than keys": ((K, Q, Q), {"is_causal": True}),
    "float mask": ((Q, K, V), {"attn_mask": random(2, 4, 5, 7)}),
    "float mask of all heads": ((Q, K, V), {"attn_mask": random(2, 1, 5, 7)}),
    "float mask of the whole batch": ((Q, K, V), {"attn_mask": some_forbidden(5, 7)}),
    "float mask per key": ((Q, K, V), {"attn_mask": random(2, 1, 1, 7)}),
    "float mask per query": ((Q, K, V), {"attn_mask": random(5, 1)}),
    "float mask with a query that sees nothing": ((Q, K, V), {"attn_mask": dead_row(4, 5, 7)}),
    "bool mask": ((Q, K, V), {"attn_mask": some(2, 4, 5, 7)}),
    "bool mask of padding": ((Q, K, V), {"attn_mask": some(2, 1, 1, 7)}),
    "bool mask with a query that sees nothing": (
        (Q, K, V),
        {"attn_mask": some(5, 7) & (torch.arange(5) != 1)[:, None]},
    ),
    "grouped heads": ((Q, (2, 2, 7, 3), (2, 2, 7, 6)), {"enable_gqa": True}),
    "grouped heads, mask": ((Q, (2, 2, 7, 3), (2, 2, 7, 6)), {"enable_gqa": True, "attn_mask": random(4, 5, 7)}),
    "grouped heads, causal": ((Q, (2, 1, 5, 3), (2, 1, 5, 6)), {"enable_gqa": True, "is_causal": True}),
    "grouped heads that differ": ((Q, (2, 2, 7, 3), (2, 1, 7, 6)), {"enable_gqa": True}),
    "one key head": ((Q, (2, 1, 7, 3), (2, 1, 7, 6)), {}),
    "one value head": ((Q, K, (2, 1, 7, 6)), {}),
    "one query head": (((2, 1, 5, 3), K, V), {}),
    "batch of one key": ((Q, (1, 4, 7, 3), (1, 4, 7, 6)), {}),
    "keys without batch": ((Q, (4, 7, 3), (4, 7, 6)), {}),
    "no batch": (((4, 5, 3), (4, 7, 3), (4, 7, 6)), {"attn_mask": some_forbidden(4, 5, 7)}),
    "neither batch nor heads": (((5, 3), (7, 3), (7, 6)), {"attn_mask": some(5, 7)}),
    "queries alone without heads": (((5, 3), (4, 7, 3), (4, 7, 6)), {}),
    "more leading dimensions": (((2, 3, 4, 5, 3), (2, 3, 4, 7, 3), (2, 1, 4, 7, 6)), {"attn_mask": random(3, 1, 5, 7)}),
    "no key": ((Q, (2, 4, 0, 3), (2, 4, 0, 6)), {}),
    "no batch element": (((0, 4, 5, 3), (0, 4, 7, 3), (0, 4, 7, 6)), {}),
}


def results(
    function: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]
) -> list[Tensor]:
    """The output and the gradients of query, key, value and a float mask."""
    torch.manual_seed(1)
    leaves = [random(*shape).requires_grad_() for shape in shapes]
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        mask = mask.detach().clone().requires_grad_()
        options, leaves = {**options, "attn_mask": mask}, [*leaves, mask]
    out = function(*leaves[:3], **options)
    return [out, *torch.autograd.grad(out, leaves, random(*out.shape))]


@pytest.mark.parametrize("case", CASES)
def test_as_torch(case: str) -> None:
    shapes, options = CASES[case]
    found, wanted = (
        results(f, shapes, options) for f in (scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    for name, a, b in zip(("out", "query", "key", "value", "attn_mask"), found, wanted, strict=False):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_takes_the_arguments_that_torch_takes() -> None:
    ours = inspect.signature(scaled_dot_product_attention).parameters
    names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    assert list(ours) == names
    # What torch takes by position, and what it refuses there.
    q = random(*Q)
    for function in (scaled_dot_product_attention, F.scaled_dot_product_attention):
        function(q, q, q, None, 0.0, True)
        with pytest.raises(TypeError, match="positional"):
            function(q, q, q, None, 0.0, True, 0.5)


def test_a_mask_of_another_dtype_keeps_it_in_its_gradient() -> None:
    mask = torch.zeros(5, 7, requires_grad=True)
    half = [random(*s).bfloat16() for s in (Q, K, V)]
    scaled_dot_product_attention(*half, attn_mask=mask).sum().backward()
    assert mask.grad is not None and mask.grad.dtype == torch.float32


def test_dropout_drops_and_keeps_the_mean() -> None:
    value = torch.eye(64, dtype=torch.float64)
    query = torch.zeros(500, 64, dtype=torch.float64)
    weights = scaled_dot_product_attention(query, query[:64], value, dropout_p=0.25) * 64
    assert torch.equal(weights.unique(), torch.tensor([0.0, 1 / 0.75], dtype=torch.float64))
    # 32000 draws: five standard deviations of their mean.
    assert abs(float((weights == 0).double().mean()) - 0.25) < 5 * (0.25 * 0.75 / weights.numel()) ** 0.5
    again = scaled_dot_product_attention(query, query[:64], value, dropout_p=0.25) * 64
    assert not torch.equal(weights, again)


@pytest.mark.parametrize(
    "case", ["float mask of the whole batch", "bool mask", "grouped heads", "neither batch nor heads"]
)
def test_compiles_in_one_graph(case: str) -> None:
    shapes, options = CASES[case]
    compiled = torch.compile(scaled_dot_product_attention, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        results(compiled, shapes, options), results(scaled_dot_product_attention, shapes, options), strict=True
    ):
        torch.testing.assert_close(a, b)


q, k, v = torch.zeros(Q), torch.zeros(K), torch.zeros(V)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": [1.0]}, TypeError, "query: expected a torch.Tensor, got list"),
    ({"value": v.long()}, TypeError, "value: expected a floating-point tensor, got torch.int64"),
    ({"key": k[0, 0, 0]}, ValueError, "key: expected [..., tokens, width], got [3]"),
    (
        {"key": k[:, :2], "value": v[:, :2]},
        ValueError,
        "key: expected heads that broadcast with the 4 of query, got 2; set enable_gqa",
    ),
    ({"value": v[:, :3]}, ValueError, "value: expected heads that broadcast with the 4 of query, got 3"),
    (
        {"key": k[:, :3], "value": v[:, :3], "enable_gqa": True},
        ValueError,
        "key: expected a divisor of the 4 heads of query, got 3",
    ),
    ({"value": v[:, :3], "enable_gqa": True}, ValueError, "value: expected a divisor of the 4 heads of query, got 3"),
    (
        {"query": q.expand(3, *Q)[:, :1].transpose(0, 1)[0], "key": k},
        ValueError,
        "leading dimensions that broadcast, got [3, 4, 5, 3]",
    ),
    ({"attn_mask": [[True]]}, TypeError, "attn_mask: expected a torch.Tensor or None, got list"),
    ({"attn_mask": torch.ones(5, 7).long()}, TypeError, "attn_mask: expected bool or floating point, got torch.int64"),
    ({"attn_mask": torch.ones(5, 6)}, ValueError, "attn_mask: expected a shape that broadcasts to [2, 4, 5, 7], got"),
    (
        {"attn_mask": torch.ones(3, 1, 1, 5, 7)},
        ValueError,
        "attn_mask: expected a shape that broadcasts to [2, 4, 5, 7]",
    ),
    ({"attn_mask": torch.ones(5, 7, device="meta")}, ValueError, "attn_mask: expected a tensor on cpu like query"),
    (
        {"attn_mask": torch.ones(5, 7), "is_causal": True},
        ValueError,
        "attn_mask: expected None because is_causal is set",
    ),
    ({"is_causal": 1}, TypeError, "is_causal: expected bool, got int"),
    ({"enable_gqa": None}, TypeError, "enable_gqa: expected bool, got NoneType"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p: expected a probability in [0, 1), got 1.0"),
    ({"scale": "big"}, TypeError, "scale: expected float, got str"),
    ({"key": k[..., :2]}, ValueError, "key: expected width 3 like query, got 2"),
    ({"value": v[:, :, :6]}, ValueError, "value: expected 7 tokens like key, got 6"),
    ({"key": k.double()}, ValueError, "key: expected dtype torch.float32 like query, got torch.float64"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_to_do(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^(scaled_dot_product_)?attention: .*{re.escape(message)}") as caught:
        scaled_dot_product_attention(**{"query": q, "key": k, "value": v, **wrong})
    assert "\n" not in str(caught.value)


def test_is_public() -> None:
    assert wfkernels.scaled_dot_product_attention is scaled_dot_product_attention
    assert "reference" in wfkernels.explain("scaled_dot_product_attention", q, k, v)
