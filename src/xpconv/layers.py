"""Layers to measure on: those of known networks by their names, and any other as a line of text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xpconv.spec import (
    ConvSpec,
    checked_layout,
    checked_padding_mode,
    conv_spec,
    one_of,
    padding_per_axis,
    per_axis,
    whole_number,
)

DTYPES = (
    "float32", "float16", "bfloat16", "float64", "complex64", "complex128",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
PRECISIONS = ("highest", "tf32")
GRADIENTS = ("input gradient", "weight gradient")
POOLINGS = ("max pool", "average pool", "global average")
POOLING_GRADIENTS = ("max pool gradient", "average pool gradient")
PLAIN = ("filter", "signal")  # one image or signal and one kernel, without batch and channels
OPERATIONS = ("conv", *GRADIENTS, *POOLINGS, *POOLING_GRADIENTS, *PLAIN)


@dataclass(frozen=True)
class Layer:
    """One layer of a network, channels last; networks correlate."""

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
    operation: str = "conv"  # what is done with it: one of OPERATIONS

    def spec(self, batch: int) -> ConvSpec:
        """The convolution of so many items."""
        axes = self.axes
        return conv_spec(
            (batch, *self.size, self.channels), self.w_shape, name="corr", axes=None, flip=False,
            stride=(self.stride,) * axes, padding=((self.padding, self.padding),) * axes,
            dilation=(self.dilation,) * axes, groups=self.groups, padding_mode="zeros", layout="channels_last",
        )[0]  # fmt: skip

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

    def __str__(self) -> str:
        return f"{self.network} {self.name}"


def _depthwise(size: int, channels: int, window: int, stride: int = 1, *, first: bool = False) -> Layer:
    name = f"{window}x{window} of {channels} maps, {size}x{size}{f', stride {stride}' if stride > 1 else ''}"
    return Layer(
        "depthwise", name, (size, size), channels, channels, window, stride, window // 2, groups=channels, first=first
    )


def _image(
    network: str, size: int, channels: int, filters: int, window: int, stride: int = 1, *, first: bool = False
) -> Layer:
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
    _depthwise(56, 144, 3, first=True),  # of MobileNet and its kind
    _depthwise(14, 512, 3, first=True),
    _depthwise(28, 240, 5, first=True),
    _depthwise(112, 32, 3),
    _depthwise(112, 64, 3, 2),
    _depthwise(56, 144, 5, 2),
    _depthwise(56, 96, 7),
    Layer("audio", "10 taps 1->512, 16000, stride 5", (16000,), 1, 512, 10, 5),
    Layer("audio", "3 taps 512->512, 3199, stride 2", (3199,), 512, 512, 3, 2, first=True),
    Layer("audio", "2 taps 64->64, 16000, dilation 64", (16000,), 64, 64, 2, dilation=64),
    Layer("volume", "3x3x3 64->128, 8x56x56", (8, 56, 56), 64, 128, 3, padding=1, first=True),
    Layer("volume", "3x3x3 32->32, 32x32x32", (32, 32, 32), 32, 32, 3, padding=1),
    Layer("LeNet", "5x5 1->6, 28x28", (28, 28), 1, 6, 5, padding=2),
    Layer("LeNet", "5x5 6->16, 14x14", (14, 14), 6, 16, 5, first=True),
    Layer("dilated", "3x3 256->256, 28x28, dilation 2", (28, 28), 256, 256, 3, padding=2, dilation=2, first=True),
    Layer("grouped", "3x3 256->256, 14x14, 32 groups", (14, 14), 256, 256, 3, padding=1, groups=32, first=True),
)


def _gradient(operation: str, layer: Layer, *, first: bool = False) -> Layer:
    name = f"{operation} of {layer.name}"
    return replace(layer, network="gradients", name=name, first=first, operation=operation)


def _pooling(
    operation: str, size: int, channels: int, window: int, stride: int = 1, padding: int = 0, *, first: bool = False
) -> Layer:
    how = operation if operation == "global average" else f"{operation} {window}x{window}, stride {stride}"
    name = f"{how}, {channels} maps, {size}x{size}"
    return Layer(
        "pooling", name, (size, size), channels, channels, window, stride, padding,
        groups=channels, first=first, operation=operation,
    )  # fmt: skip


def _filter(window: int, *, first: bool = False) -> Layer:
    name = f"{window}x{window} on 2048x2048"
    return Layer("filter", name, (2048, 2048), 1, 1, window, padding=window // 2, first=first, operation="filter")


# What is compared beside the layers that tuning takes: pooling, filters of one map, gradients.
MORE = (
    _pooling("max pool", 112, 64, 2, 2),
    _pooling("max pool", 112, 64, 3, 2, 1, first=True),
    _pooling("average pool", 56, 64, 3, 1, 1),
    _pooling("global average", 7, 2048, 7, first=True),
    _pooling("max pool gradient", 112, 64, 3, 2, 1, first=True),
    _pooling("average pool gradient", 112, 64, 3, 2, 1),
    _filter(3, first=True),
    _filter(5),
    _filter(11, first=True),
    _filter(31),
    _filter(101, first=True),
    Layer("signal", "31 taps on 1000000", (1_000_000,), 1, 1, 31, padding=15, first=True, operation="signal"),
    _gradient("input gradient", LAYERS[0], first=True),
    _gradient("input gradient", LAYERS[4]),
    _gradient("input gradient", LAYERS[7]),
    _gradient("weight gradient", LAYERS[0], first=True),
    _gradient("weight gradient", LAYERS[4]),
    _gradient("weight gradient", LAYERS[7]),
)


def named(names: Sequence[str], among: Sequence[Layer] = LAYERS) -> list[Layer]:
    """The layers that go by these names: a network's, a layer's, or "all"; without a name those that stand first.

    Examples
    --------
    >>> [str(layer) for layer in named(["volume"])]
    ['volume 3x3x3 64->128, 8x56x56', 'volume 3x3x3 32->32, 32x32x32']
    """
    if not names:
        return [layer for layer in among if layer.first]
    found = [layer for name in names for layer in _of_name(name, among)]
    return list(dict.fromkeys(found))


def _of_name(name: str, among: Sequence[Layer]) -> list[Layer]:
    wanted = name.strip().casefold()
    found = [layer for layer in among if wanted in ("all", layer.network.casefold(), str(layer).casefold())]
    if not found and any(wanted in (layer.network.casefold(), str(layer).casefold()) for layer in MORE):
        raise ValueError(f"--tune times convolutions, and {name!r} is none; without --tune bench measures it too")
    if not found:
        networks = ", ".join(dict.fromkeys(layer.network for layer in among))
        raise ValueError(
            f"no layer is called {name!r}; there are {networks}, each layer by itself as {str(among[0])!r}"
        )
    return found


# --- A layer in words -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """A convolution, and in what it is computed where the text says so."""

    spec: ConvSpec
    dtype: str | None
    precision: str | None


_FUNCTION = re.compile(r"(conv|corr)([123]d)?")
_INTEGERS = re.compile(r"-?\d+(,-?\d+)*")
_PAIRS = re.compile(r"\d+:\d+(,\d+:\d+)*")


def described(text: str) -> Described:
    """The convolution that a line describes: a function, then its arguments, arrays by their shapes.

    Raises
    ------
    ValueError
        in one line that names the part that is wrong

    Examples
    --------
    >>> layer = described("conv2d x=8,56,56,64 w=3,3,64,128 padding=1 dtype=float16")
    >>> layer.spec.y_shape, layer.dtype
    ((8, 56, 56, 128), 'float16')
    """
    function, *parts = text.split() or [""]
    match = _FUNCTION.fullmatch(function)
    if match is None:
        raise ValueError(
            f"{function!r} is no function to measure; begin with conv, conv1d, conv2d, conv3d or corr, ..."
        )
    given = _arguments(parts)
    if missing := [name for name in ("x", "w") if name not in given]:
        raise ValueError(f"{missing[0]} is missing; give its shape, as in {missing[0]}=8,56,56,64")
    x, w = given["x"], given["w"]
    axes = int(match[2][0]) if match[2] else max(len(w) - 2, 1)
    spec, _ = conv_spec(
        x, w, name=function, axes=int(match[2][0]) if match[2] else None, flip=match[1] == "conv",
        stride=per_axis("stride", given.get("stride", 1), axes),
        padding=padding_per_axis(given.get("padding", "valid"), axes),
        dilation=per_axis("dilation", given.get("dilation", 1), axes),
        groups=whole_number("groups", given.get("groups", 1)),
        padding_mode=given.get("padding_mode", "zeros"), layout=given.get("layout", "channels_last"),
    )  # fmt: skip
    return Described(spec, given.get("dtype"), given.get("precision"))


def _arguments(parts: Sequence[str]) -> dict[str, Any]:
    """The arguments by name, each read as what it is."""
    given: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in _READERS or not equals:
            raise ValueError(f"{part!r} is no argument here; there are {', '.join(f'{known}=' for known in _READERS)}")
        if name in given:
            raise ValueError(f"{part!r}: {name} is given twice")
        given[name] = _READERS[name](name, value)
    return given


def _integers(name: str, value: str) -> tuple[int, ...]:
    if not _INTEGERS.fullmatch(value):
        raise ValueError(f"{name}={value} is no list of integers; write them as in {name}=3,3")
    return tuple(map(int, value.split(",")))


def _shape(name: str, value: str) -> tuple[int, ...]:
    numbers = _integers(name, value)
    if min(numbers) < 1:
        raise ValueError(f"{name}={value} is no shape to measure on; every size is at least 1")
    return numbers


def _per_axis(name: str, value: str) -> int | tuple[int, ...]:
    numbers = _integers(name, value)
    return numbers[0] if len(numbers) == 1 else numbers


def _padding(name: str, value: str) -> Any:
    if _PAIRS.fullmatch(value):
        return tuple(tuple(map(int, pair.split(":"))) for pair in value.split(","))
    if _INTEGERS.fullmatch(value):
        return _per_axis(name, value)
    return value  # a name, which is read with the rest


_READERS: dict[str, Callable[[str, str], Any]] = {
    "x": _shape,
    "w": _shape,
    "stride": _per_axis,
    "padding": _padding,
    "dilation": _per_axis,
    "groups": _per_axis,
    "padding_mode": lambda _, value: checked_padding_mode(value),
    "layout": lambda _, value: checked_layout(value),
    "dtype": lambda name, value: one_of(name, value, DTYPES),
    "precision": lambda name, value: one_of(name, value, PRECISIONS),
}
