"""act(x) W^T + b, the products of predict's blocks: bound by arithmetic, so that sgemm is what they are measured by.

python benchmarks/linear.py --preset bar --json linear.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers
from benchmarks.case import LEFT_OUT, MODES, Case, Contender, Draw, Problem, Setting, missing, ours, product_flop
from benchmarks.harness import main
from wfkernels.activation import activate
from wfkernels.linear.ops import linear

# Up to this many rows float64 takes no time worth speaking of.
JUDGED = 1009


def problem(setting: Setting, inputs: int, outputs: int, activation: str, rows: int) -> Problem:
    draw = Draw(setting.device)
    x, weight, bias = draw.normal(rows, inputs), draw.matrix(outputs, inputs), draw.normal(outputs)

    def run(x: Tensor, weight: Tensor, bias: Tensor, impl: str) -> Tensor:
        found: Tensor = linear(x, weight, bias, activation, impl)
        return found

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(activate(x, activation), weight, bias)

    found = ours(setting, run) | {"eager": Contender(plain)}
    found["compile"] = missing(LEFT_OUT) if setting.quick else Contender(peers.compiled(plain))
    grad = draw.normal(rows, outputs, learn=False)
    return Problem((x, weight, bias), (grad,), partial(run, impl="reference"), found)


def case(setting: Setting, rows: int, inputs: int, outputs: int, activation: str) -> Case:
    build = partial(problem, setting, inputs, outputs, activation)
    return Case(
        f"{activation}, [{rows}, {inputs}] to {outputs}",
        partial(build, rows),
        flop=product_flop(rows, inputs, outputs),
        modes=MODES,
        judged=(f"{JUDGED} rows", partial(build, JUDGED)) if rows > JUDGED else None,
    )


def cases(setting: Setting) -> Sequence[Case]:
    if setting.quick:
        return [case(setting, 500, 128, 256, "gelu")]
    # A block's products for the tokens of VGG-11 with two teachers: query, key and value, and the feed-forward part.
    shapes = ((512, 1536, "none"), (512, 2048, "none"), (2048, 512, "gelu"), (2048, 512, "relu"))
    return [case(setting, 5504, *shape) for shape in shapes]


if __name__ == "__main__":
    sys.exit(main("linear", cases))
