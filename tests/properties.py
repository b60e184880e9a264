"""What every differentiable op has to satisfy, as functions of one call; each room brings its calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from wfkernels import dispatch
from wfkernels.judge import Contract, examine, named

# What random calls are made in: float64 is held against the definition, the others against eager computation.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Leaves = dict[str, Tensor]
Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Call:
    """One call of an op: its float tensors by name, the op as a function of them and the same thing written out.

    Both functions take the leaves and return all outputs; `run` takes `impl` as well. The one written out gets its
    gradients from autograd and computes in the dtype of its leaves throughout.
    """

    leaves: Leaves
    run: Function
    naive: Function

    def to(self, dtype: torch.dtype) -> Call:
        """The same call with fresh leaves in another dtype."""
        return self.but({n: t.detach().to(dtype).requires_grad_(t.requires_grad) for n, t in self.leaves.items()})

    def but(self, leaves: Leaves) -> Call:
        return Call({**self.leaves, **leaves}, self.run, self.naive)

    def by(self, impl: str) -> Call:
        """The same call of a named implementation."""
        return Call(self.leaves, partial(self.run, impl=impl), self.naive)


def results(call: Call, function: Function | None = None, seed: int = 7) -> Leaves:
    """All outputs, and the gradients of a random linear function of them by every leaf."""
    outputs = (function or call.run)(call.leaves)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
    wanted = {n: t for n, t in call.leaves.items() if t.requires_grad}
    grads = torch.autograd.grad(outputs, list(wanted.values()), weights, materialize_grads=True)
    named = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return named | {f"gradient of {n}": g for n, g in zip(wanted, grads, strict=True)}


def assert_same(found: Leaves, wanted: Leaves, exact: bool = False) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype, name
        if exact:
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, msg=lambda m, name=name: f"{name}: {m}")


def agrees_with_definition(call: Call) -> None:
    """Outputs and every gradient are those of the op written out."""
    assert all(y.requires_grad for y in call.run(call.leaves))
    assert_same(results(call), results(call, call.naive))


def passes_gradcheck(call: Call) -> None:
    """Every gradient is that of finite differences."""
    names = list(call.leaves)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return call.run(dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(call.leaves.values()), fast_mode=True)


def permuted(x: Tensor) -> Tensor:
    """The same values with the dimensions stored in reverse order."""
    order = tuple(reversed(range(x.ndim)))
    return x.detach().permute(order).contiguous().permute(order).requires_grad_()


def strided(x: Tensor) -> Tensor:
    """The same values in every second element of a buffer of NaN."""
    buffer = x.new_full((*x.shape, 2), torch.nan)
    buffer[..., 0] = x.detach()
    return buffer[..., 0].requires_grad_()


def takes_any_strides(call: Call) -> None:
    """Inputs in any memory order give the same, in contiguous outputs."""
    wanted = results(call)
    for layout in (permuted, strided):
        other = call.but({n: layout(t) for n, t in call.leaves.items()})
        assert_same(results(other), wanted)
        assert all(y.is_contiguous() for y in other.run(other.leaves))


def takes_expanded_gradients(call: Call) -> None:
    """y.sum().backward() sends an expanded gradient, others arrive permuted; inputs may be expanded as well."""
    leaves = list(call.leaves.values())
    outputs = call.run(call.leaves)
    ones = [torch.ones_like(y) for y in outputs]
    wanted = torch.autograd.grad(outputs, leaves, ones, retain_graph=True, materialize_grads=True)
    total = torch.stack([y.sum() for y in outputs]).sum()
    for found in (
        torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True),
        torch.autograd.grad(outputs, leaves, [permuted(y) for y in ones], materialize_grads=True),
    ):
        for name, a, b in zip(call.leaves, found, wanted, strict=True):
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
    for name, leaf in call.leaves.items():
        one = leaf.detach().mean().requires_grad_()
        sums = []
        for same in (one.expand(leaf.shape), one.expand(leaf.shape).clone()):
            outputs = call.run({**call.leaves, name: same})
            total = torch.stack([y.sum() for y in outputs]).sum()
            sums.append((*outputs, *torch.autograd.grad(total, [one])))
        torch.testing.assert_close(*sums, msg=lambda m, name=name: f"expanded {name}: {m}")


def gives_only_gradients_asked_for(call: Call, most: int | None = 2, among: Sequence[str] = ()) -> None:
    """Every subset of up to `most` leaves, and of all but so many, gets the same gradients as all together.

    most: None for every subset there is. among: the leaves that subsets are taken of, by default all of them.
    """
    whole = results(call)
    names = among or list(call.leaves)
    few = [
        frozenset(chosen)
        for count in range(len(names) if most is None else most + 1)
        for chosen in combinations(names, count)
    ]
    for chosen in dict.fromkeys([*few, *(frozenset(names) - other for other in few)]):
        leaves = {n: t.detach().requires_grad_(n in chosen) for n, t in call.leaves.items()}
        part = call.but(leaves)
        if not chosen:
            assert not any(y.requires_grad for y in part.run(leaves))
            continue
        found = results(part)
        assert_same(found, {n: t for n, t in whole.items() if n in found}, exact=True)
        assert len(found) == len(chosen) + len(whole) - len(call.leaves)


def leaves_inputs_alone_and_repeats(call: Call) -> None:
    """Inputs keep their bits, and two runs agree to the bit."""
    before = {n: t.detach().clone() for n, t in call.leaves.items()}
    first, second = results(call), results(call)
    assert all(torch.equal(call.leaves[n], t) for n, t in before.items())
    assert_same(first, second, exact=True)


def writes_every_element(call: Call) -> None:
    """For the fixture `poisoned`: no element of a result comes from memory that nobody wrote."""
    for name, tensor in results(call).items():
        assert not tensor.isnan().any(), name


def is_no_worse_than_eager(calls: Sequence[Call], dtype: torch.dtype) -> None:
    """Every output and gradient passes the judge of kernels, with the op written out in `dtype` for the eager run."""
    for call in calls:
        low = call.to(dtype)
        weights = [torch.randn(y.shape).to(dtype) for y in low.run(low.leaves)]
        tensors = [*low.leaves.values(), *weights]
        for function in (outputs_of, gradients_of):
            names = [f"gradient of {name}" for name in low.leaves] if function is gradients_of else []
            contract = Contract(named(*names), gradient=function is gradients_of)
            eager, ours = (partial(function, run, list(low.leaves)) for run in (call.naive, low.run))
            verdicts = examine(contract, eager, tensors, ours(*tensors))
            wrong = [str(verdict) for verdict in verdicts if verdict.share > 1]
            assert not wrong, "\n".join(wrong)


def outputs_of(function: Function, names: Sequence[str], *tensors: Tensor) -> list[Tensor]:
    """The outputs for leaves of these names, the first of the tensors."""
    return list(function(dict(zip(names, tensors, strict=False))))


def gradients_of(function: Function, names: Sequence[str], *tensors: Tensor) -> list[Tensor]:
    """The gradients by the leaves of sum w y; the weights w of the outputs y are the tensors behind the leaves."""
    leaves = [t.detach().requires_grad_() for t in tensors[: len(names)]]
    with torch.enable_grad():
        outputs = outputs_of(function, names, *leaves)
    return list(torch.autograd.grad(outputs, leaves, tensors[len(names) :], materialize_grads=True))


def sweep(
    draw: Callable[[int], tuple[Any, torch.dtype]], build: Callable[[Any, int], Call], seed: int, impl: str
) -> None:
    """A random call is what the definition says. `draw` returns a case and the dtype to run it in, `build` the call."""
    case, dtype = draw(seed)
    torch.manual_seed(seed)
    call = build(case, seed).by(impl)
    try:
        if dtype == torch.float64:
            agrees_with_definition(call)
        else:
            is_no_worse_than_eager([call], dtype)
    except dispatch.ImplementationError as error:
        pytest.skip(str(error))
    except Exception as error:
        names = f"{draw.__name__}, {build.__name__}"
        repro = f"from tests import properties; from {draw.__module__} import {names}"
        line = f'python -c "{repro}; properties.sweep({names}, {seed}, {impl!r})"'
        raise AssertionError(f"{case}, {dtype}\nrepeat with: {line}") from error


def compiles_in_one_graph(call: Call, backend: str = "inductor") -> None:
    """torch.compile(fullgraph=True) gives the eager outputs and gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(call.run, fullgraph=True, backend=backend)
    assert_same(results(call, compiled), results(call))


class Exportable(torch.nn.Module):
    """A call as a module: its leaves are parameters."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.run = call.run
        self.names = list(call.leaves)
        self.tensors = torch.nn.ParameterList(t.detach().clone() for t in call.leaves.values())

    def forward(self) -> tuple[Tensor, ...]:
        return self.run(dict(zip(self.names, self.tensors, strict=True)))


def exports_with_gradients(call: Call) -> None:
    """torch.export keeps outputs and gradients."""
    module = Exportable(call)
    exported = torch.export.export(module, ()).module()
    weights = [torch.randn_like(y) for y in module()]
    names = dict(module.named_parameters())
    found = torch.autograd.grad(
        exported(), list(dict(exported.named_parameters()).values()), weights, materialize_grads=True
    )
    wanted = torch.autograd.grad(module(), list(names.values()), weights, materialize_grads=True)
    assert list(dict(exported.named_parameters())) == list(names)
    for a, b in zip(exported(), module(), strict=True):
        torch.testing.assert_close(a, b)
    for name, a, b in zip(call.leaves, found, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def refuses_other_implementations(call: Call, op: str) -> None:
    """A named implementation runs or raises, with the reason; the reference can always be named."""
    known = [i.name for i in dispatch.implementations(op)]
    wanted = call.run(call.leaves, impl="reference")
    for name in ("cpp", "triton", "cuda", "fastest"):
        try:
            found = call.run(call.leaves, impl=name)
        except dispatch.ImplementationError as error:
            start = f"{op}: impl={name!r} cannot run here: "
            reason = f"not {name}: " if name in known else f"{op} has the implementations {', '.join(known)}"
            assert str(error).startswith(start + reason)
        else:
            assert name in known
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b)


def is_not_differentiable_twice(call: Call, reason: str = "no autograd formula") -> None:
    """A second derivative raises instead of being wrong."""
    leaves = list(call.leaves.values())
    total = torch.stack([y.square().sum() for y in call.run(call.leaves)]).sum()
    grads = torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)
    with pytest.raises(RuntimeError, match=reason):
        torch.stack([g.square().sum() for g in grads]).sum().backward()
