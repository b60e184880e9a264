"""`weightformer plan`: what a prediction will take, before anything is run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from weightformer.cli.options import (
    Arch,
    Assignments,
    Config,
    Device,
    Force,
    Json,
    check_device,
    check_numbers,
    in_force,
    one_of,
    record_beside,
    settled,
    tell,
    write_json,
)

if TYPE_CHECKING:
    from rich.console import Group

    from weightformer.costs import Estimate


def model_names() -> list[str]:
    from weightformer.config import PRESETS

    return list(PRESETS)


def plan(
    ctx: typer.Context,
    arch: Arch,
    teachers: Annotated[int, typer.Option(min=1, max=1000, help="Teachers in each group.")] = 3,
    groups: Annotated[int, typer.Option(min=1, max=1000, help="Groups of teachers predicted together.")] = 1,
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="Settings of the model.", autocompletion=model_names)
    ] = "paper",
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the last layer.")] = 1000,
    channels: Annotated[int | None, typer.Option(min=1, help="Input channels. Default: the architecture's.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the images. Default: the architecture's.")] = None,
    device: Device = "cpu",
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
) -> None:
    """Print rows, tokens, FLOP, bytes, peak memory and expected time of a prediction and of a training step.

    Times follow from this machine's rates, measured by `wfkernels selftest --rates`: that of a forward pass is for as
    many threads as `predict` takes, that of a training step for the one thread of `fit` and `compare` (--threads 1).
    --set model.NAME=VALUE changes the model. Nothing is random here, so there is no --seed.
    """
    from weightformer import config as configs
    from weightformer import costs, report
    from wfkernels import selftest

    one_of("--preset", preset, model_names())
    check_device(device)
    check_numbers(json, force, inputs=(), config=config)
    settings = settled(ctx, costs.Settings(configs.preset(preset)), assignments)
    arguments = {"classes": classes, "channels": channels, "size": size}
    rates = partial(selftest.load, device)
    estimate = costs.estimate(arch, settings.model, [teachers] * groups, rates, **arguments)
    if json is not None:
        write_json(json, {"device": device, **estimate.as_dict()})
        record_beside(json, in_force(ctx, settings))
    report.console().print(_show(estimate))
    where = "" if device == "cpu" else f" --device {device}"
    for threads in sorted({one.threads for one in estimate.passes}):
        if rates(threads) is None:
            tell(
                f"no rates are known for {device} on {_threads(threads)} with these versions; measure them with:"
                f" wfkernels selftest --rates{where} --threads {threads}"
            )


def _show(estimate: Estimate) -> Group:
    """Return the estimate as printables."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    groups, each = len(estimate.teachers), estimate.teachers[0]  # all of one size
    teachers = f"{each} teachers" if groups == 1 else f"{groups} groups of {each} teachers"
    lines = [
        f"{estimate.architecture}: {estimate.layers} layers, {estimate.rows:,} rows, {estimate.student:,} parameters",
        f"{teachers}: {estimate.tokens:,} tokens, {estimate.longest:,} in the longest sequence",
        f"WeightFormer: {estimate.model:,} parameters ({_size(estimate.model_bytes)} as float32, buffers included)",
        f"inputs: the rows of all teachers ({_size(estimate.input_bytes)} as float32)",
        "peak memory is what a pass takes beside the WeightFormer and its inputs",
    ]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("pass", "implementation", "GFLOP", "moved", "peak memory", "for backward", "expected time"):
        table.add_column(name, justify="left" if name in ("pass", "implementation") else "right", no_wrap=True)
    for one in estimate.passes:
        for implementation, expected in one.seconds.items():
            time = "not known" if expected is None else f"{expected:.3g} s"
            time += f", {_threads(one.threads)}"
            kept = _size(one.saved) if "backward" in one.name else ""
            cells = (f"{one.flop / 1e9:,.1f}", _size(one.bytes), _size(one.peak), kept, time)
            table.add_row(one.name, implementation, *cells)
    return Group(*map(Text, lines), table)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _size(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.1f} MiB"
