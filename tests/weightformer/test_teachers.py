from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from weightformer import data, students
from weightformer.domains import draw
from weightformer.evaluate import recalibrate
from weightformer.teachers import FAST, Schedule, Teacher, TeacherPool, batches, state_of, train
from weightformer.views import bank

ARGUMENTS = {"classes": 3, "channels": 1, "size": 8}


def make_pool(roles: dict[str, list[int | None]], base: bool = False) -> TeacherPool:
    """Return a pool of untrained networks; `roles` gives every teacher's group."""
    teachers = []
    for role, groups in roles.items():
        for i, group in enumerate(groups):
            seed = len(teachers)
            state = state_of(students.create("vgg", **ARGUMENTS, seed=seed))
            domain = None if group is None else draw("tiles", group)
            teachers.append(Teacher(f"{role}-{i:03d}", role, seed, state, group, domain, (2, 0), (5, 6, 7)))
    start = state_of(students.create("vgg", **ARGUMENTS, seed=99)) if base else None
    return TeacherPool("specialists", "vgg", ARGUMENTS, tuple(teachers), start, {"seed": 3})


@pytest.fixture
def pool() -> TeacherPool:
    return make_pool({"train": [0, 0, 1, 1], "test": [2, 2]}, base=True)


class TestTrain:
    def test_a_fast_teacher_learns_the_digits(self) -> None:
        """Recipe section 2: fast teachers reach about 94 %; a network that learned nothing is at 10 %."""
        dataset = data.mnist()
        views = bank(dataset.train)
        model = students.create("vgg", seed=0)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        train(model, batches(views, dataset.train.labels, FAST, torch.Generator().manual_seed(0)), FAST)
        torch.set_num_threads(threads)
        recalibrate(model, views[:, :2].flatten(0, 1))
        with torch.no_grad():
            correct = model(dataset.test.images).argmax(1) == dataset.test.labels
        assert correct.double().mean() > 0.925

    def test_follows_plain_adamw_on_a_cosine(self) -> None:
        """Against the update written out: no decay, bias-corrected moments, lr_t = lr (1 + cos(pi t / steps)) / 2."""
        schedule = Schedule(steps=5, lr=0.1)
        layer = nn.Linear(3, 2).double()
        x = torch.randn(4, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        y = torch.tensor([0, 1, 1, 0])
        expected = layer.weight.detach().clone().requires_grad_(), layer.bias.detach().clone().requires_grad_()
        first = [torch.zeros_like(p) for p in expected]
        second = [torch.zeros_like(p) for p in expected]
        for step in range(5):
            loss = nn.functional.cross_entropy(nn.functional.linear(x.flatten(1), *expected), y)
            rate = 0.1 * (1 + torch.cos(torch.tensor(torch.pi * step / 5, dtype=torch.float64))) / 2
            for p, g, m, v in zip(expected, torch.autograd.grad(loss, expected), first, second, strict=True):
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).add_(g * g, alpha=0.001)
                scaled = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                p.data -= rate * scaled
        train(nn.Sequential(nn.Flatten(), layer), ((x, y) for _ in range(5)), schedule)
        torch.testing.assert_close(layer.weight, expected[0])
        torch.testing.assert_close(layer.bias, expected[1])

    def test_leaves_a_contiguous_model_in_eval_mode(self) -> None:
        model = students.create("vgg", **ARGUMENTS)
        train(model, [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))], Schedule(1, 1e-3))
        assert not model.training
        assert all(t.is_contiguous() for t in model.state_dict().values())

    def test_weights_that_are_no_numbers_are_an_error(self) -> None:
        model = students.create("vgg", **ARGUMENTS, seed=0)
        examples = [(torch.full((2, 1, 8, 8), torch.inf), torch.tensor([0, 1]))]
        with pytest.raises(FloatingPointError, match=r"^train: .* not finite after 1 steps; lower the learning rate"):
            train(model, examples, Schedule(steps=1, lr=1e-3))

    def test_takes_no_more_steps_than_scheduled(self) -> None:
        drawn = []

        def endless() -> object:
            while True:
                drawn.append(None)
                yield torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])

        model = students.create("vgg", **ARGUMENTS)
        train(model, endless(), Schedule(3, 1e-3))
        assert model.norm1.num_batches_tracked == 3 == len(drawn)


class TestBatches:
    def test_images_come_with_their_labels_from_all_views(self) -> None:
        # The value of a pixel says which image and which view it is.
        images = torch.arange(10).view(10, 1, 1, 1, 1) + torch.arange(4).view(1, 4, 1, 1, 1) / 10
        seen = list(batches(images, torch.arange(10), Schedule(50, 1e-3, batch_size=8), torch.Generator()))
        assert len(seen) == 50
        for x, y in seen:
            assert torch.equal(x.flatten().floor().long(), y) and len(y.unique()) == 8
        values = torch.cat([x.flatten() for x, _ in seen]).mul(10).round().unique()
        assert len(values) == 40

    def test_few_images_are_repeated(self) -> None:
        x, y = next(batches(torch.zeros(3, 2, 1, 4, 4), torch.arange(3), Schedule(1, 1e-3, 8), torch.Generator()))
        assert x.shape == (8, 1, 4, 4) and y.shape == (8,)


def test_state_is_a_copy() -> None:
    model = students.create("vgg", **ARGUMENTS)
    state = state_of(model)
    before = state["head.bias"].clone()
    with torch.no_grad():
        model.head.bias.add_(1)
    assert torch.equal(state["head.bias"], before)


class TestGroups:
    def test_of_domains_are_disjoint(self, pool: TeacherPool) -> None:
        assert pool.groups(2) == [(0, 1), (2, 3), (4, 5)]
        assert pool.select("train").groups(1) == [(0,), (2,)]
        assert pool.select("test").groups(2) == [(0, 1)]

    @pytest.mark.parametrize(
        "count, size, groups",
        [
            (6, 3, [(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1)]),
            (2, 1, [(0,), (1,)]),
            (3, 3, [(0, 1, 2)]),
        ],
    )
    def test_of_independent_teachers_go_round(self, count: int, size: int, groups: list[tuple[int, ...]]) -> None:
        assert make_pool({"test": [None] * count}).groups(size) == groups

    @pytest.mark.parametrize("groups", [[0, 0, 0, 1, 1, 1], [None] * 6], ids=["domains", "independent"])
    def test_samples_are_different_teachers_of_one_group(self, groups: list[int | None]) -> None:
        pool = make_pool({"train": groups})
        generator = torch.Generator().manual_seed(0)
        drawn = [pool.sample(2, generator) for _ in range(200)]
        assert all(a != b and groups[a] == groups[b] for a, b in drawn)
        allowed = sum(groups[a] == groups[b] for a in range(6) for b in range(6) if a != b)
        assert len(set(drawn)) == allowed

    @pytest.mark.parametrize("size", [0, 3])
    def test_size_is_limited_by_the_smallest_group(self, pool: TeacherPool, size: int) -> None:
        with pytest.raises(ValueError, match=f"groups: size: expected 1 to 2, .* got {size}"):
            pool.groups(size)

    def test_unknown_role_is_an_error(self, pool: TeacherPool) -> None:
        with pytest.raises(ValueError, match="select: role: expected one of train, validation, test, got 'held'"):
            pool.select("held")


class TestFolder:
    def test_round_trip(self, pool: TeacherPool, tmp_path: Path) -> None:
        pool.save(tmp_path / "new" / "pool")
        read = TeacherPool.load(tmp_path / "new" / "pool")
        assert replace(read, teachers=(), base=None).__dict__ == replace(pool, teachers=(), base=None).__dict__
        assert read.base is not None and pool.base is not None
        for one, other in zip([*read.states, read.base], [*pool.states, pool.base], strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
        for teacher, original in zip(read.teachers, pool.teachers, strict=True):
            assert replace(teacher, state={}).__dict__ == replace(original, state={}).__dict__

    def test_one_file_for_each_teacher_and_nothing_temporary(self, pool: TeacherPool, tmp_path: Path) -> None:
        pool.save(tmp_path)
        pool.save(tmp_path)  # replaces
        names = {f"{teacher.key}.safetensors" for teacher in pool.teachers}
        assert {p.name for p in tmp_path.iterdir()} == names | {"base.safetensors", "pool.json"}

    def test_a_pool_that_is_not_finished_needs_partial(self, pool: TeacherPool, tmp_path: Path) -> None:
        pool.save(tmp_path)
        pool.save_index(tmp_path, planned=10)
        with pytest.raises(ValueError, match="lacks 4 teachers of an interrupted training; train the pool again"):
            TeacherPool.load(tmp_path)
        assert len(TeacherPool.load(tmp_path, partial=True)) == 6


def edit(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Return a damage that changes pool.json's content."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / "pool.json").read_text())
        change(index)
        (folder / "pool.json").write_text(json.dumps(index))

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100]) and None


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "pool.json").unlink(), "no pool.json in .*; pass the folder of a trained pool"),
        (lambda f: (f / "pool.json").write_text("{"), r"pool.json is no teacher pool \(JSONDecodeError"),
        (lambda f: (f / "pool.json").write_text("[1]"), r"is no teacher pool \(TypeError"),
        (edit(lambda i: i.pop("regime")), r"is no teacher pool \(KeyError: 'regime'\)"),
        (edit(lambda i: i.update(version=2)), "expected format 'weightformer teacher pool' version 1"),
        (edit(lambda i: i["teachers"][0].update(key="../../etc/x")), "is no teacher pool .*etc/x"),
        (edit(lambda i: i["teachers"][0].update(role="boss")), "is no teacher pool .*boss"),
        (edit(lambda i: i.update(architecture="vgf")), "no network is called 'vgf'; nearest: vgg"),
        (edit(lambda i: i.update(architecture="mlp")), "train-000.safetensors"),
        (edit(lambda i: i["arguments"].update(classes=4)), "train-000.safetensors.*head"),
        (lambda f: (f / "test-001.safetensors").unlink(), "test-001.safetensors"),
        (truncate("train-002.safetensors"), "train-002.safetensors"),
        (truncate("base.safetensors"), "base.safetensors"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(
    pool: TeacherPool, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    pool.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        TeacherPool.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_nan_weights_are_named(pool: TeacherPool, tmp_path: Path) -> None:
    pool.teachers[1].state["conv2.weight"][0, 0, 0, 0] = torch.nan
    pool.save(tmp_path)
    with pytest.raises(ValueError, match="train-001.safetensors.*conv2.weight"):
        TeacherPool.load(tmp_path)
