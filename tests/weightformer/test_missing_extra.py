"""Importing weightformer without what the extra installs: one error that names what is missing and the command."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import metadata

import pytest

import weightformer

# Where a package is not installed no finder finds it; one that refuses it would raise instead.
HIDE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        return None if name in sys.argv[1:] else self.finder.find_spec(name, *rest)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def python(program: str, *hidden: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter in which some packages are not installed."""
    command = [sys.executable, "-c", HIDE + program, *hidden]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("hidden", [("timm",), ("timm", "yaml"), weightformer._NEEDED], ids=["one", "two", "all"])
def test_the_error_names_what_is_missing_and_the_command(hidden: tuple[str, ...]) -> None:
    done = python("import weightformer", *hidden)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: weightformer needs {', '.join(hidden)}; install what belongs to it with:"
        " pip install 'wfkernels[models]'"
    )


def test_nothing_is_missing_where_all_is_installed() -> None:
    done = python("import weightformer")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_extra_exists_under_that_name() -> None:
    assert "models" in metadata("wfkernels").get_all("Provides-Extra", [])


def test_wfkernels_needs_none_of_it() -> None:
    program = "import wfkernels; [getattr(wfkernels, name) for name in wfkernels.__all__]"
    assert python(program, *weightformer._NEEDED).returncode == 0
