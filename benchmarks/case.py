"""What is measured: a case, the ways to compute it, and what is expected of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wfkernels import judge

FORWARD, BACKWARD, FULL = "forward", "backward", "full"
MODES = (FORWARD, BACKWARD, FULL)
# "gpu" is what a GPU has to reach, "gpu-quick" the same contenders on sizes that a CPU can run too.
PRESETS = ("quick", "bar", "full", "gpu", "gpu-quick")

Run = Callable[..., Any]


@dataclass(frozen=True)
class Setting:
    """What the command line asks for. peers: None for all of them."""

    device: torch.device
    preset: str = "quick"
    ours: tuple[str, ...] = ("auto",)
    peers: tuple[str, ...] | None = None
    rounds: int | None = None

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def gpu(self) -> bool:
        """Whether one of the presets for a GPU was asked for."""
        return self.preset in ("gpu", "gpu-quick")

    @property
    def quick(self) -> bool:
        return self.preset in ("quick", "gpu-quick")

    @property
    def half(self) -> torch.dtype:
        """The dtype of those presets; on a CPU they only show that everything runs."""
        return torch.bfloat16 if self.cuda else torch.float32


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    run: takes the problem's tensors and returns what the reference returns.
    ours: its results have to be right; where they are not, nothing is timed and the program fails.
    full: forward and backward where that is not autograd over `run`: (tensors, grads) -> outputs, then gradients.
    steps: a call per mode where that is more than `run`: a training step.
    around: entered before a call and left behind it, outside the time.
    absent: why it is not measured, by mode; under "" for every mode.
    unlike: why its results are not those of the reference, where it is there for its time alone.
    executed: operations that it really computes, by mode, where that is more than is counted.
    """

    run: Run
    ours: bool = False
    full: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]] | None = None
    steps: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    absent: Mapping[str, str] = field(default_factory=dict)
    unlike: str = ""
    executed: Mapping[str, float] = field(default_factory=dict)


# Why a peer is not there.
LEFT_OUT = "left out of the quick preset: compiles too long"


def missing(reason: str, *modes: str) -> Contender:
    """Return a contender that is only a row with a reason."""

    def run(*_: Any) -> Any:
        raise RuntimeError(reason)

    return Contender(run, absent=dict.fromkeys(modes or ("",), reason))


def ours(
    setting: Setting, run: Run, suffix: str = "", executed: Mapping[str, float] | None = None
) -> dict[str, Contender]:
    """Return a contender for each of our implementations asked for; `run` takes impl=NAME."""
    return {
        f"{name}{suffix}": Contender(partial(run, impl=name), ours=True, executed=executed or {})
        for name in setting.ours
    }


@dataclass(frozen=True)
class Problem:
    """A case at one size: its tensors, and everything that computes with them.

    tensors: the arguments of every `run`; gradients are those of the ones that require grad.
    grads: the gradients of the outputs.
    reference: the definition of correct, in any dtype. results: the names of what it returns.
    parts: entries that are judged apart, by the place of a tensor and a name (see wfkernels.judge.Contract).
    exact: nothing is computed, so that all bits have to agree.
    """

    tensors: Sequence[Tensor]
    grads: Sequence[Tensor]
    reference: Run
    contenders: Mapping[str, Contender]
    results: Sequence[str] = ("out",)
    parts: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    exact: bool = False

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in self.tensors if t.requires_grad]


@dataclass(frozen=True)
class Target:
    """What a mode of a case must reach: `bound` times faster or smaller than `against`, or that share of gemm or copy.

    what: "time", "memory", "gemm" or "copy" (`against` then means nothing). suffix: of the name of ours that is meant.
    """

    mode: str
    what: str
    bound: float
    against: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class Case:
    """One row group. flop: operations counted per mode; bytes: read and written, where that is the limit.

    judged: the same kind of problem, small enough for float64, with what is said about it; None judges `build` itself.
    """

    name: str
    build: Callable[[], Problem]
    flop: Mapping[str, float] = field(default_factory=dict)
    bytes: Mapping[str, float] = field(default_factory=dict)
    modes: Sequence[str] = MODES
    judged: tuple[str, Callable[[], Problem]] | None = None
    targets: Sequence[Target] = ()
    dtype: torch.dtype = torch.float32


class Call(NamedTuple):
    """`run` is timed with what `prepare` returned, inside `around`."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def call(problem: Problem, contender: Contender, mode: str) -> Call:
    """Return one mode of a contender: outputs (forward), gradients (backward) or both, one after the other (full)."""
    tensors, leaves, grads = problem.tensors, problem.leaves, problem.grads

    # Under no_grad alone, FlexAttention on a CPU still refuses what requires grad.
    plain = [t.detach() for t in tensors]

    def outputs() -> list[Tensor]:
        return judge.flat(contender.run(*tensors))

    def forward(_: Any) -> list[Tensor]:
        with torch.no_grad():
            return judge.flat(contender.run(*plain))

    def backward(found: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(found, leaves, grads))

    def full(_: Any) -> list[Tensor]:
        if contender.full is not None:
            return contender.full(tensors, grads)
        found = outputs()
        return [*(x.detach() for x in found), *backward(found)]

    if mode in contender.steps:
        step = contender.steps[mode]
        return Call(lambda _: step(), around=contender.around)
    if mode == BACKWARD:
        return Call(backward, outputs, contender.around)
    return Call(forward if mode == FORWARD else full, around=contender.around)


def attention_flop(pairs: float, width: int) -> dict[str, float]:
    """Return the operations of attention over so many pairs of tokens, all heads together `width` wide.

    Two products forward; five backward, of which a framework that keeps the scores computes four.
    """
    forward = 4.0 * pairs * width
    return {FORWARD: forward, BACKWARD: 2.5 * forward, FULL: 3.5 * forward}


def attention_executed(pairs: float, width: int, term: bool) -> dict[str, float]:
    """Return what the Triton kernels compute: seven products backward, nine where a bias or gate has a gradient."""
    product = 2.0 * pairs * width
    backward = (9 if term else 7) * product
    return {FORWARD: 2 * product, BACKWARD: backward, FULL: 2 * product + backward}


def product_flop(rows: float, inputs: float, outputs: float, inputs_learn: bool = True) -> dict[str, float]:
    """Return the operations of a linear layer, whose backward is one product for the weight and one for the inputs."""
    forward = 2.0 * rows * inputs * outputs
    backward = forward * (1 + inputs_learn)
    return {FORWARD: forward, BACKWARD: backward, FULL: forward + backward}


def total(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of operations, mode by mode."""
    parts = list(parts)
    return {mode: sum(part[mode] for part in parts) for mode in MODES}


class Draw:
    """Random tensors, the same numbers on every device."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int, scale: float = 1.0, offset: float = 0.0, learn: bool = True) -> Tensor:
        return self.leaf(torch.randn(size, generator=self.generator) * scale + offset, learn)

    def matrix(self, outputs: int, inputs: int) -> Tensor:
        return self.normal(outputs, inputs, scale=inputs**-0.5)

    def uniform(self, *size: int) -> Tensor:
        """Return entries in [0.2, 0.9): gates that are open, and stay below 1 when the judge moves them."""
        return torch.rand(size, generator=self.generator) * 0.7 + 0.2

    def leaf(self, x: Tensor, learn: bool = True) -> Tensor:
        return x.to(self.device, self.dtype).requires_grad_(learn)
