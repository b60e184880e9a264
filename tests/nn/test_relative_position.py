"""The biases of BEiT, Swin and T5 as timm and transformers make them, with the gradients of their tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wfkernels import BucketTable, attention
from wfkernels.nn import RelativePositionBias

HEADS = 3


def beit(window: tuple[int, int]) -> nn.Module:
    from timm.models.beit import Attention

    return Attention(12, HEADS, window_size=window)


def shared_beit(window: tuple[int, int]) -> nn.Module:
    from timm.models.beit import RelativePositionBias as Shared

    return Shared(window, HEADS)


def relpos(prefix_tokens: int) -> Callable[[tuple[int, int]], nn.Module]:
    from timm.layers import RelPosBias

    return lambda window: RelPosBias(window, HEADS, prefix_tokens)


def swin(window: tuple[int, int]) -> nn.Module:
    from timm.models.swin_transformer import WindowAttention

    return WindowAttention(12, HEADS, window_size=window)


def theirs(module: Any) -> Tensor:
    """The bias that a module of timm makes, [heads, tokens, tokens]."""
    makes = next(name for name in ("_get_rel_pos_bias", "get_bias", "forward") if hasattr(module, name))
    bias: Tensor = getattr(module, makes)()
    return bias.view(bias.shape[-3:])


def attended(bias: Tensor | BucketTable, tokens: int, function: Callable[..., Tensor]) -> Tensor:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, HEADS, tokens, 4, dtype=torch.float64) for _ in range(3))
    return function(q, k, v, bias)


def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | BucketTable) -> Tensor:
    out = attention(q, k, v, bias=bias)
    assert isinstance(out, Tensor)
    return out


def torchs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


WINDOWS: dict[str, tuple[Callable[[tuple[int, int]], nn.Module], bool]] = {
    "beit": (beit, True),
    "beit, shared": (shared_beit, True),
    "vit_relpos with class token": (relpos(1), True),
    "vit_relpos": (relpos(0), False),
    "swin": (swin, False),
}


@pytest.mark.parametrize("window", [(1, 1), (1, 4), (3, 4), (5, 2)], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_as_timm(name: str, window: tuple[int, int]) -> None:
    make, cls_token = WINDOWS[name]
    reference = make(window).double()
    table = reference.get_parameter("relative_position_bias_table")
    nn.init.normal_(table)
    module = RelativePositionBias.beit(HEADS, window, cls_token).double()
    # The table of a checkpoint loads under its own name.
    module.load_state_dict({k: v for k, v in reference.state_dict().items() if k == "relative_position_bias_table"})
    found, wanted = module.dense(), theirs(reference)
    assert torch.equal(found, wanted)

    tokens = found.shape[-1]
    outs = [attended(module(), tokens, ours), attended(module.dense(), tokens, ours), attended(wanted, tokens, torchs)]
    parameters = [module.relative_position_bias_table, module.relative_position_bias_table, table]
    gradients = [torch.autograd.grad(out.sin().sum(), p)[0] for out, p in zip(outs, parameters, strict=True)]
    for out, gradient in zip(outs, gradients, strict=True):
        torch.testing.assert_close(out, outs[-1])
        torch.testing.assert_close(gradient, gradients[-1])


def test_swin_is_beit_without_class_token() -> None:
    one, other = RelativePositionBias.swin(HEADS, 3), RelativePositionBias.beit(HEADS, (3, 3), cls_token=False)
    assert one.scheme == other.scheme and one.relative_position_bias_table.shape == (25, HEADS)


def t5(is_decoder: bool, buckets: int, max_distance: int) -> Any:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(
        d_model=12,
        d_kv=4,
        num_heads=HEADS,
        is_decoder=is_decoder,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=max_distance,
    )
    module = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    nn.init.normal_(module.relative_attention_bias.weight)
    return module


# The last sizes: distances on the border of two buckets, which float32 and float64 round to different sides.
@pytest.mark.parametrize("is_decoder", [False, True], ids=["both directions", "one direction"])
@pytest.mark.parametrize("sizes", [(32, 128), (33, 100), (4, 3), (64, 64), (320, 800), (20, 160)], ids=str)
def test_distances_as_transformers(is_decoder: bool, sizes: tuple[int, int]) -> None:
    reference = t5(is_decoder, *sizes)
    module = RelativePositionBias.t5(HEADS, *sizes, bidirectional=not is_decoder).double()
    module.load_state_dict(reference.relative_attention_bias.state_dict())
    # Beyond the largest distance as well, with more keys than queries, and from a later query on.
    longest = 2 * sizes[1] + 7
    assert torch.equal(module.dense(longest), reference.compute_bias(longest, longest)[0])
    assert torch.equal(module.dense(3, longest), reference.compute_bias(3, longest)[0])
    assert torch.equal(module.dense(2, 11, start=9), reference.compute_bias(2, 11, past_seen_tokens=9)[0])

    tokens = 9
    outs = [attended(module(), tokens, ours), attended(reference.compute_bias(tokens, tokens), tokens, torchs)]
    parameters = [module.weight, reference.relative_attention_bias.weight]
    gradients = [torch.autograd.grad(out.sin().sum(), p)[0] for out, p in zip(outs, parameters, strict=True)]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*gradients)


def test_distances_for_a_query_with_cached_keys() -> None:
    module = RelativePositionBias.t5(HEADS, 8, 6, bidirectional=False).double()
    q, k, v = (torch.randn(1, HEADS, 9, 4, dtype=torch.float64) for _ in range(3))
    whole = attention(q, k, v, bias=module(), is_causal=True)
    last = attention(q[:, :, 7:], k, v, bias=module(), is_causal=True, query_start=torch.tensor([7]))
    torch.testing.assert_close(last, whole[:, :, 7:])


@pytest.mark.parametrize("cls_token", [False, True])
def test_windows_in_a_ragged_call(cls_token: bool) -> None:
    module = RelativePositionBias.beit(HEADS, (2, 3), cls_token).double()
    n = 6 + cls_token
    q, k, v = (torch.randn(4, HEADS, n, 4, dtype=torch.float64) for _ in range(3))
    flat = [x.transpose(1, 2).reshape(4 * n, HEADS, 4) for x in (q, k, v)]
    out = attention(*flat, bias=module(sequences=4), offsets=torch.arange(5) * n)
    torch.testing.assert_close(out.view(4, n, HEADS, 4).transpose(1, 2), attention(q, k, v, bias=module()))


@pytest.mark.parametrize(
    "module",
    [RelativePositionBias.t5(HEADS), RelativePositionBias.beit(HEADS, 3), RelativePositionBias.swin(HEADS, (3, 2))],
    ids=["t5", "beit", "swin"],
)
def test_compiles_in_one_graph(module: RelativePositionBias) -> None:
    tokens = module.scheme.tokens or 7
    x = torch.randn(2, HEADS, tokens, 4)

    def function(x: Tensor) -> Tensor:
        return ours(x, x, x, module())

    results = []
    for run in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        out = run(x)
        results.append((out, *torch.autograd.grad(out.sin().sum(), list(module.parameters()))))
    torch.testing.assert_close(*results)


def test_only_the_table_is_saved_and_index_tensors_move_along() -> None:
    module = RelativePositionBias.beit(HEADS, 3, dtype=torch.bfloat16)
    assert list(module.state_dict()) == ["relative_position_bias_table"]
    assert module.relative_position_bias_table.dtype == torch.bfloat16
    assert "Window(height=3, width=3, cls_token=True), heads=3" in repr(module)
    empty = RelativePositionBias.beit(HEADS, 3, device="meta")
    assert all(x.is_meta for x in (*empty.parameters(), *empty.buffers()))
    filled = empty.to_empty(device="cpu")
    filled.reset_parameters()
    for a, b in zip(filled.buffers(), module.buffers(), strict=True):
        assert torch.equal(a, b)
    assert 0 < float(filled.relative_position_bias_table.detach().std()) < 0.04


WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: RelativePositionBias.swin(2, 2.5), TypeError, "window: expected int or two of them, got 2.5 and 2.5"),
    (lambda: RelativePositionBias.beit(2, (2, 3, 4)), TypeError, "window: expected int or two of them, got (2, 3, 4)"),
    (lambda: RelativePositionBias.t5(0), ValueError, "heads: expected at least 1, got 0"),
    (lambda: RelativePositionBias.t5(2, 3), ValueError, "buckets: expected at least 4, got 3"),
    (lambda: RelativePositionBias.t5(2, 1, bidirectional=False), ValueError, "buckets: expected at least 2, got 1"),
    (
        lambda: RelativePositionBias.t5(2, 32, 8),
        ValueError,
        "max_distance: expected more than 8, the distances with a bucket each",
    ),
    (lambda: RelativePositionBias.beit(2, (0, 3)), ValueError, "window: expected at least 1 x 1, got 0 x 3"),
    (lambda: RelativePositionBias.t5(2).dense(), ValueError, "queries: expected a number of tokens"),
    (lambda: RelativePositionBias.swin(2, 3).dense(10), ValueError, "queries, keys: expected at most 9 rows and keys"),
    (
        lambda: RelativePositionBias.swin(2, 3).dense(2, start=8),
        ValueError,
        "queries, keys: expected at most 9 rows and keys, the window's tokens, got rows 8 to 9 and 2 keys",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_to_do(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^RelativePositionBias(\.t5|\.dense)?: {re.escape(message)}") as caught:
        call()
    assert "\n" not in str(caught.value)
