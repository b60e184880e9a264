"""`python -m wfkernels info`, and what importing the package does: nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch

import wfkernels
from wfkernels import compiled, env, info
from wfkernels.__main__ import main


def python(program: str) -> str:
    """What a fresh interpreter prints, on both streams."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(
        command, timeout=120, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_import_prints_nothing_and_imports_nothing() -> None:
    program = """
        import sys
        import wfkernels
        assert not {"torch", "triton", "numpy"} & set(sys.modules)
    """
    assert python(program) == ""


def test_the_public_names_import_no_triton_and_their_use_starts_no_cuda() -> None:
    program = """
        import sys, torch, wfkernels
        for name in wfkernels.__all__:
            getattr(wfkernels, name)
        assert "triton" not in sys.modules
        torch.cuda._lazy_init = lambda: 1 / 0
        from wfkernels.example import training_step
        training_step("cpu")
        assert not torch.cuda.is_initialized()
    """
    assert python(program) == ""


def test_every_public_name_is_there_and_listed() -> None:
    assert set(wfkernels.__all__) <= set(dir(wfkernels))
    for name in wfkernels.__all__:
        assert getattr(wfkernels, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'wfkernels' has no attribute 'paint'"):
        wfkernels.paint  # type: ignore[attr-defined] # noqa: B018


def test_a_room_does_not_take_the_name_of_its_function() -> None:
    program = """
        import wfkernels.attention.reference
        import wfkernels.predict.api
        from wfkernels.embedding import ops
        import wfkernels
        for name in ("attention", "predict", "embedding", "projection", "residual_norm"):
            assert callable(getattr(wfkernels, name)), name
    """
    assert python(program) == ""


def test_a_public_function_compiles_by_its_lazy_name() -> None:
    def norm(x: torch.Tensor) -> torch.Tensor:
        return wfkernels.residual_norm(x, x, torch.ones(4), torch.zeros(4))[1]

    x = torch.randn(3, 4)
    assert torch.equal(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), norm(x))


def test_the_report_lists_every_op_switch_and_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(env.IMPL.name, raising=False)
    report = info.collect()
    rooms = {"rows_pack", "embedding", "attention", "residual_norm", "projection"}
    # The products of predict's blocks have their gradient from the library's own.
    assert set(report["ops"]["cpu"]) == rooms | {f"{room}_backward" for room in rooms} | {"linear"}
    assert all(choice["runs"] for choice in report["ops"]["cpu"].values())
    assert set(report["switches"]) == {switch.name for switch in env.SWITCHES}
    assert report["versions"]["torch"] == torch.__version__
    assert set(report["compiled"]) == {"C++", "CUDA"}
    text = info.text(report)
    assert all(word in text for word in (*report["ops"]["cpu"], *report["switches"], "C++ part: ", "CUDA part: "))


def test_what_is_not_built_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = f"it was not built; run {compiled.BUILD_COMMAND}"
    monkeypatch.setattr(compiled, "why_not", lambda part: reason)
    report = info.collect()
    choice = report["ops"]["cpu"]["rows_pack"]
    assert choice["runs"] == "reference" and choice["why_not"]["cpp"] == reason
    assert f"C++ part: not loaded: {reason}" in info.text(report)


def test_an_op_that_cannot_run_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not", lambda part: "not built")
    monkeypatch.setenv(env.IMPL.name, "cpp")
    report = info.collect()
    assert report["ops"]["cpu"]["rows_pack"]["runs"] is None
    assert "nothing can run" in info.text(report)


def test_facts_of_the_build() -> None:
    pytest.importorskip("wfkernels._internals")
    facts = info.collect()["build"]
    assert facts["compiler"].split()[0] in ("GCC", "clang")
    assert set(facts["instruction_sets"]) <= set(env.CPU_ISA.choices) and facts["instruction_sets"]["portable"]
    if compiled.why_not(compiled.CPP) is None:
        for name, runs in facts["instruction_sets"].items():
            assert compiled._runs(env.CPU_ISA.choices.index(name)) == runs
    report = info.collect()
    report["build"].update(instruction_sets={"portable": True, "avx512": False}, cuda_architectures=["9.0", "12.0+PTX"])
    assert "; portable, avx512 (not this processor); CUDA 9.0 12.0+PTX\n" in info.text(report)


def test_without_its_facts_everything_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wfkernels._internals", None)
    report = info.collect()
    assert "_internals" in report["build"]["why_not"] and compiled.BUILD_COMMAND in report["build"]["why_not"]
    assert f"build: {report['build']['why_not']}\n" in info.text(report)


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert info._installed("no-such-package") is None


def test_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main(["info", "--json"])
    assert json.loads(capsys.readouterr().out)["versions"]["wfkernels"] == wfkernels.__version__
    main(["info"])
    assert capsys.readouterr().out.startswith(f"wfkernels {wfkernels.__version__}, python 3.")
    monkeypatch.setenv(env.IMPL.name, "fastest")
    with pytest.raises(SystemExit) as stopped:
        main(["info"])
    assert stopped.value.code == 2
    assert "WFKERNELS_IMPL='fastest': expected one of" in capsys.readouterr().err
