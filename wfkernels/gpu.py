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
    """Return the table in a file, by default that of the shipped configs."""
    found: dict[Kind, Config] = {}
    if not path.exists():
        raise ValueError(f"{env.CONFIGS.name}: there is no {path}; `python -m wfkernels tune --save {path}` writes it")
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            family, kernel, width, bits, *numbers = line.split()
            kind = Kind(kernel, int(family.removeprefix("sm_")), int(width), int(bits))
            found[kind] = Config(*map(int, numbers))
        except (TypeError, ValueError):
            raise ValueError(f"{path}: expected a family, a kernel and seven numbers, got {line!r}") from None
    return found


def table(own: str) -> dict[Kind, Config]:
    """Return the configs in force: those shipped, and over them those of the file `own` where it is not empty."""
    return configs() | (configs(Path(own)) if own else {})


def forget() -> None:
    """Let tables that were rewritten be read again."""
    configs.cache_clear()
    _row.cache_clear()


def config(kernel: str, capability: int, width: int, bits: int) -> Config:
    """Return the config of a kernel: that of the next larger width in the table, or else of the largest."""
    return _row(kernel, capability, width, bits, env.CONFIGS.read())[1]


@cache
def _row(kernel: str, capability: int, width: int, bits: int, own: str) -> tuple[Kind, Config]:
    """Return the row of the table that a call takes, as one of its own family. own: a file of rows that go first."""
    rows: dict[int, Config] = {}  # by width; a GPU's own go before those of the family it is like
    for family in (FALLBACK, LIKE.get(capability, capability), capability):
        rows |= {k.width: c for k, c in table(own).items() if (k.kernel, k.family, k.bits) == (kernel, family, bits)}
    chosen = min((w for w in rows if w >= width), default=max(rows))
    return Kind(kernel, capability, chosen, bits), rows[chosen]


def tuned(kernel: str, device: torch.device, width: int, bits: int, step: Callable[[Config], T]) -> T:
    """Run a step, which launches `kernel`, with the config that is best for this device.

    The table says which, or under WFKERNELS_AUTOTUNE=1 the clock; `step` then runs several times.
    """
    kind, chosen = _row(kernel, capability(device), width, bits, env.CONFIGS.read())
    # The interpreter's times say nothing, and a clock would wait while a CUDA graph is captured.
    if env.AUTOTUNE.read() == "1" and device.type == "cuda":
        from wfkernels import autotune

        chosen = autotune.best(kind, chosen, step, search=not torch.cuda.is_current_stream_capturing())
    return step(chosen)
