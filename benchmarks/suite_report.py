"""What gpu_suite keeps: one JSON for a card, a day and a commit, and the tables and curves that follow from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, FAILED, LATE, ABSENT = "ok", "FAILED", "OUT OF TIME", "not run"
START, END = "<!-- GPU results -->", "<!-- end of GPU results -->"

Plain = Mapping[str, Any]


@dataclass
class Results:
    """The results file; `kept` is what it holds."""

    path: Path
    kept: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, facts: Plain, quick: bool) -> Results:
        """Go on with the newest file of this card and commit, or begin one.

        Where the tree differs from its commit nothing says what an earlier run measured, so nothing is kept.
        """
        card = re.sub(r"[^a-z0-9]+", "-", str(facts["name"]).lower()).strip("-")
        commit, ending = facts["commit"], "-quick" if quick else ""
        date = str(facts["date"])[:10]
        path = folder / f"{card}-{date}-{commit or 'unknown'}{ending}.json"
        if commit and not commit.endswith("+"):
            days = "[0-9]" * 4 + "-[0-9][0-9]" * 2
            for earlier in sorted(folder.glob(f"{card}-{days}-{commit}{ending}.json"), reverse=True):
                kept = read(earlier)
                if kept["machine"]["versions"] == facts["versions"]:
                    return cls(earlier, kept)
        return cls(path, {"machine": dict(facts), "quick": quick, "parts": {}})

    def steps(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kept["parts"].get(part, {})
        return found

    def complete(self, part: str, step: str) -> bool:
        return bool(self.steps(part).get(step, {}).get("state") == OK)

    def whole(self, part: str) -> bool:
        """Whether nothing of a part is left to run."""
        return bool(self.steps(part)) and all(found["state"] in (OK, ABSENT) for found in self.steps(part).values())

    def put(self, part: str, step: str, found: dict[str, Any]) -> None:
        self.kept["parts"].setdefault(part, {})[step] = found
        write(self.path, json.dumps(self.kept, indent=1) + "\n")

    def reports(self) -> list[dict[str, Any]]:
        steps = (found for part in self.kept["parts"].values() for found in part.values())
        return [found["report"] for found in steps if "report" in found]

    def rows(self) -> list[dict[str, Any]]:
        return [row for report in self.reports() for row in report.get("rows", [])]

    def finish(self) -> str:
        """Write the tables and the curves; return where everything lies."""
        page = self.path.with_suffix(".md")
        write(page, text(self))
        drawn = picture(self.rows(), self.path.with_suffix(".png"))
        return f"{self.path}\n{page}\n{drawn}"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in cells)


def text(results: Results) -> str:
    """Return the page: the machine, what each step came to, targets, losses."""
    facts = results.kept["machine"]
    rates: dict[str, float] = next((report["machine"]["rates"] for report in results.reports()), {})
    said = [f"{facts['name']}, commit {facts['commit']}, {facts['date']}"]
    said += [f"{name} {version}" for name, version in facts["versions"].items()]
    said += [f"{name.replace('_', ' ')}: {rate:.0f}" for name, rate in rates.items()]
    title = "A quick run: it shows that everything runs, and no speed." if results.kept["quick"] else ""
    steps = [
        (part, name, found["state"], f"{found.get('seconds', 0):.0f}", why(found))
        for part, members in results.kept["parts"].items()
        for name, found in members.items()
    ]
    sections = [
        f"# GPU suite\n\n{', '.join(said)}.{' ' + title if title else ''}\n\nWritten by benchmarks/gpu_suite.py.",
        "## Steps\n\n" + table(("part", "step", "state", "seconds", "why"), steps),
        "## Targets\n\n" + target_table(results),
        "## Losses\n\nMissed targets, and every case in which a peer took less time than ours.\n\n" + losses(results),
        "## Times\n\n" + times(results.rows()),
    ]
    return "\n\n".join(sections) + "\n"


def why(found: Plain) -> str:
    return str(found.get("why") or " ".join(found.get("says", [])))


def target_table(results: Results) -> str:
    words = {True: "reached", False: "MISSED", None: "not measured"}
    lines = [
        (t["case"], t["mode"], t["impl"], t["what"], f"{t['at_least']:.2f}", number(t["value"]), words[t["reached"]])
        for report in results.reports()
        for t in report.get("targets", [])
    ]
    return table(("case", "mode", "ours", "what", "at least", "found", ""), lines) if lines else "None were measured."


def losses(results: Results) -> str:
    lines: list[tuple[object, ...]] = []
    for report in results.reports():
        for t in report.get("targets", []):
            if t["reached"] is False:
                lines.append((t["case"], t["mode"], t["impl"], f"{t['what']}, {t['at_least']:.2f}", number(t["value"])))
        for case, modes in report.get("ratios", {}).items():
            for mode, own in modes.items():
                for impl, peers in own.items():
                    slower = {peer: ratio["time"] for peer, ratio in peers.items() if (ratio["time"] or 1.0) < 1.0}
                    lines += [
                        (case, mode, impl, f"time of {peer} over ours", number(ratio))
                        for peer, ratio in slower.items()
                        if not of_ours(report, peer)
                    ]
        wrong = (row for row in report.get("rows", []) if row["ours"] and row["reason"])
        lines += [(row["case"], row["mode"], row["impl"], row["reason"], "") for row in wrong]
    return table(("case", "mode", "ours", "what", "found"), lines) if lines else "None."


def of_ours(report: Plain, impl: str) -> bool:
    return any(row["ours"] and row["impl"] == impl for row in report["rows"])


def times(rows: Sequence[Plain]) -> str:
    """Return every row that was measured, and why the others were not."""
    measures = ("ms", "wall ms", "first call ms", "MB", "of gemm", "executed TFLOP/s", "launches", "5 runs")
    header = ("case", "mode", "impl", *measures)
    same = {True: "same bits", False: "DIFFER", None: ""}
    lines = [
        (
            *(row["case"], row["mode"], row["impl"], number(row["median_ms"]), number(row["wall_ms"])),
            *(number(row["first_ms"], ".0f"), number(row["peak_mb"], ".0f"), number(row["fraction_of_gemm"], ".0%")),
            number(row["executed_gflops"] and row["executed_gflops"] / 1e3, ".1f"),
            *(row["reason"] or ("" if row["launches"] is None else row["launches"]), same[row["same_bits"]]),
        )
        for row in rows
    ]
    return table(header, lines) if lines else "None were measured."


def number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


def picture(rows: Sequence[Plain], path: Path) -> str:
    """Draw the time over S of every case that has several lengths; return where, or why not."""
    curves: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        named = re.fullmatch(r"(.*), S=(\d+)", row["case"])
        if named and row["median_ms"] is not None:
            series = curves.setdefault((named[1], row["mode"]), {}).setdefault(row["impl"], [])
            series.append((int(named[2]), row["median_ms"]))
    curves = {key: own for key, own in curves.items() if any(len(points) > 1 for points in own.values())}
    if not curves:
        return "no picture: no case was measured at several lengths"
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        return f"no picture: {error}; pip install matplotlib"
    modes = sorted({mode for _, mode in curves})
    names = list(dict.fromkeys(name for name, _ in curves))
    figure = Figure(figsize=(6 * len(modes), 4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(modes), squeeze=False)
    for line, name in zip(axes, names, strict=True):
        for place, mode in zip(line, modes, strict=True):
            for impl, points in curves.get((name, mode), {}).items():
                place.loglog(*zip(*sorted(points), strict=True), marker="o", label=impl)
            lengths = sorted({x for points in curves.get((name, mode), {}).values() for x, _ in points})
            place.set(title=f"{name}, {mode}", xlabel="S", ylabel="ms")
            place.set_xticks(lengths, map(str, lengths))
            place.minorticks_off()
            place.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    return str(path)


def into_readme(readme: Path, results: Results) -> None:
    """Put the targets of a complete run between the README's two marks."""
    before, found, rest = readme.read_text().partition(START)
    if not found:  # whoever took the marks out wants no table
        return
    _, _, behind = rest.partition(END)
    facts = results.kept["machine"]
    where = f"benchmarks/results/{results.path.with_suffix('.md').name}"
    said = f"GPU: {facts['name']}, {facts['date'][:10]}, commit {facts['commit']} ([all of it, losses too]({where})):"
    write(readme, f"{before}{START}\n{said}\n\n{target_table(results)}\n{END}{behind}")
