"""`weightformer evaluate`: what weight files are worth, one by one and as an ensemble."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from weightformer.cli.options import (
    Arch,
    Assignments,
    Config,
    Device,
    Force,
    Json,
    Seed,
    check_device,
    check_numbers,
    in_force,
    one_of,
    record_beside,
    settled,
    steady,
)
from weightformer.cli.reading import Inputs, read_networks, shape_of


def evaluate(
    ctx: typer.Context,
    networks: Annotated[list[Path], typer.Argument(metavar="NETWORK...", help="Weight files of one architecture.")],
    arch: Arch,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, validation or test.")] = "test",
    recalibrate: Annotated[
        bool, typer.Option(help="Re-estimate running statistics of BatchNorm on training images first.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
) -> None:
    """Measure accuracy, NLL, Brier score and calibration of networks, and of their ensemble where there are several.

    The data are --set data.name=NAME (mnist by default), see --config. T-scaled columns use one temperature, fitted on
    the validation images.
    """
    from weightformer import report, students
    from weightformer.baselines import Setting
    from weightformer.baselines.average_ensemble import average_ensemble
    from weightformer.baselines.single import single
    from weightformer.compare.device import on
    from weightformer.compare.table import Comparison, Judged

    one_of("--split", split, ("train", "validation", "test"))
    check_device(device)
    check_numbers(json, force, inputs=networks, config=config)
    plan = settled(ctx, Inputs(), assignments)
    start = time.perf_counter()
    data = on(plan.data.load(), device)
    states = read_networks(networks, arch, data, device)
    create = partial(students.create, arch, **shape_of(data))
    setting = Setting(create, data.train.images if recalibrate else None)
    judged = [Judged(getattr(data, split), data.validation)]
    steady()
    table = Comparison(f"{arch} on the {split} images of {data.name}", seed, 1)
    for name, state in states.items():
        table.add(name, "baseline", judged, lambda _, state=state: single([state], setting))  # type: ignore[misc]
    if len(states) > 1:
        table.add("ensemble", "baseline", judged, lambda _: average_ensemble(list(states.values()), setting))
    seconds = time.perf_counter() - start
    if json is not None:
        report.write_json(table, json, seconds)
        record_beside(json, in_force(ctx, plan))
    report.console().print(report.show(table, seconds))
