from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from weightformer import data
from weightformer.data import Dataset, Images
from weightformer.domains import SpecialistData, mnist_specialists
from weightformer.regimes import (
    Independent,
    SharedInitialisation,
    Specialists,
    independent,
    shared_initialisation,
    specialists,
)
from weightformer.teachers import FAST, SLOW, Schedule, TeacherPool

QUICK = Schedule(steps=2, lr=1e-3, batch_size=16)


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return data.mnist()


@pytest.fixture(scope="module")
def domains() -> SpecialistData:
    return mnist_specialists()


@pytest.fixture(scope="module")
def pool(domains: SpecialistData) -> TeacherPool:
    return specialists(domains, SMALL_SPECIALISTS, workers=1)


# A small pool of each regime, as a function of the options that all of them have.
SMALL_INDEPENDENT = Independent(
    fast=4,
    slow=2,
    validation=1,
    test=2,
    fast_schedule=QUICK,
    slow_schedule=replace(QUICK, steps=3),
    held_out=QUICK,
    views=3,
)
SMALL_SHARED = SharedInitialisation(train=5, validation=1, test=3, base=QUICK, schedule=QUICK, views=3)
SMALL_SPECIALISTS = Specialists(
    train=2, validation=1, test=1, teachers=2, held_out_teachers=3, base=QUICK, schedule=QUICK, views=2
)


@pytest.fixture(params=["independent", "shared", "specialists"])
def build(request: pytest.FixtureRequest, mnist: Dataset, domains: SpecialistData) -> Callable[..., TeacherPool]:
    return {
        "independent": partial(independent, mnist, SMALL_INDEPENDENT, workers=1),
        "shared": partial(shared_initialisation, mnist, SMALL_SHARED, workers=1),
        "specialists": partial(specialists, domains, SMALL_SPECIALISTS, workers=1),
    }[request.param]


def equal(one: TeacherPool, other: TeacherPool) -> bool:
    """Whether two pools hold the same teachers with bitwise the same weights."""
    same = [replace(t, state={}).__dict__ for t in one.teachers] == [
        replace(t, state={}).__dict__ for t in other.teachers
    ]
    return same and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip([*one.states, one.base or {}], [*other.states, other.base or {}], strict=True)
    )


class TestEveryRegime:
    def test_number_of_workers_and_threads_do_not_matter(self, build: Callable[..., TeacherPool]) -> None:
        alone = build()
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        assert equal(alone, build())
        assert torch.get_num_threads() == 2
        torch.set_num_threads(threads)
        assert equal(alone, build(workers=2))

    def test_seed_decides(self, build: Callable[..., TeacherPool]) -> None:
        one, other = build(), build(seed=1)
        assert not any(
            torch.equal(a["conv1.weight"], b["conv1.weight"]) for a, b in zip(one.states, other.states, strict=True)
        )

    def test_teachers_differ(self, build: Callable[..., TeacherPool]) -> None:
        states = build().states
        weights = torch.stack([s["conv1.weight"].flatten() for s in states])
        assert len(weights.unique(dim=0)) == len(states)

    def test_a_folder_holds_the_same_pool(self, build: Callable[..., TeacherPool], tmp_path: Path) -> None:
        pool = build(folder=tmp_path)
        read = TeacherPool.load(tmp_path)
        assert equal(pool, read)
        assert (pool.configuration, pool.regime) == (read.configuration, read.regime)

    def test_goes_on_where_it_was_interrupted(self, build: Callable[..., TeacherPool], tmp_path: Path) -> None:
        whole = build()

        def interrupt(done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(folder=tmp_path, progress=interrupt)
        with pytest.raises(ValueError, match=f"lacks {len(whole) - 3} teachers"):
            TeacherPool.load(tmp_path)
        # Marked weights show that a found teacher is taken as it is.
        found = TeacherPool.load(tmp_path, partial=True)
        found.teachers[0].state["head.bias"].fill_(7)
        found.save_teacher(tmp_path, found.teachers[0])
        told: list[tuple[int, int]] = []
        resumed = build(folder=tmp_path, progress=lambda done, total: told.append((done, total)))
        assert told == [(i, len(whole)) for i in range(3, len(whole) + 1)]
        marked = resumed.teachers[0].state["head.bias"]
        assert marked.eq(7).all()
        marked.copy_(whole.teachers[0].state["head.bias"])
        assert equal(whole, resumed)
        assert len(TeacherPool.load(tmp_path)) == len(whole)

    @pytest.mark.parametrize(
        "change, difference",
        [
            ({"seed": 5}, "seed is 0 there, 5 here"),
            ({"architecture": "resnet"}, "architecture is vgg there, resnet here"),
        ],
    )
    def test_a_folder_of_other_teachers_is_left_alone(
        self, build: Callable[..., TeacherPool], tmp_path: Path, change: dict[str, Any], difference: str
    ) -> None:
        build(folder=tmp_path)
        before = {p: p.read_bytes() for p in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=f"{difference}.*pass another folder") as caught:
            build(folder=tmp_path, **change)
        assert "\n" not in str(caught.value)
        assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}

    def test_other_architectures(self, build: Callable[..., TeacherPool]) -> None:
        pool = build(architecture="vit")
        assert type(pool.create()).__name__ == "VisionTransformer"
        pool.create().load_state_dict(pool.states[-1])

    def test_class_counts_are_those_of_the_private_images(
        self, build: Callable[..., TeacherPool], mnist: Dataset, domains: SpecialistData
    ) -> None:
        for teacher in build().teachers:
            if teacher.group is not None:
                source = domains.private if teacher.role == "train" else domains.private_held_out
            else:
                source = mnist.extra if teacher.indices else mnist.train
            labels = source.labels[list(teacher.indices)] if teacher.indices else source.labels
            assert labels.bincount(minlength=10).tolist() == list(teacher.class_counts)


def test_defaults_are_the_recipes() -> None:
    one, two, three = Independent(), SharedInitialisation(), Specialists()
    assert (FAST.steps, FAST.lr, SLOW.steps, SLOW.lr) == (150, 3e-3, 400, 2e-3)
    assert (one.fast + one.test, one.fast_schedule, one.slow_schedule, one.views) == (48, FAST, SLOW, 30)
    assert (two.base.steps, two.schedule, two.private) == (20, Schedule(300, 8e-3, 64), 200)
    assert (three.train * three.teachers, three.validation, three.test, three.alpha) == (72, 6, 8, 0.5)
    assert (three.base, three.schedule) == (Schedule(100, 1e-3, 50), Schedule(200, 3e-3, 32))


class TestIndependent:
    def test_slow_teachers_come_first_and_roles_follow(self, mnist: Dataset) -> None:
        pool = independent(mnist, SMALL_INDEPENDENT, workers=1)
        assert [t.key for t in pool.teachers] == [
            "train-slow-000", "train-slow-001", "train-fast-000", "train-fast-001", "train-fast-002", "train-fast-003",
            "validation-000", "test-000", "test-001",
        ]  # fmt: skip
        assert [int(s["norm1.num_batches_tracked"]) for s in pool.states] == [3, 3, 2, 2, 2, 2, 2, 2, 2]
        assert pool.base is None

    def test_a_larger_pool_reuses_a_smaller_one(self, mnist: Dataset, tmp_path: Path) -> None:
        small = independent(mnist, SMALL_INDEPENDENT, folder=tmp_path, workers=1)
        told: list[int] = []
        more = replace(SMALL_INDEPENDENT, fast=6, test=3)
        large = independent(mnist, more, folder=tmp_path, workers=1, progress=lambda done, total: told.append(done))
        assert told == [9, 10, 11, 12]
        assert equal(large, independent(mnist, more, workers=1))
        assert {t.key for t in small.teachers} < {t.key for t in large.teachers}

    def test_a_changed_schedule_is_named(self, mnist: Dataset, tmp_path: Path) -> None:
        independent(mnist, SMALL_INDEPENDENT, folder=tmp_path, workers=1)
        other = replace(SMALL_INDEPENDENT, fast_schedule=replace(QUICK, lr=2e-3))
        with pytest.raises(ValueError, match=r"settings.fast_schedule.lr is 0.001 there, 0.002 here"):
            independent(mnist, other, folder=tmp_path, workers=1)

    def test_other_data_are_noticed(self, mnist: Dataset, tmp_path: Path) -> None:
        independent(mnist, SMALL_INDEPENDENT, folder=tmp_path, workers=1)
        with pytest.raises(ValueError, match="data is"):
            independent(data.mnist(per_class=20), SMALL_INDEPENDENT, folder=tmp_path, workers=1)

    def test_digits_with_an_mlp(self) -> None:
        pool = independent(data.digits(), SMALL_INDEPENDENT, architecture="mlp", workers=1)
        assert pool.arguments == {"classes": 10, "channels": 1, "size": 8}
        assert pool.create()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


class TestSharedInitialisation:
    def test_private_images_of_held_out_teachers_are_nobody_elses(self, mnist: Dataset) -> None:
        pool = shared_initialisation(mnist, SMALL_SHARED, workers=1)
        sets = {
            role: {i for t in pool.select(role).teachers for i in t.indices} for role in ("train", "validation", "test")
        }
        assert not sets["train"] & (sets["validation"] | sets["test"])
        assert all(len(set(t.indices)) == 200 for t in pool.teachers)
        assert len(sets["train"]) <= 350 and len(sets["test"] | sets["validation"]) <= 350

    def test_all_start_from_the_base(self, mnist: Dataset) -> None:
        still = replace(SMALL_SHARED, schedule=Schedule(steps=1, lr=0.0))
        pool = shared_initialisation(mnist, still, workers=1)
        assert pool.base is not None
        assert int(pool.base["norm1.num_batches_tracked"]) == QUICK.steps
        for name, _ in pool.create().named_parameters():
            assert all(torch.equal(state[name], pool.base[name]) for state in pool.states)

    def test_data_without_extra_images_are_refused(self) -> None:
        with pytest.raises(ValueError, match="200 private images .* halves of 0 extra images; load the data with"):
            shared_initialisation(data.digits())


class TestSpecialists:
    def test_a_group_shares_its_domain_and_no_other_group_has_it(self, pool: TeacherPool) -> None:
        by_group: dict[int | None, set[object]] = {}
        for teacher in pool.teachers:
            by_group.setdefault(teacher.group, set()).add(teacher.domain)
        assert [len(d) for d in by_group.values()] == [1] * 4
        assert len(set.union(*by_group.values())) == 4
        assert [t.group for t in pool.teachers] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]

    def test_the_bases_head_is_zero_and_its_trunk_is_not(self, pool: TeacherPool) -> None:
        assert pool.base is not None
        zero = {name for name, tensor in pool.base.items() if name.endswith(("weight", "bias")) and not tensor.any()}
        assert zero == {"head.weight", "head.bias"}

    def test_classes_are_skewed(self, pool: TeacherPool) -> None:
        """Dirichlet(.5) shares: the largest of ten classes has .35 on average, balanced images would have .1."""
        counts = torch.tensor([t.class_counts for t in pool.teachers])
        assert counts.sum(1).tolist() == [300] * len(pool)
        assert counts.amax(1).float().mean() > 0.25 * 300

    @pytest.mark.parametrize("split, seen_by", [("private", {"train"}), ("private_held_out", {"validation", "test"})])
    def test_nobody_sees_the_private_images_of_others(
        self, pool: TeacherPool, domains: SpecialistData, split: str, seen_by: set[str]
    ) -> None:
        original = getattr(domains, split)
        changed = replace(domains, **{split: Images(1 - original.images, original.labels)})
        other = specialists(changed, SMALL_SPECIALISTS, workers=1)
        moved = {
            teacher.role
            for teacher, old in zip(other.teachers, pool.teachers, strict=True)
            if not torch.equal(teacher.state["conv1.weight"], old.state["conv1.weight"])
        }
        assert moved == seen_by

    def test_more_domains_leave_the_others_as_they_are(
        self, pool: TeacherPool, domains: SpecialistData, tmp_path: Path
    ) -> None:
        pool.save(tmp_path)
        more = replace(SMALL_SPECIALISTS, train=3)
        grown = specialists(domains, more, folder=tmp_path, workers=1)
        assert equal(grown, specialists(domains, more, workers=1))
        assert [t.group for t in grown.select("test").teachers] == [4, 4, 4]

    def test_specialists_know_their_domain_better_than_another(self, domains: SpecialistData) -> None:
        settings = Specialists(train=2, validation=0, test=0, teachers=1, alpha=100.0)
        pool = specialists(domains, settings, workers=1)
        right = torch.zeros(2, 2)
        for i, teacher in enumerate(pool.teachers):
            model = pool.create().eval()
            model.load_state_dict(teacher.state)
            for j, other in enumerate(pool.teachers):
                assert other.domain is not None
                seen = domains.render(domains.validation, other.domain)
                with torch.no_grad():
                    right[i, j] = (model(seen.images).argmax(1) == seen.labels).float().mean()
        assert right.diag().min() > 0.8 and right.fliplr().diag().max() < 0.5
