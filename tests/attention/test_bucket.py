"""BucketTable covers what published models do with an index per pair: each against a dense bias built their way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wfkernels import BucketTable, attention
from wfkernels.attention.blocks import Block
from wfkernels.attention.terms import make_term


def qkv(heads: int, tokens: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(batch, heads, tokens, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))


def compare(
    tensors: tuple[Tensor, Tensor, Tensor],
    parameter: Tensor,
    bucketed: dict[str, BucketTable],
    dense: dict[str, Tensor],
) -> None:
    """The same outputs and gradients, also of the model's own parameter."""
    out, expected = attention(*tensors, **bucketed), attention(*tensors, **dense)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    inputs = (*tensors, parameter)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
    )


def t5_bucket(relative: int, bidirectional: bool, buckets: int = 8, farthest: int = 20) -> int:
    """Bucket of (key position - query position), as in the T5 paper's code: half of them exact, half logarithmic."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    scaled = exact + int(math.log(distance / exact) / math.log(farthest / exact) * (buckets - exact))
    return first + min(scaled, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["encoder", "decoder"])
def test_t5(bidirectional: bool) -> None:
    heads, tokens, reach = 3, 33, 20
    embedding = torch.randn(8, heads, dtype=torch.float64, requires_grad=True)  # T5's nn.Embedding(buckets, heads)
    lookup = torch.tensor([t5_bucket(-d, bidirectional) for d in range(-reach, reach + 1)])
    table = BucketTable(embedding.T.reshape(heads, 1, 1, 1, 8), lookup)
    index = torch.tensor([[t5_bucket(j - i, bidirectional) for j in range(tokens)] for i in range(tokens)])
    compare(qkv(heads, tokens), embedding, {"bias": table}, {"bias": embedding[index].permute(2, 0, 1)})


def window_index(height: int, width: int) -> Tensor:
    """Swin's and BEiT's 2-D relative position index [h * w, h * w]."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = ys.flatten(), xs.flatten()
    down, right = y[:, None] - y[None, :] + height - 1, x[:, None] - x[None, :] + width - 1
    return down * (2 * width - 1) + right


def window_positions(height: int, width: int) -> Tensor:
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (ys * (2 * width - 1) + xs).flatten()


def test_swin_with_a_shifted_window() -> None:
    heads, height, width = 2, 3, 4
    entries = (2 * height - 1) * (2 * width - 1)
    parameter = torch.randn(entries, heads, dtype=torch.float64, requires_grad=True)
    region = torch.randint(3, (height * width,))  # a shifted window forbids pairs of different regions
    same = parameter.T.reshape(heads, 1, 1, 1, entries)
    table = torch.cat([torch.full_like(same, -torch.inf), same], dim=3)
    bucket = BucketTable(table, torch.arange(entries), segment=region, position=window_positions(height, width))
    dense = parameter[window_index(height, width)].permute(2, 0, 1)
    dense = dense.masked_fill(region[:, None] != region[None, :], -torch.inf)
    compare(qkv(heads, height * width), parameter, {"bias": bucket}, {"bias": dense})


def test_beit_with_its_class_token() -> None:
    heads, height, width = 2, 4, 3
    entries = (2 * height - 1) * (2 * width - 1)
    parameter = torch.randn(entries + 3, heads, dtype=torch.float64, requires_grad=True)
    # BEiT: the last three entries are class to patch, patch to class, class to class.
    index = torch.zeros(height * width + 1, height * width + 1, dtype=torch.int64)
    index[1:, 1:] = window_index(height, width)
    index[0, :], index[:, 0], index[0, 0] = entries, entries + 1, entries + 2
    dense = parameter[index].permute(2, 0, 1)
    patch, (from_class, to_class, own) = parameter[:entries].T, parameter[entries:, :, None].expand(-1, -1, entries)
    table = torch.stack([own, from_class, to_class, patch], dim=1).view(heads, 2, 2, 1, entries)
    group = torch.tensor([0] + [1] * height * width)
    position = torch.cat([torch.zeros(1, dtype=torch.int64), window_positions(height, width)])
    bucket = BucketTable(table, torch.arange(entries), group=group, position=position)
    compare(qkv(heads, height * width + 1), parameter, {"bias": bucket}, {"bias": dense})


def test_weightformer_gate() -> None:
    # Two sequences [cross, teacher 0, teacher 1, ...] with 3 and 2 teachers of 2 and 4 rows: own token always open.
    heads, reach = 2, 3
    theta = torch.randn(heads, 2, 2, 2, 2 * reach + 1, dtype=torch.float64, requires_grad=True)
    sequences = [(3, 2), (2, 4)]
    group, segment, position = [], [], []
    for teachers, rows in sequences:
        group += [0] + [1] * teachers * rows
        segment += [-1] + [t for t in range(teachers) for _ in range(rows)]
        position += [0] + list(range(rows)) * teachers
    lengths = [1 + t * n for t, n in sequences]
    offsets = torch.tensor([0, lengths[0], sum(lengths)])
    tensors = [torch.randn(sum(lengths), heads, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    m = theta.sigmoid()
    bucket = BucketTable(
        m,
        torch.arange(2 * reach + 1),
        torch.tensor(group),
        torch.tensor(segment),
        torch.tensor(position),
        diagonal_open=True,
    )
    out = attention(*tensors, gate=bucket, offsets=offsets)
    expected = []
    for start, end in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        gate = torch.stack(
            [
                torch.ones(heads, dtype=torch.float64)
                if i == j
                else m[
                    :,
                    group[i],
                    group[j],
                    int(segment[i] == segment[j]),
                    max(-reach, min(reach, position[i] - position[j])) + reach,
                ]
                for i in range(start, end)
                for j in range(start, end)
            ]
        )
        one = [x[start:end].transpose(0, 1) for x in tensors]
        part = attention(*one, gate=gate.T.reshape(heads, end - start, end - start))
        assert isinstance(part, Tensor)
        expected.append(part.transpose(0, 1))
    wanted = torch.cat(expected)
    torch.testing.assert_close(out, wanted)
    grad = torch.randn_like(out)
    inputs = [*tensors, theta]
    found = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, inputs, grad))


def test_the_sum_over_a_bucket_loses_no_small_parts() -> None:
    tokens = 64
    rows = torch.arange(tokens)
    block = Block((), rows, rows, torch.tensor(0))
    term = make_term(BucketTable(torch.ones(1, 1, 1, 1, 1), torch.tensor([0])), torch.float32, log=False)
    pairs = torch.ones(1, tokens, tokens)
    pairs[0, 0, 0] = 2.0**27  # adding ones to it one by one in float32 changes nothing
    term.accumulate(block, pairs)
    assert float(term.gradient()) == torch.tensor(2.0**27 + tokens**2 - 1)
