"""Three ways in which a group of teachers comes about, each as a function that trains a pool.

* `independent`: every teacher from its own random start on the same images.
* `shared_initialisation`: one start and one first stretch for all, then private images.
* `specialists`: fine-tunes of one base on class-skewed private images, each group in a domain of its own.

Validation and test teachers never share a seed, a private image or a drawn domain with training teachers. A pool is
the same for the same seed, whatever the number of workers. With `folder` every teacher is written as soon as it is
trained, and teachers found there are not trained again; a larger pool reuses a smaller one's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightformer import bounds, students
from weightformer.data import Dataset
from weightformer.domains import Kind, SpecialistData, Standard, draw
from weightformer.pools import BASE, Job, Run, digest_of, seed_of, train_pool
from weightformer.progress import Progress
from weightformer.state import State
from weightformer.teachers import FAST, SLOW, Schedule, TeacherPool, batches, state_of, train
from weightformer.views import Jitter, bank, moved


@dataclass(frozen=True)
class Independent:
    """Numbers of teachers and how they are trained. Slow training teachers come first in the pool."""

    fast: int = 42
    slow: int = 0
    validation: int = 0
    test: int = 6
    fast_schedule: Schedule = FAST
    slow_schedule: Schedule = SLOW
    held_out: Schedule = FAST  # of the validation and test teachers
    views: int = 30
    jitter: Jitter = Jitter()

    def __post_init__(self) -> None:
        bounds.check(self, {"fast": 0, "slow": 0, "validation": 0, "test": 0, "views": 1})
        if not self.fast + self.slow:
            raise ValueError("Independent: fast, slow: expected at least one training teacher, got 0 of both")


@dataclass(frozen=True)
class SharedInitialisation:
    """Numbers of teachers and how they are trained: `base` on all training images, `schedule` on private ones."""

    train: int = 18
    validation: int = 0
    test: int = 6
    base: Schedule = Schedule(steps=20, lr=8e-3)
    schedule: Schedule = Schedule(steps=300, lr=8e-3)
    private: int = 200
    views: int = 30
    jitter: Jitter = Jitter()

    def __post_init__(self) -> None:
        bounds.check(self, {"train": 1, "validation": 0, "test": 0, "private": 1, "views": 1})


@dataclass(frozen=True)
class Specialists:
    """Numbers of domains, teachers in each, and how they are trained."""

    kind: Kind = "tiles"
    train: int = 18
    validation: int = 6
    test: int = 8
    teachers: int = 4  # in each training domain
    held_out_teachers: int = 3  # in each validation or test domain
    alpha: float = 0.5  # of the Dirichlet distribution of a teacher's class weights
    private: int = 300  # images of a teacher, drawn with replacement
    base: Schedule = Schedule(steps=100, lr=1e-3, batch_size=50)
    schedule: Schedule = Schedule(steps=200, lr=3e-3, batch_size=32)
    jitter: Jitter = Jitter(rotation=8.0, scale=0.06)
    views: int = 20

    def __post_init__(self) -> None:
        one = ("train", "teachers", "held_out_teachers", "private", "views")
        bounds.check(self, {**dict.fromkeys(one, 1), "validation": 0, "test": 0})
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"Specialists: alpha: expected a finite positive number, got {self.alpha}")


def train_teachers(
    dataset: Dataset | SpecialistData, settings: Independent | SharedInitialisation | Specialists, **options: Any
) -> TeacherPool:
    """Train the pool that `settings` describe; options: see `independent`."""
    if isinstance(settings, Specialists):
        if not isinstance(dataset, SpecialistData):
            raise TypeError("train_teachers: dataset: expected SpecialistData for specialists; see domains.load")
        return specialists(dataset, settings, **options)
    if isinstance(dataset, SpecialistData):
        raise TypeError("train_teachers: dataset: expected a Dataset, because only specialists take SpecialistData")
    if isinstance(settings, Independent):
        return independent(dataset, settings, **options)
    return shared_initialisation(dataset, settings, **options)


def independent(
    dataset: Dataset,
    settings: Independent = Independent(),
    *,
    architecture: str = "vgg",
    seed: int = 0,
    folder: str | Path | None = None,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TeacherPool:
    """Train teachers from independent seeds, all on the bank of `dataset.train`.

    Args:
        architecture: a name that `students.create` knows.
        folder: where the pool lies; None keeps it in memory only.
        workers: processes; see `weightformer.workers.run`. The result does not depend on it.
        progress: called with (teachers done, teachers planned); see `weightformer.progress.bar`.

    Raises:
        ValueError: `folder` holds teachers that were trained differently.
    """
    network = _Network(architecture, dataset.classes, dataset.channels, dataset.size)
    run = Run("independent", architecture, network.arguments, seed, folder, workers, device, progress)
    plan = [("train", f"train-slow-{i:03d}", settings.slow_schedule) for i in range(settings.slow)]
    plan += [("train", f"train-fast-{i:03d}", settings.fast_schedule) for i in range(settings.fast)]
    for role, count in (("validation", settings.validation), ("test", settings.test)):
        plan += [(role, f"{role}-{i:03d}", settings.held_out) for i in range(count)]
    counts = _counts(dataset.train.labels, dataset.classes)
    jobs = [Job(key, role, seed_of(seed, run.regime, key), schedule, counts) for role, key, schedule in plan]
    views = bank(dataset.train, settings.views, jitter=settings.jitter)
    material = {"bank": views, "labels": dataset.train.labels}
    return train_pool(run, settings, digest_of(dataset.train), partial(_on_bank, network), material, jobs)


def shared_initialisation(
    dataset: Dataset,
    settings: SharedInitialisation = SharedInitialisation(),
    *,
    architecture: str = "vgg",
    seed: int = 0,
    folder: str | Path | None = None,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TeacherPool:
    """Train teachers that share their start and its first steps on `dataset.train`, then go on with private images.

    One half of `dataset.extra` belongs to the training teachers, the other to validation and test teachers; each
    teacher has a random part of its half, which `Teacher.indices` names. Arguments and errors: see `independent`.
    """
    network = _Network(architecture, dataset.classes, dataset.channels, dataset.size)
    run = Run("shared-initialisation", architecture, network.arguments, seed, folder, workers, device, progress)
    halves = _halves(dataset.extra.labels)
    smaller = min(len(half) for half in halves)
    if smaller < settings.private:
        raise ValueError(
            f"shared_initialisation: dataset: {settings.private} private images are to be drawn from halves of "
            f"{smaller} extra images; load the data with a smaller per_class, or ask for fewer private images"
        )
    jobs = []
    for role, count in (("train", settings.train), ("validation", settings.validation), ("test", settings.test)):
        half = halves[0 if role == "train" else 1]
        for key in (f"{role}-{i:03d}" for i in range(count)):
            own = seed_of(seed, run.regime, key)
            chosen = tuple(np.random.RandomState(own).permutation(half)[: settings.private].tolist())
            counts = _counts(dataset.extra.labels[list(chosen)], dataset.classes)
            jobs.append(Job(key, role, own, settings.schedule, counts, chosen))

    def base() -> State:
        job = Job("base", "train", seed_of(seed, run.regime, "base"), settings.base)
        views = bank(dataset.train, settings.views, jitter=settings.jitter)
        return _on_bank(network, {"bank": views, "labels": dataset.train.labels}, job)

    views = bank(dataset.extra, settings.views, jitter=settings.jitter, seed=1)
    material = {"bank": views, "labels": dataset.extra.labels}
    digest = digest_of(dataset.train, dataset.extra)
    return train_pool(run, settings, digest, partial(_on_bank, network), material, jobs, base)


def specialists(
    data: SpecialistData,
    settings: Specialists = Specialists(),
    *,
    architecture: str = "vgg",
    seed: int = 0,
    folder: str | Path | None = None,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TeacherPool:
    """Train fine-tunes of one base: class-skewed private images, and one random domain for each group of teachers.

    The base learns the public images `data.warm` in a new random domain at every step; its head is then set to zero,
    so that the order of the labels is an exact symmetry of the teachers. `Teacher.indices` points into `data.private`
    (training teachers) or `data.private_held_out`. Arguments and errors: see `independent`.
    """
    network = _Network(architecture, data.classes, data.warm.images.shape[1], data.standard.size)
    run = Run("specialists", architecture, network.arguments, seed, folder, workers, device, progress)
    jobs: list[Job] = []
    group = 0
    for role, count, teachers, images in (
        ("train", settings.train, settings.teachers, data.private),
        ("validation", settings.validation, settings.held_out_teachers, data.private_held_out),
        ("test", settings.test, settings.held_out_teachers, data.private_held_out),
    ):
        for i in range(count):
            domain = draw(settings.kind, seed_of(seed, run.regime, settings.kind, role, i))
            for key in (f"{role}-{i:03d}-{j:02d}" for j in range(teachers)):
                own = seed_of(seed, run.regime, key)
                indices = _skewed(images.labels, data.classes, settings.private, settings.alpha, own)
                counts = _counts(images.labels[list(indices)], data.classes)
                jobs.append(Job(key, role, own, settings.schedule, counts, indices, group, domain))
            group += 1
    material = {
        "train.pixels": data.private.images, "train.labels": data.private.labels,
        "held_out.pixels": data.private_held_out.images, "held_out.labels": data.private_held_out.labels,
    }  # fmt: skip
    digest = digest_of(data.warm, data.private, data.private_held_out)

    def base() -> State:
        return _specialist_base(network, data, settings, seed_of(seed, run.regime, "base"))

    work = partial(_in_domain, network, settings.jitter, settings.views, data.standard)
    return train_pool(run, settings, digest, work, material, jobs, base)


@dataclass(frozen=True)
class _Network:
    """What `students.create` needs to know."""

    architecture: str
    classes: int
    channels: int
    size: int

    @property
    def arguments(self) -> dict[str, int]:
        return {"classes": self.classes, "channels": self.channels, "size": self.size}

    def create(self, seed: int) -> nn.Module:
        return students.create(self.architecture, **self.arguments, seed=seed)


def _specialist_base(network: _Network, data: SpecialistData, settings: Specialists, seed: int) -> State:
    """Return the state of the common base: see `specialists`."""
    generator = torch.Generator().manual_seed(seed)

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(settings.base.steps):
            chosen = torch.randperm(len(data.warm), generator=generator)[: settings.base.batch_size]
            domain = draw(settings.kind, seed_of(seed, step))
            seen = data.render(data.warm[chosen], domain, jitter=settings.jitter, generator=generator)
            yield seen.images, seen.labels

    model = train(network.create(seed), examples(), settings.base)
    head = model.get_submodule(students.head(model))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return state_of(model)


def _on_bank(network: _Network, material: State, job: Job) -> State:
    """Train one teacher on (its part of) the bank of views, from the base where there is one."""
    views, labels = material["bank"], material["labels"]
    if job.indices:
        index = torch.tensor(job.indices, device=views.device)
        views, labels = views[index], labels[index]
    return _trained(network, material, job, views, labels)


def _in_domain(network: _Network, jitter: Jitter, views: int, standard: Standard, material: State, job: Job) -> State:
    """Train one specialist on views of its private images, moved first and then shown in its domain."""
    assert job.domain is not None
    part = "train" if job.role == "train" else "held_out"
    pixels, labels = material[f"{part}.pixels"], material[f"{part}.labels"]
    index = torch.tensor(job.indices, device=pixels.device)
    generator = torch.Generator().manual_seed(seed_of(job.seed, "views"))
    pixels = pixels[index]
    seen = [standard(job.domain.apply(moved(pixels, jitter, generator))) for _ in range(views)]
    return _trained(network, material, job, torch.stack(seen, 1), labels[index])


def _trained(network: _Network, material: State, job: Job, views: Tensor, labels: Tensor) -> State:
    model = network.create(job.seed).to(views.device)
    base = {name.removeprefix(BASE): tensor for name, tensor in material.items() if name.startswith(BASE)}
    if base:
        model.load_state_dict(base)
    generator = torch.Generator().manual_seed(job.seed)
    return state_of(train(model, batches(views, labels, job.schedule, generator), job.schedule))


def _counts(labels: Tensor, classes: int) -> tuple[int, ...]:
    return tuple(torch.bincount(labels, minlength=classes).tolist())


def _halves(labels: Tensor) -> tuple[list[int], list[int]]:
    """Return the positions of the first and the second half of every class."""
    halves: tuple[list[int], list[int]] = ([], [])
    for c in labels.unique().tolist():
        own = (labels == c).nonzero()[:, 0].tolist()
        halves[0].extend(own[: len(own) // 2])
        halves[1].extend(own[len(own) // 2 :])
    return halves


def _skewed(labels: Tensor, classes: int, count: int, alpha: float, seed: int) -> tuple[int, ...]:
    """Return `count` positions drawn with replacement, classes weighted by a draw from Dirichlet(alpha)."""
    generator = np.random.RandomState(seed)
    weights = generator.dirichlet([alpha] * classes)
    members = [np.flatnonzero(labels.numpy() == c) for c in range(classes)]
    chosen = generator.choice(classes, count, p=weights)
    return tuple(int(members[c][generator.randint(len(members[c]))]) for c in chosen)
