"""Recalibration, metrics and distances between predictions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from weightformer import evaluate, students


def images(n: int = 40, size: int = 14, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("batch_size", [1000, 40, 17, 1])
@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_running_statistics_are_those_of_each_layers_input_over_the_whole_set(name: str, batch_size: int) -> None:
    model, x = students.create(name, seed=0).double(), images()
    assert evaluate.recalibrate(model, x, batch_size) is model
    inputs: dict[nn.Module, Tensor] = {}
    for norm in norms(model):
        norm.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}))
    evaluate.logits(model, x)
    for norm in norms(model):
        variance, mean = torch.var_mean(inputs[norm], (0, 2, 3))
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-12, atol=1e-12)


def test_recalibrate_forgets_the_old_statistics_and_keeps_everything_else() -> None:
    model, x = students.create("vgg", seed=0).double(), images()
    before = {k: v.clone() for k, v in evaluate.recalibrate(model, x).state_dict().items()}
    for norm in norms(model):
        norm.running_mean.fill_(7), norm.running_var.fill_(7)
    model.train()
    model.relu1.eval()
    after = evaluate.recalibrate(model, x).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert model.training and model.norm1.training and not model.relu1.training
    assert not any(norm._forward_pre_hooks for norm in norms(model))


def test_recalibrate_leaves_a_model_without_running_statistics_alone() -> None:
    model = students.create("mlp", seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate.recalibrate(model, torch.randn(5, 1, 8, 8))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [100, 3])
def test_recalibrate_ends_where_a_norm_takes_no_part(batch_size: int) -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x).flatten(1)

    model = evaluate.recalibrate(Spare().double(), images(), batch_size)
    torch.testing.assert_close(model.used.running_mean, images().mean().view(1))
    assert model.unused.running_mean.item() == 0


def test_recalibrate_needs_two_values_per_channel() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"recalibrate: images: expected at least 2 values .* got 1"):
        evaluate.recalibrate(model, torch.randn(1, 1, 2, 2))


def test_logits_do_not_depend_on_the_batch_size_and_leave_the_model_as_it_was() -> None:
    model, x = students.create("vgg", seed=0).train(), images().float()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    whole = evaluate.logits(model, x)
    assert whole.shape == (40, 10) and not whole.requires_grad and model.training
    torch.testing.assert_close(whole, evaluate.logits(model, x, 7))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_with_state_copies() -> None:
    one, two = students.create("mlp", seed=1), students.create("mlp", seed=2)
    copy = evaluate.with_state(one, two.state_dict())
    assert torch.equal(copy.head.weight, two.head.weight) and not torch.equal(one.head.weight, two.head.weight)


PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.2, 0.3, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 2])


def test_metrics_by_hand() -> None:
    found = evaluate.metrics(PROBABILITIES.log(), LABELS)
    assert found.accuracy == 75.0
    assert found.nll == pytest.approx(-(2 * math.log(0.7) + math.log(0.3) + math.log(0.5)) / 4)
    brier = (
        (0.3**2 + 0.2**2 + 0.1**2)
        + (0.5**2 + 0.7**2 + 0.2**2)
        + (0.1**2 + 0.3**2 + 0.2**2)
        + (0.2**2 + 0.3**2 + 0.5**2)
    )
    assert found.brier == pytest.approx(brier / 4)
    # Two bins are filled: confidence .7 (two images, both right) and .5 (two images, one right).
    assert found.ece == pytest.approx(100 * (0.5 * abs(1 - 0.7) + 0.5 * abs(0.5 - 0.5)), abs=1e-4)
    assert (found.temperature, found.scaled_nll, found.scaled_ece) == (1.0, found.nll, found.ece)


def test_metrics_take_logits_and_log_probabilities_alike() -> None:
    shift = torch.tensor([[5.0], [-3.0], [100.0], [0.0]])
    one, other = evaluate.metrics(PROBABILITIES.log(), LABELS), evaluate.metrics(PROBABILITIES.log() + shift, LABELS)
    assert one.nll == pytest.approx(other.nll) and one.brier == pytest.approx(other.brier)


def test_the_temperature_is_fitted_on_validation_and_minimises_its_nll() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 10, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    overconfident = 3 * logits
    found = evaluate.metrics(overconfident[:10], labels[:10], validation=(overconfident, labels))

    def nll(temperature: float) -> float:
        return nn.functional.cross_entropy(overconfident / temperature, labels).item()

    assert nll(found.temperature) < min(nll(found.temperature * 1.01), nll(found.temperature / 1.01))
    assert found.temperature == pytest.approx(3 * evaluate.fit_temperature(logits, labels), rel=1e-3)
    assert found.scaled_nll == pytest.approx(
        nn.functional.cross_entropy(overconfident[:10] / found.temperature, labels[:10]).item()
    )
    assert found.nll == pytest.approx(nn.functional.cross_entropy(overconfident[:10], labels[:10]).item())


def test_summarise_gives_mean_and_sample_deviation_over_groups() -> None:
    groups = [evaluate.metrics(PROBABILITIES.log() * scale, LABELS) for scale in (1.0, 2.0, 3.0)]
    found = evaluate.summarise(groups)
    nlls = torch.tensor([g.nll for g in groups], dtype=torch.float64)
    assert found.count == 3 and found.mean.accuracy == 75.0 and found.std.accuracy == 0.0
    assert found.mean.nll == pytest.approx(nlls.mean().item()) and found.std.nll == pytest.approx(nlls.std().item())
    assert math.isnan(evaluate.summarise(groups[:1]).std.nll)
    with pytest.raises(ValueError, match=r"summarise: results: expected .* got none"):
        evaluate.summarise([])


def test_kl_is_zero_for_equal_distributions_and_right_by_hand() -> None:
    p = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    q = torch.tensor([[0.5, 0.5], [0.125, 0.875]]).log()
    assert evaluate.kl(p, p + 4) == pytest.approx(0, abs=1e-7)
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.5 * math.log(4) + 0.5 * math.log(4 / 7)
    assert evaluate.kl(p, q) == pytest.approx((first + second) / 2, rel=1e-6)
    assert evaluate.kl(q, p) != pytest.approx(evaluate.kl(p, q), rel=1e-3)


def test_agreement_counts_equal_classes() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert evaluate.agreement(one, one * 9) == 100.0
    assert evaluate.agreement(one, one[[0, 1, 2, 2]]) == 75.0
