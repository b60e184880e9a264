"""The JSON file of a comparison, out and in again, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import wfkernels
from weightformer.compare.table import Comparison

# Lists of numbers, which json.dumps writes with a line for each: they go onto one line together.
_NUMBERS = re.compile(r'\[\n\s+([^\[\]{}"]+?)\n\s+\]')


@dataclass(frozen=True)
class About:
    """The run that a comparison comes from: total seconds, software, threads, and the command that started it."""

    total_seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    command: str = ""

    @classmethod
    def now(cls, seconds: float, command: str = "") -> About:
        """Return what is known of this process."""
        versions = {
            "wfkernels": wfkernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return cls(seconds, versions, torch.get_num_threads(), command)


def write_json(comparison: Comparison, path: str | os.PathLike[str], seconds: float, *, command: str = "") -> None:
    """Write everything measured, with the versions it was measured with: the whole file, or none."""
    content = {**comparison.as_dict(), **asdict(About.now(seconds, command))}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_text(path, _NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n")


def read_json(path: str | os.PathLike[str]) -> tuple[Comparison, About]:
    """Read a file that `write_json` wrote. Raises ValueError, in one line that names the file, for any other."""
    try:
        content: Any = json.loads(Path(path).read_text())
        about = About(content["total_seconds"], content["versions"], content["threads"], content.get("command", ""))
        return Comparison.from_dict(content), about
    except (KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: is no comparison that --json wrote ({type(error).__name__}: {reason})") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file under a temporary name in the same folder, then rename it: the whole file, or none."""
    path = Path(path)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder, path.name)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
