"""The published ways from many networks to one, and the controls, one file per method.

Every method takes the teachers as state dicts and a `Setting`, then its own options, and returns a `Result`. A method
that only recombines outputs also offers that step as a function of tensors, so that cached outputs can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightformer import evaluate
from weightformer.state import State

Teachers = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Cost:
    """`steps` of gradient descent for this group of teachers, `passes` of one network at inference, parameters kept."""

    steps: int
    passes: int
    parameters: int


@dataclass(frozen=True)
class Result:
    """What a method makes of a group of teachers.

    logits: images [n, C, H, W] -> [n, classes], whose log-softmax is the predictive distribution (some methods return
    logits, some log-probabilities).  state: the weights, where the method gives one ordinary network.
    """

    name: str
    logits: Callable[[Tensor], Tensor]
    state: State | None
    cost: Cost


@dataclass(frozen=True)
class Setting:
    """The architecture and the data that a method may use.

    build: returns a freshly initialised network.
    calibration: images [n, C, H, W] on which every network's BatchNorm statistics are re-estimated before it is used;
    None keeps each network's own.
    bank, labels: views of the training images [n, views, C, H, W] and their labels [n], for the methods that train.
    Without labels they learn from the teachers alone.
    """

    build: Callable[[], nn.Module]
    calibration: Tensor | None = None
    bank: Tensor | None = None
    labels: Tensor | None = None

    def fresh(self, seed: int) -> nn.Module:
        """Return a network initialised from `seed`; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def network(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return a network with `state`, on its device, with re-estimated statistics."""
        model = self.fresh(0)
        model.load_state_dict(state)
        model.to(next(iter(state.values())).device)
        return model if self.calibration is None else evaluate.recalibrate(model, self.calibration)

    def result(self, name: str, state: Mapping[str, Tensor], steps: int = 0) -> Result:
        """Return the result that is one ordinary network."""
        model = self.network(state)
        cost = Cost(steps, 1, sum(p.numel() for p in model.parameters()))
        return Result(name, lambda images: evaluate.logits(model, images), model.state_dict(), cost)

    def training_data(self, method: str) -> Tensor:
        """Return the bank, or say that `method` cannot do without."""
        if self.bank is None:
            raise ValueError(f"{method}: setting.bank: expected images to train on, got None")
        return self.bank
