"""What is timed: layers of known networks, pooling, layout changes, filters; and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

DIRECTIONS = ("forward", "input gradient", "weight gradient")
BATCHES = (64, 8, 1)
DTYPES = ("float32", "tf32", "float16", "bfloat16")


@dataclass(frozen=True)
class Layer:
    """One convolution, channels last."""

    network: str
    name: str
    size: tuple[int, ...]
    channels: int
    filters: int
    window: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    first: bool = False  # whether it stands for its network where time is short

    @property
    def axes(self) -> int:
        """Of the window."""
        return len(self.size)

    @property
    def out_size(self) -> tuple[int, ...]:
        """The result's."""
        reach = (self.window - 1) * self.dilation + 1
        return tuple((n + 2 * self.padding - reach) // self.stride + 1 for n in self.size)

    @property
    def depthwise(self) -> bool:
        """Whether every channel has filters of its own."""
        return self.groups > 1 and self.groups == self.channels

    @property
    def w_shape(self) -> tuple[int, ...]:
        """The weight's, (*window, C / groups, F)."""
        return (*(self.window,) * self.axes, self.channels // self.groups, self.filters)

    @property
    def options(self) -> dict[str, int]:
        """Of xpconv's call."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def elements(self, batch: int) -> int:
        """Of input, weight and result together."""
        x, y, w = self.channels * batch, self.filters * batch, 1
        for n, m in zip(self.size, self.out_size, strict=True):
            x, y = x * n, y * m
        for n in self.w_shape:
            w *= n
        return x + y + w

    def products(self, batch: int) -> int:
        """Multiplications that the definition takes."""
        count = batch * self.filters * self.channels // self.groups
        for n in self.out_size:
            count *= n * self.window
        return count


def _depthwise(network: str, size: int, channels: int, window: int, stride: int = 1, *, first: bool = False) -> Layer:
    name = f"{window}x{window} of {channels} maps, {size}x{size}{f', stride {stride}' if stride > 1 else ''}"
    return Layer(
        network, name, (size, size), channels, channels, window, stride, window // 2, groups=channels, first=first
    )


def _image(network: str, size: int, channels: int, filters: int, window: int, stride: int = 1, *, first=False) -> Layer:
    name = f"{window}x{window} {channels}->{filters}, {size}x{size}{f', stride {stride}' if stride > 1 else ''}"
    return Layer(network, name, (size, size), channels, filters, window, stride, window // 2, first=first)


LAYERS = (
    _image("ResNet-50", 56, 64, 64, 3, first=True),
    _image("ResNet-50", 14, 256, 256, 3, first=True),
    _image("ResNet-50", 56, 64, 256, 1, first=True),
    _image("ResNet-50", 224, 3, 64, 7, 2, first=True),
    _image("ResNet-50", 28, 128, 128, 3),
    _image("ResNet-50", 7, 512, 512, 3, first=True),
    _image("ResNet-50", 56, 256, 64, 1),
    _image("ResNet-50", 56, 128, 128, 3, 2),
    _image("ResNet-50", 14, 1024, 256, 1),
    _image("ResNet-50", 7, 512, 2048, 1),
    _image("ResNet-50", 56, 256, 512, 1, 2),
    _image("VGG-16", 112, 128, 128, 3, first=True),
    _image("VGG-16", 28, 512, 512, 3, first=True),
    _image("VGG-16", 224, 3, 64, 3),
    _image("VGG-16", 224, 64, 64, 3),
    _image("VGG-16", 56, 256, 256, 3),
    _image("VGG-16", 14, 512, 512, 3),
    _depthwise("depthwise", 56, 144, 3, first=True),
    _depthwise("depthwise", 14, 512, 3, first=True),
    _depthwise("depthwise", 28, 240, 5, first=True),
    _depthwise("depthwise", 112, 32, 3),
    _depthwise("depthwise", 112, 64, 3, 2),
    _depthwise("depthwise", 56, 144, 5, 2),
    _depthwise("depthwise", 56, 96, 7),
    Layer("audio", "10 taps 1->512, 16000, stride 5", (16000,), 1, 512, 10, 5),
    Layer("audio", "3 taps 512->512, 3199, stride 2", (3199,), 512, 512, 3, 2, first=True),
    Layer("audio", "2 taps 64->64, 16000, dilation 64", (16000,), 64, 64, 2, dilation=64),
    Layer("volume", "3x3x3 64->128, 8x56x56", (8, 56, 56), 64, 128, 3, padding=1, first=True),
    Layer("volume", "3x3x3 32->32, 32x32x32", (32, 32, 32), 32, 32, 3, padding=1),
)

POOLINGS = {  # name: size, channels
    "max 3x3, stride 2": (112, 64),
    "max 2x2": (56, 256),
    "average 2x2": (56, 256),
    "global average": (7, 2048),
}
LAYOUTS = {"to channels first": (56, 56, 256), "to channels last": (256, 56, 56)}
FILTERS = tuple((size, window) for size in (4096, 512) for window in (3, 5, 7, 11, 15, 31))


@dataclass(frozen=True)
class Group:
    """Cells that share arrays: a layer, a batch and a direction in every dtype; or something else by its name."""

    kind: str  # "layer", "pooling", "layout" or "filter"
    name: str
    batch: int = 0
    direction: str = "forward"
    layer: Layer | None = None

    @property
    def key(self) -> str:
        """Names it in the record."""
        return f"{self.kind} | {self.name} | N={self.batch} | {self.direction}"

    @property
    def rank(self) -> float:
        """The lower, the sooner."""
        if self.layer is None:
            return {64: 0.5, 8: 3.5, 1: 4.5, 0: 0.6}[self.batch]
        later = {"forward": 0, "input gradient": 1, "weight gradient": 1}[self.direction]
        return (0 if self.layer.first else 3) + later + {64: 0, 8: 2, 1: 3}[self.batch]


def groups() -> list[Group]:
    """All, the most important first."""
    return sorted(_all(), key=lambda group: group.rank)


def tiny() -> list[Group]:
    """A few of the smallest, to run through where nothing is measured."""
    image = replace(LAYERS[0], size=(6, 5), channels=8, filters=8)
    found = [Group("layer", "ResNet-50 (tiny stand-in)", 1, direction, image) for direction in DIRECTIONS]
    depthwise = replace(
        next(layer for layer in LAYERS if layer.depthwise), size=(6, 5), channels=4, filters=4, groups=4
    )
    found.append(Group("layer", "depthwise (tiny stand-in)", 1, "forward", depthwise))
    return [*found, Group("pooling", "max 2x2", 1), Group("layout", "to channels first", 1), Group("filter", "32 3")]


def _all() -> Iterator[Group]:
    for layer in LAYERS:
        for batch in BATCHES:
            for direction in DIRECTIONS:
                yield Group("layer", f"{layer.network} {layer.name}", batch, direction, layer)
    for kind, names in (("pooling", POOLINGS), ("layout", LAYOUTS)):
        for name in names:
            for batch in BATCHES:
                yield Group(kind, name, batch)
    for size, window in FILTERS:
        yield Group("filter", f"{size} {window}")
