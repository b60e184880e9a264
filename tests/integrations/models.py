"""Real models of timm and transformers with random weights, most of them small, and how a patched one is judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers import MT5Config, MT5EncoderModel, PretrainedConfig, T5Config, T5EncoderModel

EPSILON = torch.finfo(torch.float64).eps


class Case(NamedTuple):
    """A model, what it is called with, and how many modules `patch` replaces in it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    replaced: int


def image(height: int, width: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"x": torch.randn(2, 3, height, width, dtype=torch.float64)}


def timm_case(name: str, size: tuple[int, int], replaced: int, **options: Any) -> Case:
    options = {"num_classes": 5, **options}
    return Case(lambda: timm.create_model(name, img_size=size, **options), image(*size), replaced)


def maxxvit_case(name: str, size: int, replaced: int, **options: Any) -> Case:
    small = {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64), "stem_width": 16, "num_classes": 5, **options}
    return Case(lambda: timm.create_model(name, img_size=(size, size), **small), image(size, size), replaced)


def t5_small(attention: str = "sdpa", **options: Any) -> nn.Module:
    return T5EncoderModel(_small(T5Config, attention, **options))


def mt5_small() -> nn.Module:
    return MT5EncoderModel(_small(MT5Config, "sdpa"))


def _small(config: type[PretrainedConfig], attention: str, **options: Any) -> PretrainedConfig:
    """The sizes of T5-small, with fewer words and layers; distances beyond the last bucket occur."""
    sizes = {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 1024, "num_layers": 3, "vocab_size": 100}
    buckets = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 20}
    return config(**{**sizes, **buckets, "dropout_rate": 0.0, "attn_implementation": attention, **options})


TOKENS = 30


def words() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(100, (3, TOKENS))}


def masked_words() -> dict[str, Tensor]:
    mask = torch.ones(3, TOKENS, dtype=torch.int64)
    mask[1, 21:] = 0
    mask[2, :4] = 0
    return words() | {"attention_mask": mask}


def words_masked_per_key() -> dict[str, Tensor]:
    given = masked_words()
    return given | {"attention_mask": given["attention_mask"][:, None, None, :].bool()}


def words_with_numbers_to_add() -> dict[str, Tensor]:
    return words() | {"attention_mask": torch.randn(3, 1, TOKENS, TOKENS, dtype=torch.float64)}


def shared_beit() -> nn.Module:
    return Beit(img_size=(32, 48), num_classes=5, embed_dim=48, depth=2, num_heads=3, use_shared_rel_pos_bias=True)


def shared_and_own_beit() -> nn.Module:
    sizes = {"img_size": (32, 48), "num_classes": 5, "embed_dim": 48, "depth": 2, "num_heads": 3, "qkv_bias": True}
    return Beit(use_shared_rel_pos_bias=True, use_rel_pos_bias=True, **sizes)


def variant(build: Callable[[], nn.Module]) -> nn.Module:
    """A model with timm's less used options: biases and channels laid out otherwise, logit scales past their limit."""
    model = build()
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
        if hasattr(module, "head_first"):
            module.head_first = not module.head_first
        if hasattr(module, "logit_scale"):
            nn.init.constant_(module.logit_scale, 6.0)
            nn.init.constant_(module.logit_scale[0], 1.0)
    return model


SWIN = {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32}

CASES: dict[str, Case] = {
    "beit": timm_case("beit_base_patch16_224", (64, 96), 2, depth=2),
    "beit v2": timm_case("beitv2_base_patch16_224", (48, 48), 2, depth=2),
    "beit, shared bias": Case(shared_beit, image(32, 48), 3),
    "beit, shared bias and own": Case(shared_and_own_beit, image(32, 48), 3),
    "vit_relpos_small": timm_case("vit_relpos_small_patch16_224", (64, 80), 3, depth=3),
    "vit_relpos, class token": timm_case("vit_relpos_medium_patch16_cls_224", (48, 64), 2, depth=2),
    "vit_relpos, table": timm_case("vit_relpos_small_patch16_224", (48, 64), 2, depth=2, rel_pos_type="bias"),
    "vit_relpos, table and class token": timm_case(
        "vit_relpos_small_patch16_224", (48, 64), 2, depth=2, rel_pos_type="bias", class_token=True
    ),
    "vit_relpos, Swin's MLP": timm_case(
        "vit_relpos_small_patch16_224", (48, 64), 2, depth=2, rel_pos_type="mlp_swin", qk_norm=True
    ),
    "vit_srelpos, shared MLP": timm_case("vit_srelpos_small_patch16_224", (48, 64), 3, depth=2),
    "vit_srelpos, shared table": timm_case("vit_srelpos_small_patch16_224", (48, 64), 3, depth=2, rel_pos_type="bias"),
    "swin": timm_case("swin_tiny_patch4_window7_224", (64, 96), 4, window_size=4, **SWIN),
    "swin v2": timm_case("swinv2_tiny_window8_256", (64, 96), 4, window_size=4, **SWIN),
    "swin v2, padded": timm_case("swinv2_tiny_window8_256", (72, 56), 4, window_size=(4, 5), **SWIN),
    "coatnet": maxxvit_case("coatnet_nano_rw_224", 96, 2),
    "coatnet, MLP": maxxvit_case("coatnet_rmlp_nano_rw_224", 96, 2),
    "maxvit": maxxvit_case("maxvit_tiny_rw_224", 96, 8),
    "maxvit, MLP": maxxvit_case("maxvit_rmlp_pico_rw_256", 96, 8),
    "maxvit of TensorFlow": maxxvit_case("maxvit_tiny_tf_224", 96, 8),
    "t5": Case(t5_small, words, 3),
    "t5, mask": Case(t5_small, masked_words, 3),
    "t5, mask over keys": Case(t5_small, words_masked_per_key, 3),
    "t5, numbers to add": Case(t5_small, words_with_numbers_to_add, 3),
    "t5, eager, mask": Case(lambda: t5_small("eager"), masked_words, 3),
    "mt5, mask": Case(mt5_small, masked_words, 3),
}


def full(name: str, size: int, replaced: int, **options: Any) -> Case:
    """A model as timm defines it, with one picture of the size that it was made for."""
    return Case(
        lambda: timm.create_model(name, **options),
        lambda: {"x": torch.randn(1, 3, size, size, dtype=torch.float64)},
        replaced,
    )


def t5_small_as_published() -> nn.Module:
    sizes = {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 2048, "num_layers": 6, "vocab_size": 32128}
    return T5EncoderModel(T5Config(**sizes))


def many_words() -> dict[str, Tensor]:
    """One line in which distances beyond the last bucket (128) occur."""
    return {"input_ids": torch.randint(32128, (1, 200))}


# Nothing is made smaller here but BEiT's depth: it is the width of 768 that no other case has.
FULL: dict[str, Case] = {
    "beit base, whole": full("beit_base_patch16_224", 224, 2, depth=2),
    "vit_relpos_small, whole": full("vit_relpos_small_patch16_224", 224, 12),
    "swin v2 tiny, whole": full("swinv2_tiny_window8_256", 256, 12),
    "t5-small, whole": Case(t5_small_as_published, many_words, 6),
}


for name in ("beit, shared bias and own", "swin v2", "coatnet", "maxvit"):
    CASES[f"{name}, variant"] = CASES[name]._replace(build=partial(variant, CASES[name].build))


def build(case: Case) -> nn.Module:
    """The model in float64 and eval mode, its weights moved by noise: timm starts tables and gains at zero."""
    model = case.build().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter += noise if "bias_table" in name or "attention_bias" in name else 0.02 * noise
    return model


def run(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and the gradient of every parameter and float input, by name."""
    model.zero_grad()
    inputs = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    output = model(**inputs)
    output = output if isinstance(output, Tensor) else output.last_hidden_state
    # Another weight for each element, so that no two errors cancel.
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    gradients = {f"d {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    gradients |= {f"d {name}": x.grad for name, x in inputs.items() if x.grad is not None}
    return {"output": output.detach(), **gradients}


def rounding(model: nn.Module) -> float:
    """The relative error that two orders of the same sums may differ by.

    Twice (back and forth) the summands that a value meets on its way through the model, in units of rounding: two
    orders of summing n numbers differ by at most n units of the sum of their absolute values, to first order.
    Conditioning adds less than this worst case has over the usual square root of n.
    """
    return EPSILON * 2 * sum(parameter[0].numel() for parameter in model.parameters() if parameter.ndim > 1)


# A softmax does not see what shifts all scores of a row: the gradients of these are zero but for rounding.
UNSEEN = ("rel_pos.mlp.fc2.bias", "k_norm.bias")


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference by name, relative to the largest element wanted (of the weight beside an unseen bias)."""
    found, wanted = ({name: x.detach() for name, x in tensors.items()} for tensors in (found, wanted))
    assert found.keys() == wanted.keys()
    relative = {}
    for name, tensor in wanted.items():
        beside = wanted[name.replace("bias", "weight")] if name.endswith(UNSEEN) else tensor
        relative[name] = float((found[name] - tensor).abs().max() / beside.abs().max())
    return relative
