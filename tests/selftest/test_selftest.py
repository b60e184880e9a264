"""`python -m wfkernels selftest`: right implementations pass, every kind of wrong one is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import fakes
from wfkernels import dispatch, env
from wfkernels.__main__ import main
from wfkernels.attention.arguments import Arguments
from wfkernels.selftest import Line, cases, compare, run

OPS = ("attention", "embedding", "projection", "residual_norm", "rows_pack")


@pytest.fixture(autouse=True)
def _switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in env.SWITCHES:
        monkeypatch.delenv(switch.name, raising=False)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One case per room, in float32 and bfloat16."""
    chosen = (cases.grouped_heads, cases.norm, cases.tokens_without_codes, cases.prior, cases.packed)
    monkeypatch.setattr(compare, "CASES", chosen)
    monkeypatch.setitem(compare.DTYPES, "cpu", (torch.float32, torch.bfloat16))


def line(op: str, implementation: str, lines: list[Line] | None = None) -> Line:
    found = run("cpu") if lines is None else lines
    return next(one for one in found if (one.op, one.implementation) == (op, implementation))


def test_everything_that_is_here_passes() -> None:
    lines = run("cpu")
    wanted = [(op, i.name) for op in dispatch.ops() for i in dispatch.implementations(op)]
    assert {(one.op, one.implementation) for one in lines} == set(wanted) and len(lines) == len(wanted)
    assert not [str(one) for one in lines if one.failure]
    for one in lines:
        assert one.calls or one.refused
        if one.implementation == "reference":
            assert one.status == "ok" and "gradients as by finite differences" in str(one)


def test_the_cases_hold_every_form_of_argument() -> None:
    seen: set[str] = set()
    with dispatch.capturing() as calls:
        for case in cases.CASES:
            case(cases.Draw(torch.device("cpu"), torch.float32))()
    for query, key, _, *rest in (args for op, args in calls if op == "attention"):
        given = Arguments.unflatten(rest)
        seen |= {f"{name} {type(term).__name__}" for name, term in (("bias", given.bias), ("gate", given.gate))}
        places = ("offsets", "key_offsets", "query_start", "seed")
        seen |= {name for name in places if getattr(given, name) is not None}
        seen |= {"causal"} if given.is_causal else set()
        if given.offsets is None:
            seen |= {"grouped"} if query.shape[-3] != key.shape[-3] else set()
        elif bool((given.offsets.diff() == 0).any()):
            seen.add("empty sequence")
    assert seen >= {
        *("bias Tensor", "bias BucketTable", "bias NoneType", "gate Tensor", "gate BucketTable", "gate NoneType"),
        *("offsets", "key_offsets", "query_start", "seed", "causal", "grouped", "empty sequence"),
    }


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("op", [*OPS, *(f"{op}_backward" for op in OPS)])
def test_a_wrong_result_fails_with_the_case_and_the_place(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.register(monkeypatch, op, fakes.off(0))
    lines = run("cpu")
    wrong = line(op, "cpp", lines)
    assert wrong.status == "FAILED" and ", float32: " in str(wrong) and " at [0" in str(wrong)
    assert [one for one in lines if one.failure] == [wrong]


@pytest.mark.usefixtures("few")
def test_a_right_one_says_how_near_to_the_bound_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.register(monkeypatch, "attention_backward")
    one = line("attention_backward", "cpp")
    assert 0 < one.worst <= 1 / 3  # it is the reference, of whose error three times is allowed
    assert str(one).endswith(f" ok       2 calls, error at most {one.worst:.0%} of what is allowed")


@pytest.mark.usefixtures("few")
def test_calls_that_it_refuses_come_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_halves(x: Tensor, *rest: Any) -> str | None:
        return "it knows float32 only" if x.dtype == torch.bfloat16 else None

    fakes.register(monkeypatch, "residual_norm", why_not=no_halves)
    one = line("residual_norm", "cpp")
    assert one.calls == 1 and str(one).endswith("; 1 calls not run: it knows float32 only")
    fakes.register(monkeypatch, "residual_norm", why_not=lambda *_: "it was not built")
    one = line("residual_norm", "cpp")
    assert one.status == "not run" and str(one).endswith("not run  it was not built")


def crash(results: list[Tensor], args: Any) -> None:
    raise RuntimeError("illegal memory\naccess")


def scribble(results: list[Tensor], args: Any) -> None:
    args[0].view(-1)[0] += 1


def dice(results: list[Tensor], args: Any) -> None:
    results[1] += 1e-9 * torch.randn(1)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (crash, "norm, float32: RuntimeError: illegal memory access"),
        (scribble, "norm, float32: Disturbance: it wrote into its tensor argument 0, torch.float32 [15, 33]"),
        (dice, "norm, float32: y: two runs differ: "),
    ],
)
def test_other_faults_of_a_kernel(fault: fakes.Change, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.register(monkeypatch, "residual_norm", fault)
    assert (line("residual_norm", "cpp").failure or "").startswith(message)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("op", [f"{op}_backward" for op in OPS])
def test_a_wrong_gradient_of_the_reference_is_found_by_finite_differences(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    *others, reference = dispatch.implementations(op)

    def wrong(*args: Any) -> Any:
        results = list(reference.run(*args))
        results[2] = results[2] * (1 + 1e-5)
        return type(reference.run(*args))(results)

    monkeypatch.setitem(dispatch._registry, op, (*others, dispatch.Implementation("reference", wrong, dispatch.always)))
    one = line(op, "reference")
    assert (one.failure or "").endswith("are not those of finite differences")


def test_the_command_line(capsys: pytest.CaptureFixture[str], few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["selftest", "--device", "cpu"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == "cpu:" and text[-1].startswith("cpu: ") and "FAILED" not in "".join(text)
    assert main(["selftest", "--device", "cpu", "--impl", "reference", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and {one["implementation"] for one in report["devices"]["cpu"]} == {"reference"}
    fakes.register(monkeypatch, "projection", fakes.off(0))
    assert main(["selftest", "--device", "cpu"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert main(["selftest", "--device", "cpu", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["passed"]
    assert [one["op"] for one in report["devices"]["cpu"] if one["status"] == "FAILED"] == ["projection"]


def test_an_implementation_that_runs_nowhere_is_a_failure(capsys: pytest.CaptureFixture[str], few: None) -> None:
    assert main(["selftest", "--device", "cpu", "--impl", "triton"]) == 1
    out = capsys.readouterr().out
    assert out.endswith("triton ran nowhere\n") and "rows_pack" in out and "it needs an NVIDIA GPU" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "--device: expected cpu or a device that torch can use here, got 'gpu'"),
        (["--device", "meta"], "--device: expected cpu or a device that torch can use here, got 'meta'"),
        (["--impl", "fast"], "argument --impl: invalid choice: 'fast'"),
        (["--rates", "--impl", "cpp"], "--impl: expected none with --rates"),
    ],
)
def test_bad_arguments_exit_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["selftest", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> list[Line]:
        raise KeyboardInterrupt

    monkeypatch.setattr("wfkernels.selftest.command.run", interrupted)
    assert main(["selftest", "--device", "cpu"]) == 130


def test_leaves_are_put_back_to_the_bit() -> None:
    draw = cases.Draw(torch.device("cpu"), torch.float64, smooth=True)
    call: Callable[[], Any] = cases.dense_bias(draw)
    before = [x.detach().clone() for x in draw.leaves]
    directions = [torch.randn_like(x) for x in draw.leaves]
    value = compare._moved(lambda: (float(call()[0].sum()), 0.0), draw.leaves, directions, 1e-3)
    assert value[0] != float(call()[0].detach().sum())
    assert all(torch.equal(x, was) for x, was in zip(draw.leaves, before, strict=True))
