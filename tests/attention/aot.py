"""Compiles the Triton attention for GPUs that are not here: `make aot` prints the resources of the full matrix.

The launches of a real call are recorded instead of run, so that what is compiled is what a GPU would be given.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.attention.cases import Case, build
from wfkernels.attention import triton_launch, triton_schedule
from wfkernels.attention.triton_configs import SHARED_MEMORY, Config

FORMS = {
    "plain": {},
    "causal": {"is_causal": True},
    "bias": {"bias": (128, 128)},
    "gate": {"gate": (128, 128)},
    "tables": {"bias": "table", "gate": "rich"},
    "ragged": {"lead": None, "queries": (128, 64), "bias": "rich", "is_causal": True},
    "dropout": {"bias": (128, 128), "dropout_p": 0.1},
}
CAPABILITIES = (80, 86, 89, 90, 100, 120)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (64, 128, 256)


@dataclass(frozen=True)
class Launch:
    """One launch that a call would make."""

    kernel: Any
    programs: int
    config: Config
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__).removeprefix("_attention_").removesuffix("_kernel")


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int
    spilled: int  # bytes stored
    shared: int  # bytes
    wgmma: int  # instructions

    def __str__(self) -> str:
        return f"{self.registers:4} {self.spilled:6} {self.shared / 1024:6.1f} {self.wgmma:5}"


HEADER = f"{'sm':>4} {'D':>4} {'dtype':9} {'form':8} {'kernel':20} {'tile':>9} warps stages regs spills     KB wgmma"


@contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Collect the launches of the calls made inside the block, as on a GPU of that capability; run none."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, config: Config, device: Any, **arguments: Any) -> None:
        launches.append(Launch(kernel, programs, config, arguments))

    with (
        mock.patch.object(triton_schedule, "launch", record),
        mock.patch.object(triton_launch, "capability", lambda device: capability),
    ):
        yield launches


def launches(capability: int, width: int, dtype: torch.dtype, form: str) -> list[Launch]:
    """Return the launches of a forward and a backward pass."""
    shape: dict[str, Any] = {"lead": (2,), "queries": (128,), "heads": 2, "width": width, "value_width": width}
    args = build(Case(**(shape | FORMS[form])), dtype=dtype).arguments()
    with torch.no_grad(), recording(capability) as found:
        out, lse = triton_launch.forward(*args)
        triton_launch.backward(out, None, [True] * 5, *args[:3], out, lse, *args[3:])
    return found


def compiled(launch: Launch, capability: int) -> Resources:
    """Compile what a launch would run."""
    import triton
    from triton._C.libtriton import native_specialize_impl
    from triton._utils import find_paths_if, get_iterable_path
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler import ASTSource

    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        given = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", given
            continue
        kind, hint = native_specialize_impl(CUDABackend, given, False, not parameter.do_not_specialize, True)
        signature[parameter.name] = kind
        for path in find_paths_if(kind, lambda _, x: x == "constexpr"):
            constants[(i, *path)] = get_iterable_path(given, path) if path else given
        for path in find_paths_if(hint, lambda _, x: x == "D"):
            hints[(i, *path)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=hints)
    options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages, "enable_fp_fusion": True}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text: str = result.asm["ptx"]
    registers, spilled = _assembled(text, capability)
    return Resources(registers, spilled, result.metadata.shared, text.count("wgmma.mma_async"))


def _assembled(text: str, capability: int) -> tuple[int, int]:
    """Return registers and bytes of spills, as the assembler that Triton brings reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"\.target (\w+)", text)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(text)
        command = [get_ptxas(capability).path, "-v", "--gpu-name", target[1], str(path), "-o", f"{folder}/kernel"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None and spilled is not None
    return int(registers[1]), int(spilled[1])


def row(capability: int, width: int, dtype: torch.dtype, form: str, launch: Launch, found: Resources) -> str:
    tile = f"{launch.config.block_m}x{launch.config.block_n}"
    kind = str(dtype).removeprefix("torch.")
    return (
        f"{capability:4} {width:4} {kind:9} {form:8} {launch.name:20} {tile:>9} {launch.config.warps:5}"
        f" {launch.config.stages:6} {found}"
    )


def faults(capability: int, width: int, dtype: torch.dtype, launch: Launch, found: Resources) -> list[str]:
    """Return what is wrong with a compiled kernel."""
    wrong = []
    if found.shared > SHARED_MEMORY[capability] * 1024:
        wrong.append(f"takes {found.shared} bytes of shared memory, there are {SHARED_MEMORY[capability]} KB")
    if width <= 128 and found.spilled:
        wrong.append(f"spills {found.spilled} bytes")
    if capability == 90 and dtype.itemsize == 2 and "delta" not in launch.name and not found.wgmma:
        wrong.append("does not use wgmma")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sm", type=int, nargs="*", default=CAPABILITIES, help="compute capabilities such as 90")
    options = parser.parse_args()
    bad = 0
    print(HEADER)
    for capability, width, dtype, form in product(options.sm, WIDTHS, DTYPES, FORMS):
        for launch in launches(capability, width, dtype, form):
            found = compiled(launch, capability)
            wrong = faults(capability, width, dtype, launch, found)
            bad += len(wrong)
            print(row(capability, width, dtype, form, launch, found), *wrong, flush=True)
    print(f"{bad} faults")
    return bad


if __name__ == "__main__":
    raise SystemExit(main() > 0)
