"""What is measured: a layer, how many items of it, and in what it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from xpconv.layers import (
    GRADIENTS,
    LAYERS,
    MORE,
    PLAIN,
    POOLING_GRADIENTS,
    POOLINGS,
    Described,
    Layer,
    described,
    named,
)
from xpconv.spec import ConvSpec, one_of

ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
DTYPES = tuple(ITEMSIZE)
_INDEX = 8  # bytes


@dataclass(frozen=True)
class Case:
    """One layer to measure; tuples hold one entry per spatial axis. The layout is that of xpconv's arrays."""

    network: str
    name: str
    operation: str  # one of xpconv.layers.OPERATIONS
    batch: int  # 0: a plain signal or image, without batch and channels
    size: tuple[int, ...]
    channels: int
    filters: int
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # before and after
    dilation: tuple[int, ...]
    groups: int = 1
    dtype: str = "float32"
    layout: str = "channels_last"
    flip: bool = False  # whether xpconv is asked for a convolution, and not for a correlation

    @classmethod
    def of_layer(cls, layer: Layer, batch: int, dtype: str = "float32", layout: str = "channels_last") -> Case:
        """So many items of a named layer."""
        axes, plain = layer.axes, layer.operation in PLAIN
        return cls(
            layer.network, layer.name, layer.operation, 0 if plain else batch, layer.size, layer.channels,
            layer.filters, (layer.window,) * axes, (layer.stride,) * axes, ((layer.padding, layer.padding),) * axes,
            (layer.dilation,) * axes, layer.groups, dtype, "channels_last" if plain else layout,
            flip=layer.operation == "signal",
        )  # fmt: skip

    @classmethod
    def of_words(cls, text: str, said: Described, dtype: str) -> Case:
        """A layer in words; an image or a signal that one kernel filters is what it looks like."""
        spec = said.spec
        if spec.padding_mode != "zeros":
            raise ValueError(f"bench measures zero padding, and {text!r} asks for padding_mode={spec.padding_mode}")
        case = cls(
            "in words", text, "conv", spec.batch, spec.size, spec.channels, spec.filters, spec.window, spec.stride,
            spec.padding, spec.dilation, spec.groups, dtype, spec.layout, spec.flip,
        )  # fmt: skip
        operation = {1: "signal", 2: "filter"}.get(case.axes)
        return replace(case, operation=operation, batch=0) if operation and _is_filter(spec) else case

    @property
    def key(self) -> str:
        """Names it in a record, beside its device."""
        items = f" | N={self.batch}" if self.batch else ""
        return f"{self.network} | {self.name}{items} | {self.dtype} | {self.layout}"

    @property
    def axes(self) -> int:
        """Of the window."""
        return len(self.size)

    @property
    def plain(self) -> bool:
        """Whether it is an image or a signal alone."""
        return self.batch == 0

    @property
    def out_size(self) -> tuple[int, ...]:
        """The result's, or for gradients that of the layer itself."""
        axes = zip(self.size, self.padding, self.window, self.dilation, self.stride, strict=True)
        return tuple((n + sum(p) - (m - 1) * d - 1) // s + 1 for n, p, m, d, s in axes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Channels last."""
        return self.size if self.plain else (self.batch, *self.size, self.channels)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """(*window, C / groups, F), or the window alone."""
        return self.window if self.plain else (*self.window, self.channels // self.groups, self.filters)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Channels last; gradients read it where convolutions write it."""
        return self.out_size if self.plain else (self.batch, *self.out_size, self.filters)

    @property
    def operations(self) -> int | None:
        """Multiplications and additions of the definition; for pooling none are counted."""
        if is_pooling(self):
            return None
        return 2 * prod(self.y_shape) * prod(self.window) * (self.channels // self.groups)

    @property
    def bytes(self) -> int:
        """Inputs read once, the result written once; a maximum's gradient also reads its index."""
        weight = 0 if is_pooling(self) else prod(self.w_shape)
        indices = prod(self.y_shape) * _INDEX if self.operation == "max pool gradient" else 0
        return (prod(self.x_shape) + weight + prod(self.y_shape)) * ITEMSIZE[self.dtype] + indices


def _is_filter(spec: ConvSpec) -> bool:
    """One map, one kernel, and a result of the map's size with the kernel's centre on each of its elements."""
    ones = (spec.batch, spec.channels, spec.filters, *spec.stride, *spec.dilation)
    centred = all(m % 2 and p == (m // 2, m // 2) for m, p in zip(spec.window, spec.padding, strict=True))
    return set(ones) == {1} and centred


def cases(layers: Sequence[str], dtypes: Sequence[str], batches: Sequence[int], layouts: Sequence[str]) -> list[Case]:
    """The cases that the options ask for, layer by layer; without a layer those that stand for their networks.

    A layer in words says its own batch, layout and perhaps dtype.

    Raises
    ------
    ValueError
        in one line, for a layer or dtype that is not known
    """
    for dtype in dtypes:
        one_of("--dtype", dtype, DTYPES)
    found = (case for name in layers or [""] for case in _of_name(name, dtypes, batches, layouts))
    return list(dict.fromkeys(found))


def in_words(name: str) -> bool:
    """Whether a layer is described, and not called by its name."""
    return "=" in name


def _of_name(name: str, dtypes: Sequence[str], batches: Sequence[int], layouts: Sequence[str]) -> list[Case]:
    if in_words(name):
        said = described(name)
        own = [one_of("dtype", said.dtype, DTYPES)] if said.dtype else dtypes
        return [Case.of_words(name, said, dtype) for dtype in own]
    return [
        Case.of_layer(layer, batch, dtype, layout)
        for layer in named([name] if name else [], (*LAYERS, *MORE))
        for dtype in dtypes
        for batch in batches
        for layout in layouts
    ]


def is_pooling(case: Case) -> bool:
    """Whether it has windows and no weight."""
    return case.operation in (*POOLINGS, *POOLING_GRADIENTS)


def is_gradient(case: Case) -> bool:
    """Whether it is one of a convolution's two gradients."""
    return case.operation in GRADIENTS
