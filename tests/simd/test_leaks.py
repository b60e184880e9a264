"""Code for a larger instruction set stays in its own namespace: anywhere else a lesser processor would run into it."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from wfkernels import compiled

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.*)>:$")
INSTRUCTION = re.compile(r"^ +[0-9a-f]+:\t(?P<name>\w+)(?P<operands>.*)")
# A function that only mentions a type of the namespace is nobody else's either.
OWNER = re.compile(r"\bwfkernels::(avx2|avx512)::")
SETS = ("portable", "avx2", "avx512")  # each runs the code of those before
# Mask registers, the wide ones and the upper half of the others are AVX-512's alone.
ONLY_AVX512 = re.compile(r"%(zmm|k[0-7]|[xy]mm(1[6-9]|2\d|3[01]))")

BUILT = [compiled.CPP.path, *Path(compiled.__file__).parent.glob("_internals.*.so")]
pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="there are other instruction sets on x86-64 only"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="there is no objdump here"),
]


def needs(line: re.Match[str]) -> str:
    if ONLY_AVX512.search(line["operands"]):
        return "avx512"
    # Every instruction in the encoding of AVX and later begins so; two old ones do, too.
    return "avx2" if line["name"].startswith("v") and line["name"] not in ("verr", "verw") else "portable"


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.name.partition(".")[0])
def test_vector_code_stays_with_its_instruction_set(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} was not built")
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found: Counter[tuple[str, str]] = Counter()
    leaks = set()
    function, owner = "", "portable"
    for line in listing.splitlines():
        if header := FUNCTION.match(line):
            function = header["name"]
            namespace = OWNER.search(function)
            owner = namespace[1] if namespace else "portable"
        elif instruction := INSTRUCTION.match(line):
            needed = needs(instruction)
            found[owner, needed] += 1
            if SETS.index(needed) > SETS.index(owner):
                leaks.add(f"{needed} code in {function}")
    assert not leaks, "\n".join(sorted(leaks))
    # So the listing had the names and the instructions that this test looks for.
    assert min(found["avx2", "avx2"], found["avx512", "avx512"], found["portable", "portable"]) > 1000
