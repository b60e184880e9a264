"""csrc/internals/module.cpp: facts of the build, and the inner pieces of the compiled kernels for their unit tests."""

from typing import TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

_Float = TypeVar("_Float", np.float32, np.float64)

class Build(TypedDict):
    compiler: str
    instruction_sets: dict[str, bool]  # whether this processor runs it
    cuda_architectures: list[str]  # empty where no CUDA part was built beside this module

def build() -> Build: ...
def vector_bytes(isa: str) -> int: ...
def exponential(isa: str, x: NDArray[_Float]) -> NDArray[_Float]: ...
def product(isa: str, a: NDArray[_Float], b: NDArray[_Float], c: NDArray[_Float], add: bool) -> None: ...
def keep_row(
    isa: str, seed: int, site: int, sequence: int, head: int, row: int, column: int, count: int, threshold: int
) -> NDArray[np.uint8]: ...
