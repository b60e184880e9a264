"""Every mistake in a call of predict gets one line that names the argument, what was expected and what was given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.predict.cases import CASES, tensors
from wfkernels import Parameters, Settings, predict

Change = Callable[[dict[str, Any]], None]


def good(name: str = "bucketed") -> dict[str, Any]:
    rows, parameters, layout, lookup = tensors(CASES[name])
    return {
        "rows": rows,
        "parameters": parameters,
        "settings": CASES[name].settings,
        "layout": layout,
        "gate_lookup": lookup,
    }


def put(name: str, value: Any) -> Change:
    """Change one argument of the call."""
    return lambda call: call.update({name: value})


def parameter(**changes: Any) -> Change:
    return lambda call: call.update(parameters=replace(call["parameters"], **changes))


def setting(**changes: Any) -> Change:
    return lambda call: call.update(settings=replace(call["settings"], **changes))


def in_block(name: str, tensor: Tensor) -> Change:
    def change(call: dict[str, Any]) -> None:
        first, *rest = call["parameters"].blocks
        parameter(blocks=[first, *(block._replace(**{name: tensor}) for block in rest)])(call)

    return change


def cross_tokens(count: int) -> Change:
    return lambda call: call.update(layout=replace(call["layout"], cross=count))


D = torch.float64
ZEROS = torch.zeros(8, dtype=D)
P = "parameters."
BAD: list[tuple[Change, type[Exception], str]] = [
    (put("parameters", {}), TypeError, "parameters: expected wfkernels.Parameters, got dict"),
    (put("settings", None), TypeError, "settings: expected wfkernels.Settings, got NoneType"),
    (put("layout", "vgg"), TypeError, "layout: expected a TokenLayout (RowLayout.tokens), got str"),
    (put("rows", [1.0]), TypeError, "rows: expected a torch.Tensor, got list"),
    (
        put("rows", torch.zeros(440, dtype=torch.int8)),
        TypeError,
        "rows: expected a floating-point tensor, got torch.int8",
    ),
    (put("rows", torch.zeros(88, dtype=D)), ValueError, "rows: expected shape [440], got [88]"),
    (put("rows", torch.zeros(440, device="meta")), ValueError, f"{P}embedding_weights[0]: expected a tensor on meta"),
    (put("gate_lookup", [0]), TypeError, "gate_lookup: expected a torch.Tensor or None, got list"),
    (put("gate_lookup", torch.zeros(5)), TypeError, "gate_lookup: expected an integer tensor, got torch.float32"),
    (
        put("gate_lookup", torch.arange(4)),
        ValueError,
        "gate_lookup: expected shape [2R + 1], an odd number of entries, got [4]",
    ),
    (put("gate_lookup", torch.arange(1, 6)), ValueError, "gate_lookup: expected integers from 0 to 4, the entries of"),
    (put("gate_lookup", torch.arange(5, device="meta")), ValueError, "gate_lookup: expected a tensor on cpu like rows"),
    (
        put("gate_lookup", None),
        ValueError,
        f"{P}gate: expected [2 or 1, M, M] with M at least 14, the longest sequence",
    ),
    (
        put("return_cross", True),
        ValueError,
        "return_cross: expected a layout of one layer with cross tokens, got 3 layers",
    ),
    (parameter(gate=None), ValueError, "gate_lookup: expected None, because parameters.gate is None, got a tensor"),
    (
        parameter(gate=torch.ones(3, 2, 2, 2, 5, dtype=D)),
        ValueError,
        f"{P}gate: expected [2 or 1, 2, 2, 2, E], got [3, 2",
    ),
    (
        parameter(gate=torch.ones(1, 2, 2, 2, 5, dtype=D) + 1),
        ValueError,
        f"{P}gate: expected values in [0, 1], got 2 to 2",
    ),
    (
        parameter(embedding_weights=ZEROS),
        TypeError,
        f"{P}embedding_weights: expected a list or tuple of tensors, got Tensor",
    ),
    (parameter(embedding_weights=[]), ValueError, f"{P}embedding_weights: expected at least one tensor, got none"),
    (parameter(blocks=[]), ValueError, f"{P}blocks: expected at least one tensor, got none"),
    (parameter(blocks=[(ZEROS,)]), TypeError, f"{P}blocks[0]: expected wfkernels.Block, got tuple"),
    (parameter(gamma=None), TypeError, f"{P}gamma: expected a torch.Tensor, got NoneType"),
    (parameter(teacher="none"), TypeError, f"{P}teacher: expected a torch.Tensor, got str"),
    (parameter(beta=ZEROS.int()), TypeError, f"{P}beta: expected a floating-point tensor, got torch.int32"),
    (parameter(beta=ZEROS.to("meta")), ValueError, f"{P}beta: expected a tensor on cpu like rows, got one on meta"),
    (parameter(gamma=ZEROS[None]), ValueError, f"{P}gamma: expected shape [d], got [1, 8]"),
    (parameter(beta=ZEROS[:3]), ValueError, f"{P}beta: expected shape [8], got [3]"),
    (
        parameter(embedding_weights=[ZEROS[:1]] * 3),
        ValueError,
        f"{P}embedding_weights[0]: expected shape [r, 8], got [1]",
    ),
    (
        parameter(projection_weights=[ZEROS]),
        ValueError,
        f"{P}projection_weights: expected 3 tensors like embedding_weights",
    ),
    (parameter(projection_biases=[ZEROS] * 3), ValueError, f"{P}projection_biases[0]: expected shape [10], got [8]"),
    (parameter(embedding_biases=ZEROS), ValueError, f"{P}embedding_biases: expected shape [3, 8], got [8]"),
    (parameter(shift=ZEROS), ValueError, f"{P}shift: expected shape [32], got [8]"),
    (parameter(scale=ZEROS), ValueError, f"{P}scale: expected shape [32], got [8]"),
    (parameter(position=ZEROS), ValueError, f"{P}position: expected shape [positions, 8], got [8]"),
    (parameter(strength=ZEROS), ValueError, f"{P}strength: expected shape [3], got [8]"),
    (parameter(teacher=ZEROS), ValueError, f"{P}teacher: expected shape [teacher ids, 8], got [8]"),
    (
        parameter(teacher=ZEROS[None]),
        ValueError,
        f"{P}teacher: expected at least 4 codes, for cross tokens and 3 teachers",
    ),
    (parameter(layer=ZEROS[None]), ValueError, f"{P}layer: expected shape [3, 8], got [1, 8]"),
    (parameter(final_weight=ZEROS[:1]), ValueError, f"{P}final_weight: expected shape [8], got [1]"),
    (
        parameter(final_bias=None),
        ValueError,
        f"{P}final_bias: expected a tensor [d], because settings.norm is 'pre', got None",
    ),
    (parameter(base=ZEROS), ValueError, f"{P}base: expected shape [88], got [8]"),
    (parameter(center=ZEROS), ValueError, f"{P}center: expected shape [88], got [8]"),
    (parameter(prior=ZEROS), ValueError, f"{P}prior: expected shape [88], got [8]"),
    (parameter(blend=ZEROS), ValueError, f"{P}blend: expected shape [3], got [8]"),
    (parameter(gate_weight=ZEROS), ValueError, f"{P}gate_weight: expected shape [3, 8], got [8]"),
    (parameter(gate_bias=ZEROS), ValueError, f"{P}gate_bias: expected shape [3], got [8]"),
    (parameter(built_on=ZEROS), ValueError, f"{P}built_on: expected shape [440], got [8]"),
    (
        parameter(cross=None),
        ValueError,
        f"{P}cross: expected a tensor, because the layout has 2 cross tokens per layer, got None",
    ),
    (parameter(cross=ZEROS[None]), ValueError, f"{P}cross: expected shape [2, 8], got [1, 8]"),
    (parameter(cross=torch.zeros(3, 2, 8, dtype=D)), ValueError, f"{P}cross: expected shape [2, 2, 8], got [3, 2, 8]"),
    (
        cross_tokens(0),
        ValueError,
        f"{P}cross: expected None, because the layout has 0 cross tokens per layer, got [2, 8]",
    ),
    (in_block("up_weight", ZEROS), ValueError, f"{P}blocks[1].up_weight: expected shape [ffn, 8], got [8]"),
    (
        in_block("qkv_weight", torch.zeros(8, 8, dtype=D)),
        ValueError,
        f"{P}blocks[1].qkv_weight: expected shape [24, 8]",
    ),
    (in_block("down_bias", ZEROS[:1]), ValueError, f"{P}blocks[1].down_bias: expected shape [8], got [1]"),
    (in_block("norm1_bias", ZEROS.int()), TypeError, f"{P}blocks[1].norm1_bias: expected a floating-point tensor"),
    (setting(norm="rms"), ValueError, "settings.norm: expected one of pre, post, got 'rms'"),
    (
        setting(norm="post"),
        ValueError,
        f"{P}final_weight: expected None, because settings.norm is 'post', got a tensor",
    ),
    (setting(activation="silu"), ValueError, "settings.activation: expected one of none, relu, gelu, got 'silu'"),
    (setting(feed_forward="silu"), ValueError, "settings.feed_forward: expected one of none, relu, gelu, got 'silu'"),
    (setting(cross_layer="both"), ValueError, "settings.cross_layer: expected one of none, parallel, got 'both'"),
    (setting(read="all"), ValueError, "settings.read: expected one of anchor, mean, got 'all'"),
    (
        setting(output="best"),
        ValueError,
        "settings.output: expected one of plain, anchor, mean, prior, gated, got 'best'",
    ),
    (setting(recompute="some"), ValueError, "settings.recompute: expected one of full, none, got 'some'"),
    (setting(output="prior"), ValueError, f"{P}prior: expected a tensor, because output='prior' needs it, got None"),
    (setting(heads=3), ValueError, "settings.heads: expected a divisor of d=8, got 3"),
    (setting(heads=0), ValueError, "settings.heads: expected a divisor of d=8, got 0"),
    (setting(projections=(0,)), ValueError, "settings.projections: expected one index for each of 3 layers, got 1"),
    (
        setting(projections=(0, 0, 2)),
        ValueError,
        "settings.projections: layer 1: expected weights for rows of 5 columns",
    ),
    (setting(positions=(0, 0)), ValueError, "settings.positions: expected one start for each of 3 layers, got 2"),
    (
        setting(positions=(0, 0, 9)),
        ValueError,
        "settings.positions: layer 2: expected a start from 0 to 4, because position",
    ),
    (setting(dropout_p=1.5), ValueError, "settings.dropout_p: expected a probability in [0, 1), got 1.5"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_arguments(change: Change, error: type[Exception], message: str) -> None:
    call = good()
    predict(**call)
    change(call)
    with pytest.raises(error, match=f"^predict: {re.escape(message)}") as caught:
        predict(**call)
    assert "\n" not in str(caught.value)


def test_gated_output_needs_every_token() -> None:
    call = good("specialists")
    setting(read="anchor")(call)
    with pytest.raises(ValueError, match="^predict: settings.read: expected 'mean', because output='gated' reads all"):
        predict(**call)


def test_seed_has_to_be_an_integer_on_the_same_device() -> None:
    call = good("dropout")
    with pytest.raises(TypeError, match="^predict: seed: expected an int64 tensor of one element or None, got"):
        predict(**call, seed=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="^predict: seed: expected a tensor on cpu, got one on meta"):
        predict(**call, seed=torch.zeros(1, dtype=torch.int64, device="meta"))


def test_no_layer_at_all_is_refused() -> None:
    call = good("recipe")
    call["layout"] = replace(call["layout"], layout=call["layout"].layout.select([]))
    with pytest.raises(ValueError, match="^predict: "):
        predict(**call)


def test_parameters_survive_flattening_and_are_named() -> None:
    _, parameters, _, _ = tensors(CASES["bucketed"])
    flat, names = parameters.flatten(), parameters.names()
    again = parameters.structure().unflatten(flat)
    assert isinstance(again, Parameters) and again.names() == names and len(set(names)) == len(names)
    assert all(a is b for a, b in zip(again.flatten(), flat, strict=True))
    assert {"gamma", "embedding_weights[2]", "blocks[1].up_bias", "prior"} < set(names)
    assert flat[names.index("blocks[1].up_bias")] is parameters.blocks[1].up_bias
    assert Settings() == Settings(heads=8, norm="post", output="plain", read="anchor", recompute="full")
