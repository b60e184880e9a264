"""Installing: with and without torch in the build environment, with and without compilers, with the switches."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from wfkernels import __version__, compiled, env

ROOT = Path(__file__).parents[1]
PURE = f"wfkernels-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own files, as a fresh clone would have them, with nothing built."""
    target = tmp_path_factory.mktemp("clone")
    for name in (
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
    ):
        shutil.copy(ROOT / name, target)
    for name in ("wfkernels", "python", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    return target


def wheel(source: Path, out: Path, **environment: str) -> tuple[Path, str]:
    """Build a wheel without isolation; return it and what the build said."""
    clone = shutil.copytree(source, out / "clone")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(clone),
    ]
    switches = {switch.name: switch.default for switch in env.SWITCHES}
    done = subprocess.run(
        command, env={**os.environ, **switches, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built, done.stdout + done.stderr


def shared_libraries(built: Path) -> set[str]:
    return {name for name in ZipFile(built).namelist() if name.endswith(".so")}


def test_without_torch_in_the_build_environment_the_wheel_is_pure_python(source: Path, tmp_path: Path) -> None:
    # What an isolated build sees: torch is no build requirement.
    stub = tmp_path / "isolated" / "torch.py"
    stub.parent.mkdir()
    stub.write_text("raise ImportError('no torch in an isolated build')")
    built, said = wheel(source, tmp_path, PYTHONPATH=str(stub.parent))
    assert built.name == PURE
    assert "torch is not in the build environment; use pip install --no-build-isolation" in said
    assert not shared_libraries(built)
    names = set(ZipFile(built).namelist())
    for path in [*ROOT.glob("wfkernels/**/*.py"), *ROOT.glob("wfkernels/py.typed")]:
        assert str(path.relative_to(ROOT)) in names
    for path in [*ROOT.glob("python/**/*.py"), *ROOT.glob("python/*/py.typed")]:
        assert str(path.relative_to(ROOT / "python")) in names

    ZipFile(built).extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-m", "wfkernels", "info"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), env.IMPL.name: "auto"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"rows_pack +reference\n +not cpp: _C.abi3.so was not built.*; run pip install", done.stdout)
    assert compiled.BUILD_COMMAND in done.stdout


def test_without_compilers_the_wheel_is_pure_python(source: Path, tmp_path: Path) -> None:
    built, said = wheel(source, tmp_path, PATH=str(tmp_path), CXX="c++")
    assert built.name == PURE
    assert "not building the C++ part: no C++ compiler found; install g++" in said
    assert "not building the CUDA part: " in said


def test_the_switches_leave_parts_out(source: Path, tmp_path: Path) -> None:
    switches = {env.SKIP_CPP_BUILD.name: "1", env.SKIP_CUDA_BUILD.name: "1"}
    built, said = wheel(source, tmp_path, **switches)
    assert built.name == PURE
    for part, switch in (("C++", env.SKIP_CPP_BUILD), ("CUDA", env.SKIP_CUDA_BUILD)):
        assert f"not building the {part} part: {switch.name}=1" in said


def test_with_compilers_one_wheel_serves_every_python(source: Path, tmp_path: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler here")
    built, said = wheel(source, tmp_path)
    assert re.fullmatch(rf"wfkernels-{__version__}-cp311-abi3-.*\.whl", built.name)
    expected = {f"wfkernels/{compiled.CPP.file}"}
    if "building the CUDA part" in said and "not building the CUDA part" not in said:
        expected.add(f"wfkernels/{compiled.CUDA.file}")
    assert shared_libraries(built) == expected


def test_a_part_that_fails_to_build_names_the_switches(source: Path, tmp_path: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler here")
    clone = shutil.copytree(source, tmp_path / "clone")
    (clone / "csrc/library.cpp").write_text("#error broken on purpose")
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=clone,
        env={**os.environ, env.SKIP_CPP_BUILD.name: "0", env.SKIP_CUDA_BUILD.name: "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert f"{env.SKIP_CPP_BUILD.name}=1 or {env.SKIP_CUDA_BUILD.name}=1 leaves it out" in done.stderr


def test_the_installed_package_loads_what_was_built() -> None:
    for part in (compiled.CPP, compiled.CUDA):
        if part.path.exists():
            assert compiled.why_not(part) is None


def test_setup_stays_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 150
