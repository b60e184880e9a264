from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from wfkernels.cached import kept


@kept(2)
def table(size: int) -> Tensor:
    return torch.arange(size)


def test_only_the_last_results_are_kept() -> None:
    table.forget()
    first = table(1)
    assert table(1) is first
    gone = weakref.ref(first)
    del first
    table(2), table(3)
    gc.collect()
    assert gone() is None
    assert table.__name__ == "table"


def test_what_a_captured_graph_reads_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    table.forget()
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_initialized", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        read = weakref.ref(table(1))
    table(2), table(3)
    table.forget()
    gc.collect()
    assert read() is not None
