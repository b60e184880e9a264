"""What the rooms share in front of their Triton kernels: which calls these can run, launches, and their configs.

Nothing here imports triton before a call asks for it, and nothing waits for the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from wfkernels import env

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = 80  # compute capability
TABLE = Path(__file__).with_name("gpu_configs.txt")
# GPUs that share the rows of another in the table.
LIKE = {87: 80, 89: 86, 103: 100, 121: 120}
# What the interpreter and GPUs that are not listed take: the smallest tiles.
FALLBACK = 86
SHARED_MEMORY = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}  # KB that a program may take

T = TypeVar("T")


class Config(NamedTuple):
    """How one kernel is compiled: the sides of its tile (0 where it has none), warps, and stages of its loop."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


class Kind(NamedTuple):
    """What a config depends on. Lengths are not in it."""

    kernel: str
    family: int  # compute capability
    width: int  # at most
    bits: int  # of an element that is multiplied


def interpreted() -> bool:
    """True where Triton runs its kernels in Python, on CPU tensors: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(*tensors: Tensor | None, named: bool = False) -> str | None:
    """Return why Triton kernels cannot read these tensors, None where they can. `named`: the call asks for Triton."""
    given = [t for t in tensors if t is not None]
    for device in {t.device for t in given}:
        reason = _why_not_on(device, named or env.IMPL.read() == "triton")
        if reason is not None:
            return reason
    unknown = {t.dtype for t in given}.difference(DTYPES)
    if unknown:
        return f"it knows float32, float16 and bfloat16, not {', '.join(sorted(map(str, unknown)))}"
    return None


def _why_not_on(device: torch.device, named: bool) -> str | None:
    if device.type == "cpu" and interpreted():
        if not named:
            return "TRITON_INTERPRET=1 runs it in Python, slowly: set WFKERNELS_IMPL=triton too"
    elif device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU (sm_80 or newer) and these tensors lie on {device}"
    elif capability(device) < OLDEST:
        return f"it needs an NVIDIA GPU (sm_80 or newer) and {device} is sm_{capability(device)}"
    return _no_triton()


@cache
def _no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}); install the triton that your torch names"
    return None


def capability(device: torch.device) -> int:
    """Return the compute capability as a number such as 90; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def precision() -> str:
    """Return how products of float32 are taken."""
    return "tf32" if env.TF32.read() == "1" else "ieee"


def launch(kernel: Any, programs: int, config: Config, device: torch.device, **arguments: Any) -> None:
    """Run a kernel on `programs` programs; every launch of every room passes here."""
    # Pinned, so that no version's default decides which products and sums are rounded as one.
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](**arguments, **options)


@cache
def configs(path: Path = TABLE) -> dict[Kind, Config]:
    """Return the table of shipped configs."""
    rows = (line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    return {
        Kind(kernel, int(family.removeprefix("sm_")), int(width), int(bits)): Config(*map(int, config))
        for family, kernel, width, bits, *config in rows
    }


def config(kernel: str, capability: int, width: int, bits: int) -> Config:
    """Return the config of a kernel: that of the next larger width in the table, or else of the largest."""
    family = LIKE.get(capability, capability)
    known = [kind for kind in configs() if kind.kernel == kernel and kind.bits == bits]
    family = family if any(kind.family == family for kind in known) else FALLBACK
    widths = sorted(kind.width for kind in known if kind.family == family)
    return configs()[Kind(kernel, family, next((w for w in widths if w >= width), widths[-1]), bits)]


def tuned(kernel: str, device: torch.device, width: int, bits: int, step: Callable[[Config], T]) -> T:
    """Run a step, which launches `kernel`, with the config that is best for this device."""
    return step(config(kernel, capability(device), width, bits))
