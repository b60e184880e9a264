"""Compiles Triton kernels for GPUs that are not here: registers, spills, shared memory, tensor cores.

The launches of a real call are recorded instead of run, so that what is compiled is what a GPU would be given.
`make aot` prints the full matrix of every room; a room's `aot.py` says which calls those are.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from wfkernels import gpu
from wfkernels.gpu import SHARED_MEMORY, Config

ROOMS = ("attention", "embedding", "residual_norm", "rows", "projection")
CAPABILITIES = (80, 86, 89, 90, 100, 120)
# The assembler spills a few registers also far below the limit of 255 (4 bytes at 72), where that lets more programs
# run side by side. Up to so many bytes are printed in the full matrix, but are no fault; the tests' own set has none.
FEW = 40


@dataclass(frozen=True)
class Launch:
    """One launch that a call would make."""

    kernel: Any
    programs: int
    config: Config
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int
    spilled: int  # bytes stored
    shared: int  # bytes
    wgmma: int  # instructions

    def __str__(self) -> str:
        return f"{self.registers:4} {self.spilled:6} {self.shared / 1024:6.1f} {self.wgmma:5}"


HEADER = f"{'sm':>4} {'call':30} {'kernel':36} {'tile':>11} warps stages regs spills     KB wgmma"


@contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Collect the launches of the calls made inside the block, as on a GPU of that capability; run none."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, config: Config, device: Any, **arguments: Any) -> None:
        launches.append(Launch(kernel, programs, config, arguments))

    with (
        mock.patch.object(gpu, "launch", record),
        mock.patch.object(gpu, "capability", lambda device: capability),
    ):
        yield launches


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


def row(capability: int, call: str, launch: Launch, found: Resources) -> str:
    config = launch.config
    tile = "x".join(str(n) for n in config[:3] if n)
    return f"{capability:4} {call:30} {launch.name:36} {tile:>11} {config.warps:5} {config.stages:6} {found}"


def faults(
    capability: int, launch: Launch, found: Resources, spills: bool = False, wgmma: bool = False, few: int = 0
) -> list[str]:
    """Return what is wrong with a compiled kernel.

    spills: may it spill as much as it likes, or else `few` bytes? wgmma: has it to use the tensor cores so?
    """
    wrong = []
    if found.shared > SHARED_MEMORY[capability] * 1024:
        wrong.append(f"takes {found.shared} bytes of shared memory, there are {SHARED_MEMORY[capability]} KB")
    if found.spilled > few and not spills:
        wrong.append(f"spills {found.spilled} bytes")
    if capability == 90 and wgmma and not found.wgmma:
        wrong.append("does not use wgmma")
    return wrong


def part(job: int, jobs: int, rooms: Sequence[str], capabilities: Sequence[int]) -> int:
    """Compile every `jobs`-th launch of the matrix, from `job` on, and print a row for each; return how many faults."""
    bad, turn = 0, 0
    for room in rooms:
        for capability in capabilities:
            # matrix(capability) yields the name of a call, a launch, and what `faults` should know of it.
            for call, launch, known in import_module(f"tests.{room}.aot").matrix(capability):
                turn += 1
                if turn % jobs != job:
                    continue
                found = compiled(launch, capability)
                wrong = faults(capability, launch, found, few=FEW, **known)
                bad += len(wrong)
                print(row(capability, call, launch, found), *wrong, flush=True)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sm", type=int, nargs="*", default=CAPABILITIES, help="compute capabilities such as 90")
    parser.add_argument("--room", choices=ROOMS, nargs="*", default=ROOMS)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work (default: 1)")
    options = parser.parse_args()
    print(HEADER, flush=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        parts = [pool.submit(part, job, options.jobs, options.room, options.sm) for job in range(options.jobs)]
        bad = sum(done.result() for done in parts)
    print(f"{bad} faults")
    return bad


if __name__ == "__main__":
    raise SystemExit(main() > 0)
