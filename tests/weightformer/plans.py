"""Real passes of predictions and the plans of them; run as a program, it compares their times and prints JSON.

A program of its own, because a test process is large and busy, and because keeping memory (`allocator.settle`) cannot
be undone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from itertools import product
from statistics import median

import torch

from weightformer import costs, rows, students
from weightformer.config import Config, preset
from weightformer.model import WeightFormer
from wfkernels import env, selftest

CASES: dict[str, tuple[str, Config, list[int]]] = {
    "the recipe": ("vgg", preset("recipe"), [3]),
    "two groups, gated": ("resnet", preset("specialists").but(width=192), [2, 3]),
    "the paper's form": ("vgg", preset("paper").but(width=256, layers=2, feed_forward=512), [3]),
    "a bucketed gate": ("vgg", preset("paper").but(width=256, layers=2, feed_forward=512, gate="bucketed"), [2]),
    "recurrent": ("mlp", preset("paper-small"), [2]),
    "recomputed": ("resnet", preset("recipe").but(recompute="full", layers=4, width=128), [3]),
    "a large student": ("resnet18", preset("recipe").but(width=128), [2]),
}


def real(case: str, training: bool, impl: str = "reference") -> Callable[[], None]:
    """Return the pass itself, on real tensors."""
    architecture, config, teachers = CASES[case]
    layout = rows.layout(students.create(architecture, seed=0))
    base = torch.zeros(layout.row_numel) if config.output == "gated" else None
    model = WeightFormer(layout, config, base=base).train(training)
    buffer = 0.02 * torch.randn(layout.row_numel * sum(teachers))

    def run() -> None:
        with env.IMPL.holding(impl):
            with torch.set_grad_enabled(training):
                predicted = model(buffer, teachers)
            if training:
                outputs = [tensor for student in predicted for tensor in student.values()]
                torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
                model.zero_grad()

    return run


def on_meta(case: str, training: bool) -> costs.OnMeta:
    architecture, config, teachers = CASES[case]
    return costs.OnMeta(rows.layout(students.create(architecture, seed=0)), config, teachers, training)


def seconds_of(case: str, training: bool, impl: str) -> float:
    """Return the median time of a real pass."""
    run = real(case, training, impl)
    run()
    # The process's own time: other processes are busy on this machine while tests run.
    found = []
    for _ in range(7):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return median(found)


def ratios(cases: Iterable[tuple[str, bool]], impl: str) -> dict[tuple[str, bool], float]:
    """Return real time over expected time, from rates measured now."""
    rates = selftest.rates(clock=time.process_time)
    found = {}
    for case, training in cases:
        expected = costs.seconds(on_meta(case, training).work(), rates, impl) or 0.0
        found[case, training] = seconds_of(case, training, impl) / expected
    return found


def main() -> None:
    """Print [case, training, ratios] for the implementation named; what is far off is measured again, rates and all.

    A neighbour can halve the speed of a machine for seconds; a wrong estimate stays wrong.
    """
    torch.set_num_threads(1)
    impl = sys.argv[1]
    found: dict[tuple[str, bool], list[float]] = {one: [] for one in product(CASES, (False, True))}
    for attempt in range(4):
        far = [one for one, past in found.items() if not past or abs(past[-1] - 1) > 0.25]
        if not far:
            break
        time.sleep(attempt)
        for one, ratio in ratios(far, impl).items():
            found[one].append(ratio)
    print(json.dumps([[*one, past] for one, past in found.items()]))


if __name__ == "__main__":
    main()
