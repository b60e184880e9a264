"""Dense attention with a learned bias or gate as a user of PyTorch has it: eager, compiled, SDPA, FlexAttention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BACKWARD, FORWARD, LEFT_OUT, Contender, Run, Setting, missing

NEGATIVE_INFINITY = float("-inf")
# There is a graph for every length, size and mode; the default limit of torch is for programs that compile by mistake.
GRAPHS = 64


class Form(NamedTuple):
    """A bias or a gate in every spelling. `leaf` is what learns, [S, S], [H, S, S] or a small table.

    options: what wfkernels.attention takes. dense: every entry, [S, S] or [H, S, S]. entry: that of (leaf, head, row,
    column), for FlexAttention. gate: multiplies exp(score) instead of being added to the score.
    """

    leaf: Tensor
    options: Callable[[Tensor], dict[str, Any]]
    dense: Callable[[Tensor], Tensor]
    entry: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    gate: bool = False
    causal: bool = False


def contenders(form: Form, setting: Setting, tokens: int, flex: bool) -> dict[str, Contender]:
    """Return the peers of a dense case; `flex` False where compiling it would take longer than all the rest."""
    plain = _eager(form, tokens, setting.device)
    found = {"eager": Contender(plain), "compile": Contender(compiled(plain))}
    if setting.preset == "gpu-quick":
        found["compile"] = missing(LEFT_OUT)
    found["sdpa"] = _sdpa(form, tokens, setting.device)
    found["flex"] = _flex(form, setting, tokens) if flex else missing(LEFT_OUT)
    return found | (_backends(form, setting, tokens) if setting.gpu else {})


def _backends(form: Form, setting: Setting, tokens: int) -> dict[str, Contender]:
    """Return SDPA by each of its kernels, with the bias and without, and FlexAttention without the bias's gradient."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, Contender] = {}
    with_bias, names = _sdpa(form, tokens, setting.device), {"efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
    for name, member in ({"cudnn": "CUDNN_ATTENTION"} | names).items():
        backend = getattr(SDPBackend, member, None)
        label = f"sdpa {name}"
        found[label] = missing("this torch has no such kernel")
        if backend is not None:
            found[label] = replace(with_bias, around=partial(sdpa_kernel, backend))
    for name, member in (("cudnn", "CUDNN_ATTENTION"), ("flash", "FLASH_ATTENTION")):
        backend = getattr(SDPBackend, member, None)
        label = f"sdpa {name}, no bias"
        found[label] = missing("this torch has no such kernel")
        if backend is not None:
            plain = partial(_without_bias, causal=form.causal)
            full = partial(_first_three, plain)
            found[label] = Contender(plain, full=full, around=partial(sdpa_kernel, backend), unlike="no bias")
    flex = found["flex, bias without gradient"] = _flex(form, setting, tokens)
    if not flex.absent:
        reason = {FORWARD: "as flex", BACKWARD: "as flex"}
        full, unlike = partial(_first_three, flex.run), "no gradient of the bias"
        found["flex, bias without gradient"] = replace(flex, full=full, absent=reason, unlike=unlike)
    return found


def _without_bias(query: Tensor, key: Tensor, value: Tensor, _: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def _first_three(run: Run, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the output, and the gradients of query, key and value alone."""
    out = run(*tensors[:3], tensors[3].detach())
    return [out.detach(), *torch.autograd.grad(out, tensors[:3], grads)]


def compiled(function: Run, dynamic: bool | None = False) -> Run:
    """Return torch.compile of a function, a program for each shape: its fastest form. The first call compiles."""

    @lru_cache(maxsize=1)
    def program() -> Run:
        torch._dynamo.config.recompile_limit = GRAPHS
        compiled: Run = torch.compile(function, dynamic=dynamic)
        return compiled

    return lambda *args: program()(*args)


def _future(tokens: int, device: torch.device) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)


def _eager(form: Form, tokens: int, device: torch.device) -> Run:
    """softmax(q k^T * scale + bias) v; a gate weights the exponentials, which also gives closed pairs a gradient."""
    future = _future(tokens, device) if form.causal else None

    def attention(query: Tensor, key: Tensor, value: Tensor, leaf: Tensor) -> Tensor:
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if form.gate:
            weights = (scores - scores.amax(-1, keepdim=True)).exp() * form.dense(leaf)
            weights = weights / weights.sum(-1, keepdim=True)
        else:
            scores = scores + form.dense(leaf)
            if future is not None:
                scores = scores.masked_fill(future, NEGATIVE_INFINITY)
            weights = scores.softmax(-1)
        out: Tensor = weights @ value
        return out

    return attention


def _sdpa(form: Form, tokens: int, device: torch.device) -> Contender:
    """F.scaled_dot_product_attention with the bias, or the logarithm of the gate, as its mask."""
    future = _future(tokens, device) if form.causal else None

    def attention(query: Tensor, key: Tensor, value: Tensor, leaf: Tensor) -> Tensor:
        mask = form.dense(leaf)
        mask = mask.log() if form.gate else mask
        mask = mask if future is None else mask.masked_fill(future, NEGATIVE_INFINITY)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    if form.gate and form.leaf.requires_grad:
        return missing("the logarithm of a closed gate has no gradient")
    return Contender(attention)


def _flex(form: Form, setting: Setting, tokens: int) -> Contender:
    """FlexAttention, compiled, with the bias or the logarithm of the gate captured by its score_mod."""
    if form.gate and form.leaf.requires_grad:
        return missing("the logarithm of a closed gate has no gradient")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks = None
    if form.causal:
        blocks = create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=setting.device)

    def attention(query: Tensor, key: Tensor, value: Tensor, leaf: Tensor) -> Any:
        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            entry = form.entry(leaf, h, i, j)
            return s + (entry.log() if form.gate else entry)

        return flex_attention(query, key, value, score_mod=score, block_mask=blocks)

    # Compiling for a CPU takes half a minute, and there only shows that it runs.
    return Contender(attention if setting.preset == "gpu-quick" and not setting.cuda else compiled(attention))
