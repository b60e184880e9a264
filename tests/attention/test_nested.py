"""Jagged nested tensors in and out: the same as every sequence on its own, with the gradients of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nested import nested_tensor, nested_tensor_from_jagged
from torch.nn import functional as F

from wfkernels import attention, scaled_dot_product_attention
from wfkernels.nn import RelativePositionBias

LENGTHS, KEY_LENGTHS = (3, 1, 0, 6, 6), (4, 0, 2, 6, 1)
HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 3, 5


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def sequences(lengths: tuple[int, ...], heads: int, width: int) -> list[Tensor]:
    """Sequences [n, heads, width], requiring grad."""
    return [random(n, heads, width).requires_grad_() for n in lengths]


def nest(parts: list[Tensor]) -> Tensor:
    """One nested tensor [N, j, heads, width] whose gradient reaches the parts."""
    offsets = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    return nested_tensor_from_jagged(torch.cat(parts), offsets)


def tokens_first(x: Tensor) -> Tensor:
    return x


def heads_first(x: Tensor) -> Tensor:
    """The other order of heads and tokens, and back."""
    return x.transpose(1, 2)


def one_by_one(
    query: list[Tensor], key: list[Tensor], value: list[Tensor], bias: Tensor | None = None, is_causal: bool = False
) -> list[Tensor]:
    """Attention of every sequence on its own: [n, heads, value width] each."""
    found = []
    for q, k, v in zip(query, key, value, strict=True):
        mask = None if bias is None else bias[:, : len(q), : len(k)]
        out = F.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (q, k, v)), attn_mask=mask, is_causal=is_causal, enable_gqa=True
        )
        found.append(out.transpose(0, 1))
    return found


@pytest.mark.parametrize("order", [tokens_first, heads_first])
@pytest.mark.parametrize("lengths", [None, KEY_LENGTHS], ids=["self", "keys of their own"])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
def test_as_every_sequence_on_its_own(
    order: Callable[[Tensor], Tensor], lengths: tuple[int, ...] | None, biased: bool, is_causal: bool
) -> None:
    query = sequences(LENGTHS, HEADS, WIDTH)
    key, value = (sequences(lengths or LENGTHS, KEY_HEADS, width) for width in (WIDTH, VALUE_WIDTH))
    bias = random(HEADS, 6, 6).requires_grad_() if biased else None
    leaves = [*query, *key, *value, *([bias] if bias is not None else [])]

    nested = [order(nest(x)) for x in (query, key, value)]
    out = attention(*nested, bias=bias, is_causal=is_causal)
    assert out.shape[:3] == nested[0].shape[:3]
    if bias is not None and is_causal:
        bias = bias.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    wanted = torch.cat(one_by_one(query, key, value, bias, is_causal and not biased))
    tokens = order(out).values()
    torch.testing.assert_close(tokens, wanted)
    weight = random(*wanted.shape)
    gradients = [
        torch.autograd.grad(x, leaves, weight, retain_graph=True, materialize_grads=True) for x in (tokens, wanted)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_adapter_gives_what_torch_gives() -> None:
    parts = sequences((3, 1, 6), HEADS, WIDTH)
    results = []
    for function in (scaled_dot_product_attention, F.scaled_dot_product_attention):
        x = heads_first(nest(parts))
        out = function(x, x, x)
        assert out.shape == x.shape
        results.append([out.values(), *torch.autograd.grad(heads_first(out).values().sin().sum(), parts)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (HEADS, 7, 7)], ids=str)
def test_the_adapter_takes_masks(shape: tuple[int, ...]) -> None:
    x = heads_first(nest(sequences(LENGTHS, HEADS, WIDTH)))
    mask = random(*shape).requires_grad_()
    full = mask.expand(HEADS, *mask.shape[-2:])
    out = scaled_dot_product_attention(x, x, x, attn_mask=mask)
    wanted = attention(x, x, x, bias=full)
    assert torch.equal(out.values(), wanted.values())
    gradients = (torch.autograd.grad(y.values().sin().sum(), mask)[0] for y in (out, wanted))
    torch.testing.assert_close(*gradients)
    shut = torch.rand(shape) < 0.3
    out = scaled_dot_product_attention(x, x, x, attn_mask=~shut)
    wanted = attention(x, x, x, bias=torch.zeros(full.shape).masked_fill(shut, -torch.inf))
    assert torch.equal(out.values(), wanted.values())


def test_holes_between_sequences_stay_holes() -> None:
    padded = random(3, 7, HEADS, WIDTH).requires_grad_()
    starts, lengths = torch.tensor([1, 0, 3]), torch.tensor([4, 0, 3])
    x = torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)
    assert x.lengths() is not None
    out, lse = attention(x, x, x, return_lse=True)
    assert out.shape == x.shape and lse.shape == x.shape[:-1]
    parts = [padded[i, a : a + n] for i, (a, n) in enumerate(zip(starts, lengths, strict=True))]
    wanted = one_by_one(parts, parts, parts)
    for found, part in zip(out.unbind(), wanted, strict=True):
        torch.testing.assert_close(found, part)
    weight = nested_tensor([random(*part.shape) for part in parts], layout=torch.jagged)
    found = sum((a * b).sum() for a, b in zip(out.unbind(), weight.unbind(), strict=True))
    expected = sum((a * b).sum() for a, b in zip(wanted, weight.unbind(), strict=True))
    torch.testing.assert_close(torch.autograd.grad(found, padded), torch.autograd.grad(expected, padded))


def test_tables_dropout_and_pruned_queries_are_those_of_the_ragged_call() -> None:
    parts = sequences((4, 4), HEADS, WIDTH)
    x, tokens, offsets = nest(parts), torch.cat(parts), torch.tensor([0, 4, 8])
    options: dict[str, Any] = {
        "bias": RelativePositionBias.swin(HEADS, 2)(2),
        "gate": torch.rand(1, 5, 5),
        "dropout_p": 0.4,
        "seed": torch.tensor([7]),
    }
    out, lse = attention(x, x, x, return_lse=True, **options)
    wanted, wanted_lse = attention(tokens, tokens, tokens, offsets=offsets, return_lse=True, **options)
    assert torch.equal(out.values(), wanted)
    assert torch.equal(lse.values(), wanted_lse)
    last = nest([part[2:] for part in parts])
    pruned = attention(last, x, x, query_start=torch.tensor([2, 2]), max_length=4, **options)
    torch.testing.assert_close(pruned.values(), wanted.view(2, 4, HEADS, WIDTH)[:, 2:].flatten(0, 1))


def layer(x: Tensor) -> Tensor:
    q = x.transpose(1, 2)
    return x + scaled_dot_product_attention(q, q, q).transpose(1, 2)


@pytest.mark.parametrize("known", [False, True], ids=["longest unknown", "longest known"])
def test_compiles_in_one_graph_for_any_lengths(known: bool) -> None:
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)

    def run(function: Callable[[Tensor], Tensor], lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        tokens = random(sum(lengths), HEADS, WIDTH).requires_grad_()
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        bounds = {"min_seqlen": min(lengths), "max_seqlen": max(lengths)} if known else {}
        out = function(nested_tensor_from_jagged(tokens, offsets, **bounds)).values()
        return out, *torch.autograd.grad(out.sin().sum(), tokens)

    for lengths in ((3, 5), (4, 2, 9)):
        for a, b in zip(run(compiled, lengths), run(layer, lengths), strict=True):
            torch.testing.assert_close(a, b)


def test_a_bound_that_is_not_readable_is_read_from_the_tensor() -> None:
    # Offsets on "meta" cannot be read at all, so this reaches for what the tensor itself knows.
    with torch.device("meta"):
        x = nested_tensor_from_jagged(
            torch.empty(9, HEADS, WIDTH), torch.empty(3, dtype=torch.int64), min_seqlen=2, max_seqlen=7
        )
        with pytest.raises(ValueError, match="bias: expected .* with M at least 7"):
            attention(x, x, x, bias=torch.empty(1, 6, 6))
        assert attention(x, x, x, bias=torch.empty(1, 7, 7)).shape == x.shape


X, Y = nest(sequences((2, 3), 2, 4)), nest(sequences((2, 3, 1), 2, 4))
OTHER, DENSE = nest(sequences((3, 2), 2, 4)), torch.zeros(2, 2, 3, 4, dtype=torch.float64)
FLAT = nested_tensor_from_jagged(torch.zeros(5, 4), torch.tensor([0, 2, 5]))
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"key": DENSE},
        ValueError,
        "key: expected a nested tensor like the others, got a dense one of shape [2, 2, 3, 4]",
    ),
    ({"query": DENSE}, ValueError, "query: expected a nested tensor like the others, got a dense one"),
    ({"value": None}, TypeError, "value: expected a nested torch.Tensor like the others, got NoneType"),
    ({"key": FLAT}, ValueError, "key: expected 4 dimensions, jagged in dimension 1 or 2, got 3, jagged in 1"),
    ({"key": Y, "value": Y}, ValueError, "key: expected 2 sequences like query, got 3"),
    ({"value": OTHER}, ValueError, "value: expected sequences as long as those of key, [2, 3], got [3, 2]"),
    ({"offsets": X.offsets()}, ValueError, "offsets: expected None, because nested tensors have their own"),
    ({"key_offsets": X.offsets()}, ValueError, "key_offsets: expected None, because nested tensors have their own"),
    ({"max_length": 2}, ValueError, "max_length: expected at least 3, the longest sequence, got 2"),
    ({"bias": torch.zeros(2, 2, 2)}, ValueError, "bias: expected [2 or 1, M, M] with M at least 3"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_to_do(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^attention: {re.escape(message)}") as caught:
        attention(**{"query": X, "key": X, "value": X, **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_old_nested_layout_is_refused() -> None:
    old = nested_tensor([torch.zeros(2, 2, 4), torch.zeros(3, 2, 4)], layout=torch.strided)
    with pytest.raises(ValueError, match=r"^attention: query: expected a nested tensor of layout torch\.jagged"):
        attention(old, old, old)


def test_the_adapter_refuses_what_torch_means_otherwise() -> None:
    with pytest.raises(ValueError, match="query: expected 4 dimensions, jagged in dimension 2, got 4, jagged in 1"):
        scaled_dot_product_attention(X, X, X)
