"""Rows of any nn.Module: module -> rows -> module is bitwise exact, and known networks have the rows they should."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import is_parametrized

from weightformer import rows
from wfkernels import pack
from wfkernels.layout import Layer, RowLayout

TIMM = {
    # convolutional
    "resnet18": {},
    "resnetv2_18": {},  # norm before convolution
    "seresnet18": {},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "nf_resnet26": {},  # gains beside the weights, scalars, no norm
    "botnet26t_256": {},
    "lambda_resnet26t": {},
    "densenet121": {},
    "dla46_c": {},
    "hrnet_w18_small": {},
    "res2net50_26w_4s": {"layers": (1, 1, 1, 1)},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "efficientnet_lite0": {},
    "tinynet_e": {},
    "lcnet_035": {},
    "ghostnet_050": {},
    "regnety_002": {},
    "rexnet_100": {},
    "repvgg_a0": {},
    "mobileone_s0": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "inception_next_atto": {},
    # transformers, and both
    "vit_tiny_patch16_224": {"depth": 2},
    "vit_base_patch16_clip_224": {"depth": 1},
    "vit_relpos_small_patch16_224": {"depth": 1},
    "vit_small_patch14_reg4_dinov2": {"depth": 1},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "deit3_small_patch16_224": {"depth": 1},
    "beit_base_patch16_224": {"depth": 1},
    "eva02_tiny_patch14_224": {"depth": 2},
    "cait_xxs24_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 1, 1)},
    "crossvit_tiny_240": {},
    "levit_128s": {},
    "pit_ti_224": {},
    "tnt_s_legacy_patch16_224": {"depth": 2},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "edgenext_xx_small": {},
    "pvt_v2_b0": {},
    "efficientvit_m0": {},
    "hiera_tiny_224": {"stages": (1, 1, 1, 1)},
    "coatnet_pico_rw_224": {},
    # mixers
    "gmlp_ti16_224": {},
    "resmlp_12_224": {},
    "sequencer2d_s": {"layers": (1, 1, 1, 1)},  # LSTMs
    "poolformer_s12": {},
    "efficientvim_m1": {},
}
TORCHVISION = (
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mobilenet_v2",
    "mnasnet0_5",
    "resnet18",
    "efficientnet_b0",
    "regnet_y_400mf",
)


def small_vgg() -> nn.Module:
    """Convolutions without bias, BatchNorm behind each, one linear head."""
    widths = (1, 8, 16)
    blocks = [
        layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16, 10))


class TinyGPT(nn.Module):
    """Token and position embeddings, one pre-norm block of nn.MultiheadAttention, the output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.wpe = nn.Embedding(8, 8)  # as many positions as channels: no norm may join it
        self.ln_1 = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2)
        self.ln_2 = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 32)
        self.proj = nn.Linear(32, 8)
        self.ln_f = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.lm_head.weight = self.wte.weight


class Odd(nn.Module):
    """Parameters of every shape, held by a module that also has children."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros(()))
        self.gain = nn.Parameter(torch.zeros(1))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 6))
        self.layer_scale = nn.Parameter(torch.zeros(6, 1, 1))
        self.channels = nn.Parameter(torch.zeros(1, 6, 1, 1))
        self.bias_table = nn.Parameter(torch.zeros(9, 2))
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.norm = nn.BatchNorm2d(4)


def build_vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 12, 24, num_classes=10)


def build_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [7, 7], num_classes=10)


OWN: dict[str, Callable[[], nn.Module]] = {
    "torchvision/VisionTransformer": build_vision_transformer,
    "torchvision/SwinTransformer": build_swin,
    "small VGG": small_vgg,
    "tied GPT": TinyGPT,
    "odd shapes": Odd,
    "one Linear": lambda: nn.Linear(3, 4),
    "torch Transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    "LSTM": lambda: nn.LSTM(3, 4, 2),
    "shared module": lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2, nn.PReLU()),
}
CASES: dict[str, Callable[[], nn.Module]] = {
    **{f"timm/{n}": lambda n=n, k=k: timm.create_model(n, num_classes=10, **k) for n, k in TIMM.items()},
    **{f"torchvision/{n}": lambda n=n: torchvision.models.get_model(n, num_classes=10) for n in TORCHVISION},
    "torchvision/googlenet": lambda: torchvision.models.googlenet(num_classes=10, init_weights=False),
    **OWN,
}


def random_bits(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return random bit patterns, NaN and denormals among them, in the shapes of the parameters, ties kept."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, Tensor] = {}
    state = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) not in drawn:
            bits = torch.randint(-(2**31), 2**31, parameter.shape, dtype=torch.int32, generator=generator)
            drawn[id(parameter)] = bits.view(torch.float32)
        state[name] = drawn[id(parameter)]
    return state


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


def summary(layout: RowLayout) -> list[tuple[str, str, int, int]]:
    return [(layer.name, layer.kind, layer.rows, layer.width) for layer in layout.layers]


def names(layer: Layer) -> list[str]:
    return [p.name for p in layer.parameters]


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_bitwise_exact(case: str) -> None:
    torch.manual_seed(0)
    module = CASES[case]()
    layout = rows.layout(module)
    teachers = [random_bits(module, seed) for seed in (1, 2)]

    buffer = pack([rows.tensors(teacher, layout) for teacher in teachers], layout)
    students = rows.states(buffer, layout, copies=2)

    for teacher, student in zip(teachers, students, strict=True):
        assert student.keys() == teacher.keys()
        assert [name for name in teacher if not same_bits(teacher[name], student[name])] == []
    state = module.state_dict()
    state.update(students[1])
    module.load_state_dict(state)
    assert all(same_bits(p.detach(), teachers[1][n]) for n, p in module.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("case", CASES)
def test_layout_covers_every_parameter_once(case: str) -> None:
    module = CASES[case]()
    layout = rows.layout(module)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert {p.name: p.shape for p in layout.parameters} == shapes
    assert len(layout.parameters) == len(shapes)
    assert len({layer.name for layer in layout.layers}) == len(layout.layers)
    for layer in layout.layers:
        ends = [0, *(p.start + p.width for p in layer.parameters)]
        assert [p.start for p in layer.parameters] == ends[:-1]
        assert all(torch.Size(p.shape).numel() == layer.rows * p.width for p in layer.parameters)


def test_at_least_forty_published_architectures() -> None:
    assert len(TIMM) + len(TORCHVISION) >= 40


@pytest.mark.parametrize("case", ["timm/vit_tiny_patch16_224", "timm/convnextv2_atto", *OWN])
def test_layout_needs_no_weights(case: str) -> None:
    with torch.device("meta"):
        module = CASES[case]()
    assert next(module.parameters()).is_meta
    assert rows.layout(module) == rows.layout(CASES[case]())


def test_vgg_rows_are_filter_then_gamma_then_beta() -> None:
    module = small_vgg()
    layout = rows.layout(module)
    assert summary(layout) == [
        ("0", "conv", 8, 1 * 9 + 2),
        ("3", "conv", 16, 8 * 9 + 2),
        ("7", "linear", 10, 16 + 1),
    ]
    teachers = [random_bits(module, seed) for seed in (1, 2, 3)]
    blocks = layout.row_blocks(pack([rows.tensors(t, layout) for t in teachers], layout), copies=3)
    for index, (weight, *vectors) in enumerate(
        (("0.weight", "1.weight", "1.bias"), ("3.weight", "4.weight", "4.bias"), ("7.weight", "7.bias"))
    ):
        expected = torch.cat(
            [torch.cat([t[weight].flatten(1), *(t[v].unsqueeze(1) for v in vectors)], 1) for t in teachers]
        )
        assert same_bits(blocks[index].contiguous(), expected)


def test_mlp_rows_are_weight_then_bias() -> None:
    layout = rows.layout(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)))
    assert summary(layout) == [("0", "linear", 7, 6), ("2", "linear", 3, 7)]


def test_resnet18_has_one_layer_for_every_convolution() -> None:
    layout = rows.layout(torchvision.models.resnet18(num_classes=10))
    assert [layer.kind for layer in layout.layers] == ["conv"] * 20 + ["linear"]
    assert layout.rows == (64, *[64] * 4, *[128] * 5, *[256] * 5, *[512] * 5, 10)
    assert layout.widths == (
        *(3 * 49 + 2, *[64 * 9 + 2] * 4),
        *(width + 2 for n in (128, 256, 512) for width in (n // 2 * 9, n * 9, n // 2, n * 9, n * 9)),
        512 + 1,
    )
    assert names(layout.layers[7]) == [f"layer2.0.downsample.{p}" for p in ("0.weight", "1.weight", "1.bias")]


def test_vit_norms_join_the_layer_before_them() -> None:
    layout = rows.layout(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10))
    block = [("attn.qkv", 576, 193), ("attn.proj", 192, 193 + 2), ("mlp.fc1", 768, 193), ("mlp.fc2", 192, 769 + 2)]
    assert summary(layout) == [
        ("cls_token", "token", 1, 192),
        ("pos_embed", "table", 197, 192),
        ("patch_embed.proj", "conv", 192, 3 * 16 * 16 + 1 + 2),
        *((f"blocks.{i}.{name}", "linear", n, r) for i in range(2) for name, n, r in block),
        ("head", "linear", 10, 193),
    ]


def test_gpt_has_its_tied_embedding_once() -> None:
    layout = rows.layout(TinyGPT())
    assert summary(layout) == [
        ("wte", "embedding", 20, 8),
        ("wpe", "embedding", 8, 8),
        ("ln_1", "norm", 8, 2),
        ("attn.in_proj_weight", "linear", 24, 8 + 1),
        ("attn.out_proj", "linear", 8, 8 + 1 + 2),
        ("fc", "linear", 32, 8 + 1),
        ("proj", "linear", 8, 32 + 1 + 2),
    ]
    assert layout.tied == (("lm_head.weight", "wte.weight"),)


def test_a_parameter_of_any_shape_has_rows() -> None:
    assert summary(rows.layout(Odd())) == [
        ("temperature", "scalar", 1, 1),
        ("gain", "scalar", 1, 1),
        ("cls_token", "token", 1, 6),
        ("pos_embed", "table", 5, 6),
        ("layer_scale", "vector", 6, 1),
        ("channels", "vector", 6, 1),
        ("bias_table", "table", 9, 2),
        ("up", "conv_transpose", 4, 16),
        ("up.bias", "vector", 4, 1),
        ("norm", "norm", 4, 2),
    ]


@pytest.mark.parametrize(
    ("norm", "width"),
    [
        (nn.BatchNorm2d(4), 2),
        (nn.InstanceNorm2d(4, affine=True), 2),
        (nn.GroupNorm(2, 4), 2),
        (nn.LayerNorm(4), 2),
        (nn.LayerNorm(4, bias=False), 1),
        (nn.RMSNorm(4), 1),
        (timm.layers.LayerNorm2d(4), 2),
        (timm.layers.BatchNormAct2d(4), 2),
        (timm.layers.BatchNormAct2d(4, act_layer=nn.PReLU), 2),
        (timm.layers.RmsNorm(4), 1),
        (timm.layers.EvoNorm2dB0(4), 3),
        (timm.layers.FilterResponseNormTlu2d(4), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_norms_of_every_make_join(norm: nn.Module, width: int) -> None:
    layout = rows.layout(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), norm))
    assert summary(layout)[0] == ("0", "conv", 4, 3 + 1 + width)


@pytest.mark.parametrize(
    ("before", "norm", "expected"),
    [
        ([nn.Conv2d(3, 8, 1)], nn.BatchNorm2d(4), ("norm", 4, 2)),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)], nn.BatchNorm2d(4), ("norm", 4, 2)),
        ([nn.Conv2d(3, 4, 1), nn.PReLU()], nn.BatchNorm2d(4), ("norm", 4, 2)),
        ([nn.Embedding(4, 4)], nn.LayerNorm(4), ("norm", 4, 2)),
        ([nn.Conv2d(3, 4, 1)], nn.LayerNorm((4, 5, 5)), ("norm", 4, 50)),
        ([], nn.LayerNorm(4), ("norm", 4, 2)),
    ],
    ids=["other width", "second norm", "something between", "behind a table", "not per channel", "first"],
)
def test_any_other_norm_is_a_layer(before: list[nn.Module], norm: nn.Module, expected: tuple[str, int, int]) -> None:
    assert summary(rows.layout(nn.Sequential(*before, norm)))[-1][1:] == expected


def test_a_norm_behind_a_module_that_is_tied_does_not_join_the_one_before() -> None:
    first = nn.Linear(4, 4)
    layout = rows.layout(nn.Sequential(first, nn.Linear(4, 4), first, nn.LayerNorm(4)))
    assert [(layer.kind, layer.width) for layer in layout.layers] == [("linear", 5), ("linear", 5), ("norm", 2)]
    assert layout.tied == (("2.weight", "0.weight"), ("2.bias", "0.bias"))


class Scaled(nn.Module):
    """Holds a parameter and a norm, as many blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.zeros(4))
        self.norm = nn.BatchNorm2d(4)


def test_what_a_module_with_children_holds_does_not_stand_between() -> None:
    layout = rows.layout(nn.Sequential(nn.Conv2d(3, 4, 1), Scaled()))
    assert summary(layout) == [("0", "conv", 4, 3 + 1 + 2), ("1.layer_scale", "vector", 4, 1)]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 6))


def test_single_rows_are_not_put_together() -> None:
    assert summary(rows.layout(nn.Sequential(Tokens()))) == [("0", "token", 1, 6), ("0.mask_token", "token", 1, 6)]


class Lora(nn.Linear):
    """A linear layer that holds more than its own weight."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.down = nn.Parameter(torch.zeros(2, 6))
        self.up = nn.Parameter(torch.zeros(4, 2))


class OwnConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 2, 2))
        self.bias = nn.Parameter(torch.zeros(4))


def test_leaf_modules_share_rows_by_dim_0() -> None:
    assert summary(rows.layout(nn.Sequential(Lora(), OwnConvolution(), nn.BatchNorm2d(4), nn.LSTM(3, 5)))) == [
        ("0", "linear", 4, 6 + 1 + 2),
        ("0.down", "table", 2, 6),
        ("1", "conv", 4, 12 + 1 + 2),
        ("3", "parameter", 20, 3 + 5 + 2),
    ]


def test_layers_of_one_row_stay_whole() -> None:
    layout = rows.layout(nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.Linear(5, 1)))
    assert summary(layout) == [("0", "conv", 1, 27 + 1 + 2), ("2", "linear", 1, 6)]


def weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))), "'0' is parametrized.*remove_parametrizations"),
        (nn.Sequential(weight_norm()), "'0': 'weight' is computed .*remove_weight_norm"),
        (nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3))), "'0': 'weight' is computed .* remove_spectral_norm"),
        (prune.identity(nn.Linear(3, 3), "weight"), "'Linear': 'weight' is computed .* prune.remove"),
        (nn.Sequential(nn.LazyLinear(3)), "'0.weight' is not initialised yet; run one batch"),
        (nn.Linear(3, 3, dtype=torch.complex64), "'weight': expected a floating-point dtype, got torch.complex64"),
        (nn.ParameterList([nn.Parameter(torch.arange(3), False)]), "'0': expected a floating-point .* torch.int64"),
        (nn.ParameterList([torch.zeros(0, 3)]), r"'0' of shape \(0, 3\) has no elements"),
        (nn.ReLU(), "ReLU has no parameters"),
    ],
    ids=[
        "parametrized",
        "weight norm",
        "spectral norm",
        "pruned",
        "lazy",
        "complex",
        "integer",
        "no elements",
        "empty",
    ],
)
def test_parameters_without_rows_are_refused_in_one_line(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=f"layout: module: .*{message}") as caught:
        rows.layout(module)
    assert "\n" not in str(caught.value)


def test_parametrizations_made_plain_have_rows() -> None:
    module = parametrizations.weight_norm(nn.Linear(3, 4))
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    assert not is_parametrized(module)
    # remove_parametrizations registers the weight again, behind the bias
    assert names(rows.layout(module).layers[0]) == ["bias", "weight"]


def test_layout_wants_a_module() -> None:
    with pytest.raises(TypeError, match=r"layout: module: expected an nn.Module, got dict"):
        rows.layout({})  # type: ignore[arg-type]


def test_tensors_of_a_module_are_its_own_detached() -> None:
    module = TinyGPT()
    layout = rows.layout(module)
    found = rows.tensors(module, layout)
    assert len(found) == len(layout.parameters)
    for tensor, parameter in zip(found, layout.parameters, strict=True):
        assert not tensor.requires_grad
        assert tensor.data_ptr() == module.get_parameter(parameter.name).data_ptr()


def test_tensors_takes_a_tied_parameter_under_either_name() -> None:
    module = TinyGPT()
    layout = rows.layout(module)
    state = module.state_dict()
    del state["wte.weight"]
    assert rows.tensors(state, layout)[0] is state["lm_head.weight"]


def test_tensors_names_what_does_not_fit() -> None:
    module = small_vgg()
    layout = rows.layout(module)
    state = module.state_dict()
    with pytest.raises(ValueError, match=r"'4.bias' is missing"):
        rows.tensors({n: t for n, t in state.items() if n != "4.bias"}, layout)
    with pytest.raises(ValueError, match=r"'3.weight': expected shape \(16, 8, 3, 3\), got \(8, 16, 3, 3\)"):
        rows.tensors({**state, "3.weight": state["3.weight"].transpose(0, 1)}, layout)


def test_states_wants_the_whole_buffer() -> None:
    layout = rows.layout(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"states: rows: expected shape \(64,\) for 2 teachers, got \(32,\)"):
        rows.states(torch.zeros(32), layout, copies=2)


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (small_vgg, {}, "7"),
        (small_vgg, {"classes": 10}, "7"),
        (small_vgg, {"classes": 16}, "3"),
        (small_vgg, {"name": "3.weight"}, "3"),
        (small_vgg, {"name": "4.weight"}, "3"),
        (TinyGPT, {}, "proj"),
        (TinyGPT, {"name": "lm_head"}, "wte"),
        (TinyGPT, {"name": "lm_head.weight", "classes": 20}, "wte"),
        (CASES["torchvision/squeezenet1_1"], {"classes": 10}, "classifier.1"),
        (CASES["timm/resnet18"], {"classes": 10}, "fc"),
        (CASES["timm/vit_tiny_patch16_224"], {"classes": 10}, "head"),
    ],
)
def test_head_is_the_layer_whose_rows_are_the_classes(
    make: Callable[[], nn.Module], options: dict[str, int | str], expected: str
) -> None:
    layout = rows.layout(make())
    assert layout.layers[rows.head(layout, **options)].name == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 7}, "no linear layer with 7 rows; say which layer classifies with name="),
        ({"name": "head"}, "no layer or parameter is called 'head'; the last layer is '7'"),
        ({"name": "3", "classes": 10}, "'3' has 16 rows, expected one for each of 10 classes"),
    ],
)
def test_head_says_what_to_do_where_there_is_none(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows.head(rows.layout(small_vgg()), **options)  # type: ignore[arg-type]
