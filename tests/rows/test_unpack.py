"""unpack: views of a student buffer, by name; pack_student: its inverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.rows.cases import LAYOUTS, layer, teachers
from wfkernels import RowLayout, unpack
from wfkernels.rows.api import pack_student

CONV = LAYOUTS["convolution with bias and norm"]


def state(layout: RowLayout, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    names = [p.name for p in layout.parameters]
    return dict(zip(names, teachers(layout, 1, dtype)[0], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_round_trip_is_bitwise_exact(layout: RowLayout, dtype: torch.dtype) -> None:
    given = state(layout, dtype)
    buffer = pack_student(given, layout)
    assert buffer.shape == (layout.numel,) and buffer.dtype == dtype
    found = unpack(buffer, layout)
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)
    assert torch.equal(pack_student(found, layout), buffer)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_are_contiguous_views_at_16_byte_offsets(layout: RowLayout, dtype: torch.dtype) -> None:
    buffer = torch.zeros(layout.numel, dtype=dtype)
    for name, view in unpack(buffer, layout).items():
        assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        assert view.is_contiguous()
        assert view.storage_offset() * view.element_size() % 16 == 0, name


def test_leading_dimensions_stay_in_front() -> None:
    buffers = torch.randn(6, CONV.numel)[::2]
    together = unpack(buffers, CONV)
    for group, buffer in enumerate(buffers):
        for name, view in unpack(buffer, CONV).items():
            assert together[name].untyped_storage().data_ptr() == buffers.untyped_storage().data_ptr()
            assert torch.equal(together[name][group], view)


def test_tied_names_share_one_view() -> None:
    layout = RowLayout((layer("embedding", 4, (4, 3)),), tied=(("head.weight", "embedding.0"),))
    found = unpack(torch.randn(layout.numel), layout)
    assert list(found) == ["embedding.0", "head.weight"]
    assert found["head.weight"] is found["embedding.0"]


def test_a_module_runs_on_the_views() -> None:
    module = nn.Linear(3, 5)
    layout = RowLayout((layer("x", 5, (5, 3), (5,)),))
    buffer = pack_student({"x.0": module.weight, "x.1": module.bias}, layout).detach().requires_grad_()
    views = unpack(buffer, layout)
    x = torch.randn(2, 3)
    out = torch.func.functional_call(module, {"weight": views["x.0"], "bias": views["x.1"]}, x)
    assert torch.equal(out, module(x))
    out.sum().backward()
    module(x).sum().backward()
    assert buffer.grad is not None and module.weight.grad is not None and module.bias.grad is not None
    expected = pack_student({"x.0": module.weight.grad, "x.1": module.bias.grad}, layout)
    assert torch.equal(buffer.grad, expected)


def test_the_gradient_is_one_concatenation() -> None:
    buffer = torch.randn(CONV.numel, requires_grad=True)
    nodes, seen = [v.grad_fn for v in unpack(buffer, CONV).values()], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    kinds = sorted(type(node).__name__ for node in seen)
    assert kinds == ["AccumulateGrad", "SplitWithSizesBackward0", *["ViewBackward0"] * len(CONV.parameters)]


def test_a_parameter_without_use_gets_zero_gradient() -> None:
    buffer = torch.randn(CONV.numel, requires_grad=True)
    unpack(buffer, CONV)["conv.1"].sum().backward()
    expected = {name: torch.zeros_like(v) for name, v in state(CONV).items()} | {"conv.1": torch.ones(5)}
    assert torch.equal(buffer.grad, pack_student(expected, CONV))  # type: ignore[arg-type]


def test_compile_as_one_graph() -> None:
    def total(buffer: Tensor) -> Tensor:
        return sum((i + 1) * view.sin().sum() for i, view in enumerate(unpack(buffer, CONV).values()))  # type: ignore[return-value]

    eager = torch.randn(CONV.numel, requires_grad=True)
    compiled = eager.detach().clone().requires_grad_()
    total(eager).backward()
    torch.compile(total, fullgraph=True, backend="aot_eager")(compiled).backward()
    assert torch.equal(compiled.grad, eager.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("buffer", "error", "message"),
    [
        ([1.0], TypeError, "unpack: buffer: expected a torch.Tensor, got list"),
        (
            torch.zeros(8, dtype=torch.int64),
            TypeError,
            "unpack: buffer: expected a floating-point tensor, got torch.int64",
        ),
        (torch.zeros(7), ValueError, r"unpack: buffer: expected shape \[..., 8\] for this layout, got \[7\]"),
        (torch.tensor(1.0), ValueError, r"unpack: buffer: expected shape \[..., 8\] for this layout, got \[\]"),
    ],
)
def test_errors_of_unpack(buffer: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        unpack(buffer, RowLayout((layer("fc", 2, (2, 3)),)))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "pack_student: state: expected an entry for fc.0, got none"),
        ({"fc.0": torch.zeros(3, 2)}, ValueError, r"pack_student: fc.0: expected shape \[2, 3\], got \[3, 2\]"),
        ({"fc.0": torch.zeros(2, 3).int()}, TypeError, "pack_student: fc.0: expected a floating-point tensor"),
    ],
)
def test_errors_of_pack_student(given: dict[str, Tensor], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        pack_student(given, RowLayout((layer("fc", 2, (2, 3)),)))
