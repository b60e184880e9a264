"""dispatch and explain: which implementation runs, and why not the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Thread

import pytest
import torch

import wfkernels
from tests.bad_input import attention, predict, rooms, rows
from tests.bad_input.table import Arguments
from wfkernels import compiled, dispatch, env
from wfkernels.dispatch import Implementation, ImplementationError, always
from wfkernels.explain import functions
from wfkernels.layout import Layer, Parameter, RowLayout

LAYOUT = RowLayout((Layer("fc", "linear", 2, (Parameter("fc.weight", (2, 3), 0, 3),)),))
NO_GPU = "not triton: it needs an NVIDIA GPU (sm_80 or newer) and these tensors lie on cpu"


# A call of every public function that computes something, and the library ops in it.
CALLS: dict[str, tuple[Callable[[], Arguments], list[str]]] = {
    "attention": (attention.ragged, ["attention"]),
    "embedding": (rooms.embedding, ["embedding"]),
    "pack": (rows.pack, ["rows_pack"]),
    "predict": (predict.good("bucketed"), ["embedding", "residual_norm", "linear", "attention", "projection"]),
    "projection": (rooms.projection, ["projection"]),
    "residual_norm": (rooms.residual_norm, ["residual_norm"]),
    "scaled_dot_product_attention": (
        lambda: dict.fromkeys(("query", "key", "value"), torch.ones(1, 2, 3)),
        ["attention"],
    ),
    "unpack": (rows.unpack, ["no library op"]),
}


@pytest.fixture(autouse=True)
def _op(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op "double" whose fast implementation takes even numbers only."""
    for switch in env.SWITCHES:
        monkeypatch.delenv(switch.name, raising=False)
    for table in ("_registry", "_contracts"):
        monkeypatch.setattr(dispatch, table, dict(getattr(dispatch, table)))
    fast = Implementation(
        "cpp", lambda x: ("cpp", 2 * x), lambda x: None if x % 2 == 0 else f"{x} is odd; pass an even number"
    )
    dispatch.register("double", fast, Implementation("reference", lambda x: ("reference", 2 * x), always))


def run(impl: str, x: int) -> tuple[str, int]:
    result: tuple[str, int] = dispatch.choose("double", impl, x).run(x)
    return result


@pytest.mark.parametrize(
    ("impl", "x", "expected"),
    [("auto", 2, "cpp"), ("auto", 3, "reference"), ("reference", 2, "reference"), ("cpp", 2, "cpp")],
)
def test_the_first_that_can_runs(impl: str, x: int, expected: str) -> None:
    assert run(impl, x) == (expected, 2 * x)


def test_a_named_one_never_falls_back() -> None:
    with pytest.raises(
        ImplementationError, match="^double: impl='cpp' cannot run here: not cpp: 3 is odd; pass an even number$"
    ):
        run("cpp", 3)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ImplementationError, match="double has the implementations cpp, reference"):
        run("fast", 2)


def test_the_switch_is_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.IMPL.name, "reference")
    assert run("auto", 2) == ("reference", 4)
    assert run("cpp", 2) == ("cpp", 4)
    monkeypatch.setenv(env.IMPL.name, "cpp")
    with pytest.raises(ImplementationError, match="3 is odd"):
        run("auto", 3)


def test_the_choice_and_its_reason_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="wfkernels"):
        run("auto", 3)
    assert caplog.messages == ["double: reference (not cpp: 3 is odd; pass an even number)"]


def test_verdicts_name_every_implementation() -> None:
    assert dispatch.verdicts("double", 3) == {"cpp": "3 is odd; pass an even number", "reference": None}
    assert "double" in dispatch.ops()


def test_a_recording_says_why_not_the_others() -> None:
    with dispatch.recording() as choices:
        run("auto", 2)
        run("auto", 3)
        run("reference", 2)
        with pytest.raises(ImplementationError):
            run("cpp", 3)
    run("auto", 2)
    assert [(c.runs, c.why_not) for c in choices] == [
        ("cpp", {"reference": "it could run, but cpp comes first"}),
        ("reference", {"cpp": "3 is odd; pass an even number"}),
        ("reference", {"cpp": "it could run, but reference was asked for"}),
        (None, {"cpp": "3 is odd; pass an even number", "reference": "it could run, but cpp was asked for"}),
    ]
    assert str(choices[1]) == "double: reference; not cpp: 3 is odd; pass an even number"


def test_a_recording_sees_other_threads() -> None:
    with dispatch.recording() as outer, dispatch.recording() as inner:
        thread = Thread(target=run, args=("auto", 2))
        thread.start()
        thread.join()
    assert [c.runs for c in outer] == [c.runs for c in inner] == ["cpp"]


def test_explain_a_public_function_by_name() -> None:
    teachers = [[torch.ones(2, 3, dtype=torch.float8_e5m2)]]
    lines = wfkernels.explain("pack", teachers, LAYOUT)
    assert lines.splitlines() == [
        f"rows_pack: reference; {NO_GPU}; not cpp: it does not know torch.float8_e5m2; cast to float32 first",
        "switches: WFKERNELS_IMPL=auto, WFKERNELS_CHECK=0, WFKERNELS_CPU_ISA=best, WFKERNELS_TF32=0,"
        " WFKERNELS_AUTOTUNE=0, WFKERNELS_CONFIGS=",
    ]


def test_explain_a_callable_with_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not", lambda part: "not built")
    teacher = torch.ones(2, 3, requires_grad=True)
    lines = wfkernels.explain(lambda: wfkernels.pack([[teacher]], LAYOUT).sum().backward())
    assert lines.splitlines()[:-1] == [
        f"{op}: reference; {NO_GPU}; not cpp: not built" for op in ("rows_pack", "rows_pack_backward")
    ]


@pytest.mark.parametrize("name", functions())
def test_explain_knows_every_public_function(name: str) -> None:
    call, ops = CALLS[name]
    lines = wfkernels.explain(name, **call()).splitlines()
    assert [line.split(":")[0] for line in lines] == [*ops, "switches"]


def test_explain_says_which_switches_are_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.IMPL.name, "reference")
    monkeypatch.setenv(env.CHECK.name, "1")
    lines = wfkernels.explain("pack", [[torch.ones(2, 3)]], LAYOUT).splitlines()
    assert lines[-1].startswith("switches: WFKERNELS_IMPL=reference, WFKERNELS_CHECK=1, WFKERNELS_CPU_ISA=best, ")


def test_explain_a_call_that_cannot_run() -> None:
    teachers = [[torch.ones(2, 3, dtype=torch.float8_e5m2)]]
    lines = wfkernels.explain("pack", teachers, LAYOUT, impl="cpp")
    assert lines.startswith(f"rows_pack: nothing can run; {NO_GPU}; not cpp: it does not know torch.float8_e5m2")


def test_explain_does_not_hide_other_errors() -> None:
    with pytest.raises(ValueError, match="explain: op: expected one of attention, .* or a callable, got 'paint'"):
        wfkernels.explain("paint")
    with pytest.raises(TypeError, match="explain: op: expected one of attention, .* or a callable, got int"):
        wfkernels.explain(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pack: teachers: expected at least one teacher"):
        wfkernels.explain("pack", [], LAYOUT)

    def fail() -> None:
        raise ImplementationError("not ours")

    with pytest.raises(ImplementationError, match="not ours"):
        wfkernels.explain(fail)
