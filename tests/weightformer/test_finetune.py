"""The distillation loss and the training loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from weightformer import students
from weightformer.evaluate import logits, with_state
from weightformer.finetune import bank_logits, distillation_loss, finetune, soft_targets
from weightformer.state import State

GENERATOR = torch.Generator().manual_seed(0)
TEACHERS = 3 * torch.randn(3, 8, 10, generator=GENERATOR, dtype=torch.float64)
STUDENT = torch.randn(8, 10, generator=GENERATOR, dtype=torch.float64)
CLASSES = torch.arange(8)


def gradient(loss_of: object, at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(loss_of(at), at)[0]


def kl(p: Tensor, log_q: Tensor) -> Tensor:
    return (p * (p.log() - log_q)).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_loss_is_the_weighted_sum_of_both_terms(temperature: float) -> None:
    targets = (TEACHERS / temperature).softmax(-1).mean(0)
    torch.testing.assert_close(soft_targets(TEACHERS, temperature), targets)
    hard = -STUDENT.log_softmax(1)[torch.arange(8), CLASSES].mean()
    soft = temperature**2 * kl(targets, (STUDENT / temperature).log_softmax(1))
    found = distillation_loss(STUDENT, CLASSES, targets, 0.7, temperature)
    torch.testing.assert_close(found, 0.3 * hard + 0.7 * soft)
    torch.testing.assert_close(distillation_loss(STUDENT, None, targets, 0.7, temperature), soft)
    torch.testing.assert_close(distillation_loss(STUDENT, CLASSES, None), hard)
    with pytest.raises(ValueError, match="labels, targets"):
        distillation_loss(STUDENT, None, None)


def test_the_gradient_to_the_mean_is_the_mean_of_the_gradients_but_not_that_of_mean_logits() -> None:
    to_mean = gradient(lambda z: distillation_loss(z, None, soft_targets(TEACHERS)), STUDENT)
    each = [gradient(lambda z, t=t: distillation_loss(z, None, soft_targets(t[None])), STUDENT) for t in TEACHERS]
    torch.testing.assert_close(to_mean, torch.stack(each).mean(0))
    of_logits = gradient(lambda z: distillation_loss(z, None, soft_targets(TEACHERS.mean(0, keepdim=True))), STUDENT)
    assert (to_mean - of_logits).norm() > 0.05 * to_mean.norm()


def test_a_student_that_equals_its_only_teacher_has_no_gradient_from_it() -> None:
    found = gradient(lambda z: distillation_loss(z, None, soft_targets(TEACHERS[:1])), TEACHERS[0])
    assert found.abs().max() < 1e-15
    assert gradient(lambda z: distillation_loss(z, CLASSES, soft_targets(TEACHERS[:1])), TEACHERS[0]).norm() > 0.01


@pytest.fixture
def task() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, a bank of 2 views of 20 images, and labels that can be learnt."""
    labels = torch.arange(20) % 10
    patterns = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(20, 2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return students.create("vgg", size=8, seed=0), patterns[labels][:, None] + 0.3 * noise, labels


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


def test_finetune_is_deterministic_and_leaves_model_and_generator_alone(task: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, bank, labels = task
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = finetune(model, bank, labels, steps=4, batch_size=8, seed=3)
    torch.manual_seed(99)
    assert same(first, finetune(model, bank, labels, steps=4, batch_size=8, seed=3))
    assert not same(first, finetune(model, bank, labels, steps=4, batch_size=8, seed=4))
    assert same(before, model.state_dict()) and model.training
    torch.set_rng_state(random_state)
    finetune(model, bank, labels, steps=1)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(t.is_contiguous() and not t.requires_grad for t in first.values())


def test_dropout_follows_the_seed(task: tuple[nn.Module, Tensor, Tensor]) -> None:
    _, bank, labels = task
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    first = finetune(model, bank, labels, steps=2)
    torch.rand(1)
    assert same(first, finetune(model, bank, labels, steps=2))


def test_finetune_starts_from_the_state_it_is_given(task: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, bank, labels = task
    start = students.create("vgg", size=8, seed=5).state_dict()
    assert same(start, finetune(model, bank, labels, steps=0, start=start))
    moved = finetune(model, bank, labels, steps=1, start=start, learning_rate=1e-3)
    # The first step of AdamW is at most the learning rate in every coordinate.
    step = max((moved[name] - start[name]).abs().max().item() for name, _ in model.named_parameters())
    assert 0 < step <= 1e-3 * (1 + 1e-3)


@pytest.mark.parametrize("kind", ["labels", "targets", "both"])
def test_finetune_learns_from_labels_from_targets_and_from_both(
    task: tuple[nn.Module, Tensor, Tensor], kind: str
) -> None:
    model, bank, labels = task
    targets = nn.functional.one_hot(labels, 10).float()[:, None].expand(-1, 2, -1)
    losses: list[float] = []
    state = finetune(
        model,
        bank,
        None if kind == "targets" else labels,
        None if kind == "labels" else targets,
        steps=40,
        learning_rate=5e-3,
        progress=losses.append,
    )
    assert len(losses) == 40 and losses[-1] < 0.3 * losses[0]
    assert (logits(with_state(model, state), bank[:, 1]).argmax(1) == labels).float().mean() > 0.8


def test_targets_belong_to_an_image_and_its_view(task: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, bank, _ = task
    found = bank_logits(model, bank, batch_size=7)
    assert found.shape == (20, 2, 10)
    torch.testing.assert_close(found[:, 1], logits(model, bank[:, 1]))
    # Two classes, told by the view alone: only a network that is shown each view with its own target can learn them.
    views = torch.stack([bank[:, 0], bank[:, 0] + 3], 1)
    targets = torch.eye(10)[:2].expand(20, 2, 10)
    state = finetune(model, views, None, targets, steps=40, learning_rate=5e-3, alpha=1.0)
    student = with_state(model, state)
    assert (bank_logits(student, views).argmax(-1) == torch.tensor([0, 1])).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bank, labels, targets: (bank[:, 0], labels, targets), "bank: expected"),
        (lambda bank, labels, targets: (bank, None, None), "labels, targets: expected at least one"),
        (lambda bank, labels, targets: (bank, labels[:-1], targets), "labels: expected one for each of 20"),
        (lambda bank, labels, targets: (bank, labels, targets[:, :1]), r"targets: expected \[20, 2, classes\]"),
    ],
)
def test_data_that_do_not_fit_are_refused(task: tuple[nn.Module, Tensor, Tensor], change: object, message: str) -> None:
    model, bank, labels = task
    with pytest.raises(ValueError, match=message):
        finetune(model, *change(bank, labels, torch.full((20, 2, 10), 0.1)), steps=1)
