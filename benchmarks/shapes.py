"""The students of the benchmarks: convolutions of known networks, as rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wfkernels.layout import Layer, Parameter, RowLayout

Convolution = tuple[int, int, int]  # output channels, input channels, side of the kernel


def vgg11_bn() -> RowLayout:
    """The 8 convolutions of torchvision's VGG-11 with BatchNorm, whose weights share the convolution's rows."""
    channels = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    return layout(((n, m, 3) for m, n in zip(channels, channels[1:], strict=False)), bias=True)


def resnet50() -> RowLayout:
    """The 53 convolutions of torchvision's ResNet-50, each with its BatchNorm."""
    found: list[Convolution] = [(64, 3, 7)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            found += [(width, inputs, 1), (width, width, 3), (4 * width, width, 1)]
            if block == 0:
                found.append((4 * width, inputs, 1))
            inputs = 4 * width
    return layout(found, bias=False)


def vit_b32() -> RowLayout:
    """The 50 products of torchvision's ViT-B/32, patches included; its norms and codes have next to no rows."""
    block = [(2304, 768, 1), (768, 768, 1), (3072, 768, 1), (768, 3072, 1)]
    return layout([(768, 3, 32), *block * 12, (1000, 768, 1)], bias=True, norm=False)


def layout(convolutions: Iterable[Convolution], bias: bool, norm: bool = True) -> RowLayout:
    """Return the layout of convolutions: a row is a filter, its bias, gain and offset of the BatchNorm behind it."""
    layers, others = [], ("bias",) * bias + ("gain", "offset") * norm
    for i, (rows, inputs, side) in enumerate(convolutions):
        widths = {"weight": inputs * side * side, **dict.fromkeys(others, 1)}
        parameters, start = [], 0
        for name, width in widths.items():
            shape = (rows, inputs, side, side) if name == "weight" else (rows,)
            parameters.append(Parameter(f"{i}.{name}", shape, start, width))
            start += width
        layers.append(Layer(str(i), "conv", rows, tuple(parameters)))
    return RowLayout(tuple(layers))


def reduced(full: RowLayout, rows: int, width: int) -> RowLayout:
    """Return a layout of as many layers and parameters, `rows` times fewer rows and weights `width` times narrower."""
    layers = []
    for layer in full.layers:
        n, start, parameters = -(-layer.rows // rows), 0, []
        for p in layer.parameters:
            narrow = -(-p.width // width)
            parameters.append(Parameter(p.name, (n, narrow), start, narrow))
            start += narrow
        layers.append(Layer(layer.name, layer.kind, n, tuple(parameters)))
    return RowLayout(tuple(layers))


def pairs(lengths: Sequence[int]) -> float:
    """Return how many pairs of tokens sequences of these lengths have."""
    return float(sum(n * n for n in lengths))
