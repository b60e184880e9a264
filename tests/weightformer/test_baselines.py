"""The defining identity of every baseline on a small case."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from weightformer import data, evaluate, students, views
from weightformer.align import Aligner, permute
from weightformer.baselines import Result, Setting
from weightformer.baselines.average_ensemble import average_ensemble, combine
from weightformer.baselines.constant import best_order, constant, reordered
from weightformer.baselines.cross_entropy import cross_entropy
from weightformer.baselines.distillation import distillation, teacher_targets
from weightformer.baselines.head_counts import head_counts
from weightformer.baselines.known_counts import correct, known_counts
from weightformer.baselines.prior_matching import match_prior, prior_bias
from weightformer.baselines.single import single
from weightformer.baselines.task_arithmetic import task_arithmetic
from weightformer.baselines.weight_mean import mean_state, weight_mean
from weightformer.finetune import soft_targets
from weightformer.state import State

VGG = partial(students.create, "vgg", size=8)
PARAMETERS = sum(p.numel() for p in VGG().parameters())


def state(seed: int) -> State:
    return students.create("vgg", size=8, seed=seed).state_dict()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def setting(images: Tensor) -> Setting:
    return Setting(VGG, calibration=images, bank=images[:, None], labels=torch.arange(30) % 10)


def outputs(model_state: State, setting: Setting, images: Tensor) -> Tensor:
    return evaluate.logits(setting.network(model_state), images)


def same_prediction(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one.log_softmax(1), other.log_softmax(1))


def test_a_fresh_network_depends_on_the_seed_only(setting: Setting) -> None:
    before = torch.get_rng_state()
    one, again, other = setting.fresh(1), setting.fresh(1), setting.fresh(2)
    assert torch.equal(one.head.weight, again.head.weight) and not torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_networks_get_statistics_of_the_calibration_images_or_keep_their_own(setting: Setting, images: Tensor) -> None:
    given = evaluate.recalibrate(evaluate.with_state(VGG(), state(0)), 2 * images + 1).state_dict()
    assert torch.equal(Setting(VGG).network(given).norm1.running_mean, given["norm1.running_mean"])
    expected = evaluate.recalibrate(evaluate.with_state(VGG(), state(0)), images).norm1.running_mean
    assert torch.equal(setting.network(given).norm1.running_mean, expected)


def test_a_single_teacher_is_itself(setting: Setting, images: Tensor) -> None:
    found = single([state(0), state(1)], setting, index=1)
    assert torch.equal(found.logits(images), outputs(state(1), setting, images))
    assert (found.cost.steps, found.cost.passes, found.cost.parameters) == (0, 1, PARAMETERS)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_an_ensemble_of_copies_is_the_single_network(setting: Setting, images: Tensor, of: str) -> None:
    found = average_ensemble([state(0)] * 3, setting, of=of)
    same_prediction(found.logits(images), outputs(state(0), setting, images))
    assert found.state is None and (found.cost.passes, found.cost.parameters) == (3, 3 * PARAMETERS)


def test_averaging_probabilities_is_not_averaging_logits() -> None:
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 5.0, 0.0]], [[0.0, 5.0, 0.0]]], dtype=torch.float64)
    logits[0, 0, 1] = -9.0
    torch.testing.assert_close(combine(logits).exp(), logits.softmax(-1).mean(0))
    torch.testing.assert_close(combine(logits, of="logits").exp(), logits.mean(0).softmax(-1))
    assert combine(logits).argmax() == 1 and combine(logits, of="logits").argmax() == 0
    with pytest.raises(ValueError, match="average_ensemble: of: expected"):
        combine(logits, of="votes")


def test_confident_members_in_half_precision_do_not_overflow() -> None:
    logits = torch.tensor([[[300.0, 0.0]], [[0.0, 300.0]]], dtype=torch.float16)
    assert combine(logits).dtype == torch.float32
    torch.testing.assert_close(combine(logits).exp(), torch.tensor([[0.5, 0.5]]))


def test_the_mean_of_copies_is_the_network_and_integers_are_the_firsts(setting: Setting, images: Tensor) -> None:
    states = [state(0), dict(state(0))]
    states[0]["norm1.num_batches_tracked"], states[1]["norm1.num_batches_tracked"] = torch.tensor(3), torch.tensor(9)
    mean = mean_state(states)
    assert all(torch.equal(mean[name], value) for name, value in states[0].items())
    torch.testing.assert_close(weight_mean(states, setting).logits(images), outputs(state(0), setting, images))


def test_half_precision_weights_are_summed_in_float32() -> None:
    mean = mean_state([{"w": torch.ones(1, dtype=torch.float16)}] * 7)["w"]
    assert mean.dtype == torch.float16 and mean.item() == 1.0  # seven times 1/7 in float16 is less


def test_the_aligned_mean_of_shuffled_copies_is_the_network(setting: Setting, images: Tensor) -> None:
    aligner = Aligner(setting.network(state(0)), images)
    shuffled = [
        permute(
            state(0),
            aligner.wiring,
            [torch.randperm(w.size, generator=torch.Generator().manual_seed(s)) for w in aligner.wiring.wires],
        )
        for s in range(3)
    ]
    expected = outputs(aligner(state(0)), setting, images)
    torch.testing.assert_close(weight_mean(shuffled, setting, aligner=aligner).logits(images), expected)
    plain = weight_mean(shuffled, setting).logits(images)
    assert (plain - expected).abs().max() > 0.1 * expected.abs().max()


def test_alignment_makes_the_mean_of_independent_networks_a_network_again() -> None:
    digits = data.digits()
    task = Setting(partial(students.create, "mlp"), bank=views.bank(digits.train, 8), labels=digits.train.labels)
    teachers = [cross_entropy(task, steps=300, learning_rate=5e-3, seed=seed).state for seed in (0, 1)]
    aligner = Aligner(task.network(teachers[0]), digits.train.images)
    plain, aligned, best = (
        evaluate.metrics(r.logits(digits.test.images), digits.test.labels).accuracy
        for r in (weight_mean(teachers, task), weight_mean(teachers, task, aligner=aligner), single(teachers, task))
    )
    assert best > 85 and aligned > plain + 20 and aligned > best - 15


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_task_arithmetic_moves_the_base_along_the_mean_task_vector(
    setting: Setting, images: Tensor, scale: float
) -> None:
    base, teachers = state(0), [state(1), state(2), state(3)]
    moved = {
        name: value + scale * torch.stack([t[name] - value for t in teachers]).mean(0)
        for name, value in base.items()
        if value.is_floating_point()
    }
    found = task_arithmetic(teachers, setting, base=base, scale=scale)
    for name, _ in VGG().named_parameters():
        torch.testing.assert_close(found.state[name], moved[name])


def test_the_fitted_bias_makes_the_mean_prediction_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 10, generator=generator, dtype=torch.float64) + torch.linspace(-2, 2, 10)
    mean = (logits + prior_bias(logits)).softmax(1).mean(0)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.1), rtol=1e-6, atol=0)
    assert (logits.softmax(1).mean(0) - 0.1).abs().max() > 0.05


def test_a_uniform_prediction_needs_no_bias() -> None:
    cyclic = torch.stack([torch.arange(10.0).roll(i) for i in range(10)])
    assert prior_bias(cyclic).abs().max() < 1e-6


def test_a_class_without_mass_stays_finite() -> None:
    logits = torch.zeros(5, 3)
    logits[:, 2] = -200
    assert prior_bias(logits).isfinite().all()


def test_prior_matching_adds_one_bias_per_class_to_any_result(setting: Setting, images: Tensor) -> None:
    plain = single([state(0)], setting)
    found = match_prior(plain, images[:20])
    difference = found.logits(images) - plain.logits(images)
    torch.testing.assert_close(difference, prior_bias(plain.logits(images[:20])).float().expand(30, 10))
    assert found.name.endswith("+ pm") and found.state is None and found.cost.parameters == PARAMETERS + 10


def test_dividing_by_counts_removes_exactly_the_prior_of_bayes() -> None:
    """Members that share p(x|y) and differ in their class counts agree after the correction."""
    generator = torch.Generator().manual_seed(0)
    likelihood = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    counts = torch.tensor([[99, 9, 0, 4], [0, 49, 9, 99]])
    members = torch.stack([(likelihood + (c + 1.0).log()).log_softmax(1) for c in counts])
    same_prediction(correct(members, counts), likelihood)
    assert evaluate.kl(likelihood, combine(members)) > 0.1


def test_equal_counts_change_nothing(setting: Setting, images: Tensor) -> None:
    teachers, counts = [state(0), state(1)], torch.full((2, 10), 30)
    expected = average_ensemble(teachers, setting).logits(images)
    for by in ("prior", "class"):
        found = known_counts(teachers, setting, counts=counts, by=by)
        same_prediction(found.logits(images), expected)
        assert found.cost.passes == 2
    with pytest.raises(ValueError, match="known_counts: by: expected"):
        correct(torch.zeros(2, 1, 10), counts, by="votes")


def test_class_weights_let_each_member_speak_for_the_classes_it_saw() -> None:
    logits = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.tensor([[30, 0, 9], [0, 10, 9]])
    weights = (counts + 1.0) / (counts + 1.0).sum(0)
    expected = (weights[:, None] * logits.softmax(-1)).sum(0)
    torch.testing.assert_close(correct(logits, counts, by="class").exp(), (expected / expected.sum(1, keepdim=True)))


def test_head_rows_come_from_the_teachers_that_saw_the_class(setting: Setting) -> None:
    teachers = [state(0), state(1)]
    mean = mean_state(teachers)
    counts = torch.zeros(2, 10, dtype=torch.int64)
    counts[0, :5], counts[1, 5:] = 299, 299
    flat = head_counts(teachers, setting, counts=counts, power=0.0).state
    found = head_counts(teachers, setting, counts=counts, power=1.0).state
    for name, _ in VGG().named_parameters():
        torch.testing.assert_close(flat[name], mean[name])
        if not name.startswith("head"):
            torch.testing.assert_close(found[name], mean[name])
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(found[name][:5], (300 * teachers[0][name] + teachers[1][name])[:5] / 301)
        torch.testing.assert_close(found[name][5:], (teachers[0][name] + 300 * teachers[1][name])[5:] / 301)


def test_the_best_order_undoes_a_permutation_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = 3 * torch.randn(50, 10, generator=generator)
    order = torch.randperm(10, generator=generator)
    assert torch.equal(best_order(prediction, prediction[:, order]), order)


def test_the_reordered_constant_follows_the_ensembles_classes(setting: Setting, images: Tensor) -> None:
    teachers = [dict(state(0)), dict(state(1))]
    for teacher in teachers:  # confident, so that few images tell the classes apart
        teacher["head.weight"] = 30 * teacher["head.weight"]
    ensemble = average_ensemble(teachers, setting)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    scrambled = Result("constant", lambda x: ensemble.logits(x)[:, order], None, ensemble.cost)
    found = reordered(scrambled, teachers, setting, images=images)
    same_prediction(found.logits(images), ensemble.logits(images))
    assert found.cost == scrambled.cost and "Hungarian" in found.name


def test_the_constant_is_the_student_of_the_whole_pool(setting: Setting, images: Tensor) -> None:
    pool = [state(s) for s in range(4)]
    found = constant(pool, setting, steps=3, seed=1)
    expected = distillation(pool, setting, steps=3, seed=1)
    assert torch.equal(found.logits(images), expected.logits(images)) and found.cost.steps == 3


def test_distillation_brings_the_student_to_the_ensemble(setting: Setting, images: Tensor) -> None:
    teachers = [dict(state(0)), dict(state(1))]
    for teacher in teachers:
        teacher["head.weight"] = 10 * teacher["head.weight"]
    unlabelled = Setting(VGG, calibration=images, bank=images[:, None])
    reference = average_ensemble(teachers, setting).logits(images)
    distances = [
        evaluate.kl(reference, distillation(teachers, unlabelled, steps=steps, batch_size=30).logits(images))
        for steps in (0, 60)
    ]
    assert distances[1] < 0.5 * distances[0]


def test_distillation_from_given_weights_starts_there_and_takes_cached_targets(setting: Setting) -> None:
    teachers = [state(0), state(1)]
    targets = teacher_targets(teachers, setting)
    logits = torch.stack([outputs(t, setting, setting.bank[:, 0]) for t in teachers])
    torch.testing.assert_close(targets[:, 0], soft_targets(logits))
    untouched = distillation(teachers, setting, steps=0, start=teachers[1], start_name="teacher 2")
    assert torch.equal(untouched.state["conv1.weight"], teachers[1]["conv1.weight"])
    assert untouched.name == "teacher 2 + distillation 0"
    one = distillation(teachers, setting, steps=2, start=teachers[1])
    two = distillation(teachers, setting, steps=2, start=teachers[1], targets=targets)
    assert all(torch.equal(one.state[name], value) for name, value in two.state.items())
    assert (one.cost.steps, one.cost.passes, one.cost.parameters) == (2, 1, PARAMETERS)


def test_cross_entropy_learns_the_labels(setting: Setting, images: Tensor) -> None:
    found = cross_entropy(setting, steps=60, batch_size=30, learning_rate=5e-3)
    assert evaluate.metrics(found.logits(images), setting.labels).accuracy > 90
    assert found.cost.steps == 60


def test_methods_that_train_say_what_they_lack(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"distillation: setting.bank: expected images"):
        distillation([state(0)], Setting(VGG), steps=1)
    with pytest.raises(ValueError, match=r"cross_entropy: setting.labels: expected labels"):
        cross_entropy(Setting(VGG, bank=images[:, None]), steps=1)
