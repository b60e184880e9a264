"""The comparisons that can be asked for by name, and how a plan of either kind is run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from weightformer import regimes
from weightformer.compare import same_task, specialists
from weightformer.compare.table import Comparison
from weightformer.fit import Recipe
from weightformer.predictor import Predictor
from weightformer.teachers import SLOW

Plan = same_task.Plan | specialists.Plan


@dataclass(frozen=True)
class Preset:
    """A comparison: what it is, and its plan."""

    about: str
    plan: Plan


def run(plan: Plan, seed: int, device: str = "cpu", folder: Path | None = None) -> tuple[Comparison, Predictor]:
    """Run a comparison; return the table and the fitted predictor. What `folder` holds of it is not computed again."""
    if isinstance(plan, specialists.Plan):
        return specialists.run(plan, seed, device, folder)
    return same_task.run(plan, seed, device, folder)


DEMO = same_task.Plan(
    title="Independent seeds, MNIST 14x14, 300 training images",
    regime=regimes.Independent(fast=42, test=6),
    recipe=Recipe(steps=1500, noise=1.0),
)

# More and longer trained teachers, and only such as held-out ones.
INDEPENDENT = replace(
    DEMO,
    title="Independent seeds, long, MNIST 14x14, 300 training images",
    regime=regimes.Independent(fast=60, slow=18, test=6, held_out=SLOW),
    tuning=(25, 100),
)

PRESETS = {
    "demo": Preset("independent seeds, in a few minutes", DEMO),
    "independent": Preset("independent seeds, more and longer trained teachers", INDEPENDENT),
    "shared-init": Preset("one initialisation, private data", same_task.SHARED),
    "specialists": Preset("fine-tunes of one base in unseen domains", specialists.Plan()),
}
