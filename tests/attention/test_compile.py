"""What torch asks of a library op: schema, fake, autograd, torch.compile, export, autocast and huge sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.cases import CASES, Call, build
from wfkernels import BucketTable, attention, dispatch
from wfkernels.attention import ops
from wfkernels.attention.arguments import Arguments

CHOSEN = ["dense bias and gate", "evoformer", "dense rich tables", "ragged pruned table", "ragged table and dense"]


def permuted(call: Call) -> Call:
    """The same call with every float tensor stored in another order of dimensions (dense-permuted inputs)."""
    leaves = {n: t.detach().mT.contiguous().mT.requires_grad_() for n, t in call.leaves().items()}
    return call.with_leaves(leaves)


@pytest.mark.parametrize("layout", [lambda call: call, permuted], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("name", [*CHOSEN, "ragged dropout", "only empty sequences"])
def test_opcheck_forward(name: str, layout: Callable[[Call], Call]) -> None:
    torch.library.opcheck(ops.attention_forward, layout(build(CASES[name])).arguments())


@pytest.mark.parametrize("layout", [lambda call: call, permuted], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("name", [*CHOSEN, "ragged dropout", "only empty sequences"])
@pytest.mark.parametrize("needs", [(True,) * 5, (False, True, False, False, True), (False,) * 5], ids=str)
def test_opcheck_backward(name: str, layout: Callable[[Call], Call], needs: tuple[bool, ...]) -> None:
    call = layout(build(CASES[name]))
    call = call.with_leaves({n: t.detach() for n, t in call.leaves().items()})
    query, key, value, *rest = call.arguments()
    out, lse = ops.attention_forward(query, key, value, *rest)
    given = [
        need and (i < 3 or x is not None)
        for i, (need, x) in enumerate(zip(needs, (0, 0, 0, rest[0], rest[6]), strict=True))
    ]
    grads = torch.randn_like(out), torch.randn_like(lse)
    torch.library.opcheck(
        ops.attention_backward,
        (*grads, given, query, key, value, out, lse, *rest),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_helpers_return_none_where_no_gradient_was_asked_for() -> None:
    call = build(CASES["ragged gate of one head"])
    with torch.no_grad():
        arguments = Arguments(gate=call.gate, offsets=call.options["offsets"], max_length=6)
        tensors = (call.query, call.key, call.value)
        out, lse = ops.forward(*tensors, arguments)
        found = ops.backward(torch.ones_like(out), None, (True, False, True, True, True), *tensors, out, lse, arguments)
    wanted = torch.autograd.grad(call.run(attention).sum(), [call.query, call.value, call.leaves()["gate"]])
    assert found[1] is None and found[3] is None
    torch.testing.assert_close((found[0], found[2], found[4]), wanted)


def with_gradients(call: Call, function: Any) -> list[Tensor]:
    more = {} if "offsets" not in call.options else {"max_length": 20}
    out, lse = call.run(function, return_lse=True, **more)
    total = out.square().sum() + lse.exp().sum()
    return [out, lse, *torch.autograd.grad(total, list(call.leaves().values()))]


@pytest.mark.parametrize("name", CHOSEN)
def test_compiled_in_one_graph_with_backward(name: str) -> None:
    call = build(CASES[name])
    for leaf_name, leaf in call.leaves().items():
        if leaf_name in ("bias", "gate") and "offsets" in call.options and leaf.ndim == 3:  # covers max_length
            padded = torch.nn.functional.pad(leaf.detach(), (0, 20 - leaf.shape[2], 0, 20 - leaf.shape[1]))
            call = call.with_leaves({**call.leaves(), leaf_name: padded.requires_grad_()})
    compiled = torch.compile(attention, fullgraph=True)
    for a, b in zip(with_gradients(call, compiled), with_gradients(call, attention), strict=True):
        assert torch.equal(a, b)


def ragged_call(lengths: list[int], table: Tensor) -> dict[str, Any]:
    tokens = sum(lengths)
    query, key, value = (torch.randn(tokens, 2, 4, requires_grad=True) for _ in range(3))
    gate = BucketTable(table, torch.arange(5), torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens) // 3)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return {
        "query": query, "key": key, "value": value, "gate": gate, "offsets": offsets, "max_length": max(lengths)
    }  # fmt: skip


def test_other_lengths_do_not_compile_again() -> None:
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    table = torch.rand(2, 1, 1, 2, 5, requires_grad=True)
    compiled(**ragged_call([4, 6], table)).sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ([5, 9], [2, 3, 17], [30, 2], [8, 8, 8, 8, 40]):
            call = ragged_call(lengths, table)
            out = compiled(**call)
            torch.testing.assert_close(out, attention(**call))
            out.sum().backward()


def test_dense_calls_of_other_lengths_do_not_compile_again() -> None:
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")

    def run(function: Any, length: int) -> Tensor:
        torch.manual_seed(length)
        tensors = [torch.randn(2, 4, length, 8, requires_grad=True) for _ in range(3)]
        return function(*tensors, bias=torch.randn(4, length, length, requires_grad=True), is_causal=True)

    run(compiled, 5).sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (8, 21):
            out = run(compiled, length)
            torch.testing.assert_close(out, run(attention, length))
            out.sum().backward()


def test_dropout_draws_its_seed_inside_the_compiled_graph() -> None:
    call = build(CASES["dense"])
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    first, second = (call.run(compiled, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(first, second)


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.rand(2, 1, 1, 1, 5))
        self.register_buffer("lookup", torch.arange(5))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
        out = attention(
            query, key, value, gate=BucketTable(self.table, self.lookup), offsets=offsets, max_length=query.shape[0]
        )
        return out


def test_export_with_other_lengths_and_backward() -> None:
    module = Module()
    tokens, ends = torch.export.Dim("tokens", min=2), torch.export.Dim("ends", min=2)
    example = (*(torch.randn(10, 2, 4) for _ in range(3)), torch.tensor([0, 4, 10]))
    shapes = {"query": {0: tokens}, "key": {0: tokens}, "value": {0: tokens}, "offsets": {0: ends}}
    exported = torch.export.export(module, example, dynamic_shapes=shapes).module()
    other = (*(torch.randn(17, 2, 4, requires_grad=True) for _ in range(3)), torch.tensor([0, 3, 3, 17]))
    out, wanted = exported(*other), module(*other)
    assert torch.equal(out, wanted)
    found = torch.autograd.grad(out.square().sum(), [*other[:3], *exported.parameters()])
    expected = torch.autograd.grad(wanted.square().sum(), [*other[:3], module.table])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("function", [attention, torch.compile(attention, fullgraph=True, backend="aot_eager")])
def test_autocast(function: Any) -> None:
    call = build(CASES["dense bias and gate"], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = call.run(function, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    half = call.to(torch.bfloat16)
    assert torch.equal(out, half.run(attention))
    found = torch.autograd.grad(out.sum(), list(call.leaves().values()))
    wanted = torch.autograd.grad(half.run(attention).sum(), list(half.leaves().values()))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


def test_autocast_leaves_float64_and_tables() -> None:
    call = build(CASES["ragged tables"])
    with torch.autocast("cpu", torch.bfloat16):
        assert call.run(attention).dtype == torch.float64
    single = call.to(torch.float32)
    assert isinstance(single.gate, BucketTable)
    with torch.autocast("cpu", torch.bfloat16):
        out = single.run(attention)
    tensors = (x.to(torch.bfloat16) for x in (single.query, single.key, single.value))
    assert torch.equal(out, attention(*tensors, bias=single.bias, gate=single.gate, **single.options))


def test_sizes_beyond_two_to_the_31() -> None:
    # Meta tensors hold no data: shapes, and the choice of an implementation, must not overflow.
    tokens = 2**26
    with torch.device("meta"):
        query, key, value = (torch.empty(tokens, 8, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        offsets = torch.empty(2, dtype=torch.int64)
        bias = torch.empty(8, tokens, tokens, requires_grad=True)
    assert query.numel() > 2**31
    arguments = Arguments(bias=bias, offsets=offsets, max_length=tokens)
    assert dispatch.verdicts("attention", query, key, value, *arguments.flatten())["reference"] is None
    out, lse = ops.forward(query, key, value, arguments)
    assert out.shape == query.shape and lse.shape == (tokens, 8) and lse.dtype == torch.float32
    (out.sum() + lse.sum()).backward()
    for tensor in (query, key, value, bias):
        assert tensor.grad is not None and tensor.grad.shape == tensor.shape and tensor.grad.dtype == tensor.dtype


def test_named_implementation_that_does_not_exist() -> None:
    with pytest.raises(dispatch.ImplementationError, match="attention: impl='fastest' cannot run here: .* reference"):
        build(CASES["dense"]).run(attention, impl="fastest")
