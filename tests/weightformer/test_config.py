"""Config refuses what cannot work, and the presets are the published and measured forms."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from weightformer.config import PRESETS, Config, preset


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"norm": "rms"}, "norm"),
        ({"activation": "swish"}, "activation"),
        ({"embedding_activation": "tanh"}, "embedding_activation"),
        ({"cross_layer": "serial"}, "cross_layer"),
        ({"gate": "sparse"}, "gate"),
        ({"output": "sum"}, "output"),
        ({"read": "first"}, "read"),
        ({"positions": "none"}, "positions"),
        ({"recompute": "half"}, "recompute"),
        ({"width": 0}, "width"),
        ({"heads": 0}, "heads"),
        ({"layers": 0}, "layers"),
        ({"feed_forward": 0}, "feed_forward"),
        ({"buckets": 0}, "buckets"),
        ({"cross_tokens": -1}, "cross_tokens"),
        ({"max_teachers": -1}, "max_teachers"),
        ({"width": 12, "heads": 8}, "heads"),
        ({"layers": 100_000_000}, "layers"),
        ({"width": 10**12}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"output": "gated", "read": "anchor"}, "read"),
        ({"cross_layer": "recurrent", "cross_tokens": 0}, "cross_tokens"),
        ({"gate": "dense", "max_teachers": 0}, "max_teachers"),
    ],
    ids=str,
)
def test_an_impossible_setting_is_named_in_one_line(settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(ValueError, match=f"^Config: {setting}: expected .*$") as error:
        Config(**settings)
    assert "\n" not in str(error.value)


def test_a_changed_configuration_is_checked_and_the_old_one_stays() -> None:
    config = Config()
    assert config.but(width=64, heads=4).width == 64 and config.width == 512
    with pytest.raises(ValueError, match="divisor of width"):
        config.but(width=10)
    with pytest.raises(FrozenInstanceError):
        config.width = 3  # type: ignore[misc]


def test_the_paper_preset_has_the_papers_form_and_sizes() -> None:
    paper = preset("paper")
    assert (paper.width, paper.heads, paper.layers, paper.feed_forward) == (512, 8, 6, 2048)
    assert (paper.norm, paper.activation, paper.gate, paper.output) == ("post", "relu", "dense", "plain")
    assert paper.cross_tokens == 1 and paper.max_teachers


@pytest.mark.parametrize(
    ("name", "output"),
    [("recipe", "prior"), ("shared-init", "mean"), ("specialists", "gated"), ("paper-small", "plain")],
)
def test_the_small_presets_have_a_small_encoder_and_differ_in_their_output(name: str, output: str) -> None:
    found = preset(name)
    # Specialists come in many domains, and a larger encoder was measured to pay there.
    sizes = (96, 4, 3, 192) if name == "specialists" else (64, 4, 2, 128)
    assert (found.width, found.heads, found.layers, found.feed_forward) == sizes
    assert found.output == output
    # Codes of the teachers would tell them apart; fine-tunes of one base come in no order.
    assert (found.max_teachers == 0) == (name == "specialists")


def test_a_head_without_a_code_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="positions: expected 'layer', because head=2"):
        Config(head=2, positions="shared")
    assert Config(head=2, positions="layer").head == 2


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="paper") as error:
        preset("papre")
    assert all(name in str(error.value) for name in PRESETS) and "'papre'" in str(error.value)
