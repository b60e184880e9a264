"""What `python -m wfkernels selftest` prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from wfkernels import __version__
from wfkernels.selftest.compare import Line, run
from wfkernels.selftest.kept import Rates, save
from wfkernels.selftest.measure import rates


def devices(name: str | None) -> list[torch.device]:
    """Return the device named, or all kinds that there are; raise ValueError for one that computes nothing here."""
    if name is None:
        return [torch.device(kind) for kind in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))]
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device: expected cpu or a device that torch can use here, got {name!r} ({str(error).splitlines()[0]})"
        ) from None
    return [device]


def check(chosen: Sequence[torch.device], implementation: str | None, as_json: bool) -> int:
    """Print a line per op and implementation. Return 1 where one failed or the one named ran nowhere, else 0."""
    found: dict[str, list[Line]] = {}
    for device in chosen:
        start = time.perf_counter()
        found[str(device)] = run(device, implementation)
        if not as_json:
            print("\n".join([f"{device}:", *(f"  {line}" for line in found[str(device)])]))
            print(f"{device}: {time.perf_counter() - start:.1f} s", flush=True)
    lines = [line for of_device in found.values() for line in of_device]
    failed = [line for line in lines if line.failure is not None]
    nowhere = implementation is not None and not any(line.calls for line in lines)
    if as_json:
        report = {device: [_plain(line) for line in of_device] for device, of_device in found.items()}
        versions = {"wfkernels": __version__, "torch": torch.__version__}
        print(json.dumps({"passed": not (failed or nowhere), "versions": versions, "devices": report}, indent=2))
    elif nowhere:
        print(f"{implementation} ran nowhere")
    elif failed:
        print(f"{len(failed)} of {len(lines)} FAILED")
    return 1 if failed or nowhere else 0


def _plain(line: Line) -> dict[str, Any]:
    return {"status": line.status, **asdict(line)}


def measure(chosen: Sequence[torch.device], as_json: bool, threads: int | None = None) -> int:
    """Measure the rates of devices, keep them, and print them; threads: as many as torch takes, if none are given."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return _measure(chosen, as_json)
    finally:
        torch.set_num_threads(before)


def _measure(chosen: Sequence[torch.device], as_json: bool) -> int:
    collected = []
    for device in chosen:
        measured = rates(device, progress=_progress if sys.stderr.isatty() else None)
        kept = save(measured)
        collected.append(measured)
        if not as_json:
            print(text(measured))
            print(f"kept in {kept}", flush=True)
    if as_json:
        print(json.dumps(collected, indent=2))
    return 0


def _progress(done: int, total: int) -> None:
    print(f"\rmeasuring: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def text(measured: Rates) -> str:
    """Lay out rates for a person: of the matrix product, the copy and every library op."""
    machine = measured["machine"]
    lines = [f"{machine['device']}: {machine['name']}, threads: {machine['threads']}"]
    for name in ("sgemm_gflops", "bf16_gflops"):
        if name in measured:
            lines.append(f"  {name.partition('_')[0]:8} {measured[name]:10.1f} GFLOP/s")
    lines.append(f"  {'copy':8} {measured['copy_gigabytes_per_second']:10.1f} GB/s, read plus written")
    for kind, of_kind in measured["kinds"].items():
        if ":" in kind:
            op, _, implementation = kind.partition(":")
            lines.append(f"  {op} ({implementation}): " + ", ".join(_rate(*item) for item in of_kind.items()))
    return "\n".join(lines)


def _rate(amount: str, seconds: float) -> str:
    if amount == "flop":
        return f"{1e-9 / seconds:.1f} GFLOP/s"
    if amount.startswith("bytes"):
        return f"{amount} {1e-9 / seconds:.2f} GB/s"
    return f"{amount} {1e6 * seconds:.1f} us"
