"""What a comparison found: one row per method, facts about the run, and the gates it was to meet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from statistics import fmean
from typing import Any, Literal

from torch import Tensor

from weightformer.baselines import Cost, Result
from weightformer.compare.evidence import Evidence
from weightformer.compare.reliability import Reliability, reliability
from weightformer.data import Images
from weightformer.evaluate import Metrics, Summary, metrics, summarise

Kind = Literal["baseline", "weightformer", "control"]

ONE_PASS = "WeightFormer, one pass"  # the method that every comparison is about


@dataclass(frozen=True)
class Row:
    """One method on every group. seconds: for one group, from the teachers' weights to the network(s) ready to use.

    reliability: of all groups' test images together.
    """

    method: str
    kind: Kind
    metrics: tuple[Metrics, ...]
    cost: Cost
    seconds: float
    note: str = ""
    reliability: Reliability | None = None

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
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass
class Comparison:
    """A whole run. `facts` are numbers that belong to no row: (what, value, unit).

    about: what is compared, in sentences. settings: what the run was asked to do, as it would stand in a JSON file.
    evidence: what the report's pictures show.
    """

    title: str
    seed: int
    groups: int
    rows: list[Row] = field(default_factory=list)
    facts: list[tuple[str, float, str]] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    about: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)

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
        found, binned, results, seconds = [], [], [], []
        for index, group in enumerate(groups):
            start = time.perf_counter()
            outcome = run(index)
            seconds.append(time.perf_counter() - start)
            several = [outcome] if isinstance(outcome, Result) else list(outcome)
            judgements = [group.judge(result) for result in several]
            found.append(average([judged for judged, _ in judgements]))
            binned += [bins for _, bins in judgements]
            results.append(several[0])
        cost = results[0].cost
        self.rows.append(Row(method, kind, tuple(found), cost, fmean(seconds), note, reduce(add, binned)))
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
                "reliability": None if row.reliability is None else asdict(row.reliability),
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
            "about": self.about,
            "settings": self.settings,
            "evidence": asdict(self.evidence),
        }
        return {key: _finite(value) for key, value in content.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Comparison:
        """Return the comparison that `as_dict` described; what an older file lacks is left out."""
        from pydantic import TypeAdapter

        rows = [
            Row(
                row["method"],
                row["kind"],
                tuple(Metrics(**{name: _number(value) for name, value in group.items()}) for group in row["groups"]),
                Cost(**row["cost"]),
                _number(row["seconds"]),
                row["note"],
                TypeAdapter(Reliability | None).validate_python(_numbers(row.get("reliability"))),
            )
            for row in content["rows"]
        ]
        return cls(
            content["title"],
            content["seed"],
            content["groups"],
            rows,
            [(fact["what"], _number(fact["value"]), fact["unit"]) for fact in content["facts"]],
            [
                Gate(g["text"], _number(g["value"]), _number(g["bound"]), g["at_most"], g.get("unit", ""))
                for g in content["gates"]
            ],
            content.get("about", ""),
            content.get("settings", {}),
            TypeAdapter(Evidence).validate_python(_numbers(content.get("evidence", {}))),
        )


def _number(value: float | None) -> float:
    """Return a number of a JSON file, which has no NaN."""
    return math.nan if value is None else value


def _numbers(value: Any) -> Any:
    """Return content of a JSON file with the NaN back in its lists; None elsewhere is nothing."""
    if isinstance(value, dict):
        return {name: _numbers(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [math.nan if entry is None else _numbers(entry) for entry in value]
    return value


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

    def judge(self, result: Result) -> tuple[Metrics, Reliability]:
        """Return metrics and reliability on test, with the temperature fitted on validation."""
        tuned: tuple[Tensor, Tensor] = (result.logits(self.validation.images), self.validation.labels)
        prediction, labels = result.logits(self.test.images), self.test.labels
        found = metrics(prediction, labels, tuned)
        return found, reliability(prediction, labels, found.temperature)


def average(several: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric, for methods that give several networks for one group."""
    return summarise(list(several)).mean
