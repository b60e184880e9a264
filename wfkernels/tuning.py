"""What `python -m wfkernels configs` and `python -m wfkernels tune` do: the table of configs, shown and rewritten."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from wfkernels import autotune, env, gpu
from wfkernels.attention.api import attention
from wfkernels.attention.bucket import BucketTable
from wfkernels.gpu import Config, Kind
from wfkernels.predict.api import predict
from wfkernels.rows.api import pack
from wfkernels.selftest.steps import Step, model

HEADER = "# family kernel                       width bits  block_m block_n block_k warps stages"
# A training step of about the size of a ResNet's middle, and an attention of 4096 tokens.
STEP = Step(((256, 1153), (1024, 257)), d=512, heads=8, depth=4, teachers=(4,), cross=1, blocks=1, gate="bucketed")
TOKENS = 4096


def line(kind: Kind, config: Config) -> str:
    """Return a row of the table as its file has it."""
    m, n, k, warps, stages = config
    family = f"sm_{kind.family}"
    return f"{family:8} {kind.kernel:26} {kind.width:7} {kind.bits:4} {m:8} {n:7} {k:7} {warps:5} {stages:6}"


def rewritten(text: str, rows: Mapping[Kind, Config]) -> str:
    """Return the text of a table with these rows in place of those of their kind, or else at its end."""
    rest = {tuple(line(kind, config).split()[:4]): line(kind, config) for kind, config in rows.items()}
    lines = []
    for old in text.splitlines():
        new = rest.pop(tuple(old.split()[:4]), old)
        lines.append(old if old.split() == new.split() else new)
    return "\n".join([*lines, *rest.values(), ""])


def shown(capability: int | None) -> str:
    """Return the table in force, or what of it a GPU of a compute capability takes."""
    table = gpu.table(env.CONFIGS.read())
    if capability is not None:
        if capability < gpu.OLDEST:
            raise ValueError(f"--sm: expected at least {gpu.OLDEST}, the oldest that kernels run on, got {capability}")
        kinds = dict.fromkeys(kind._replace(family=capability) for kind in table)
        table = {kind: gpu.config(kind.kernel, capability, kind.width, kind.bits) for kind in kinds}
    return "\n".join([HEADER, *(line(kind, config) for kind, config in table.items())])


def target(path: str) -> Path:
    """Return the file to save into, made where there is none. Empty: the one in force.

    Raises ValueError where it cannot be written, before minutes are spent.
    """
    chosen = Path(path or env.CONFIGS.read() or gpu.TABLE)
    if not os.access(chosen if chosen.exists() else chosen.absolute().parent, os.W_OK):
        raise ValueError(
            f"--save: {chosen} cannot be written; name another file, and let WFKERNELS_CONFIGS name it too"
        )
    if not chosen.exists():
        chosen.write_text(f"{HEADER}\n")
    return chosen


def save(path: Path, rows: Mapping[Kind, Config]) -> None:
    """Write rows into a table; comments and other rows stay."""
    path.write_text(rewritten(path.read_text(), rows))
    gpu.forget()


def tune(op: str, dtype: torch.dtype, width: int, path: Path | None) -> int:
    """Find and print the fastest configs of an op's kernels on this GPU. path: where to keep them."""
    if not torch.cuda.is_available():
        raise ValueError("tune: needs a GPU that torch can use; `python -m wfkernels configs` shows the table")
    with env.AUTOTUNE.holding("1"), env.IMPL.holding("triton"), autotune.only(f"{op}_"):
        for call in calls(op, dtype, width, torch.device("cuda")):
            call()
    print(HEADER)
    for kind, found in autotune.found.items():
        print(f"{line(kind, found.config)}  {found.best:.3f} ms, was {found.shipped:.3f} ms")
    if path is not None:
        save(path, {kind: found.config for kind, found in autotune.found.items()})
        print(f"{len(autotune.found)} rows written to {path}")
    return 0


def calls(
    op: str, dtype: torch.dtype, width: int, device: torch.device, step: Step = STEP, tokens: int = TOKENS
) -> list[Callable[[], None]]:
    """Return the calls, with their gradients, that between them launch every kernel of an op."""
    if op != "attention":
        return [lambda: _step(replace(step, d=width), dtype, device)]
    return [lambda is_heavy=is_heavy: _attend(dtype, width, device, tokens, is_heavy) for is_heavy in (False, True)]  # type: ignore[misc]


def _attend(dtype: torch.dtype, width: int, device: torch.device, tokens: int, is_heavy: bool) -> None:
    """Attention with a learned bias; heavy: of a table, and with dropout."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    if is_heavy:
        lookup = torch.arange(-128, 129, device=device).clamp(-15, 15) + 15
        bias: torch.Tensor | BucketTable = BucketTable(random(8, 1, 1, 1, 31), lookup)
    else:
        bias = random(tokens, tokens)
    query, key, value = (random(2, 8, tokens, width) for _ in range(3))
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    out = attention(query, key, value, bias=bias, dropout_p=0.1 if is_heavy else 0.0, seed=seed if is_heavy else None)
    assert isinstance(out, torch.Tensor)
    out.backward(torch.ones_like(out))


def _step(step: Step, dtype: torch.dtype, device: torch.device) -> None:
    """Pack, predict and backward, with everything in one dtype and every gradient wanted."""
    layout, parameters, settings, lookup = model(step, device)
    parameters = parameters.unflatten(
        [None if t is None else t.detach().to(dtype).requires_grad_() for t in parameters.flatten()]
    )
    student = layout.layout
    teachers = [
        [torch.randn(p.shape, device=device, dtype=dtype).requires_grad_() for p in student.parameters]
        for _ in range(sum(step.teachers))
    ]
    rows = pack(teachers, student, dtype=dtype)
    students = predict(rows, parameters, settings, layout=layout, gate_lookup=lookup)
    assert isinstance(students, torch.Tensor)
    students.backward(torch.ones_like(students))
