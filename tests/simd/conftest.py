"""The inner pieces of the compiled kernels, on every instruction set that this machine runs."""

from __future__ import annotations

from types import ModuleType

import pytest

from wfkernels import env, info


@pytest.fixture
def internals() -> ModuleType:
    facts = info.collect_build()
    if facts["why_not"] is not None:
        pytest.skip(facts["why_not"])
    from wfkernels import _internals

    return _internals


@pytest.fixture(params=env.CPU_ISA.choices[1:])
def isa(request: pytest.FixtureRequest, internals: ModuleType) -> str:
    sets = internals.build()["instruction_sets"]
    if not sets.get(request.param, False):
        pytest.skip(f"this processor does not run {request.param} code")
    return str(request.param)
