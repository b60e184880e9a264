"""Installing: with and without torch in the build environment, compilers, ninja, headers, and with the switches."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
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


@pytest.fixture
def compiler(tmp_path: Path) -> str:
    """A compiler that does not optimise, which takes a third of the time, and has no OpenMP header."""
    if not (real := shutil.which("c++")):
        pytest.skip("there is no C++ compiler here")
    header = tmp_path / "include" / "omp.h"
    header.parent.mkdir()
    header.write_text("#error there is no OpenMP here")
    script = tmp_path / "quick-c++"
    script.write_text(f'#!/bin/sh\nexec {real} "$@" -O0 -g0 -isystem {header.parent}\n')
    script.chmod(0o755)
    uses = subprocess.run([script, "-fsyntax-only", "-xc++", "-include", "omp.h", os.devnull], capture_output=True)
    assert b"there is no OpenMP here" in uses.stderr
    return str(script)


def without(folder: Path, *modules: str) -> str:
    """Return a value for PYTHONPATH that hides modules."""
    folder.mkdir()
    for module in modules:
        (folder / f"{module}.py").write_text(f"raise ImportError('no {module} here')")
    return str(folder)


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
        command, env={**os.environ, **switches, **environment}, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built, done.stdout + done.stderr


def shared_libraries(built: Path) -> set[str]:
    return {name for name in ZipFile(built).namelist() if name.endswith(".so")}


# `python -m wfkernels`, where the checkout's own editable installation does not fill in what the wheel has not.
INSTALLED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
from wfkernels.__main__ import main
sys.exit(main())
"""


def run(built: Path, folder: Path, *arguments: str) -> str:
    """Install a wheel into a folder; return what `python -m wfkernels` prints there."""
    ZipFile(built).extractall(folder / "installed")
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder / "installed"), env.IMPL.name: "auto"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_torch_in_the_build_environment_the_wheel_is_pure_python(source: Path, tmp_path: Path) -> None:
    # What an isolated build sees: torch is no build requirement.
    built, said = wheel(source, tmp_path, PYTHONPATH=without(tmp_path / "hidden", "torch"))
    assert built.name == PURE
    assert "torch is not in the build environment; use pip install --no-build-isolation" in said
    assert not shared_libraries(built)
    names = set(ZipFile(built).namelist())
    for path in [*ROOT.glob("wfkernels/**/*.py"), *ROOT.glob("wfkernels/py.typed")]:
        assert str(path.relative_to(ROOT)) in names
    for path in [*ROOT.glob("python/**/*.py"), *ROOT.glob("python/*/py.typed")]:
        assert str(path.relative_to(ROOT / "python")) in names

    said = run(built, tmp_path, "info")
    assert re.search(
        r"rows_pack +reference\n +not triton: .*\n +not cpp: _C.abi3.so was not built.*; run pip install", said
    )
    assert re.search(
        r"build: not known \(.*_internals.*\); everything else works without; run pip install pybind11", said
    )
    assert compiled.BUILD_COMMAND in said


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


@pytest.mark.compiles
def test_with_compilers_one_wheel_serves_every_python(source: Path, tmp_path: Path, compiler: str) -> None:
    pytest.importorskip("pybind11")
    built, said = wheel(source, tmp_path, CXX=compiler)
    assert re.fullmatch(rf"wfkernels-{__version__}-cp311-abi3-.*\.whl", built.name)
    expected = {f"wfkernels/{compiled.CPP.file}", f"wfkernels/_internals{sysconfig.get_config_var('EXT_SUFFIX')}"}
    if "building the CUDA part" in said and "not building the CUDA part" not in said:
        expected.add(f"wfkernels/{compiled.CUDA.file}")
    assert shared_libraries(built) == expected


@pytest.mark.compiles
def test_a_compiler_alone_is_enough(source: Path, tmp_path: Path, compiler: str) -> None:
    """No ninja, no pybind11, no OpenMP header: the kernels are built, and work."""
    ninja = tmp_path / "bin" / "ninja"
    ninja.parent.mkdir()
    ninja.write_text("#!/bin/sh\nexit 127\n")
    ninja.chmod(0o755)
    path = os.pathsep.join((str(ninja.parent), os.environ["PATH"]))
    hidden = without(tmp_path / "hidden", "pybind11")
    switches = {env.SKIP_CUDA_BUILD.name: "1"}
    built, said = wheel(source, tmp_path, CXX=compiler, PATH=path, PYTHONPATH=hidden, **switches)
    assert said.count("wfkernels: no ninja found; the files are compiled one after another") == 1
    assert "wfkernels: not building the internals part: no pybind11 found; only `info`" in said
    assert shared_libraries(built) == {f"wfkernels/{compiled.CPP.file}"}
    assert len(re.findall(r"^  \w+ +cpp$", run(built, tmp_path, "info"), re.MULTILINE)) >= 4


def test_a_part_that_fails_to_build_names_the_switches(source: Path, tmp_path: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler here")
    clone = shutil.copytree(source, tmp_path / "clone")
    for path in (clone / "csrc").glob("*/*.cpp"):
        path.unlink()  # nothing else is worth its time
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


@pytest.mark.parametrize("part", [compiled.CPP, compiled.CUDA], ids=lambda part: part.name)
def test_a_part_needs_symbols_of_torch_s_stable_interface_only(part: compiled.Part) -> None:
    """So one binary serves every torch; `make other-torch` tries it."""
    if not part.path.exists() or not shutil.which("nm"):
        pytest.skip(f"{part.file} was not built, or there is no nm here")
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", str(part.path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    needed = {line.split(maxsplit=1)[1] for line in listing.stdout.splitlines()}
    # C functions; whatever C++ has from torch is in a namespace.
    assert not {name for name in needed if re.search(r"\b(at|c10|torch|caffe2)::", name) or name.startswith("Py")}


def test_setup_stays_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 150
