"""Builds the compiled parts where torch and the compilers are at hand; everything else stands in pyproject.toml.

torch is no build requirement: an isolated `pip install .` sees none, builds nothing and installs the pure-Python
package. `pip install --no-build-isolation .` builds against the torch that is installed. Each part says on one line
what becomes of it; `python -m wfkernels info` says it again at any time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from wfkernels.env import SKIP_CPP_BUILD, SKIP_CUDA_BUILD  # noqa: E402

# One binary for every torch from 2.10 on (its stable ABI) and every Python (torch sets the limited API).
FLAGS = ["-O3", f"-I{ROOT / 'csrc'}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
CXX_FLAGS = ["-fvisibility=hidden", *FLAGS]
# sm_80 code runs on 8.6 and 8.9 too; PTX covers what comes after 12.0.
CUDA_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


HEADERS = sources("**/*.h")


def toolkit() -> Path | None:
    """Return the folder of the CUDA toolkit. nvcc itself is asked: a wrapper on PATH may lie anywhere."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [f"{home}/bin" for home in homes if home]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([*folders[:-1], os.environ.get("PATH", ""), folders[-1]]))
    if nvcc is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else None


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)


def cpp_extension() -> Extension | str:
    """Return the CPU part, or why it is not built."""
    if SKIP_CPP_BUILD.read() == "1":
        return f"{SKIP_CPP_BUILD.name}=1"
    if compiler() is None:
        return "no C++ compiler found; install g++"
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "wfkernels._C",
        sources=sorted({*sources("**/*.cpp")} - {*sources("internals/*")}),
        depends=HEADERS,
        extra_compile_args=CXX_FLAGS,
        py_limited_api=True,
    )


def cuda_extension() -> Extension | str:
    """Return the CUDA part, or why it is not built. It needs nvcc but no GPU."""
    import torch

    if SKIP_CUDA_BUILD.read() == "1":
        return f"{SKIP_CUDA_BUILD.name}=1"
    if torch.version.cuda is None:
        return "torch is a build without CUDA"
    if compiler() is None:
        return "no C++ compiler found; install g++, which nvcc needs too"
    home = toolkit()
    if home is None:
        return "no nvcc found; install the CUDA toolkit"
    release = re.search(r"release (\d+)", subprocess.check_output([home / "bin" / "nvcc", "--version"], text=True))
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc of {home} is not CUDA {torch.version.cuda}, for which torch was built"
    os.environ["CUDA_HOME"] = str(home)  # read when cpp_extension is imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    from torch.utils.cpp_extension import CUDAExtension

    return CUDAExtension(
        "wfkernels._CUDA",
        sources=sources("*/cuda.cu"),
        depends=HEADERS,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": FLAGS},
        py_limited_api=True,
    )


def internals_extension(cuda: Extension | str) -> Extension | str:
    """Return the module of build facts and the kernels' inner pieces, or why it is not built."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h found; install python3-dev"
    try:
        import pybind11
    except ImportError:
        return "no pybind11 found; only `info` and the unit tests of the kernels' inner pieces use it"
    architectures = "" if isinstance(cuda, str) else os.environ["TORCH_CUDA_ARCH_LIST"]
    flags = [*CXX_FLAGS, f"-I{pybind11.get_include()}", f'-DWFKERNELS_CUDA_ARCHITECTURES="{architectures}"']
    return Extension("wfkernels._internals", sources("internals/*.cpp"), depends=HEADERS, extra_compile_args=flags)


def build_arguments() -> dict[str, object]:
    """Return what `setup` needs for the parts that can be built here."""
    try:
        import torch  # noqa: F401
    except ImportError:
        reason = "torch is not in the build environment; use pip install --no-build-isolation"
        print(f"wfkernels: building no compiled part: {reason}", file=sys.stderr)
        return {}
    # The CUDA part first: it sets CUDA_HOME before cpp_extension is imported.
    cuda, cpp = cuda_extension(), cpp_extension()
    parts = {"CUDA": cuda, "C++": cpp, "internals": cpp if isinstance(cpp, str) else internals_extension(cuda)}
    for name, part in parts.items():
        what = f"not building the {name} part: {part}" if isinstance(part, str) else f"building the {name} part"
        print(f"wfkernels: {what}", file=sys.stderr)
    extensions = [part for part in parts.values() if not isinstance(part, str)]
    if not extensions:
        return {}
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            if not self.use_ninja:
                print("wfkernels: no ninja found; the files are compiled one after another", file=sys.stderr)
            try:
                super().build_extensions()
            except Exception as error:
                switches = f"{SKIP_CPP_BUILD.name}=1 or {SKIP_CUDA_BUILD.name}=1"
                raise RuntimeError(f"wfkernels: a compiled part failed to build; {switches} leaves it out") from error

    options = {"bdist_wheel": {"py_limited_api": "cp311"}}
    return {"ext_modules": extensions, "cmdclass": {"build_ext": Build}, "options": options}


setup(**build_arguments())
