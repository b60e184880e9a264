"""predict against the whole model written out sequence by sequence, in every form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests import properties
from tests.predict.cases import CASES, HEADS, SEED, Case, call, layout, tensors
from tests.predict.naive import naive_predict
from wfkernels import Settings, predict
from wfkernels.predict.function import OF_ROWS

CHOSEN = pytest.mark.parametrize("name", ["paper", "specialists", "dropout", "one layer"])


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    properties.agrees_with_definition(call(CASES[name]))


@pytest.mark.parametrize("name", ["keep all", "recipe", "one layer", "specialists"])
def test_gradcheck(name: str) -> None:
    properties.passes_gradcheck(call(CASES[name]))


@CHOSEN
def test_any_strides(name: str) -> None:
    properties.takes_any_strides(call(CASES[name]))
    properties.takes_expanded_gradients(call(CASES[name]))


@CHOSEN
def test_inputs_untouched_and_runs_repeat(name: str) -> None:
    properties.leaves_inputs_alone_and_repeats(call(CASES[name]))


@pytest.mark.parametrize("name", ["bucketed", "specialists"])
def test_only_gradients_asked_for(name: str) -> None:
    # Some fifty leaves have too many subsets. But a gradient depends on who else asks only by the work that is skipped,
    # of which the next test has every subset: so each alone and all but each will do here.
    properties.gives_only_gradients_asked_for(call(CASES[name]), most=1)


def test_every_subset_of_what_work_is_skipped_for() -> None:
    # A backward skips the pass over the rows unless one of these asks for it, and the sums of the gate's gradient.
    case = Case(Settings(HEADS, "pre", read="mean", output="gated"), gate="bucketed", base=True, center=True)
    small = replace(case, built_on=True, teachers=(2,), rows=(2, 1), blocks=1)
    properties.gives_only_gradients_asked_for(call(small), most=None, among=["rows", "gate", *OF_ROWS])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", CASES)
def test_every_element_is_written(name: str) -> None:
    properties.writes_every_element(call(CASES[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["paper", "recipe", "specialists", "dropout", "keep all"])
def test_error_is_that_of_eager(dtype: torch.dtype, name: str) -> None:
    # Smooth, because a relu near 0 opens for one rounding and not for another; several, because a single number such
    # as a layer's strength may be right by luck.
    smooth = replace(CASES[name], d=32).but(feed_forward="gelu", activation="gelu")
    properties.is_no_worse_than_eager([call(smooth, seed) for seed in range(4)], dtype)


@CHOSEN
def test_not_differentiable_twice(name: str) -> None:
    properties.is_not_differentiable_twice(call(CASES[name]), "marked with @once_differentiable")


@pytest.mark.parametrize("name", CASES)
def test_recomputing_changes_no_bit(name: str) -> None:
    full, none = (properties.results(call(CASES[name].but(recompute=how))) for how in ("full", "none"))
    properties.assert_same(full, none, exact=True)


@pytest.mark.parametrize("name", ["paper", "dropout"])
def test_one_chain_of_layers_hands_its_cross_tokens_on(name: str) -> None:
    # Recurrent over the layers: the cross tokens that leave one layer enter the next.
    case = CASES[name]
    rows, whole, tokens, lookup = tensors(case)
    student, copies = tokens.layout, sum(tokens.teachers)
    chains = []
    for function in (predict, naive_predict):
        cross, buffers = whole.cross, []
        for i, part in enumerate(rows.split([copies * x.rows * x.stride for x in student.layers])):
            one = student.select([i])
            columns, sizes = [x.stride for x in student.layers], [x.rows * x.stride for x in student.layers]
            parameters = replace(
                whole,
                embedding_weights=whole.embedding_weights[i : i + 1],
                embedding_biases=whole.embedding_biases[i : i + 1],
                projection_weights=whole.projection_weights[i : i + 1],
                projection_biases=whole.projection_biases[i : i + 1],
                shift=whole.shift.split(columns)[i],
                scale=whole.scale.split(columns)[i],
                strength=whole.strength[i : i + 1],
                layer=whole.layer[i : i + 1],
                prior=None if whole.prior is None else whole.prior.split(sizes)[i],
                blend=None if whole.blend is None else whole.blend[i : i + 1],
                cross=cross,
            )
            layout_ = one.tokens(tokens.teachers, tokens.cross)
            lookups = {"gate_lookup" if function is predict else "lookup": lookup}
            buffer, cross = function(
                part, parameters, case.settings, layout=layout_, **lookups, seed=SEED, return_cross=True
            )
            buffers.append(buffer)
        chains.append(torch.cat(buffers, 1).square().sum() + cross.square().sum())
    torch.testing.assert_close(*chains)
    leaves = [rows, *(t for t in whole.flatten() if t is not None)]
    found, wanted = (torch.autograd.grad(total, leaves) for total in chains)
    torch.testing.assert_close(found, wanted)


def test_layers_learn_of_earlier_layers_only() -> None:
    case = CASES["paper"]
    c, student, copies = call(case), layout(), sum(case.teachers)
    rows = c.leaves["rows"]
    row_parts = rows.detach().split([copies * x.rows * x.stride for x in student.layers])
    (before,) = c.run(c.leaves)

    def changed_layers(changed: int, how: str = "parallel") -> list[bool]:
        """Which layers of the students change with the teachers' rows of one layer."""
        run = call(case.but(cross_layer=how)).run
        other = torch.cat([part + (i == changed) for i, part in enumerate(row_parts)])
        different = run({**c.leaves, "rows": other})[0] != run(c.leaves)[0]
        sizes = [sum(-(-x.rows * p.width // 8) * 8 for p in x.parameters) for x in student.layers]
        return [bool(part.any()) for part in different.split(sizes, dim=1)]

    assert before.shape == (2, student.numel)
    assert [changed_layers(i) for i in range(3)] == [[True, True, True], [False, True, True], [False, False, True]]
    alone = [[i == j for j in range(3)] for i in range(3)]
    assert [changed_layers(i, "none") for i in range(3)] == alone


def test_groups_do_not_reach_each_other() -> None:
    c = call(CASES["bucketed"])
    blocks = layout().row_blocks(torch.arange(c.leaves["rows"].numel()), 5)
    rows = c.leaves["rows"].detach().clone()
    for block, n in zip(blocks, layout().rows, strict=True):
        rows[block[: 2 * n].flatten()] += 1.0  # the first group has two teachers
    (before,), (after,) = c.run(c.leaves), c.run({**c.leaves, "rows": rows})
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


@pytest.mark.parametrize("read", ["anchor", "mean"])
def test_order_of_the_teachers_does_not_matter_without_their_codes(read: str) -> None:
    case = Case(Settings(HEADS, "pre", read="mean", output="mean"), codes=False, teachers=(3,), cross=1)
    c = call(case)
    blocks = layout().row_blocks(c.leaves["rows"].detach(), 3)
    order = [2, 0, 1] if read == "mean" else [0, 2, 1]
    run = call(case.but(read=read, output=read)).run
    shuffled = torch.cat([
        torch.nn.functional.pad(b.unflatten(0, (3, -1))[order].flatten(0, 1), (0, -b.shape[1] % 8)).flatten()
        for b in blocks
    ])  # fmt: skip
    torch.testing.assert_close(run({**c.leaves, "rows": shuffled})[0], run(c.leaves)[0])


def test_paddings_are_not_read_and_get_no_gradient() -> None:
    c = call(CASES["specialists"])
    student, copies = layout(), 5
    masks = {name: torch.ones_like(c.leaves[name], dtype=torch.bool) for name in ("rows", "base", "center")}
    columns = {name: torch.ones_like(c.leaves[name], dtype=torch.bool) for name in ("shift", "scale")}
    for name, mask in masks.items():
        for block in student.row_blocks(mask, copies if name == "rows" else 1):
            block.fill_(False)
    for mask in columns.values():
        for block in student.column_blocks(mask):
            block.fill_(False)
    masks |= columns
    dirty = {n: c.leaves[n].detach().masked_fill(mask, torch.nan).requires_grad_() for n, mask in masks.items()}
    found = properties.results(c.but(dirty))
    properties.assert_same(found, properties.results(c), exact=True)
    for name, mask in masks.items():
        assert mask.any() and (found[f"gradient of {name}"][mask] == 0).all()


def test_dropout_draws_a_seed_and_is_off_at_zero() -> None:
    rows, parameters, tokens, lookup = tensors(CASES["dropout"])
    settings = CASES["dropout"].settings

    def students(settings: Settings = settings, seed: Tensor | None = None) -> Tensor:
        found = predict(rows, parameters, settings, layout=tokens, gate_lookup=lookup, seed=seed)
        assert isinstance(found, Tensor)
        return found.detach()

    torch.manual_seed(4)
    first, second = students(), students()
    torch.manual_seed(4)
    assert torch.equal(first, students()) and not torch.equal(first, second)
    assert torch.equal(students(seed=SEED), students(seed=SEED))
    off = replace(settings, dropout_p=0.0)
    assert torch.equal(students(off), students(off, seed=SEED))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_the_call_with_products_in_that_dtype(dtype: torch.dtype) -> None:
    c = call(CASES["specialists"]).to(torch.float32)
    with torch.autocast("cpu", dtype):
        found = properties.results(c)
    kept = ("rows", "shift", "scale", "base", "center", "strength")
    low = c.but({n: t.detach().to(dtype).requires_grad_() for n, t in c.leaves.items() if n not in kept})
    wanted = properties.results(low)
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[name].float()), name


def test_autocast_leaves_float64_and_bucketed_gates() -> None:
    c = call(CASES["bucketed"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(c.run(c.leaves)[0], c.run(c.leaves)[0].double())
        single = c.to(torch.float32)
        found = single.run(single.leaves)[0]
    kept = ("rows", "shift", "scale", "strength", "gate")
    low = single.but({n: t.detach().bfloat16() for n, t in single.leaves.items() if n not in kept})
    assert torch.equal(found, low.run(low.leaves)[0])
    (gradient,) = torch.autograd.grad(found.sum(), [single.leaves["gate"]])
    assert not torch.equal(gradient, gradient.bfloat16().float())


def test_backward_inside_autocast_is_that_outside() -> None:
    c = call(CASES["recipe"]).to(torch.float32)
    wanted = properties.results(c)
    students = c.run(c.leaves)
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(students[0].shape, generator=generator, dtype=torch.float64).float()
    with torch.autocast("cpu", torch.bfloat16):
        grads = torch.autograd.grad(students, list(c.leaves.values()), weights)
    for name, g in zip(c.leaves, grads, strict=True):
        assert torch.equal(g, wanted[f"gradient of {name}"]), name


def test_named_implementations() -> None:
    properties.refuses_other_implementations(call(CASES["recipe"]), "embedding")


def test_indices_made_in_inference_mode_serve_training_too() -> None:
    case = replace(CASES["recipe"], teachers=(7,))  # a layout that no other test uses
    case = replace(case, codes=False)
    c = call(case)
    with torch.inference_mode():
        c.run(c.leaves)
    properties.results(c)
