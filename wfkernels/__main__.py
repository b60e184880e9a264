"""`python -m wfkernels info [--json]`."""

from __future__ import annotations

import argparse
import json


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m wfkernels")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("info", help="what is built, which implementation each op uses here, and why")
    report.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    from wfkernels import info

    try:
        collected = info.collect()
    except ValueError as error:  # a switch that holds none of its choices
        parser.error(str(error))
    print(json.dumps(collected, indent=2) if options.json else info.text(collected))


if __name__ == "__main__":
    main()
