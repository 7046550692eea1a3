"""What is timed: layers of known networks, pooling, layout changes, filters; and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xpconv.layers import Layer

DIRECTIONS = ("forward", "input gradient", "weight gradient")
BATCHES = (64, 8, 1)
DTYPES = ("float32", "tf32", "float16", "bfloat16")

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
    from xpconv.layers import LAYERS

    image = replace(LAYERS[0], size=(6, 5), channels=8, filters=8)
    found = [Group("layer", "ResNet-50 (tiny stand-in)", 1, direction, image) for direction in DIRECTIONS]
    depthwise = replace(
        next(layer for layer in LAYERS if layer.depthwise), size=(6, 5), channels=4, filters=4, groups=4
    )
    found.append(Group("layer", "depthwise (tiny stand-in)", 1, "forward", depthwise))
    return [*found, Group("pooling", "max 2x2", 1), Group("layout", "to channels first", 1), Group("filter", "32 3")]


def _all() -> Iterator[Group]:
    from xpconv.layers import LAYERS  # not at the top: the driver runs without xpconv too

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
