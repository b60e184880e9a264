"""Mistakes in a call of predict: rows, parameters, settings, layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import wfkernels
from tests.bad_input.rooms import LAYER, NAN
from tests.bad_input.table import Arguments, Bad, Table, put, wrong_tensors
from tests.predict.cases import CASES, tensors
from wfkernels.dispatch import ImplementationError
from wfkernels.predict.parameters import FIELDS

D = torch.float64
LISTS = ("embedding_weights", "projection_weights", "projection_biases", "blocks")
SEED = torch.zeros(1, dtype=torch.int64)


def good(name: str) -> Callable[[], Arguments]:
    def make() -> Arguments:
        rows, parameters, layout, lookup = tensors(CASES[name])
        settings = CASES[name].settings
        call = {"rows": rows, "parameters": parameters, "settings": settings, "layout": layout, "gate_lookup": lookup}
        return call

    return make


def parameter(**changes: Any) -> Callable[[Arguments], None]:
    return lambda call: call.update(parameters=replace(call["parameters"], **changes))


def given(name: str) -> Callable[[Any], Callable[[Arguments], None]]:
    return lambda value: parameter(**{name: value})


def setting(**changes: Any) -> Callable[[Arguments], None]:
    return lambda call: call.update(settings=replace(call["settings"], **changes))


def in_block(name: str, value: Any) -> Callable[[Arguments], None]:
    def change(call: Arguments) -> None:
        first, *rest = call["parameters"].blocks
        parameter(blocks=[first, *(block._replace(**{name: value}) for block in rest)])(call)

    return change


def settings(name: str, expected: str, error: type[Exception], *values: Any) -> list[Bad]:
    return [Bad(f"settings.{name} is {v!r}", setting(**{name: v}), error, f"settings.{name}", expected) for v in values]


def field(name: str, value: Any, error: type[Exception], expected: str) -> Bad:
    kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:40]
    return Bad(
        f"parameters.{name} is {kind}, not {expected}",
        parameter(**{name: value}),
        error,
        f"parameters.{name}",
        expected,
    )


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=D)


def shaped(name: str, *shape: int) -> Bad:
    return field(name, zeros(*shape), ValueError, r"shape \[")


EIGHT = zeros(8)
TENSOR, LIST = "a torch.Tensor", "a list or tuple of tensors"
SINGLE = [name for name in FIELDS if name not in LISTS]
BUCKETED = (
    *wrong_tensors("rows", zeros(440), but="float8, on another device"),
    *(field(name, "zeros", TypeError, TENSOR) for name in SINGLE),
    *(field(name, [1.0], TypeError, TENSOR) for name in ("gamma", "shift", "gate", "base")),
    *(field(name, [], TypeError, TENSOR) for name in ("gamma", "strength", "cross", "layer")),
    *(field(name, None, TypeError, TENSOR) for name in ("gamma", "beta", "shift", "scale", "position", "strength")),
    *(field(name, value, TypeError, LIST) for name in LISTS for value in (None, EIGHT, {0: EIGHT})),
    *(field(name, [], ValueError, "at least one tensor") for name in LISTS),
    *(
        Bad(f"{name} of {v!r}"[:60], parameter(**{name: [v]}), TypeError, f"parameters.{name}[0]", TENSOR)
        for name in LISTS[:3]
        for v in (None, 1.0, [EIGHT])
    ),
    *(
        Bad(f"a block is {v!r}"[:60], parameter(blocks=[v]), TypeError, "parameters.blocks[0]", "wfkernels.Block")
        for v in (None, EIGHT, (EIGHT,) * 12, {})
    ),
    *(
        Bad(f"{name} is {v!r}"[:60], in_block(name, v), TypeError, f"parameters.blocks[1].{name}", TENSOR)
        for name in ("norm1_weight", "up_weight", "down_bias")
        for v in (None, [1.0] * 8, 0.0)
    ),
    *(
        Bad(f"{name} {what}", in_block(name, v), error, f"parameters.blocks[1].{name}", expected)
        for name, what, v, error, expected in (
            ("up_weight", "flat", EIGHT, ValueError, r"shape \[ffn, 8\]"),
            ("qkv_weight", "of one product", zeros(8, 8), ValueError, r"shape \[24, 8\]"),
            ("qkv_weight", "transposed", zeros(8, 24), ValueError, r"shape \[24, 8\]"),
            ("down_bias", "short", EIGHT[:1], ValueError, r"shape \[8\]"),
            ("out_weight", "of floats in 8 bits", zeros(8, 8).to(torch.float8_e5m2), TypeError, "float64, float32"),
            ("norm2_bias", "of integers", EIGHT.int(), TypeError, "a floating-point tensor"),
            ("norm2_bias", "on another device", EIGHT.to("meta"), ValueError, "a tensor on cpu like rows"),
            ("out_bias", "sparse", EIGHT.to_sparse(), TypeError, "a dense tensor"),
        )
    ),
    field("beta", EIGHT.int(), TypeError, "a floating-point tensor"),
    field("gate", zeros(1, 2, 2, 2, 5).to_sparse(), TypeError, "a dense tensor"),
    field("strength", zeros(3).to(torch.float8_e4m3fn), TypeError, "float64, float32"),
    field("beta", EIGHT.to("meta"), ValueError, "a tensor on cpu like rows"),
    shaped("gamma", 1, 8),
    shaped("gamma", 0),
    shaped("gamma"),
    shaped("beta", 3),
    shaped("embedding_biases", 8),
    shaped("shift", 8),
    shaped("scale", 8),
    shaped("position", 8),
    shaped("strength", 8),
    shaped("teacher", 8),
    shaped("layer", 1, 8),
    shaped("final_weight", 1),
    shaped("base", 8),
    shaped("center", 8),
    shaped("prior", 88, 1),
    shaped("blend", 8),
    shaped("gate_weight", 8),
    shaped("gate_bias", 8),
    shaped("built_on", 88),
    shaped("cross", 1, 8),
    shaped("cross", 3, 2, 8),
    shaped("cross", 2, 7),
    field("teacher", zeros(3, 8), ValueError, "at least 4 codes, for cross tokens and 3 teachers"),
    field("cross", None, ValueError, "a tensor, because the layout has 2 cross tokens"),
    field("final_bias", None, ValueError, "a tensor .*because settings.norm is 'pre'"),
    field("gate", zeros(3, 2, 2, 2, 5), ValueError, r"\[2 or 1, 2, 2, 2, E\]"),
    field("gate", zeros(1, 2, 2, 2, 0), ValueError, r"\[2 or 1, 2, 2, 2, E\]"),
    field("gate", zeros(1, 2, 2, 2, 5) + 2, ValueError, r"values in \[0, 1\]"),
    field("gate", zeros(2, 2, 2, 2, 5) - 1, ValueError, r"values in \[0, 1\]"),
    field("projection_weights", [EIGHT], ValueError, "3 tensors like embedding_weights"),
    field("projection_biases", [EIGHT] * 4, ValueError, "3 tensors like embedding_weights"),
    Bad("no gate for a lookup", parameter(gate=None), ValueError, "gate_lookup", "None, because parameters.gate"),
    *(Bad(f"{v!r} for parameters", put(parameters=v), TypeError, "parameters", "wfkernels.Param") for v in (None, {})),
    *(Bad(f"{v!r} for settings", put(settings=v), TypeError, "settings", "wfkernels.Settings") for v in (None, {}, 8)),
    *(
        Bad(f"{type(v).__name__} for layout", put(layout=v), TypeError, "layout", r"a TokenLayout \(RowLayout.tokens\)")
        for v in (None, "vgg", tensors(CASES["bucketed"])[2].layout)
    ),
    Bad("rows of one network", put(rows=zeros(88)), ValueError, "rows", r"shape \[440\]"),
    Bad("rows 2-D", put(rows=zeros(5, 88)), ValueError, "rows", r"shape \[440\]"),
    *(
        Bad(f"gate_lookup is {v!r}", put(gate_lookup=v), error, "gate_lookup", expected)
        for v, error, expected in (
            ([0], TypeError, "a torch.Tensor or None"),
            (torch.zeros(5), TypeError, "an integer tensor"),
            (torch.zeros(5) > 0, TypeError, "an integer tensor"),
            (torch.arange(5).to_sparse(), TypeError, "a dense tensor"),
            (torch.arange(4), ValueError, "an odd number of entries"),
            (torch.zeros(5, 1).long(), ValueError, "an odd number of entries"),
            (torch.arange(1, 6), ValueError, "integers from 0 to 4"),
            (torch.arange(-1, 4), ValueError, "integers from 0 to 4"),
            (torch.arange(5, device="meta"), ValueError, "a tensor on cpu like rows"),
        )
    ),
    Bad("a table without a lookup", put(gate_lookup=None), ValueError, "parameters.gate", r"\[2 or 1, M, M\]"),
    *(Bad(f"return_cross is {v!r}", put(return_cross=v), TypeError, "return_cross", "bool") for v in (None, 1, "yes")),
    Bad("cross tokens of three layers", put(return_cross=True), ValueError, "return_cross", "a layout of one layer"),
    *(Bad(f"impl is {v!r}", put(impl=v), TypeError, "impl", "str") for v in (None, 3, b"auto")),
    Bad("unknown impl", put(impl="fast"), ImplementationError, "impl='fast' cannot run here", "", "embedding"),
    *(Bad(f"seed is {v!r}", put(seed=v), TypeError, "seed", "an int64 tensor") for v in (3, SEED.int(), zeros(1))),
    *settings("heads", "int", TypeError, None, 2.0, "2", True),
    *settings("heads", "a divisor of d=8", ValueError, 0, 3, -2, 16),
    *settings("norm", "one of pre, post", ValueError, "rms", ""),
    *settings("norm", "str", TypeError, None, True),
    Bad("a final norm", setting(norm="post"), ValueError, "parameters.final_weight", "None, because settings.norm"),
    *settings("activation", "one of none, relu, gelu", ValueError, "silu"),
    *settings("activation", "str", TypeError, None, torch.relu),
    *settings("feed_forward", "one of none, relu, gelu", ValueError, "swiglu"),
    *settings("feed_forward", "str", TypeError, 2048),
    *settings("dropout_p", "float", TypeError, None, "0.1", True),
    *settings("dropout_p", r"a probability in \[0, 1\)", ValueError, 1.0, -0.1, NAN),
    *settings("cross_layer", "one of none, parallel", ValueError, "recurrent"),
    *settings("cross_layer", "str", TypeError, None, False),
    *settings("read", "one of anchor, mean", ValueError, "all"),
    *settings("output", "one of plain, anchor, mean, prior, gated", ValueError, "best"),
    *settings("recompute", "one of full, none", ValueError, "some"),
    *settings("recompute", "str", TypeError, None, True),
    *settings("eps", "float", TypeError, None, "small", True),
    *settings("eps", "a finite number", ValueError, NAN),
    *settings("eps", "zero or more", ValueError, -1e-5),
    *settings("projections", "a list or tuple of integers or None", TypeError, 3, "012", torch.arange(3)),
    *settings("projections", "one index for each of 3 layers", ValueError, (0,)),
    *settings("positions", "a list or tuple of integers or None", TypeError, 0, "000"),
    *settings("positions", "one start for each of 3 layers", ValueError, (0, 0)),
    Bad(
        "a projection of another width",
        setting(projections=(0, 0, 2)),
        ValueError,
        f"settings.{LAYER.format(1)}",
        "weights for rows of 5 columns",
    ),
    Bad("no such projection", setting(projections=(0, 1, 9)), ValueError, f"settings.{LAYER.format(2)}", "an index"),
    Bad("no such position", setting(positions=(0, 0, 9)), ValueError, "settings.positions: layer 2", "a start from 0"),
    Bad("a position of text", setting(positions=(0, 0, "9")), TypeError, "settings.positions[2]", "int"),
    Bad("no prior", setting(output="prior"), ValueError, "parameters.prior", "a tensor, because output='prior'"),
    Bad("no base", setting(output="gated", read="mean"), ValueError, "parameters.base", "a tensor, because output="),
    Bad(
        "no layer",
        lambda call: call.update(layout=replace(call["layout"], layout=call["layout"].layout.select([]))),
        ValueError,
        "layout",
        "at least one layer",
    ),
    Bad(
        "no cross tokens",
        lambda call: call.update(layout=replace(call["layout"], cross=0)),
        ValueError,
        "parameters.cross",
        "None, because the layout has 0 cross tokens",
    ),
    Bad(
        "another number of teachers",
        lambda call: call.update(layout=replace(call["layout"], teachers=(2, 2))),
        ValueError,
        "rows",
        r"shape \[352\]",
    ),
)
DROPOUT = (
    *(
        Bad(f"seed is {v!r}", put(seed=v), TypeError, "seed", "an int64 tensor of one element or None")
        for v in (3, [3], SEED[:0], SEED.expand(2), SEED.float())
    ),
    Bad("a seed on another device", put(seed=SEED.to("meta")), ValueError, "seed", "a tensor on cpu"),
)
GATED = (
    Bad("gates on the anchor", setting(read="anchor"), ValueError, "settings.read", "'mean', because output='gated'"),
    *(
        Bad(f"no {name}", parameter(**{name: None}), ValueError, f"parameters.{name}", "a tensor, because output=")
        for name in ("base", "gate_weight", "gate_bias")
    ),
)
DENSE = (
    field("gate", torch.zeros(1, 5, 5, dtype=D), ValueError, r"\[2 or 1, M, M\] with M at least"),
    field("gate", torch.zeros(3, 64, 64, dtype=D), ValueError, r"\[2 or 1, M, M\] with M at least"),
    field("gate", torch.full((1, 64, 64), 1.5, dtype=D), ValueError, r"values in \[0, 1\]"),
)
TABLES = tuple(
    Table("predict", wfkernels.predict, good(name), entries)
    for name, entries in (("bucketed", BUCKETED), ("dropout", DROPOUT), ("specialists", GATED), ("paper", DENSE))
)
