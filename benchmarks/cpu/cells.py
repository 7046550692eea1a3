"""What is timed: layers of known networks, pooling, filters, gradients, float64, and calls with next to no work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xpconv.bench.cases import Case
from xpconv.layers import POOLING_GRADIENTS, Layer

GROUPS = ("conv", "lenet", "wide", "large", "pool", "filter", "grad", "float64", "overhead")


@dataclass(frozen=True)
class Cell:
    """A layer, how many items of it, and what is done; `kind` is its class in the summary."""

    group: str
    kind: str
    layer: Layer
    batch: int  # 0: a plain signal or image, without batch and channels
    operation: str = "conv"
    dtype: str = "float32"
    peers: tuple[str, ...] = ("torch", "onnxruntime")

    @property
    def key(self) -> str:
        """Names it in the record and for --cells."""
        words = (self.group, self.layer.name, f"N={self.batch}" if self.batch else "", self.dtype)
        return " | ".join(word for word in words if word)

    @property
    def case(self) -> Case:
        """What is measured."""
        return Case.of_layer(replace(self.layer, operation=self.operation), self.batch, self.dtype)


def cells(groups: tuple[str, ...] = GROUPS, substring: str = "") -> list[Cell]:
    """Those of the groups whose key holds the words."""
    made = {"conv": _conv, "lenet": _lenet, "pool": _pool, "filter": _filter, "grad": _grad, "float64": _float64}
    made |= {"wide": _wide, "large": _large, "overhead": _overhead}
    return [cell for group in groups if group in made for cell in made[group]() if substring in cell.key]


def _layer(name: str, size: int, channels: int, filters: int, window: int, *, axes: int = 2, **options: int) -> Layer:
    """With as much padding on both sides as "same" has at a stride of 1."""
    return _layer_of(name, (size,) * axes, channels, filters, window, **options)


def _layer_of(name: str, size: tuple[int, ...], channels: int, filters: int, window: int, **options: int) -> Layer:
    padding = options.pop("padding", (window - 1) * options.get("dilation", 1) // 2)
    return Layer("", name, size, channels, filters, window, padding=padding, **options)


NOT_DENSE = ("depthwise", "grouped")  # convolutions of which matrix products are not the most

# kind, name, size, channels, filters, window, options
CONVOLUTIONS = (
    ("stem", "7x7s2 3->64@224", 224, 3, 64, 7, {"stride": 2}),
    ("1x1", "1x1 64->64@56", 56, 64, 64, 1, {}),
    ("1x1", "1x1 64->256@56", 56, 64, 256, 1, {}),
    ("1x1", "1x1 512->2048@7", 7, 512, 2048, 1, {}),
    ("3x3 stride 1", "3x3 64@56", 56, 64, 64, 3, {}),
    ("3x3 stride 1", "3x3 128@28", 28, 128, 128, 3, {}),
    ("3x3 stride 1", "3x3 256@14", 14, 256, 256, 3, {}),
    ("3x3 stride 1", "3x3 512@7", 7, 512, 512, 3, {}),
    ("stride 2", "3x3s2 128@56", 56, 128, 128, 3, {"stride": 2}),
    ("3x3 stride 1", "VGG 3x3 64@224", 224, 64, 64, 3, {}),
    ("3x3 stride 1", "VGG 3x3 256@56", 56, 256, 256, 3, {}),
    ("depthwise", "depthwise 3x3 144@56", 56, 144, 144, 3, {"groups": 144}),
    ("depthwise", "depthwise 5x5 96@28", 28, 96, 96, 5, {"groups": 96}),
    ("dilated", "dilated 3x3 256@28", 28, 256, 256, 3, {"dilation": 2}),
    ("grouped", "grouped 32 3x3 256@14", 14, 256, 256, 3, {"groups": 32}),
    ("1-d", "1-d k9 128, 4096 long", 4096, 128, 128, 9, {"axes": 1}),
    ("3-d", "3-d 3x3x3 32@32", 32, 32, 32, 3, {"axes": 3}),
)
KINDS = ("3x3 stride 1", "dilated", "3-d", "1-d", "depthwise", "grouped", "1x1", "stem", "stride 2")


def _conv() -> Iterator[Cell]:
    for kind, *layer, options in CONVOLUTIONS:
        for batch in (1, 8):
            yield Cell("conv", kind, _layer(*layer, **options), batch)


def _lenet() -> Iterator[Cell]:
    for layer in (_layer("5x5 1->6@28", 28, 1, 6, 5), _layer("5x5 6->16@14", 14, 6, 16, 5, padding=0)):
        for batch in (1, 8, 32):
            yield Cell("lenet", "lenet", layer, batch)


WIDE = ("windows of 4 and 5", "such at stride 2", "input gradients at stride 2")


def _wide() -> Iterator[Cell]:
    """Windows of many channels that are wider than three, as generators and codecs of images have at stride 2."""
    plain, apart, gradients = WIDE
    layers = (
        (plain, _layer("4x4 128@28", 28, 128, 128, 4)),
        (plain, _layer("5x5 64@28", 28, 64, 64, 5)),
        (apart, _layer("4x4s2 64->128@56", 56, 64, 128, 4, stride=2)),
        (apart, _layer("5x5s2 192@32", 32, 192, 192, 5, stride=2)),
    )
    for kind, layer in layers:
        yield Cell("wide", kind, layer, 8)
    for _, layer in layers[2:]:
        named = replace(layer, name=f"input gradient {layer.name}")
        yield Cell("wide", gradients, named, 8, "input gradient", peers=("torch",))


LARGE = ("long rows", "volumes", "gradients of large arrays")


def _large() -> Iterator[Cell]:
    """Images of slides and from the air, and volumes of scanners and microscopes: a row of them fills the caches."""
    rows, volumes, gradients = LARGE
    layers = (
        (rows, _layer_of("3x3 64@64x4096", (64, 4096), 64, 64, 3)),
        (rows, _layer_of("3x3 16@2048x2048", (2048, 2048), 16, 16, 3)),
        (rows, _layer_of("5x5 3->16@2048x2048", (2048, 2048), 3, 16, 5)),
        (volumes, _layer_of("3x3x3 1->16@32x256x256", (32, 256, 256), 1, 16, 3)),
        (volumes, _layer_of("3x3x3 32@16x128x128", (16, 128, 128), 32, 32, 3)),
        (volumes, _layer_of("3x3x3 64@8x256x256", (8, 256, 256), 64, 64, 3)),
    )
    for kind, layer in layers:
        yield Cell("large", kind, layer, 1)
    for layer in (layers[0][1], layers[4][1]):
        named = replace(layer, name=f"weight gradient {layer.name}")
        yield Cell("large", gradients, named, 1, "weight gradient", peers=("torch",))


def _pool() -> Iterator[Cell]:
    shapes = (
        ("max pool", _layer("max 2x2s2 64@112", 112, 64, 64, 2, stride=2, padding=0)),
        ("max pool", _layer("max 3x3s2 64@112", 112, 64, 64, 3, stride=2)),
        ("average pool", _layer("average 3x3 64@56", 56, 64, 64, 3)),
        ("global average", _layer("global average 2048@7", 7, 2048, 2048, 7, padding=0)),
    )
    for operation, layer in shapes:
        for batch in (1, 8):
            yield Cell("pool", operation, replace(layer, groups=layer.channels), batch, operation)
    window = _layer("3x3s2 64@112", 112, 64, 64, 3, stride=2, groups=64)
    for operation in POOLING_GRADIENTS:
        layer = replace(window, name=f"{operation} {window.name}")
        yield Cell("pool", operation, layer, 8, operation, peers=("torch",))


def _filter() -> Iterator[Cell]:
    for window in (3, 5, 11, 31):
        layer = _layer(f"image 2048x2048, {window}x{window}", 2048, 1, 1, window)
        yield Cell("filter", "image", layer, 0, "filter", peers=("opencv", "scipy"))
    for dtype in ("float32", "float64"):
        layer = _layer("signal 1e6 x 31", 1_000_000, 1, 1, 31, axes=1)
        yield Cell("filter", "signal", layer, 0, "signal", dtype, peers=("scipy", "numpy"))


def _grad() -> Iterator[Cell]:
    for operation in ("input gradient", "weight gradient"):
        for cell in _conv():
            if cell.batch == 8 and cell.layer.name in ("3x3 64@56", "3x3 128@28", "3x3s2 128@56"):
                layer = replace(cell.layer, name=f"{operation} {cell.layer.name}")
                yield replace(cell, group="grad", kind=operation, layer=layer, operation=operation, peers=("torch",))


def _float64() -> Iterator[Cell]:
    for cell in _conv():
        if cell.batch == 8 and cell.layer.name in ("3x3 64@56", "1x1 64->256@56"):
            yield replace(cell, group="float64", kind="float64", dtype="float64", peers=("torch",))


SMALL = ("small signal", "small layer", "small pooling")


def _overhead() -> Iterator[Cell]:
    signal, convolution, pooling = SMALL
    for name, size, dtype in (("conv1d 50 x 5", 50, "float32"), ("conv1d 100 x 5", 100, "float64")):
        layer = _layer(name, size, 1, 1, 5, axes=1)
        yield Cell("overhead", signal, layer, 0, "signal", dtype, peers=("torch", "numpy"))
    small = _layer("conv2d 3x3 1->4@8", 8, 1, 4, 3)
    layers = (
        _layer("conv2d 3x3 8->8@8", 8, 8, 8, 3),
        _layer("conv2d 1x1 16->16@8", 8, 16, 16, 1),
        *(cell.layer for cell in _lenet() if cell.batch == 1),
    )
    for layer, dtype in ((small, "float32"), (small, "float64"), *((layer, "float32") for layer in layers)):
        yield Cell("overhead", convolution, layer, 1, dtype=dtype, peers=("torch",))
    for operation, name in (("max pool", "max 2x2s2 4@8"), ("average pool", "average 2x2s2 4@8")):
        layer = _layer(name, 8, 4, 4, 2, stride=2, padding=0, groups=4)
        yield Cell("overhead", pooling, layer, 1, operation, peers=("torch",))
