"""What a prediction costs before anything is run: tokens, FLOP, bytes moved, peak memory and time.

The model itself is run on meta tensors, which hold no numbers: once under `wfkernels.selftest.trace`, which counts the
work of every call, and once under a mode that follows every tensor's life. For the second, library ops are opened:
their plain PyTorch runs under the mode too, so that what they make inside counts as well. Implementations that fuse
need less.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightformer import rows as rows_of
from weightformer import students
from weightformer.config import Config
from weightformer.model import WeightFormer
from wfkernels import RowLayout, dispatch, selftest
from wfkernels.attention import ops as attention_ops
from wfkernels.attention.arguments import Arguments
from wfkernels.embedding import ops as embedding_ops
from wfkernels.predict.plan import forget_indices
from wfkernels.projection import ops as projection_ops
from wfkernels.residual_norm import ops as residual_norm_ops

# Library ops and the plain functions behind them.
OPENED: dict[str, Callable[..., Any]] = {
    f"wfkernels::{name}": getattr(room, name)._init_fn
    for room, names in (
        (embedding_ops, ("embedding", "embedding_backward")),
        (attention_ops, ("attention_forward", "attention_backward")),
        (projection_ops, ("projection", "projection_backward")),
        (residual_norm_ops, ("residual_norm", "residual_norm_backward")),
    )
    for name in names
}
# Those of `predict`, as `wfkernels.dispatch` names them.
OPS = ("embedding", "attention", "residual_norm", "projection")
# Where the arguments behind query, key and value begin, and those of them whose values are read.
ATTENTION = {"wfkernels::attention_forward": 3, "wfkernels::attention_backward": 8}
LENGTHS = ("offsets", "key_offsets", "query_start")


@dataclass(frozen=True)
class Settings:
    """The settings of `weightformer plan`."""

    model: Config


# `fit` and `compare` compute on one thread; `predict` on as many as torch takes.
TRAINING_THREADS = 1
# Tokens that are still counted within a minute: lengths and indices are real tensors even here.
MOST_TOKENS = 10_000_000


@dataclass(frozen=True)
class Pass:
    """A forward pass, or one with its backward, in float32.

    peak, saved: bytes of the tensors that it makes, without parameters and inputs: most of them at once in plain
    PyTorch, and between forward and backward. threads: those of the command that runs such a pass. seconds: by
    implementation; None where its rates for so many threads are not known here.
    """

    name: str
    flop: float
    bytes: float
    peak: int
    saved: int
    threads: int
    seconds: dict[str, float | None]


@dataclass(frozen=True)
class Estimate:
    """What predicting students of one architecture takes."""

    architecture: str
    teachers: tuple[int, ...]
    layers: int
    rows: int
    tokens: int
    longest: int  # tokens in the longest sequence
    student: int  # parameters of one student
    model: int  # parameters of the WeightFormer
    model_bytes: int  # of its parameters and buffers
    input_bytes: int  # of the rows of all teachers
    passes: tuple[Pass, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    architecture: str,
    config: Config,
    teachers: Sequence[int],
    rates: Callable[[int], selftest.Rates | None] = lambda threads: None,
    **arguments: Any,
) -> Estimate:
    """Return the costs for students.create(architecture, **arguments) and groups of teachers[g] teachers each.

    rates: returns those for a number of threads (`wfkernels.selftest.load`); None where they are not known, which
    leaves out the times.

    Raises ValueError where there is no such architecture, the model does not take so many teachers, or they have more
    than MOST_TOKENS tokens.
    """
    with torch.device("meta"):
        student = students.create(architecture, **arguments)
    layout = rows_of.layout(student)
    if sum(layout.rows) * sum(teachers) > MOST_TOKENS:
        raise ValueError(
            f"estimate: teachers: {sum(teachers):,} with {sum(layout.rows):,} rows each are more than"
            f" {MOST_TOKENS:,} tokens; name fewer teachers or groups, or a smaller network"
        )
    tokens = layout.tokens(teachers, config.cross_tokens)
    passes = []
    for name, training in (("forward", False), ("forward and backward", True)):
        one = OnMeta(layout, config, teachers, training)
        work, memory = one.work(), one.memory()
        threads = TRAINING_THREADS if training else torch.get_num_threads()
        known = rates(threads)
        found = {implementation: seconds(work, known, implementation) for implementation in implementations()}
        passes.append(Pass(name, work.flop, work.bytes, memory.peak, memory.saved, threads, found))
    return Estimate(
        architecture,
        tuple(teachers),
        len(layout.layers),
        sum(layout.rows),
        tokens.total,
        tokens.max_length,
        sum(layer.rows * layer.width for layer in layout.layers),
        sum(p.numel() for p in one.model.parameters()),
        sum(tensor.nbytes for tensor in (*one.model.parameters(), *one.model.buffers())),
        one.rows.nbytes,
        tuple(passes),
    )


def implementations() -> list[str]:
    """Return what can be asked for: "auto", where anything but the reference exists, and "reference"."""
    others = any(len(dispatch.implementations(op)) > 1 for op in OPS)
    return ["auto", "reference"] if others else ["reference"]


def seconds(work: selftest.Work, rates: selftest.Rates | None, implementation: str) -> float | None:
    """Return the expected time of some work; None where the rates of the implementation are not known here."""
    if rates is None:
        return None
    try:
        return sum(selftest.seconds(work, rates, implementation).values())
    except ValueError:
        return None


class OnMeta:
    """One prediction on meta tensors, with its gradient where it is `training`."""

    def __init__(self, layout: RowLayout, config: Config, teachers: Sequence[int], training: bool) -> None:
        with torch.device("meta"):
            base = torch.empty(layout.row_numel) if config.output == "gated" else None
            self.model = WeightFormer(layout, config, base=base).train(training)
            self.rows = torch.empty(layout.row_numel * sum(teachers))
        self.teachers, self.training = list(teachers), training

    def run(self, between: Callable[[], object] = lambda: None) -> None:
        """Predict, call `between`, and send a gradient back."""
        with torch.set_grad_enabled(self.training):
            students = self.model(self.rows, self.teachers)
        between()
        if self.training:
            outputs = [tensor for student in students for tensor in student.values()]
            torch.autograd.backward(outputs, [torch.empty_like(tensor) for tensor in outputs])
            self.model.zero_grad()

    def work(self) -> selftest.Work:
        """Return the calls of library ops and aten ops, without those that make what a first call keeps."""
        self.run()
        tokens = self.model.layout.tokens(self.teachers, self.model.config.cross_tokens)
        return selftest.trace(self.run, selftest.lengths_of(tokens, self.model.settings))

    def memory(self) -> Memory:
        """Return how much memory the tensors take."""
        forget_indices()  # so that the mode sees them made
        memory = Memory([self.rows, *self.model.parameters(), *self.model.buffers()])
        try:
            with memory:
                self.run(memory.between)
        finally:
            forget_indices()
        return memory


class Memory(TorchDispatchMode):
    """Follows the life of every tensor. peak: most bytes at once; saved: those at the call of `between`."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        """`given`: tensors that are there already."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.saved = 0
        self._given = tuple(given)
        self._sizes = {_key(tensor): 0 for tensor in given}  # of the storages alive
        # What meta tensors that came from the CPU would hold: lengths of sequences are read from them.
        self._values: dict[int, Tensor] = {}

    def between(self) -> None:
        """Take note of what is alive now."""
        self.saved = self.live

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition(".")[0]
        if name in OPENED:
            return self._open(name, args)
        out = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_meta]
        for tensor in made:
            self._follow(tensor)
        if name == "aten::_to_copy" and made and not args[0].is_meta:
            self._values[_key(out)] = args[0]
        return out

    def _open(self, name: str, args: Any) -> Any:
        """Run the plain function behind a library op under this mode."""
        if name in ATTENTION:
            first = ATTENTION[name]
            given = Arguments.unflatten(args[first:])
            lengths: Any = {field: self._known(getattr(given, field)) for field in LENGTHS}
            args = (*args[:first], *given._replace(**lengths).flatten())
        with self:
            return OPENED[name](*args)

    def _known(self, lengths: Tensor | None) -> Tensor | None:
        """Return the CPU tensor that a meta tensor was copied from."""
        return None if lengths is None else self._values[_key(lengths)]

    def _follow(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._sizes:
            return
        self._sizes[key] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
        self._values.pop(key, None)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
