"""`python -m wfkernels info`: versions, what is built, which implementation each op uses here, and why."""

from __future__ import annotations

import ctypes
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from wfkernels import __version__, compiled, dispatch, env
from wfkernels.example import training_step


def collect() -> dict[str, Any]:
    """Return everything that `info` prints, as plain data."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "versions": {
            "wfkernels": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": _installed("triton"),
        },
        "platform": platform.platform(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "compiled": {part.name: _part(part) for part in (compiled.CPP, compiled.CUDA)},
        "build": collect_build(),
        "ops": {device: _ops(device) for device in devices},
        "switches": {
            switch.name: {"value": switch.read(), "default": switch.default, "help": switch.help}
            for switch in env.SWITCHES
        },
    }


def text(report: dict[str, Any]) -> str:
    """Lay out what `collect` returned for a person."""
    versions = [f"{name} {value or 'none'}" for name, value in report["versions"].items()]
    lines = [", ".join(versions), f"platform: {report['platform']}"]
    lines.append(f"GPUs: {', '.join(report['gpus']) or 'none that torch can use'}")
    for name, part in report["compiled"].items():
        toolkit = f" with CUDA {part['toolkit']}" if part.get("toolkit") else ""
        lines.append(f"{name} part: " + (f"not loaded: {part['why_not']}" if part["why_not"] else f"built{toolkit}"))
    lines.append(f"build: {_build_text(report['build'])}")
    for device, ops in report["ops"].items():
        lines.append(f"ops on {device}:")
        for op, choice in ops.items():
            lines.append(f"  {op:24} {choice['runs'] or 'nothing can run'}")
            lines += [f"  {'':24} not {name}: {reason}" for name, reason in choice["why_not"].items()]
    lines.append("switches:")
    for name, switch in report["switches"].items():
        lines.append(f"  {name}={switch['value']} (default {switch['default']}): {switch['help']}")
    return "\n".join(lines)


def _installed(package: str) -> str | None:
    # Not imported: that alone may ask for a driver.
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _part(part: compiled.Part) -> dict[str, str | None]:
    report = {"path": str(part.path), "why_not": compiled.why_not(part)}
    if part is compiled.CUDA and report["why_not"] is None:
        number = ctypes.CDLL(str(part.path)).wfkernels_cuda_toolkit()
        report["toolkit"] = f"{number // 1000}.{number % 1000 // 10}"
    return report


def collect_build() -> dict[str, Any]:
    try:
        import wfkernels._internals as internals
    except ImportError as error:
        command = f"pip install pybind11, then {compiled.BUILD_COMMAND} in a checkout"
        return {"why_not": f"not known ({error}); everything else works without; run {command}"}
    return {**internals.build(), "why_not": None}


def _build_text(facts: dict[str, Any]) -> str:
    if facts["why_not"] is not None:
        return str(facts["why_not"])
    sets = (name if runs else f"{name} (not this processor)" for name, runs in facts["instruction_sets"].items())
    return f"{facts['compiler']}; {', '.join(sets)}; CUDA {' '.join(facts['cuda_architectures']) or 'none'}"


def _ops(device: str) -> dict[str, dict[str, Any]]:
    # A real call decides, so that what is printed is what happens; the ops behind one that cannot run stay unlisted.
    with dispatch.recording() as choices:
        try:
            training_step(device)
        except dispatch.ImplementationError:
            if not choices or choices[-1].runs is not None:
                raise
    return {choice.op: {"runs": choice.runs, "why_not": choice.why_not} for choice in choices}
