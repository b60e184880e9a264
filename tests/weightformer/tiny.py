"""Networks of a few neurons, teachers of them and models that read them, for the tests of model, fit and predictor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightformer import rows
from weightformer.config import Config
from weightformer.model import WeightFormer
from weightformer.state import State
from wfkernels import pack
from wfkernels.layout import RowLayout

CLASSES = 3
# The smallest encoder with every part in use: two heads, and a block in front of the last one.
SMALL = Config(width=8, heads=2, layers=2, feed_forward=12, buckets=4, max_teachers=4)


def network(norm: bool = True) -> nn.Sequential:
    """Four channels on images of 4x4 pixels, then four neurons, then three classes; both linear layers are 5 wide."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3, bias=False),
            norm=nn.BatchNorm2d(4) if norm else nn.Identity(),
            tanh1=nn.Tanh(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            hidden=nn.Linear(4, 4),
            tanh2=nn.Tanh(),
            head=nn.Linear(4, CLASSES),
        )
    )


CONV, HIDDEN, HEAD = 0, 1, 2


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def teachers(count: int, module: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> list[State]:
    """State dicts with every floating-point tensor drawn anew; running variances stay positive."""
    generator = torch.Generator().manual_seed(count)
    states: list[State] = []
    for index in range(count):
        state = {}
        for name, tensor in (module or network()).state_dict().items():
            if tensor.is_floating_point():
                tensor = torch.randn(tensor.shape, generator=generator).to(dtype)
                state[name] = tensor.abs() + 0.5 if name.endswith("running_var") else tensor
            else:
                state[name] = torch.full_like(tensor, index + 7)
        states.append(state)
    return states


def layout() -> RowLayout:
    return rows.layout(network())


def rows_of(state: State, of: RowLayout, dtype: torch.dtype = torch.float64) -> Tensor:
    return pack([rows.tensors(state, of)], of, dtype=dtype)


def untouched(config: Config, of: RowLayout | None = None, pool: Sequence[State] | None = None) -> WeightFormer:
    """A new model in float64, normalised by a pool of teachers, with a base where the output needs one."""
    of, pool = of or layout(), pool or teachers(4)
    base = rows_of(pool[0], of) if config.output == "gated" else None
    model = WeightFormer(of, config, base=base).double()
    model.set_statistics(pool)
    return model


def generic(config: Config, of: RowLayout | None = None, pool: Sequence[State] | None = None) -> WeightFormer:
    """The same with every parameter moved away from where it starts."""
    model = untouched(config, of, pool)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def students(model: WeightFormer, groups: Sequence[Sequence[State]]) -> list[dict[str, Tensor]]:
    """The predicted parameters of every group, in evaluation mode and without gradients."""
    with torch.no_grad():
        return model.eval()(model.pack(groups), [len(group) for group in groups])


def assert_same(found: State, expected: State, **tolerance: float) -> None:
    """Compare two state dicts in all that the second one has."""
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, check_dtype=False, msg=lambda m, name=name: f"{name}: {m}", **tolerance
        )
