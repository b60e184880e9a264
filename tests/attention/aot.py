"""The calls of attention that `make aot` compiles for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from tests.aot import Launch, recording
from tests.attention.cases import Case, build
from wfkernels.attention import triton_launch

FORMS = {
    "plain": {},
    "causal": {"is_causal": True},
    "bias": {"bias": (128, 128)},
    "gate": {"gate": (128, 128)},
    "closed": {"queries": (1024,), "gate": (1024, 1024)},
    "tables": {"bias": "table", "gate": "rich"},
    "ragged": {"lead": None, "queries": (128, 64), "bias": "rich", "is_causal": True},
    "dropout": {"bias": (128, 128), "dropout_p": 0.1},
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WITHOUT_PRODUCTS = ("attention_backward_delta", "attention_open_tiles", "attention_tiles")
WIDTHS = (64, 128, 256)


def launches(capability: int, width: int, dtype: torch.dtype, form: str) -> list[Launch]:
    """Return the launches of a forward and a backward pass."""
    shape: dict[str, Any] = {"lead": (2,), "queries": (128,), "heads": 2, "width": width, "value_width": width}
    args = build(Case(**(shape | FORMS[form])), dtype=dtype).arguments()
    with torch.no_grad(), recording(capability) as found:
        out, lse = triton_launch.forward(*args)
        triton_launch.backward(out, None, [True] * 5, *args[:3], out, lse, *args[3:])
    return found


def name(width: int, dtype: torch.dtype, form: str) -> str:
    return f"{form}, {str(dtype).removeprefix('torch.')}, D={width}"


def known(width: int, dtype: torch.dtype, launch: Launch) -> dict[str, bool]:
    """Return what tests.aot.faults should know of a launch."""
    return {"spills": width > 128, "wgmma": dtype.itemsize == 2 and launch.name not in WITHOUT_PRODUCTS}


def matrix(capability: int) -> Iterator[tuple[str, Launch, dict[str, bool]]]:
    for width, dtype, form in product(WIDTHS, DTYPES, FORMS):
        for launch in launches(capability, width, dtype, form):
            yield name(width, dtype, form), launch, known(width, dtype, launch)
