"""`python -m wfkernels info | selftest | configs | tune`, also installed as `wfkernels`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from wfkernels import env

ROOMS = ("attention", "embedding", "projection", "residual_norm", "rows")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 1 where the self-test failed. Bad arguments exit with 2.

    Ends quietly where nobody reads on, as in `... info | head -1`, with the exit code of a process that SIGPIPE ended.
    """
    try:
        try:
            return _run(arguments)
        finally:
            print(end="", flush=True)  # here, where a closed pipe can be caught, and not when Python exits
    except BrokenPipeError:
        # What is still buffered goes nowhere; else Python would try once more when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        commands = {"info": _info, "selftest": _selftest, "configs": _configs, "tune": _tune}
        return commands[options.command](options)
    except ValueError as error:  # a switch that holds none of its choices, a device that is none
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    script = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog="wfkernels" if script == "wfkernels" else "python -m wfkernels")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("info", help="what is built, which implementation each op uses here, and why")
    test = commands.add_parser(
        "selftest",
        help="is every implementation that runs here correct?",
        description="Hold every implementation of every op that runs here against the float64 reference, and the"
        " reference against finite differences; seconds. Exit code 1 where one fails.",
    )
    for command in (report, test):
        command.add_argument("--json", action="store_true", help="print one JSON value")
    test.add_argument("--impl", choices=env.IMPLEMENTATIONS, help="this implementation only; fails if it runs nowhere")
    test.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the CPU and the first GPU")
    test.add_argument(
        "--rates",
        action="store_true",
        help="measure how fast this machine and its ops are instead, and keep it for `weightformer plan` (half a"
        " minute on an idle machine)",
    )
    test.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="measure the rates of N threads; by default of as many as torch takes. `weightformer fit` takes 1",
    )
    table = commands.add_parser("configs", help="how the Triton kernels are compiled, by family of GPUs")
    table.add_argument("--sm", type=int, help="the rows that a GPU of this compute capability takes, such as 90")
    tune = commands.add_parser(
        "tune",
        help="find the fastest configs for this GPU",
        description="Run calls of an op with many tile sizes, warps and stages, and print the fastest for every kernel;"
        " minutes. WFKERNELS_AUTOTUNE=1 does the same for the calls of a program, and keeps nothing.",
    )
    tune.add_argument("--op", required=True, choices=ROOMS, help="the kernels of this op")
    tune.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    tune.add_argument("--width", type=int, metavar="N", help="of a head (attention, 64), or of the tokens (512)")
    tune.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="PATH",
        help="write the rows into a file that WFKERNELS_CONFIGS can name; without PATH into the one that it names, or"
        " else into the table of this installation",
    )
    return parser


def _info(options: argparse.Namespace) -> int:
    from wfkernels import info

    collected = info.collect()
    print(json.dumps(collected, indent=2) if options.json else info.text(collected))
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from wfkernels.selftest import command

    if options.rates and options.impl:
        raise ValueError("--impl: expected none with --rates, which measures all that run here")
    if options.threads is not None and not options.rates:
        raise ValueError("--threads: expected none without --rates")
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise ValueError(f"--threads: expected 1 to 1024, got {options.threads}")
    chosen = command.devices(options.device)
    if options.rates:
        return command.measure(chosen, options.json, options.threads)
    return command.check(chosen, options.impl, options.json)


def _configs(options: argparse.Namespace) -> int:
    from wfkernels import tuning

    print(tuning.shown(options.sm))
    return 0


def _tune(options: argparse.Namespace) -> int:
    import torch

    from wfkernels import tuning

    width = options.width or (64 if options.op == "attention" else 512)
    if not 16 <= width <= (256 if options.op == "attention" else 4096) or width % 16:
        raise ValueError(f"--width: expected a multiple of 16 up to 256 (attention) or 4096, got {width}")
    target = None if options.save is None else tuning.target(options.save)
    return tuning.tune(options.op, getattr(torch, options.dtype), width, target)


if __name__ == "__main__":
    sys.exit(main())
