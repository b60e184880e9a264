"""Parts of a student that are predicted on their own: some of its layers, or a window of every layer's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wfkernels import Parameters, Settings
from wfkernels.layout import Layer, RowLayout


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `wfkernels.predict`."""

    layout: RowLayout
    rows: Tensor  # [sum(teachers) * row_numel]
    teachers: tuple[int, ...]
    parameters: Parameters
    settings: Settings

    def part(self, layers: Sequence[int], first: int = 0, dropped: int = 0) -> Call:
        """Return the call that predicts some layers alone, and of their n rows only first ... n - 1 - dropped + first.

        Position codes restart at the first of these rows.
        """
        whole, layout = self.parameters, self.layout
        copies = sum(self.teachers)
        projections = self.settings.projections or tuple(range(len(layout.layers)))
        positions = self.settings.positions or (0,) * len(layout.layers)
        used = sorted({projections[i] for i in layers})

        def rows_of(buffer: Tensor | None, networks: int = 1) -> Tensor | None:
            if buffer is None:
                return None
            blocks = buffer.split([networks * layer.rows * layer.stride for layer in layout.layers])
            windows = []
            for i in layers:
                n, stride = layout.layers[i].rows, layout.layers[i].stride
                windows.append(blocks[i].view(networks, n, stride)[:, first : first + n - dropped].flatten())
            return torch.cat(windows)

        def columns_of(buffer: Tensor) -> Tensor:
            slices = buffer.split([layer.stride for layer in layout.layers])
            return torch.cat([slices[i] for i in layers])

        def entries_of(tensor: Tensor | None, indices: Sequence[int]) -> Tensor | None:
            return None if tensor is None else torch.stack([tensor[i] for i in indices])

        rows = rows_of(self.rows, copies)
        assert rows is not None
        parameters = replace(
            whole,
            embedding_weights=[whole.embedding_weights[g] for g in used],
            embedding_biases=torch.stack([whole.embedding_biases[g] for g in used]),
            shift=columns_of(whole.shift),
            scale=columns_of(whole.scale),
            projection_weights=[whole.projection_weights[g] for g in used],
            projection_biases=[whole.projection_biases[g] for g in used],
            strength=torch.stack([whole.strength[i] for i in layers]),
            layer=entries_of(whole.layer, layers),
            base=rows_of(whole.base),
            center=rows_of(whole.center),
            built_on=rows_of(whole.built_on, copies),
            prior=rows_of(whole.prior),
            blend=entries_of(whole.blend, layers),
            gate_weight=entries_of(whole.gate_weight, used),
            gate_bias=entries_of(whole.gate_bias, used),
        )
        settings = replace(
            self.settings,
            projections=tuple(used.index(projections[i]) for i in layers),
            positions=tuple(positions[i] for i in layers),
        )
        shorter = RowLayout(tuple(_shorter(layout.layers[i], dropped) for i in layers))
        return Call(shorter, rows, self.teachers, parameters, settings)


def _shorter(layer: Layer, dropped: int) -> Layer:
    """Return a layer with fewer rows."""
    if not dropped:
        return layer
    n = layer.rows - dropped
    return replace(layer, rows=n, parameters=tuple(replace(p, shape=(n, p.width)) for p in layer.parameters))
