"""A patched model computes what it computed before: outputs and all gradients, in every mode it is used in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.integrations.models import CASES, FULL, TOKENS, build, errors, rounding, run
from wfkernels import dispatch
from wfkernels.integrations import patch, unpatch

# One of each kind, for what does not depend on the model.
FEW = ["beit, shared bias and own", "vit_srelpos, shared MLP", "swin v2", "maxvit of TensorFlow", "t5, mask"]
DENSE = ["t5, numbers to add", "t5, eager, mask"]


class Calls(TorchDispatchMode):
    """Collects the arguments of every call of our attention, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.wfkernels.attention_forward.default:
            names = [argument.name for argument in func._schema.arguments]
            self.found.append(dict(zip(names, args, strict=False)))
        return func(*args, **(kwargs or {}))


def attention_calls(model: nn.Module, inputs: dict[str, Tensor]) -> list[dict[str, Any]]:
    with torch.no_grad(), Calls() as calls:
        model(**inputs)
    return calls.found


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**inputs)
    return found if isinstance(found, Tensor) else found.last_hidden_state


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in training mode with nothing random left but the attention matrix's dropout, which is 0, too."""
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    return model


@pytest.mark.parametrize("name", [*CASES, *FULL])
def test_outputs_and_all_gradients_agree_and_unpatch_restores_bitwise(name: str) -> None:
    case = (CASES | FULL)[name]
    model, inputs = build(case), case.inputs()
    wanted, state = run(model, inputs), {n: x.clone() for n, x in model.state_dict().items()}
    modules = {path: (type(module), list(vars(module))) for path, module in model.named_modules()}
    assert all(p.grad is not None for p in model.parameters())

    report = patch(model)
    assert (report.replaced, report.left) == (case.replaced, 0)
    with dispatch.recording() as choices:
        found = run(model, inputs)
    assert {choice.op for choice in choices} == {"attention", "attention_backward"}
    allowed = rounding(model)
    assert {n: error for n, error in errors(found, wanted).items() if error > allowed} == {}
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(x, state[n]) for n, x in model.state_dict().items())

    assert unpatch(model).restored == case.replaced
    assert {path: (type(module), list(vars(module))) for path, module in model.named_modules()} == modules
    again = run(model, inputs)
    assert all(torch.equal(again[n], x) for n, x in wanted.items())


@pytest.mark.parametrize("name", [name for name in CASES if name not in DENSE])
def test_the_bias_reaches_the_kernel_as_a_table(name: str) -> None:
    model, inputs = build(CASES[name]), CASES[name].inputs()
    patch(model)
    calls = attention_calls(model, inputs)
    layers = [m for m in model.modules() if hasattr(m, "attn_drop") or type(m).__name__ == "BucketedAttention"]
    assert len(calls) == len(layers)
    assert all(call["bias_lookup"] is not None for call in calls)
    # Shifted windows: the mask is a segment per token. Words: no mask is wider than transformers' own.
    assert any(call["bias_segment"] is not None for call in calls) == name.startswith("swin")
    masks = {tuple(call["gate"].shape) for call in calls if call["gate"] is not None}
    rows = {"t5, mask": TOKENS, "mt5, mask": TOKENS, "t5, mask over keys": 1}
    assert masks == ({(3, 1, rows[name], TOKENS)} if name in rows else set())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"], ids=str)
@pytest.mark.parametrize("name", [*FEW, "coatnet, MLP"])
def test_low_precision_is_as_close_to_float64_as_the_library_is(name: str, dtype: torch.dtype | str) -> None:
    model, inputs = build(CASES[name]), CASES[name].inputs()
    exact = output(model, inputs)
    narrow = torch.float32 if isinstance(dtype, str) else dtype
    model = model.to(narrow)
    inputs = {n: x.to(narrow) if x.is_floating_point() else x for n, x in inputs.items()}
    patched = copy.deepcopy(model)
    patch(patched)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        theirs, ours = (float((output(each, inputs).double() - exact).abs().mean()) for each in (model, patched))
    assert ours <= 2 * theirs


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", FEW)
def test_a_training_step_is_the_same(name: str, checkpointing: bool) -> None:
    model, inputs = without_dropout(build(CASES[name])), CASES[name].inputs()
    if checkpointing:
        names = ("set_grad_checkpointing", "activation_checkpointing_enable")
        next(getattr(model, name) for name in names if hasattr(model, name))()
    patched = copy.deepcopy(model)
    patch(patched)
    for each in (model, patched):
        run(each, inputs)
        torch.optim.SGD(each.parameters(), lr=1e-3).step()
    wanted, found = (dict(each.named_parameters()) for each in (model, patched))
    allowed = rounding(model)
    assert {n: e for n, e in errors(found, wanted).items() if e > allowed} == {}


@pytest.mark.parametrize("name", FEW)
def test_attention_dropout_is_ours_in_training_and_none_in_eval(name: str) -> None:
    model, inputs = without_dropout(build(CASES[name])), CASES[name].inputs()
    plain = output(model, inputs)
    patch(model)
    dropped = 0.25
    for module in model.modules():
        if isinstance(getattr(module, "attn_drop", None), nn.Dropout):
            module.attn_drop.p = dropped
        if name.startswith("t5") and hasattr(module, "relative_attention_num_buckets"):
            module.dropout = dropped
    assert {call["dropout_p"] for call in attention_calls(model, inputs)} == {dropped}
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(output(model, inputs))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], plain)
    model.eval()
    assert {call["dropout_p"] for call in attention_calls(model, inputs)} == {0.0}


@pytest.mark.parametrize("name", ["beit, shared bias and own", "vit_srelpos, shared table", "swin v2", "t5, mask"])
def test_a_patched_model_compiles_in_one_graph(name: str) -> None:
    model, inputs = build(CASES[name]), CASES[name].inputs()
    wanted = run(model, inputs)
    patch(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = {n.replace("_orig_mod.", ""): x for n, x in run(compiled, inputs).items()}
    allowed = rounding(model)
    assert {n: e for n, e in errors(found, wanted).items() if e > allowed} == {}


def test_a_compiled_model_notices_patch_and_unpatch() -> None:
    model, inputs = build(CASES["beit, shared bias"]), CASES["beit, shared bias"].inputs()
    compiled = torch.compile(model, backend="aot_eager")
    wanted = output(compiled, inputs)
    for step, calls in ((patch, 2), (unpatch, 0)):
        step(compiled)
        with dispatch.recording() as choices:
            found = output(compiled, inputs)
        assert len(choices) == calls
        assert float((found - wanted).abs().max() / wanted.abs().max()) <= rounding(model)


@pytest.mark.parametrize(
    "name",
    ["beit, shared bias and own", "vit_relpos, table and class token", "vit_srelpos, shared MLP", "swin", "swin v2"],
)
def test_a_patched_model_takes_pictures_of_another_size(name: str) -> None:
    model = build(CASES[name])
    patched = copy.deepcopy(model)
    patch(patched)
    for each in (model, patched):
        each.set_input_size((96, 64))
    inputs = {"x": torch.randn(2, 3, 96, 64, dtype=torch.float64)}
    found = errors(run(patched, inputs), run(model, inputs))
    assert {n: e for n, e in found.items() if e > rounding(model)} == {}
