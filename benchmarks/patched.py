"""Other libraries' models with our attention in them, against the same models as they come.

    python benchmarks/patched.py --preset bar --json patched.json

One model serves all contenders: it is patched for ours and put back behind every call, outside the time. "eager" is
the library's own computation (SDPA with a dense bias, in timm and in transformers).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers
from benchmarks.case import FULL, Case, Contender, Draw, Problem, Setting, Target, ours
from benchmarks.harness import main
from wfkernels import attention, env
from wfkernels.integrations import patch, unpatch
from wfkernels.integrations.windows import from_index


@dataclass(frozen=True)
class Part:
    """A model and what of it is run: a module inside it (or itself) on some inputs, up to one output.

    train: adds an optimizer's step to the backward pass. The inputs have a gradient where they require it.
    """

    model: nn.Module
    module: nn.Module
    inputs: Sequence[Tensor]
    output: Callable[[Any], Tensor] = lambda found: found
    train: bool = False


@contextmanager
def patched(model: nn.Module, impl: str) -> Iterator[None]:
    """Give a model our attention, by the implementation named, and take it out again."""
    patch(model)
    try:
        with nullcontext() if impl == "auto" else env.IMPL.holding(impl):
            yield
    finally:
        unpatch(model)


def problem(setting: Setting, build: Callable[[Setting], Part]) -> Problem:
    """Return a part of a model with its own computation as the peer, in the larger presets both compiled as well."""
    torch.manual_seed(0)
    part = build(setting)
    names, parameters = zip(*part.module.named_parameters(), strict=True)
    count = len(part.inputs)

    def run(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors[count:], strict=True))
        return part.output(functional_call(part.module, given, tuple(tensors[:count])))

    with torch.no_grad():
        grad = torch.randn_like(run(*part.inputs, *parameters))
    step = _step(part, part.module, parameters, grad)
    found = {}
    for name in setting.ours:
        found[name] = Contender(run, True, steps={FULL: step}, around=partial(patched, part.model, name))
    found["eager"] = Contender(run, steps={FULL: step})
    if setting.preset in ("full", "gpu"):
        # A graph belongs to the classes it was traced with; that of ours is not the library's.
        faster = peers.compiled(run)
        for name, contender in list(found.items()):
            steps = {FULL: _step(part, peers.compiled(part.module), parameters, grad)}
            label = "compile" if name == "eager" else f"{name}, compiled"
            found[label] = Contender(faster, contender.ours, steps=steps, around=contender.around)
    return Problem((*part.inputs, *parameters), (grad,), run, found)


def _step(part: Part, module: Callable[..., Any], parameters: Sequence[Tensor], grad: Tensor) -> Callable[[], None]:
    """Return one step: forward, backward and, where the part is trained, AdamW, whose rate changes next to nothing."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-9) if part.train else None
    learning = [t for t in (*part.inputs, *parameters) if t.requires_grad]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=grad.is_cuda):
            found = part.output(module(*part.inputs))
        found.backward(grad.to(found.dtype))
        if optimizer is not None:
            optimizer.step()
        for tensor in learning:
            tensor.grad = None

    return step


def beit_core(setting: Setting, side: int, batch: int, heads: int = 12, width: int = 64) -> Problem:
    """Return what patching replaces in BEiT: from query, key, value and the table to the heads' outputs."""
    from timm.layers.pos_embed_rel import gen_relative_position_index

    draw, tokens = Draw(setting.device), side * side + 1
    index = gen_relative_position_index((side, side), class_token=True).to(setting.device)
    size = (batch, heads, tokens, width)
    query, key, value = (draw.normal(*size) for _ in range(3))
    table = draw.normal((2 * side - 1) ** 2 + 3, heads)

    def run(query: Tensor, key: Tensor, value: Tensor, table: Tensor, impl: str) -> Tensor:
        return attention(query, key, value, bias=from_index(table.mT, index, class_token=True), impl=impl)

    def library(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        # timm.models.beit.Attention._get_rel_pos_bias and forward.
        bias = table[index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

    grad = draw.normal(*size, learn=False)
    found = ours(setting, run) | {"eager": Contender(library)}
    return Problem((query, key, value, table), (grad,), partial(run, impl="reference"), found)


def beit(setting: Setting, batch: int, size: int, whole: bool, **options: Any) -> Part:
    """BEiT-base (timm) on images of `size` pixels, or the attention of its first block with its products."""
    import timm

    model: Any = timm.create_model("beit_base_patch16_224", img_size=size, **options).to(setting.device)
    draw = Draw(setting.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias_table" in name:  # which timm starts at zero
                parameter.copy_(draw.normal(*parameter.shape, learn=False))
    if whole:
        return Part(model, model, (draw.normal(batch, 3, size, size, learn=False),), train=True)
    block = model.blocks[0].attn
    tokens = block.relative_position_index.shape[0]
    return Part(model, block, (draw.normal(batch, tokens, block.qkv.weight.shape[1]),))


def t5(setting: Setting, batch: int, tokens: int, whole: bool, **options: Any) -> Part:
    """The encoder of T5-small (transformers' default sizes), or the attention of its first block, with its bias."""
    from transformers import T5Config, T5EncoderModel

    model: Any = T5EncoderModel(T5Config(dropout_rate=0.0, **options))
    model.to(setting.device)
    draw = Draw(setting.device)
    if whole:
        words = torch.randint(model.config.vocab_size, (batch, tokens), generator=draw.generator).to(setting.device)
        return Part(model, model, (words,), lambda found: found.last_hidden_state)
    layer = model.encoder.block[0].layer[0].SelfAttention
    return Part(model, layer, (draw.normal(batch, tokens, model.config.d_model),), lambda found: found[0])


SMALL_BEIT = {"depth": 2, "num_classes": 5}
SMALL_T5 = {"num_layers": 2, "vocab_size": 100}
TINY_BEIT = {"depth": 1, "embed_dim": 48, "num_heads": 3, "num_classes": 5}
TINY_T5 = {"num_layers": 1, "d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16, "vocab_size": 100}


def case(
    setting: Setting,
    name: str,
    build: Callable[..., Part],
    options: Mapping[str, Any],
    judged: tuple[str, Mapping[str, Any]] | None = None,
    targets: Sequence[Target] = (),
) -> Case:
    def made(options: Mapping[str, Any]) -> Callable[[], Problem]:
        return partial(problem, setting, partial(build, **options))

    smaller = None if judged is None else (judged[0], made(judged[1]))
    return Case(name, made(options), modes=(FULL,), judged=smaller, targets=targets)


def at_least(bound: float, what: str = "time") -> Target:
    return Target(FULL, what, bound, "eager")


def quick(setting: Setting) -> list[Case]:
    images, words = {"batch": 2, "size": 64}, {"batch": 2, "tokens": 100}
    return [
        case(setting, "tiny BEiT, step", beit, {**images, "whole": True, **TINY_BEIT}),
        case(setting, "tiny T5 encoder", t5, {**words, "whole": True, **TINY_T5}),
    ]


def large(setting: Setting) -> list[Case]:
    """Return what issue 4 asks for; a GPU takes batches that fill it."""
    images = {"batch": 64 if setting.cuda else 4, "size": 224}
    words = {"batch": 16 if setting.cuda else 1, "tokens": 1024}
    few, short = {"batch": 2, "size": 96}, {"batch": 2, "tokens": 200}
    core = Case(
        f"BEiT-base, attention without its products, batch {images['batch']}",
        partial(beit_core, setting, 14, images["batch"]),
        modes=(FULL,),
        targets=(at_least(1.5),),
    )
    named: list[tuple[str, Callable[..., Part], dict[str, Any], dict[str, Any], bool, tuple[Target, ...]]] = [
        ("BEiT-base, attention", beit, images, {**few, **SMALL_BEIT}, False, (at_least(1.5),)),
        ("BEiT-base, step", beit, images, {**few, **SMALL_BEIT}, True, (at_least(0.95),)),
        ("T5-small, attention", t5, words, {**short, **SMALL_T5}, False, ()),
        ("T5-small, encoder", t5, words, {**short, **SMALL_T5}, True, (at_least(1.3), at_least(1.0, "memory"))),
    ]
    cases = [
        case(
            setting,
            f"{name}, {', '.join(f'{key} {value}' for key, value in full.items())}",
            build,
            {**full, "whole": whole},
            (", ".join(f"{key} {value}" for key, value in small.items()), {**small, "whole": whole}),
            targets,
        )
        for name, build, full, small, whole, targets in named
    ]
    return [core, *cases]


STEPS = (at_least(1.3), Target(FULL, "time", 1.0, "compile", ", compiled"))


def gpu(setting: Setting) -> list[Case]:
    """Return the training steps that patching has to make faster, and in no form slower."""
    images, words = {"batch": 64, "size": 224}, {"batch": 16, "tokens": 1024}
    few, short = {"batch": 2, "size": 96, **SMALL_BEIT}, {"batch": 2, "tokens": 200, **SMALL_T5}
    return [
        case(setting, name, build, {**sizes, "whole": True}, ("a small one", {**small, "whole": True}), STEPS)
        for name, build, sizes, small in (
            ("BEiT-base, step", beit, images, few),
            ("T5-small, step", t5, words, short),
        )
    ]


def cases(setting: Setting) -> list[Case]:
    if setting.preset == "gpu":
        return gpu(setting)
    return large(setting) if setting.preset in ("bar", "full") else quick(setting)


if __name__ == "__main__":
    sys.exit(main("patched", cases))
