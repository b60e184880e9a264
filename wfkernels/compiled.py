"""The compiled parts: found and loaded when an op first asks for them, never at import.

They hold implementations only; every schema, fake and gradient is registered from Python and exists without them.
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from wfkernels import env

TOOLKIT_FOLDER = "/usr/local/cuda/bin"
BUILD_COMMAND = "pip install --no-build-isolation -e '.[models,test]'"


@dataclass(frozen=True)
class Part:
    """One shared library. The CUDA part is a file of its own, so that a torch without CUDA still loads the first."""

    name: str
    file: str

    @property
    def path(self) -> Path:
        return Path(__file__).with_name(self.file)


CPP = Part("C++", "_C.abi3.so")
CUDA = Part("CUDA", "_CUDA.abi3.so")


@functools.cache
def why_not(part: Part) -> str | None:
    """Load `part` on the first call. Return None where that works, else every cause and the command to run."""
    if part.path.exists():
        try:
            torch.ops.load_library(part.path)
        except OSError as error:
            return f"{part.path} does not load ({error}); run {BUILD_COMMAND} in a checkout to build it anew"
        return None
    causes = [f"{part.file} was not built", *_obstacles(part)]
    return f"{', '.join(causes)}; run {BUILD_COMMAND} in a checkout"


torch.library.define("wfkernels_cpp::runs_isa", "(int isa, Tensor like) -> bool")


def isa() -> int:
    """Return the number of the instruction set that CPU kernels are to use, as csrc/simd/isa.h counts.

    Raises RuntimeError where this machine does not run it.
    """
    name = env.CPU_ISA.read()
    number = env.CPU_ISA.choices.index(name)
    if not _runs(number):
        raise RuntimeError(
            f"{env.CPU_ISA.name}={name}: this processor does not run {name} code; leave the switch unset to use the"
            " best that it runs"
        )
    return number


@functools.cache
def _runs(number: int) -> bool:
    return bool(torch.ops.wfkernels_cpp.runs_isa(number, torch.empty(0)))


def _obstacles(part: Part) -> list[str]:
    """Return what stands in the way of building `part` here and now, each worded as what to do about it."""
    obstacles = []
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        obstacles.append("there is no C++ compiler here (install g++)")
    if part is CUDA:
        if not shutil.which("nvcc") and not shutil.which("nvcc", path=TOOLKIT_FOLDER):
            obstacles.append("there is no nvcc here (install the CUDA toolkit)")
        if torch.version.cuda is None:
            obstacles.append("torch is a build without CUDA (install one with it)")
    return obstacles
