"""The comparisons that can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from weightformer import regimes
from weightformer.compare import same_task, specialists
from weightformer.compare.table import Comparison
from weightformer.fit import Recipe
from weightformer.predictor import Predictor
from weightformer.teachers import SLOW

Run = Callable[[int, str, Path | None], tuple[Comparison, Predictor]]


@dataclass(frozen=True)
class Preset:
    """A comparison: what it is, and how to run it as run(seed, device, folder)."""

    about: str
    run: Run


def _same_task(plan: same_task.Plan) -> Run:
    return lambda seed, device, folder: same_task.run(plan, seed, device, folder)


def _specialists(plan: specialists.Plan) -> Run:
    return lambda seed, device, folder: specialists.run(plan, seed, device, folder)


DEMO = same_task.Plan(
    title="Independent seeds, MNIST 14x14, 300 training images",
    pool=partial(regimes.independent, settings=regimes.Independent(fast=42, test=6)),
    recipe=Recipe(steps=1500, noise=1.0),
)

# More and longer trained teachers, and only such as held-out ones.
INDEPENDENT = replace(
    DEMO,
    title="Independent seeds, long, MNIST 14x14, 300 training images",
    pool=partial(
        regimes.independent,
        settings=regimes.Independent(fast=60, slow=18, test=6, held_out=SLOW),
    ),
    tuning=(25, 100),
)

PRESETS = {
    "demo": Preset("independent seeds, in a few minutes", _same_task(DEMO)),
    "independent": Preset("independent seeds, more and longer trained teachers", _same_task(INDEPENDENT)),
    "shared-init": Preset("one initialisation, private data", _same_task(same_task.SHARED)),
    "specialists": Preset("fine-tunes of one base in unseen domains", _specialists(specialists.Plan())),
}
