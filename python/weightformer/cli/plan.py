"""`weightformer plan`: what a prediction will take, before anything is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from weightformer.cli.options import Assignments, Config, Force, Json, check_new, one_of, settled, tell, write_json

if TYPE_CHECKING:
    from rich.console import Group

    from weightformer.costs import Estimate


def model_names() -> list[str]:
    from weightformer.config import PRESETS

    return list(PRESETS)


def plan(
    ctx: typer.Context,
    arch: Annotated[str, typer.Option(metavar="NAME", help="The students' architecture, e.g. resnet50.")],
    teachers: Annotated[int, typer.Option(min=1, help="Teachers in each group.")] = 3,
    groups: Annotated[int, typer.Option(min=1, help="Groups of teachers predicted together.")] = 1,
    model: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="Settings of the model.", autocompletion=model_names)
    ] = "paper",
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the last layer.")] = 1000,
    channels: Annotated[int | None, typer.Option(min=1, help="Input channels. Default: the architecture's.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the images. Default: the architecture's.")] = None,
    json: Json = None,
    config: Config = None,
    assignments: Assignments = None,
    force: Force = False,
) -> None:
    """Print rows, tokens, FLOP, bytes, peak memory and expected time of a prediction and of a training step.

    Times follow from this machine's rates, measured by `wfkernels selftest --rates`. --set model.NAME=VALUE changes the
    model.
    """
    from weightformer import costs, report
    from weightformer.config import preset
    from wfkernels import selftest

    one_of("--preset", model, model_names())
    check_new(json, "--json", force)
    settings = settled(ctx, costs.Settings(preset(model)), assignments)
    arguments = {"classes": classes, "channels": channels, "size": size}
    rates = selftest.load()
    estimate = costs.estimate(arch, settings.model, [teachers] * groups, rates, **arguments)
    if json is not None:
        write_json(json, estimate.as_dict())
    report.console().print(_show(estimate))
    if rates is None:
        tell("no rates are known for this machine and these versions; measure them with: wfkernels selftest --rates")


def _show(estimate: Estimate) -> Group:
    """Return the estimate as printables."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    teachers = " + ".join(map(str, estimate.teachers))
    lines = [
        f"{estimate.architecture}: {estimate.layers} layers, {estimate.rows:,} rows, {estimate.student:,} parameters",
        f"{teachers} teachers: {estimate.tokens:,} tokens, {estimate.longest:,} in the longest sequence",
        f"WeightFormer: {estimate.model:,} parameters ({_size(4 * estimate.model)} as float32)",
    ]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("pass", "implementation", "GFLOP", "moved", "peak memory", "kept for backward", "expected time"):
        table.add_column(name, justify="left" if name in ("pass", "implementation") else "right", no_wrap=True)
    for one in estimate.passes:
        for implementation, expected in one.seconds.items():
            time = "not known here" if expected is None else f"{expected:.3g} s"
            kept = _size(one.saved) if "backward" in one.name else ""
            cells = (f"{one.flop / 1e9:,.1f}", _size(one.bytes), _size(one.peak), kept, time)
            table.add_row(one.name, implementation, *cells)
    return Group(*map(Text, lines), table)


def _size(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.1f} MiB"
