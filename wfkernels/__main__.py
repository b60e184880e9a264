"""`python -m wfkernels info | selftest`, also installed as `wfkernels`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from wfkernels import env


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
        return _info(options) if options.command == "info" else _selftest(options)
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


if __name__ == "__main__":
    sys.exit(main())
