"""The settings of a WeightFormer and the presets that papers and measurements gave us."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from weightformer import bounds
from wfkernels.activation import ACTIVATIONS
from wfkernels.projection.reference import OUTPUTS, READS

GATES = ("none", "dense", "bucketed")
CROSS_LAYER = ("none", "recurrent", "parallel")
POSITIONS = ("shared", "layer")


@dataclass(frozen=True)
class Config:
    """Everything that decides a WeightFormer's parameters. The defaults are the paper's sizes (arXiv 2210.01973).

    width, heads, layers, feed_forward: of the encoder. norm: "post" or "pre". activation: of the feed-forward;
    embedding_activation: of the row embedding. dropout: of attention and residual branches while training.
    cross_tokens: tokens per layer that carry information between layers; cross_layer: how they do. "parallel" takes
    three blocks to bring one layer's rows to another's: cross tokens read their own rows, then earlier cross tokens,
    and are read in turn. "recurrent" takes one, but predicts layer after layer.
    gate: which learned gate multiplies the attention; gate_heads: one per head instead of one for all; buckets: entries
    of the bucketed gate per side of the diagonal; hard: the forward pass uses gate >= 1/2, the backward passes through.
    output, read: see wfkernels.projection. max_teachers: teacher codes kept; 0 for none (symmetric in the teachers).
    positions: "shared" gives neuron j one code in all layers, "layer" one per layer.
    head: index of a layer whose rows come in any order (the classes): they share one code and one row of the
    prior, so that the student has exactly the teachers' order of the classes; needs positions="layer".
    share_projections: layers of equal kind and width share their input and output products. recompute: see
    wfkernels.Settings.
    """

    width: int = 512
    heads: int = 8
    layers: int = 6
    feed_forward: int = 2048
    norm: str = "post"
    activation: str = "relu"
    embedding_activation: str = "none"
    dropout: float = 0.0
    cross_tokens: int = 1
    cross_layer: str = "parallel"
    gate: str = "bucketed"
    gate_heads: bool = False
    buckets: int = 16
    hard: bool = False
    output: str = "plain"
    read: str = "anchor"
    max_teachers: int = 8
    positions: str = "shared"
    head: int | None = None
    share_projections: bool = False
    recompute: str = "full"

    def __post_init__(self) -> None:
        for name, choices in (
            ("norm", ("pre", "post")),
            ("activation", ACTIVATIONS),
            ("embedding_activation", ACTIVATIONS),
            ("cross_layer", CROSS_LAYER),
            ("gate", GATES),
            ("output", OUTPUTS),
            ("read", READS),
            ("positions", POSITIONS),
            ("recompute", ("full", "none")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"Config: {name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("width", "heads", "layers", "feed_forward", "buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"Config: {name}: expected at least 1, got {getattr(self, name)}")
        for name in ("cross_tokens", "max_teachers"):
            if getattr(self, name) < 0:
                raise ValueError(f"Config: {name}: expected at least 0, got {getattr(self, name)}")
        for name in ("width", "heads", "layers", "feed_forward", "buckets", "cross_tokens", "max_teachers"):
            bounds.check_most("Config", name, getattr(self, name))
        if self.width % self.heads:
            raise ValueError(f"Config: heads: expected a divisor of width={self.width}, got {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Config: dropout: expected a probability in [0, 1), got {self.dropout}")
        if self.head is not None and self.positions != "layer":
            raise ValueError(f"Config: positions: expected 'layer', because head={self.head} has a code of its own")
        if self.output == "gated" and self.read != "mean":
            raise ValueError("Config: read: expected 'mean', because output='gated' reads every teacher's tokens")
        if self.gate == "dense" and not self.max_teachers:
            raise ValueError(
                "Config: max_teachers: expected at least 1, because gate='dense' has an entry for every pair"
            )
        if self.cross_layer == "recurrent" and not self.cross_tokens:
            raise ValueError("Config: cross_tokens: expected at least 1, because cross_layer='recurrent' hands them on")

    def but(self, **changes: Any) -> Config:
        """Return this configuration with some settings changed."""
        return replace(self, **changes)


# The encoder that was measured to work for students of some ten thousand parameters.
_SMALL = Config(
    width=64,
    heads=4,
    layers=2,
    feed_forward=128,
    norm="pre",
    activation="gelu",
    cross_tokens=0,
    cross_layer="none",
    gate="none",
    positions="layer",
    recompute="none",
)

PRESETS = {
    # The paper's form at the paper's size, and at the size of the small students.
    "paper": Config(gate="dense"),
    "paper-small": _SMALL.but(
        norm="post", activation="relu", cross_tokens=1, cross_layer="recurrent", gate="dense", positions="shared"
    ),
    # Teachers of independent seeds, aligned: a learned prior pulled towards the teachers' mean.
    "recipe": _SMALL.but(output="prior"),
    # Teachers that share their initialisation: their mean and a free correction.
    "shared-init": _SMALL.but(output="mean"),
    # Fine-tunes of one base: per-row gates over the task vectors and a free correction.
    "specialists": _SMALL.but(output="gated", read="mean", max_teachers=0, width=96, layers=3, feed_forward=192),
}


def preset(name: str) -> Config:
    """Return a preset by name; ValueError lists the names there are."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
