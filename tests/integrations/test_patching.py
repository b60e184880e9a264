"""What is patched and what is left, what the report says, and that nothing else about a model changes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.beit import Attention
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from tests.integrations.models import CASES, build, masked_words, t5_small
from wfkernels.integrations import Entry, Report, patch, unpatch


def beit() -> nn.Module:
    return build(CASES["beit, shared bias and own"])


def seq2seq() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 32, "num_layers": 2, "vocab_size": 100}
    config = T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).double().eval()


def statuses(report: Report) -> dict[str, str]:
    return {entry.path: entry.status for entry in report.entries}


class Loud(Attention):
    """Somebody's own BEiT attention."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, shared_rel_pos_bias)


def a_subclass(model: nn.Module) -> None:
    model.blocks[0].attn.__class__ = Loud


def a_wrapped_forward(model: nn.Module) -> None:
    attention = model.blocks[0].attn
    attention.forward = lambda x, shared_rel_pos_bias=None: 2 * Attention.forward(attention, x, shared_rel_pos_bias)


def another_dropout(model: nn.Module) -> None:
    model.blocks[0].attn.attn_drop = nn.Identity()


def another_index(model: nn.Module) -> None:
    model.blocks[0].attn.relative_position_index[1, 2] = 0


LEFT: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "a subclass": (a_subclass, "it is a tests.integrations.test_patching.Loud, which may compute something else"),
    "a forward of the instance": (a_wrapped_forward, "forward was replaced on the instance"),
    "another dropout": (another_dropout, "attn_drop is a Identity, not torch.nn.Dropout"),
    "another index": (another_index, "relative_position_index is not the one that its class builds"),
}


@pytest.mark.parametrize("change, reason", LEFT.values(), ids=LEFT)
def test_what_may_compute_something_else_is_left_and_the_rest_still_agrees(
    change: Callable[[nn.Module], None], reason: str
) -> None:
    model = beit()
    change(model)
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    wanted = model(images)
    report = patch(model)
    assert statuses(report) == {"blocks.0.attn": "left", "blocks.1.attn": "replaced", "rel_pos_bias": "left"}
    assert reason in report.entries[0].detail
    assert "a layer that reads it is left" in report.entries[2].detail
    torch.testing.assert_close(model(images), wanted, rtol=0, atol=1e3 * torch.finfo(torch.float64).eps)


def test_a_foreign_block_keeps_the_shared_bias_dense() -> None:
    model = beit()
    model.blocks[1] = Foreign()
    report = patch(model)
    assert statuses(report) == {"blocks.0.attn": "replaced", "rel_pos_bias": "left"}
    model(torch.randn(1, 3, 32, 48, dtype=torch.float64))


class Foreign(nn.Module):
    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor) -> Tensor:
        return x + shared_rel_pos_bias.sum()  # it takes the tensor that timm documents


def test_attention_without_a_learned_bias_is_left() -> None:
    report = patch(timm.create_model("beit_base_patch16_224", img_size=32, depth=1, use_rel_pos_bias=False))
    assert report.entries == (Entry("blocks.0.attn", "BEiT attention (timm)", "left", "it has no learned bias"),)
    layer = build(CASES["vit_srelpos, shared MLP"]).blocks[0]  # the bias is the model's
    assert [entry.detail for entry in patch(layer).entries] == ["it has no learned bias"]
    maxxvit = timm.create_model("coatnet_nano_rw_224", img_size=64, depths=(1, 1, 1, 1))
    maxxvit.stages[2].blocks[0].attn.rel_pos = None
    assert [entry.status for entry in patch(maxxvit).entries] == ["left", "replaced"]


def test_an_unknown_relative_position_module_is_left() -> None:
    model = build(CASES["vit_relpos, table"])
    model.blocks[0].attn.rel_pos = nn.Identity()
    report = patch(model)
    assert report.entries[0].detail == "rel_pos is a torch.nn.modules.linear.Identity, which is not known"
    assert report.replaced == 1


def test_another_version_of_the_library_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attention, "forward", lambda self, x, attn_mask=None: x)
    report = patch(beit())
    assert report.replaced == 0
    assert report.entries[0].detail == (
        "this version of timm calls it with (self, x, attn_mask) instead of (self, x, shared_rel_pos_bias)"
    )


def test_swin_is_left_where_its_mask_may_be_another() -> None:
    model = build(CASES["swin"])
    window = model.layers[0].blocks[1]
    assert patch(window.attn).entries[0].detail == "its mask does not come from a block of timm's Swin"
    window.attn_mask[0, 0, 1] = -1.0
    report = patch(model)
    assert statuses(report)["layers.0.blocks.1.attn"] == "left"
    assert report.replaced == 3


def test_a_patched_swin_refuses_a_mask_of_ones_own() -> None:
    model = build(CASES["swin v2"])
    patch(model)
    block = model.layers[0].blocks[1]
    windows, tokens = block.attn_mask.shape[:2]
    x = torch.randn(windows, tokens, 32, dtype=torch.float64)
    block.attn(x, mask=block.attn_mask)
    with pytest.raises(ValueError, match="mask: expected 0 inside regions and one other number between them"):
        block.attn(x, mask=torch.randn_like(block.attn_mask))


def test_a_decoder_is_left_and_generates_as_before() -> None:
    model, words = seq2seq(), masked_words()
    wanted = model.generate(**words, max_new_tokens=4)
    loss = model(**words, labels=torch.randint(100, (3, 5))).loss
    report = patch(model)
    assert (report.replaced, report.left) == (2, 4)
    assert {entry.path.split(".")[0] for entry in report.entries if entry.status == "left"} == {"decoder"}
    assert torch.equal(model.generate(**words, max_new_tokens=4), wanted)
    model(**words, labels=torch.randint(100, (3, 5))).loss.backward()
    assert loss.isfinite()


def test_the_layers_of_a_t5_encoder_change_together_or_not_at_all() -> None:
    model = t5_small().double().eval()
    attention = model.encoder.block[1].layer[0].SelfAttention
    attention.forward = attention.forward
    report = patch(model)
    assert report.replaced == 0
    details = [entry.detail for entry in report.entries]
    assert "forward was replaced on the instance" in details[1]
    assert (
        details[0]
        == details[2]
        == "encoder.block.1.layer.0.SelfAttention is left, and the layers of a stack share one bias"
    )
    assert patch(model.encoder.block[0]).replaced == 0


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            lambda config: setattr(config, "_attn_implementation_internal", "mine"),
            "the attention implementation 'mine'",
        ),
        (lambda config: None, "relative_attention_max_distance is too small"),
    ],
    ids=["attention of one's own", "buckets without a formula"],
)
def test_t5_is_left_where_its_configuration_is_another(change: Callable[[T5Config], None], reason: str) -> None:
    model = t5_small(relative_attention_max_distance=20 if "own" in reason or "mine" in reason else 8)
    change(model.config)
    change(model.encoder.config)
    report = patch(model)
    assert report.replaced == 0
    assert all(reason in entry.detail for entry in report.entries)


def test_t5_gives_the_weights_that_are_asked_for() -> None:
    model, words = t5_small("eager").double().eval(), masked_words()
    wanted = model(**words, output_attentions=True, output_hidden_states=True)
    patch(model)
    found = model(**words, output_attentions=True, output_hidden_states=True)
    for name in ("attentions", "hidden_states"):
        assert all(torch.equal(x, y) for x, y in zip(wanted[name], found[name], strict=True))


def test_one_t5_layer_alone_has_no_bias() -> None:
    model = t5_small().double().eval()
    layer, x = model.encoder.block[1].layer[0].SelfAttention, torch.randn(1, 5, 512, dtype=torch.float64)
    wanted = layer(x)
    patch(model)
    found = layer(x)
    assert torch.equal(found[0], wanted[0])
    assert found[1].shape == (1, 8, 5, 5)


def test_a_sequence_of_nothing_but_padding_is_the_one_difference_in_t5() -> None:
    model = t5_small().double().eval()
    words = masked_words()
    words["attention_mask"][1] = 0
    wanted = model(**words).last_hidden_state
    patch(model)
    found = model(**words).last_hidden_state
    torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]])
    assert found.isfinite().all()
    assert not torch.allclose(found[1], wanted[1])


def test_patching_twice_does_nothing_and_says_so() -> None:
    model = beit()
    first, second = patch(model), patch(model)
    assert (first.replaced, first.already) == (3, 0)
    assert (second.replaced, second.already) == (0, 3)
    assert str(second).startswith("nothing changed: 3 already\n")
    assert unpatch(model).restored == 3
    assert unpatch(model).entries == ()


def test_a_model_without_such_attention_is_no_error() -> None:
    assert patch(nn.Linear(2, 2)).entries == ()
    assert str(patch(nn.Linear(2, 2))) == "nothing to do: no module was found that patch or unpatch would change"
    report = patch(nn.TransformerEncoderLayer(8, 2, 8))
    assert report.entries == (
        Entry("self_attn", "torch.nn.modules.activation.MultiheadAttention", "left", "no integration for this class"),
    )
    assert patch(nn.MultiheadAttention(8, 2)).entries[0].path == ""


def test_the_report_reads_well() -> None:
    model = nn.ModuleDict({"eyes": build(CASES["coatnet, MLP"]), "ears": nn.MultiheadAttention(8, 2)})
    assert str(patch(model)).splitlines() == [
        "2 replaced, 1 left",
        "  replaced  eyes.stages.2.blocks.0.attn, eyes.stages.3.blocks.0.attn",
        "            CoAtNet/MaxViT attention (timm): BucketTable from the bias MLP, one entry per offset",
        "  left      ears",
        "            torch.nn.modules.activation.MultiheadAttention: no integration for this class",
    ]
    assert str(unpatch(model)).splitlines()[0] == "2 restored"
    several = patch(build(CASES["vit_relpos_small"]))
    assert "  replaced  blocks.0.attn ... blocks.2.attn (3 modules)" in str(several).splitlines()


@pytest.mark.parametrize("function", [patch, unpatch])
def test_what_is_no_module_is_refused(function: Callable[[object], Report]) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__}: model: expected a torch.nn.Module, got dict"):
        function({})


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save])
@pytest.mark.parametrize("name", ["beit, shared bias and own", "swin v2", "t5, mask"])
def test_a_patched_model_can_be_copied_and_pickled(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    model, inputs = build(CASES[name]), CASES[name].inputs()
    patch(model)
    other = copied(model)
    first, second = (each(**inputs) for each in (model, other))
    assert torch.equal(*(x if isinstance(x, Tensor) else x.last_hidden_state for x in (first, second)))
    assert unpatch(other).restored == CASES[name].replaced
    assert patch(model).already == CASES[name].replaced


def test_hooks_parametrizations_and_types_stay() -> None:
    model = beit()
    seen: list[str] = []
    attention = model.blocks[0].attn
    attention.register_forward_hook(lambda *_: seen.append("attention"))
    attention.proj.register_forward_pre_hook(lambda *_: seen.append("projection"))
    patch(model)
    model(torch.randn(1, 3, 32, 48, dtype=torch.float64))
    assert seen == ["projection", "attention"]
    assert isinstance(attention, Attention)


def test_a_class_that_changed_after_patch_is_not_restored() -> None:
    model = beit()
    patch(model)
    nn.utils.parametrize.register_parametrization(model.blocks[0].attn, "relative_position_bias_table", nn.Identity())
    report = unpatch(model)
    assert (report.restored, report.left) == (2, 1)
    assert "its class was changed after patch; undo that first" in str(report)


def test_a_model_without_values_can_be_patched() -> None:
    with torch.device("meta"):
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(2,), num_heads=(3,)
        )
    assert patch(model).replaced == 2


def test_a_library_that_the_user_did_not_import_is_not_imported() -> None:
    code = (
        "import sys, torch, wfkernels.integrations as i; report = i.patch(torch.nn.MultiheadAttention(4, 2));"
        "assert report.left == 1 and not {'timm', 'transformers'} & set(sys.modules), report"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
