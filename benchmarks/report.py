"""What follows from rows: how ours compares with each peer, which targets were reached, and a table to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.case import Case

Plain = Mapping[str, Any]
COLUMNS = ("impl", "mode", "median ms", "20 %", "80 %", "MB", "GFLOP/s", "of gemm", "of copy", "error", "correct")


def ratios(rows: Sequence[Plain]) -> dict[str, Any]:
    """Return {case: {mode: {ours: {peer: {"time", "memory"}}}}}: how many times more the peer takes."""
    found: dict[str, Any] = {}
    for own in (row for row in rows if row["ours"] and row["median_ms"] is not None):
        peers = {
            row["impl"]: {"time": _over(row, own, "median_ms"), "memory": _over(row, own, "peak_mb")}
            for row in rows
            if (row["case"], row["mode"]) == (own["case"], own["mode"])
            and row is not own
            and row["median_ms"] is not None
        }
        found.setdefault(own["case"], {}).setdefault(own["mode"], {})[own["impl"]] = peers
    return found


def _over(row: Plain, own: Plain, name: str) -> float | None:
    return row[name] / own[name] if row[name] is not None and own[name] else None


def targets(rows: Sequence[Plain], cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return every target of the cases with the value found; None where a side of it was not measured."""
    compared = ratios(rows)
    found = []
    for case in cases:
        for target in case.targets:
            for own in (row for row in rows if _meant(row, case, target.mode, target.suffix)):
                if target.what in ("gemm", "copy"):
                    value, what = own[f"fraction_of_{target.what}"], f"of the {target.what}"
                else:
                    peers = compared.get(case.name, {}).get(target.mode, {}).get(own["impl"], {})
                    value = peers.get(target.against, {}).get(target.what)
                    what = f"{target.what}, times less than {target.against}"
                found.append(
                    {
                        "case": case.name,
                        "mode": target.mode,
                        "impl": own["impl"],
                        "what": what,
                        "at_least": target.bound,
                        "value": value,
                        "reached": None if value is None else value >= target.bound,
                    }
                )
    return found


def _meant(row: Plain, case: Case, mode: str, suffix: str) -> bool:
    names = {other for other in (t.suffix for t in case.targets) if other}
    own = next((s for s in names if row["impl"].endswith(s)), "")
    return bool(row["ours"]) and (row["case"], row["mode"]) == (case.name, mode) and own == suffix


def text(rows: Sequence[Plain], reached: Sequence[Plain]) -> str:
    """Lay out the rows of one case, and its targets."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = [f"{rows[0]['case']}, judged at {rows[0]['judged_at'] or 'no size'}"]
    for line, row in zip(cells, [None, *rows], strict=True):
        left = "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        lines.append(f"  {left}  {row['reason'] if row else ''}".rstrip())
    for one in reached:
        state = {True: "reached", False: "MISSED", None: "not measured"}[one["reached"]]
        value = "" if one["value"] is None else f"{one['value']:.2f}, "
        lines.append(f"  {one['impl']} {one['mode']}: {one['what']}: {value}expected {one['at_least']:g}: {state}")
    return "\n".join(lines)


def _cells(row: Plain) -> tuple[str, ...]:
    correct = {True: "yes", False: "NO", None: ""}[row["correct"]]
    times = (_number(row[name], ".3g" if (row["median_ms"] or 0) < 100 else ".0f") for name in _TIMES)
    shares = (_number(row[name], ".0%") for name in ("fraction_of_gemm", "fraction_of_copy"))
    memory, rate, error = (
        _number(row["peak_mb"], ".1f"),
        _number(row["gflops"], ".1f"),
        _number(row["max_error"], ".1e"),
    )
    return (row["impl"], row["mode"], *times, memory, rate, *shares, error, correct)


_TIMES = ("median_ms", "p20_ms", "p80_ms")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
