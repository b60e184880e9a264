"""pack: teachers' tensors into one layer-major buffer, in every implementation."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.rows.cases import LAYOUTS, layer, packed, teachers
from wfkernels import compiled, pack
from wfkernels.dispatch import ImplementationError
from wfkernels.layout import RowLayout
from wfkernels.rows import ops

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CONV = LAYOUTS["convolution with bias and norm"]
SMALL = RowLayout((layer("a", 2, (2, 3), (2,)), layer("b", 1, ())))


@pytest.fixture(params=["reference", "cpp"])
def impl(request: pytest.FixtureRequest) -> str:
    if request.param == "cpp" and (reason := compiled.why_not(compiled.CPP)):
        pytest.skip(reason)
    return str(request.param)


def arguments(given: list[list[Tensor]], layout: RowLayout, dtype: torch.dtype) -> tuple[object, ...]:
    """What the public function hands to the library op, less the implementation."""
    parameters = [len(member.parameters) for member in layout.layers]
    return sum(given, []), [*layout.rows], parameters, [p.width for p in layout.parameters], dtype


def bits(tensor: Tensor) -> Tensor:
    """The bytes, with all NaNs alike: which of them a cast gives is nobody's promise."""
    return tensor.nan_to_num(nan=12345.0).view(torch.uint8)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("count", [1, 4])
def test_every_row_stands_where_the_layout_says(layout: RowLayout, count: int, impl: str, poisoned: None) -> None:
    given = teachers(layout, count)
    buffer = pack(given, layout, impl=impl)
    assert buffer.shape == (count * layout.row_numel,)
    assert torch.equal(buffer, packed(given, layout, torch.float32))


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_casts_are_those_of_torch(source: torch.dtype, target: torch.dtype, impl: str) -> None:
    ends = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-8, 65520.0, 1e300]
    ties = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-25]
    values = torch.tensor([*ends, *ties, *torch.randn(51).tolist()], dtype=torch.float64).to(source)
    layout = RowLayout((layer("l", 5, (5, 13)),))
    buffer = pack([[values.view(5, 13)]], layout, dtype=target, impl=impl)
    assert buffer.dtype == target
    expected = packed([[values.view(5, 13)]], layout, target)
    assert torch.equal(buffer.isnan(), expected.isnan())
    assert torch.equal(bits(buffer), bits(expected))


def test_mixed_dtypes_promote(impl: str) -> None:
    given = teachers(SMALL, 2)
    given[1] = [given[1][0].bfloat16(), given[1][1].half(), given[1][2].bfloat16()]
    assert torch.equal(pack(given, SMALL, impl=impl), packed(given, SMALL, torch.float32))
    halves = [[t.bfloat16() for t in given[0]], [t.half() for t in given[0]]]
    assert pack(halves, SMALL, impl=impl).dtype == torch.float32
    assert pack(halves[:1], SMALL, impl=impl).dtype == torch.bfloat16


def strided(kind: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape that does not lie in memory in its own order."""
    if kind == "reversed dimensions":
        return torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))
    if kind == "channels last":
        return torch.randn(shape).to(memory_format=torch.channels_last)
    if kind == "every other element":
        return torch.randn([2 * n for n in shape])[tuple(slice(None, None, 2) for _ in shape)]
    if kind == "expanded rows":
        return torch.randn(1, *shape[1:]).expand(shape)
    if kind == "expanded columns":
        return torch.randn(shape[0], *(1 for _ in shape[1:])).expand(shape)
    if kind == "overlapping":
        return torch.randn(100).as_strided(shape, tuple(range(1, len(shape) + 1)), 3)
    return torch.randn(torch.Size(shape).numel() + 5)[5:].view(shape)


KINDS = ("reversed dimensions", "channels last", "every other element", "expanded rows", "expanded columns")
MORE_KINDS = ("overlapping", "offset")


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_tensors_are_read_where_they_lie(kind: str, impl: str) -> None:
    layout = RowLayout((layer("l", 5, (5, 3, 4, 7), (5,)),))
    given = [[strided(kind, (5, 3, 4, 7)), torch.randn(10)[::2]] for _ in range(2)]
    before = [[t.clone() for t in teacher] for teacher in given]
    first = pack(given, layout, dtype=torch.float64, impl=impl)
    assert torch.equal(first, packed(given, layout, torch.float64))
    assert torch.equal(first, pack(given, layout, dtype=torch.float64, impl=impl))
    assert all(torch.equal(a, b) for a, b in zip(sum(before, []), sum(given, []), strict=True))


WIDTHS = st.lists(st.integers(0, 20), min_size=1, max_size=3)


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), WIDTHS), min_size=1, max_size=4),
    count=st.integers(1, 4),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    target=st.sampled_from(DTYPES),
    kinds=st.lists(st.sampled_from(["contiguous", *KINDS[:1], *KINDS[2:]]), min_size=1),
)
def test_compiled_equals_the_reference_on_random_layouts(rows, count, dtypes, target, kinds) -> None:  # type: ignore[no-untyped-def]
    if reason := compiled.why_not(compiled.CPP):
        pytest.skip(reason)
    layout = RowLayout(tuple(layer(f"l{i}", n, *((n, w) for w in widths)) for i, (n, widths) in enumerate(rows)))
    kind, dtype = itertools.cycle(kinds), itertools.cycle(dtypes)
    given_teachers = [[strided(next(kind), p.shape).to(next(dtype)) for p in layout.parameters] for _ in range(count)]
    expected = pack(given_teachers, layout, dtype=target, impl="reference")
    assert torch.equal(pack(given_teachers, layout, dtype=target, impl="cpp"), expected)
    assert torch.equal(expected, packed(given_teachers, layout, target))


def test_the_result_does_not_depend_on_the_number_of_threads(impl: str) -> None:
    layout = RowLayout((layer("narrow", 3000, (3000, 27), (3000,)), layer("wide", 5, (5, 100_003))))
    given = teachers(layout, 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = pack(given, layout, dtype=torch.bfloat16, impl=impl)
        torch.set_num_threads(1)
        assert torch.equal(several, pack(given, layout, dtype=torch.bfloat16, impl=impl))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(several, packed(given, layout, torch.bfloat16))


def test_gradcheck(impl: str) -> None:
    shapes = [p.shape for p in SMALL.parameters]
    given = [[strided("every other element", shape).double().requires_grad_() for shape in shapes] for _ in "ab"]
    assert torch.autograd.gradcheck(lambda *t: pack([t[:3], t[3:]], SMALL, impl=impl), sum(given, []))


@pytest.mark.parametrize("wanted", [*itertools.product([False, True], repeat=3)], ids=str)
def test_every_subset_of_requires_grad(wanted: tuple[bool, ...], impl: str) -> None:
    given = teachers(SMALL, 2)
    for tensor, want in zip(given[1], wanted, strict=True):
        tensor.requires_grad_(want)
    buffer = pack(given, SMALL, impl=impl)
    assert buffer.requires_grad == any(wanted)
    if not any(wanted):
        return
    weights = torch.randn_like(buffer)
    (buffer * weights).sum().backward()
    assert all(t.grad is None for t in given[0])
    # The gradient of an element is the weight at its place: pack the element numbers to find that place.
    numbers = [n.view(p.shape) for n, p in zip(torch.arange(1.0, 10).split([6, 2, 1]), SMALL.parameters, strict=True)]
    where = packed([[torch.zeros_like(n) for n in numbers], numbers], SMALL, torch.float32)
    for tensor, number, want in zip(given[1], numbers, wanted, strict=True):
        if not want:
            assert tensor.grad is None
            continue
        assert tensor.grad is not None
        expected = torch.stack([weights[where == n].squeeze() for n in number.flatten()]).view(tensor.shape)
        assert torch.equal(tensor.grad, expected)


def test_gradients_have_the_dtype_of_their_tensor(impl: str) -> None:
    given = [[t.to(dtype).requires_grad_() for t, dtype in zip(teachers(SMALL, 1)[0], DTYPES, strict=False)]]
    pack(given, SMALL, impl=impl).sum().backward()  # an expanded gradient
    for tensor in given[0]:
        assert tensor.grad is not None and tensor.grad.dtype == tensor.dtype
        assert torch.equal(tensor.grad, torch.ones_like(tensor))


def test_a_second_derivative_is_refused() -> None:
    given = [[t.requires_grad_() for t in teachers(SMALL, 1)[0]]]
    weights = torch.randn(SMALL.row_numel, requires_grad=True)
    (grad,) = torch.autograd.grad((pack(given, SMALL) * weights).sum(), given[0][0], create_graph=True)
    with pytest.raises(RuntimeError, match="rows_pack_backward"):
        grad.sum().backward()


def test_autocast_changes_nothing(impl: str) -> None:
    given = teachers(CONV)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pack(given, CONV, impl=impl), packed(given, CONV, torch.float32))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_the_public_ops(requires_grad: bool) -> None:
    given = [[strided("reversed dimensions", p.shape) for p in CONV.parameters] for _ in "ab"]
    for tensor in sum(given, []):
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(ops.rows_pack, (*arguments(given, CONV, torch.float32), "auto"))


def test_opcheck_of_the_gradient() -> None:
    _, rows, parameters, widths, _ = arguments(teachers(CONV), CONV, torch.float32)
    needed = [True, False, True, True] * 2
    grad = torch.randn(4 * CONV.row_numel)[::2]
    torch.library.opcheck(ops.rows_pack_backward, (grad, 2, rows, parameters, widths, needed, "auto"))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_compiled_gradient_is_that_of_the_reference(layout: RowLayout, dtype: torch.dtype, poisoned: None) -> None:
    if reason := compiled.why_not(compiled.CPP):
        pytest.skip(reason)
    _, rows, parameters, widths, _ = arguments(teachers(layout), layout, dtype)
    grad = torch.randn(3 * layout.row_numel).to(dtype)
    needed = [i % 4 != 1 for i in range(3 * len(layout.parameters))]
    found, wanted = (
        ops.rows_pack_backward(grad, 3, rows, parameters, widths, needed, impl) for impl in ("cpp", "reference")
    )
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)


def test_opcheck_of_the_compiled_op() -> None:
    if reason := compiled.why_not(compiled.CPP):
        pytest.skip(reason)
    given = [[strided("reversed dimensions", p.shape) for p in CONV.parameters] for _ in "ab"]
    torch.library.opcheck(torch.ops.wfkernels_cpp.rows_pack.default, arguments(given, CONV, torch.bfloat16))


def test_compile_as_one_graph_with_its_gradient() -> None:
    def loss(tensors: list[list[Tensor]], weights: Tensor) -> Tensor:
        return (pack(tensors, CONV, dtype=torch.float64).sin() * weights).sum()

    weights = torch.randn(3 * CONV.row_numel)
    eager = [[t.requires_grad_() for t in teacher] for teacher in teachers(CONV)]
    compiled_inputs = [[t.detach().clone().requires_grad_() for t in teacher] for teacher in eager]
    loss(eager, weights).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled_inputs, weights).backward()
    for expected, found in zip(sum(eager, []), sum(compiled_inputs, []), strict=True):
        assert torch.equal(found.grad, expected.grad)


def test_export() -> None:
    class Pack(torch.nn.Module):
        def forward(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
            return pack([first, second], CONV)

    given = teachers(CONV, 2)
    program = torch.export.export(Pack(), (given[0], given[1]), strict=True)
    assert torch.equal(program.module()(given[0], given[1]), pack(given, CONV))


def test_sizes_beyond_32_bits() -> None:
    rows, width = 2**20 + 1, 2**10 + 1
    layout = RowLayout((layer("huge", rows, (rows, width)), layer("last", 3, (3, 5))))
    given = [[torch.empty(p.shape, device="meta", requires_grad=True) for p in layout.parameters] for _ in range(3)]
    buffer = pack(given, layout)
    assert buffer.shape == (3 * (rows * (width + 7) + 3 * 8),)
    assert buffer.numel() > 2**31
    grads = torch.autograd.grad(buffer.sum(), sum(given, []))
    assert [g.shape for g in grads] == [t.shape for t in sum(given, [])]


LINES = RowLayout((layer("fc", 2, (2, 3), (2,)),))
WEIGHT, BIAS = torch.zeros(2, 3), torch.zeros(2)
FLOATING = "expected a floating-point tensor, got torch."


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {}, ValueError, "pack: teachers: expected at least one teacher, got none"),
        ([[WEIGHT]], {}, ValueError, "pack: teachers[0]: expected 2 tensors, one per parameter of the layout, got 1"),
        ([[BIAS, BIAS]], {}, ValueError, "pack: teachers[0] fc.0: expected shape [2, 3], got [2]"),
        ([[WEIGHT, BIAS], [WEIGHT, [0, 0]]], {}, TypeError, "teachers[1] fc.1: expected a torch.Tensor, got list"),
        ([[WEIGHT, BIAS.long()]], {}, TypeError, f"pack: teachers[0] fc.1: {FLOATING}int64"),
        ([[WEIGHT.bool(), BIAS]], {}, TypeError, f"pack: teachers[0] fc.0: {FLOATING}bool"),
        ([[WEIGHT, BIAS.cfloat()]], {}, TypeError, f"pack: teachers[0] fc.1: {FLOATING}complex64"),
        ([[WEIGHT.to_sparse(), BIAS]], {}, TypeError, "pack: teachers[0] fc.0: expected a dense tensor"),
        ([[WEIGHT, BIAS.to("meta")]], {}, ValueError, "fc.1: expected a tensor on cpu like the first, got one on meta"),
        ([[WEIGHT, BIAS]], {"dtype": torch.int32}, TypeError, "pack: dtype: expected a real floating-point dtype"),
        ([[WEIGHT, BIAS]], {"impl": "fast"}, ImplementationError, "has the implementations triton, cpp, reference"),
    ],
)
def test_errors_name_what_is_wrong(
    given: list[list[Tensor]], options: dict[str, object], error: type, message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        pack(given, LINES, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_layout_without_parameters_is_an_error() -> None:
    with pytest.raises(ValueError, match="pack: layout: expected at least one parameter"):
        pack([[]], RowLayout(()))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([[torch.zeros(2, 3, device="meta"), torch.zeros(2, device="meta")]], "it reads CPU tensors"),
        ([[torch.zeros(2, 3).to(torch.float8_e5m2), torch.zeros(2)]], "it does not know torch.float8_e5m2"),
    ],
)
def test_the_compiled_part_says_what_it_cannot_do(given: list[list[Tensor]], reason: str) -> None:
    assert reason in (ops._cpp_why_not(*arguments(given, LINES, torch.float32)) or "")


def test_what_the_compiled_part_cannot_do_the_reference_does() -> None:
    given = [[torch.randn(2, 3).to(torch.float8_e5m2), torch.randn(2)]]
    assert torch.equal(pack(given, LINES, dtype=torch.float32), packed(given, LINES, torch.float32))
    with pytest.raises(ImplementationError, match="does not know torch.float8_e5m2"):
        pack(given, LINES, dtype=torch.float32, impl="cpp")
