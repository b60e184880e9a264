"""Rates in the user's cache, apart for every machine, number of threads and version."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from wfkernels import __version__

Rates = dict[str, Any]


def machine(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Return what rates depend on; threads: as many as torch computes on now, if none are given."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"wfkernels": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"device": device.type, "name": name, "threads": threads or torch.get_num_threads(), "versions": versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def key(device: torch.device | str = "cpu", threads: int | None = None) -> str:
    """Return what rates are kept under: the machine, its device, the number of threads and the versions."""
    text = json.dumps([platform.node(), machine(torch.device(device), threads)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path() -> Path:
    """Return the file of rates in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "wfkernels" / "rates.json"


def load(device: torch.device | str = "cpu", threads: int | None = None) -> Rates | None:
    """Return the rates kept for this machine and these versions, None where there are none; threads: see `machine`."""
    found = _kept().get(key(device, threads))
    return found if isinstance(found, dict) else None


def save(measured: Rates) -> Path:
    """Keep rates beside those of other machines and return the file, which is replaced as a whole."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_kept() | {measured["key"]: measured}, indent=1)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def _kept() -> dict[str, Any]:
    # A file that cannot be read counts as none: what it held can be measured again.
    try:
        found = json.loads(path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
