"""The smallest training step that goes through every op: what `python -m wfkernels info` asks about."""

from __future__ import annotations

import torch

from wfkernels.layout import Layer, Parameter, RowLayout
from wfkernels.predict.api import predict
from wfkernels.predict.parameters import Block, Parameters, Settings
from wfkernels.rows.api import pack, unpack


def training_step(device: torch.device | str) -> None:
    """Pack two teachers of one linear layer, predict a student from them and send a gradient back."""
    rows, width, d = 3, 5, 8
    layer = Layer("head", "linear", rows, (Parameter("head.weight", (rows, width), 0, width),))
    layout = RowLayout((layer,))

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device=device, requires_grad=True)

    norm, ffn = (ones(d), ones(d)), 2 * d
    attention = (ones(3 * d, d), ones(3 * d), ones(d, d), ones(d))
    parameters = Parameters(
        embedding_weights=[ones(width, d)],
        embedding_biases=ones(1, d),
        shift=ones(layout.column_numel),
        scale=ones(layout.column_numel),
        position=ones(rows, d),
        gamma=ones(d),
        beta=ones(d),
        blocks=[Block(*norm, *attention, *norm, ones(ffn, d), ones(ffn), ones(d, ffn), ones(d))],
        projection_weights=[ones(d, width)],
        projection_biases=[ones(width)],
        strength=ones(1),
    )
    buffer = pack([[ones(rows, width)], [ones(rows, width)]], layout)
    student = predict(buffer, parameters, Settings(heads=2, cross_layer="none"), layout=layout.tokens([2]))
    assert isinstance(student, torch.Tensor)
    unpack(student[0], layout)["head.weight"].sum().backward()
