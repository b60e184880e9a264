"""WFKERNELS_CHECK=1: every kernel call is compared with the reference, and values are checked wherever they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import wfkernels
from tests import fakes
from tests.attention.cases import CASES, DENSE, RAGGED, build
from tests.bad_input import rooms, rows
from wfkernels import BucketTable, attention, dispatch, env
from wfkernels.attention import ops, validate
from wfkernels.attention.arguments import Arguments
from wfkernels.example import training_step
from wfkernels.judge import Disagreement
from wfkernels.linear.ops import linear

ADVICE = "WFKERNELS_IMPL=reference goes on without it; please report it"


@pytest.fixture(autouse=True)
def _on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(env.IMPL.name, raising=False)
    monkeypatch.setenv(env.CHECK.name, "1")


def random(call: dict[str, Any]) -> dict[str, Any]:
    """A call's tensors filled with numbers."""

    def fill(x: Any) -> Any:
        return [fill(y) for y in x] if isinstance(x, list) else (torch.randn(x.shape) if isinstance(x, Tensor) else x)

    return {name: fill(value) for name, value in call.items()}


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [x for y in value for x in leaves(y)] if isinstance(value, (list, tuple)) else []


def step(function: Callable[..., Any], call: dict[str, Any]) -> list[Tensor]:
    """All outputs of a call, and the gradients of every float tensor in it."""
    inputs = [x.requires_grad_() for value in call.values() for x in leaves(value)]
    outputs = function(**call)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, weights, materialize_grads=True)]


def attend() -> list[Tensor]:
    call = build(CASES["dense bias and gate"], dtype=torch.float32)
    named = {**call.leaves(), **call.options, "return_lse": True}
    return step(attention, {n: t.detach() if isinstance(t, Tensor) else t for n, t in named.items()})


def of(name: str, good: Callable[[], dict[str, Any]]) -> Callable[[], list[Tensor]]:
    return lambda: step(getattr(wfkernels, name), random(good()))


def multiply() -> list[Tensor]:
    return [linear(torch.randn(5, 3), torch.randn(4, 3), torch.randn(4), "relu", "auto")]


STEPS: dict[str, Callable[[], list[Tensor]]] = {
    "attention": attend,
    "embedding": of("embedding", rooms.embedding),
    "projection": of("projection", rooms.projection),
    "residual_norm": of("residual_norm", rooms.residual_norm),
    "rows_pack": of("pack", rows.pack),
}
# Whose gradients are the library's own.
FORWARD = {"linear": multiply}
RESULTS = {
    "attention": ("out", "lse"),
    "attention_backward": ("dquery", "dkey", "dvalue", "dbias", "dgate"),
    "embedding": ("tokens",),
    "embedding_backward": (
        *("drows", "dbase", "dshift", "dscale", "dbiases", "dposition", "dteacher", "dlayer", "dcross", "dgamma"),
        *("dbeta", "dweights[0]", "dweights[1]", "dweights[2]"),
    ),
    "linear": ("y",),
    "projection": ("students",),
    "projection_backward": (
        *("dtokens", "dstrength", None, None, "dgate_weight", "dgate_bias", None, "dscale", "drows", "dbase"),
        *("dweights[0]", "dweights[1]", "dweights[2]", "dbiases[0]", "dbiases[1]", "dbiases[2]"),
    ),
    "residual_norm": ("h", "y", "mean", "rstd"),
    "residual_norm_backward": ("dx", "dresidual", "dweight", "dbias"),
    "rows_pack": ("rows",),
    "rows_pack_backward": ("dteachers[0][0]", "dteachers[0][1]", "dteachers[0][2]", "dteachers[1][0]"),
}
WRONG = [(op, i, name) for op, names in RESULTS.items() for i, name in enumerate(names) if name is not None]


def test_every_op_is_among_them() -> None:
    assert set(RESULTS) == set(dispatch.ops()) == {*STEPS, *FORWARD, *(f"{op}_backward" for op in STEPS)}


@pytest.mark.parametrize(("op", "result", "name"), WRONG, ids=[f"{op} {name}" for op, _, name in WRONG])
def test_one_wrong_entry_of_one_result_is_found_and_named(
    op: str, result: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.register(monkeypatch, op, fakes.off(result))
    with pytest.raises(Disagreement) as caught:
        (STEPS | FORWARD)[op.removesuffix("_backward")]()
    message = str(caught.value)
    assert message.startswith(f"{op}: impl='cpp' disagrees with the reference in {name}")
    assert " at [0" in message and message.endswith(ADVICE) and "\n" not in message
    assert ("allowed" in message) != (op.startswith("rows_pack"))


@pytest.mark.parametrize("op", STEPS)
def test_results_are_those_without_the_check_to_the_bit(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(results: list[Tensor], args: Any) -> None:
        for x in results:
            if x.numel() and not op.startswith("rows"):
                x.view(-1)[0] *= 1 + torch.finfo(x.dtype).eps

    counts = [fakes.register(monkeypatch, name, rounded) for name in (op, f"{op}_backward")]
    torch.manual_seed(3)
    checked, after = STEPS[op](), torch.get_rng_state()
    monkeypatch.setenv(env.CHECK.name, "0")
    torch.manual_seed(3)
    unchecked = STEPS[op]()
    assert len(checked) == len(unchecked) and all(torch.equal(a, b) for a, b in zip(checked, unchecked, strict=True))
    assert torch.equal(torch.get_rng_state(), after)
    assert [len(runs) for runs in counts] == [2, 2]


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.register(monkeypatch, "attention", fakes.off(0))
    monkeypatch.delenv(env.CHECK.name)
    attend()


def test_a_kernel_that_writes_into_an_argument_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def scribble(results: list[Tensor], args: tuple[Any, ...]) -> None:
        args[1].view(-1)[2] += 1

    fakes.register(monkeypatch, "residual_norm", scribble)
    with pytest.raises(Disagreement, match=r"residual_norm: impl='cpp': it wrote into its tensor argument 1, torch.fl"):
        STEPS["residual_norm"]()


def test_the_reference_is_not_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fakes.register(monkeypatch, "attention")
    monkeypatch.setattr("wfkernels.judge.examine", lambda *_: 1 / 0)
    call = build(DENSE)
    call.run(attention, impl="reference")
    assert not runs
    with pytest.raises(ZeroDivisionError):
        call.run(attention)


def test_open_and_closed_gates_are_judged_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(results: list[Tensor], args: tuple[Any, ...]) -> None:
        gate = Arguments.unflatten(args[8:]).gate
        assert isinstance(gate, Tensor)
        results[4][gate == 0] *= 1.01

    fakes.register(monkeypatch, "attention_backward", shift)
    with pytest.raises(Disagreement, match="in dgate, closed entries: "):
        attend()


def test_a_wrong_gradient_inside_predict_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    training_step("cpu")
    fakes.register(monkeypatch, "residual_norm_backward", fakes.off(3))
    with pytest.raises(Disagreement, match="residual_norm_backward: impl='cpp' .* in dbias: "):
        training_step("cpu")


def test_the_compiled_part_that_there_is_agrees() -> None:
    with dispatch.recording() as choices:
        STEPS["rows_pack"]()
    if choices[0].runs == "reference":
        pytest.skip(choices[0].why_not["cpp"])
    assert choices[0].runs == "cpp"


def compiled(**options: Any) -> Callable[..., Tensor]:
    return torch.compile(lambda q, k, v: attention(q, k, v, **options), fullgraph=True, backend="aot_eager")


def test_a_compiled_graph_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    call = build(DENSE, dtype=torch.float32)
    right = compiled()(call.query, call.key, call.value)
    fakes.register(monkeypatch, "attention", fakes.off(0))
    fakes.register(monkeypatch, "attention_backward", fakes.off(2))
    with pytest.raises(Disagreement, match="attention: impl='cpp' disagrees .* in out: "):
        compiled()(call.query, call.key, call.value)
    with pytest.raises(Disagreement, match="attention_backward: impl='cpp' disagrees .* in dvalue: "):
        right.sum().backward()


TOKENS = torch.zeros(9, 2, 4)
NINE = torch.zeros(9, dtype=torch.int64)
TABLE = BucketTable(torch.ones(1, 2, 2, 2, 3), torch.tensor([0, 1, 2]), NINE, NINE, NINE)
# Values that are wrong but that nobody can see while a graph is traced or behind the door.
VALUES: list[tuple[dict[str, Any], str]] = [
    ({"offsets": torch.tensor([0, 6, 3, 9])}, "offsets: expected to start at 0, never to fall and to end at 9"),
    ({"offsets": torch.tensor([0, 4, 12])}, "offsets: expected to start at 0, never to fall and to end at 9"),
    ({"offsets": torch.tensor([2, 4, 9])}, "offsets: expected to start at 0, never to fall and to end at 9"),
    ({"key_offsets": torch.tensor([0, 10, 9])}, "key_offsets: expected to start at 0, never to fall"),
    ({"max_length": 4}, "max_length: expected at least 5, the longest sequence, got 4"),
    ({"query_start": torch.tensor([0, -1])}, "query_start: expected rows from 0 on, got -1"),
    ({"gate": TABLE._replace(group=NINE + 2)}, "gate.group: expected integers from 0 to 1, got 2 to 2"),
    ({"gate": TABLE._replace(lookup=TABLE.lookup + 1)}, "gate.lookup: expected integers from 0 to 2, got 1 to 3"),
    ({"bias": TABLE._replace(group=NINE - 1)}, "bias.group: expected integers from 0 to 1, got -1 to -1"),
    (
        {"gate": TABLE, "key_offsets": torch.tensor([0, 2, 9]), "max_length": 9},
        "gate.group: expected every query's row to be a row of",
    ),
    ({"gate": torch.full((1, 5, 5), 2.0)}, "gate: expected values in \\[0, 1\\], got 2 to 2"),
    ({"gate": TABLE._replace(table=-TABLE.table)}, "gate.table: expected values in \\[0, 1\\], got -1 to -1"),
]


@pytest.mark.parametrize(("wrong", "message"), VALUES, ids=[message[:40] for _, message in VALUES])
def test_values_that_the_door_did_not_see_are_checked_in_the_op(wrong: dict[str, Any], message: str) -> None:
    arguments = Arguments(**{"offsets": torch.tensor([0, 4, 9]), "max_length": 5, **wrong})
    with pytest.raises(ValueError, match=f"^attention: {message}"):
        ops.forward(TOKENS, TOKENS, TOKENS, arguments)


def test_values_of_a_compiled_call_are_checked() -> None:
    torch.compiler.reset()
    offsets = torch.tensor([0, 6, 3, 9])
    with pytest.raises(ValueError, match="^attention: offsets: expected to start at 0, never to fall"):
        compiled(offsets=offsets, max_length=9)(TOKENS, TOKENS, TOKENS)


def test_the_gradient_checks_its_values_too() -> None:
    arguments = Arguments(offsets=torch.tensor([0, 4, 9]), max_length=5)
    out, lse = ops.forward(TOKENS, TOKENS, TOKENS, arguments)
    falling = arguments._replace(offsets=torch.tensor([0, 10, 9]))
    with pytest.raises(ValueError, match="^attention: offsets: expected to start at 0"):
        ops.backward(out, None, (True,) * 5, TOKENS, TOKENS, TOKENS, out, lse, falling)


class Elsewhere:
    """A tensor on another device, as far as `readable` asks."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)


@pytest.mark.parametrize(
    ("kind", "switch", "expected"),
    [("cpu", "0", True), ("cuda", "0", False), ("cuda", "1", True), ("meta", "0", False), ("meta", "1", False)],
)
def test_which_values_may_be_read(kind: str, switch: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.CHECK.name, switch)
    monkeypatch.setattr(validate, "Tensor", Elsewhere)
    assert validate.readable(Elsewhere(kind)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ragged tables", "ragged pruned table", "dense rich tables", "only empty sequences"])
def test_right_calls_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.register(monkeypatch, "attention")
    fakes.register(monkeypatch, "attention_backward")
    call = build(CASES[name], dtype=torch.bfloat16)
    out, lse = call.run(attention, return_lse=True)
    torch.autograd.grad((out, lse), list(call.leaves().values()), (torch.ones_like(out), torch.zeros_like(lse)))


def test_an_unknown_value_of_the_switch_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.CHECK.name, "yes")
    with pytest.raises(ValueError, match="WFKERNELS_CHECK='yes': expected one of 0, 1"):
        build(RAGGED).run(attention)
