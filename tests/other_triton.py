"""Compiles a kernel of every kind and prints what is wrong, under the Triton that stands first on PYTHONPATH."""

from __future__ import annotations

from importlib import import_module

from tests import aot

# (room, call, kernel), for sm_90.
COMPILED = (
    ("attention", "closed, bfloat16, D=64", "attention_open_tiles"),
    ("attention", "closed, bfloat16, D=64", "attention_backward_keys"),
    ("attention", "tables, bfloat16, D=64", "attention_backward_table"),
    ("embedding", "codes, bfloat16, d=64", "embedding_forward"),
    ("projection", "gated, bfloat16", "projection_forward"),
    ("projection", "prior, bfloat16", "projection_backward_rows"),
    ("residual_norm", "dropout, bfloat16, d=256", "residual_norm_backward"),
)


def main() -> int:
    import triton

    print(triton.__version__, aot.HEADER, sep="\n")
    bad = 0
    for room, call, kernel in COMPILED:
        matrix = import_module(f"tests.{room}.aot").matrix(90)
        launch, known = next((one, known) for name, one, known in matrix if (name, one.name) == (call, kernel))
        found = aot.compiled(launch, 90)
        wrong = aot.faults(90, launch, found, **known)
        bad += len(wrong)
        print(aot.row(90, call, launch, found), *wrong, flush=True)
    return bad


if __name__ == "__main__":
    raise SystemExit(main() > 0)
