"""What a comparison found: one row per method, facts about the run, and the gates it was to meet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

from torch import Tensor

from weightformer.baselines import Cost, Result
from weightformer.data import Images
from weightformer.evaluate import Metrics, Summary, metrics, summarise

Kind = Literal["baseline", "weightformer", "control"]


@dataclass(frozen=True)
class Row:
    """One method on every group. seconds: for one group, from the teachers' weights to the network(s) ready to use."""

    method: str
    kind: Kind
    metrics: tuple[Metrics, ...]
    cost: Cost
    seconds: float
    note: str = ""

    @property
    def summary(self) -> Summary:
        return summarise(list(self.metrics))

    @property
    def accuracy(self) -> float:
        return self.summary.mean.accuracy

    def wins(self, other: Row) -> int:
        """Return on how many groups this method's accuracy is above the other's."""
        return sum(a.accuracy > b.accuracy for a, b in zip(self.metrics, other.metrics, strict=True))


@dataclass(frozen=True)
class Gate:
    """A bound that the run was to meet, with what was measured."""

    text: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass
class Comparison:
    """A whole run. `facts` are numbers that belong to no row: (what, value, unit)."""

    title: str
    seed: int
    groups: int
    rows: list[Row] = field(default_factory=list)
    facts: list[tuple[str, float, str]] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)

    def row(self, method: str) -> Row:
        """Return the row of a method."""
        return next(row for row in self.rows if row.method == method)

    def add(
        self,
        method: str,
        kind: Kind,
        groups: Sequence[Judged],
        run: Callable[[int], Result | Sequence[Result]],
        *,
        note: str = "",
    ) -> list[Result]:
        """Run a method on every group and add its row; several results for one group are averaged.

        `run` takes the number of the group. Its time counts; the time to judge does not.
        """
        found, results, seconds = [], [], []
        for index, group in enumerate(groups):
            start = time.perf_counter()
            outcome = run(index)
            seconds.append(time.perf_counter() - start)
            several = [outcome] if isinstance(outcome, Result) else list(outcome)
            found.append(average([group.judge(result) for result in several]))
            results.append(several[0])
        cost = results[0].cost
        self.rows.append(Row(method, kind, tuple(found), cost, fmean(seconds), note))
        return results

    def as_dict(self) -> dict[str, Any]:
        """Return everything measured, for a JSON file (NaN as None)."""
        rows = [
            {
                "method": row.method,
                "kind": row.kind,
                "note": row.note,
                "mean": asdict(row.summary.mean),
                "std": asdict(row.summary.std),
                "groups": [asdict(m) for m in row.metrics],
                "cost": asdict(row.cost),
                "seconds": row.seconds,
            }
            for row in self.rows
        ]
        content = {
            "title": self.title,
            "seed": self.seed,
            "groups": self.groups,
            "rows": rows,
            "facts": [{"what": what, "value": value, "unit": unit} for what, value, unit in self.facts],
            "gates": [{**asdict(gate), "holds": gate.holds} for gate in self.gates],
        }
        return {key: _finite(value) for key, value in content.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Judged:
    """The data on which one group's methods are judged; predictions are cached per result."""

    test: Images
    validation: Images

    def judge(self, result: Result) -> Metrics:
        """Return the metrics on test, with the temperature fitted on validation."""
        tuned: tuple[Tensor, Tensor] = (result.logits(self.validation.images), self.validation.labels)
        return metrics(result.logits(self.test.images), self.test.labels, tuned)


def average(several: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric, for methods that give several networks for one group."""
    return summarise(list(several)).mean
