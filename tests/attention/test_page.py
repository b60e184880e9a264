"""Every example of docs/attention.md runs as it stands, and the pair bias has the gradient of attention written out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"
TEXT = PAGE.read_text()
TITLES = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
EXAMPLES = [
    (f"{title} {i}", example)
    for title, section in zip(TITLES, re.split(r"^## .*$", TEXT, flags=re.MULTILINE)[1:], strict=True)
    for i, example in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
]


def run(example: str) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), scope)
    return scope


def test_every_section_has_an_example() -> None:
    assert {title.rsplit(" ", 1)[0] for title, _ in EXAMPLES} == set(TITLES) and len(TITLES) == 6
    assert len(EXAMPLES) == TEXT.count("```") // 2


@pytest.mark.parametrize("example", [e for _, e in EXAMPLES], ids=[title for title, _ in EXAMPLES])
def test_an_example_runs(example: str) -> None:
    run(example)


def test_pair_bias_as_attention_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scope = run(dict(EXAMPLES)["Pair bias 0"])
    layer = scope["layer"].double()
    rows = torch.randn(2, 5, 24, 32, dtype=torch.float64, requires_grad=True)
    pair = torch.randn(2, 24, 24, 16, dtype=torch.float64, requires_grad=True)
    leaves = [rows, pair, *layer.parameters()]

    def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        assert bias.shape == (2, 1, 4, 24, 24) and query.shape == (2, 5, 4, 24, 8)
        scores = torch.einsum("bnhid,bnhjd->bnhij", query, key) / 8**0.5
        return torch.einsum("bnhij,bnhjd->bnhid", (scores + bias).softmax(-1), value)

    results = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(scope["wfkernels"], "attention", written_out)
        out = layer(rows, pair)
        results.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
