"""What results must be, in float64 by CuPy's own operations: tap by tap, with no kernel of xpconv's or torch's."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from xpconv.layers import Layer


_KEPT = 8  # channels of the result that are computed where all would take long
_ALL = 2e9  # products up to which all are


def as_float64(cupy: Any, array: Any) -> Any:
    """Any of our arrays in float64; bfloat16 by its bits."""
    if str(array.dtype) == "bfloat16":
        array = (cupy.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float64)


def error_of(cupy: Any, got: Any, wanted: Any) -> float:
    """The largest difference, of the largest element; NaN where there is one."""
    largest = float(cupy.abs(wanted).max())
    return float(f"{float(cupy.abs(got - wanted).max()) / (largest or 1.0):.3g}")


def convolution(cupy: Any, layer: Layer, direction: str, x: Any, w: Any, gy: Any) -> tuple[Any, Any]:
    """The result in some of its last axis' channels, and which."""
    x, w, gy = (as_float64(cupy, array) for array in (x, w, gy))
    count = layer.channels if direction == "input gradient" else layer.filters
    few = not layer.depthwise and layer.products(len(x)) > _ALL and count > _KEPT
    keep = np.unique(np.linspace(0, count - 1, _KEPT).astype(int)) if few else np.arange(count)
    chosen = slice(None) if not few else keep.tolist()
    make = {"forward": _forward, "input gradient": _input_gradient, "weight gradient": _weight_gradient}[direction]
    return make(cupy, layer, x, w, gy, chosen), chosen


def _cuts(layer: Layer) -> list[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Every tap, and the padded input's elements that meet it."""
    taps = product(range(layer.window), repeat=layer.axes)
    return [
        (
            tap,
            tuple(
                slice(k * layer.dilation, k * layer.dilation + (n - 1) * layer.stride + 1, layer.stride)
                for k, n in zip(tap, layer.out_size, strict=True)
            ),
        )
        for tap in taps
    ]


def _padded(cupy: Any, layer: Layer, x: Any) -> Any:
    side = (layer.padding, layer.padding)
    return cupy.pad(x, [(0, 0), *[side] * layer.axes, (0, 0)]) if layer.padding else x


def _forward(cupy: Any, layer: Layer, x: Any, w: Any, gy: Any, chosen: Any) -> Any:  # noqa: ARG001
    x, y = _padded(cupy, layer, x), None
    for tap, cut in _cuts(layer):
        part = x[(slice(None), *cut)]
        term = part * w[tap][0] if layer.depthwise else _times(part, w[tap][:, chosen])
        y = term if y is None else y + term
    return y


def _times(maps: Any, matrix: Any) -> Any:
    return (maps.reshape(-1, maps.shape[-1]) @ matrix).reshape(*maps.shape[:-1], matrix.shape[-1])


def _input_gradient(cupy: Any, layer: Layer, x: Any, w: Any, gy: Any, chosen: Any) -> Any:
    channels = layer.channels if isinstance(chosen, slice) else len(chosen)
    padded = [n + 2 * layer.padding for n in layer.size]
    gx = cupy.zeros((len(x), *padded, channels))
    for tap, cut in _cuts(layer):
        gx[(slice(None), *cut)] += gy * w[tap][0] if layer.depthwise else _times(gy, w[tap][chosen].T)
    inside = tuple(slice(layer.padding, layer.padding + n) for n in layer.size)
    return gx[(slice(None), *inside)]


def _weight_gradient(cupy: Any, layer: Layer, x: Any, w: Any, gy: Any, chosen: Any) -> Any:  # noqa: ARG001
    x = _padded(cupy, layer, x)
    columns = gy.reshape(-1, layer.filters)[:, chosen]
    gw = cupy.zeros((*(layer.window,) * layer.axes, layer.channels // layer.groups, columns.shape[-1]))
    for tap, cut in _cuts(layer):
        part = x[(slice(None), *cut)].reshape(-1, layer.channels)
        gw[tap] = (part * columns).sum(axis=0)[None] if layer.depthwise else part.T @ columns
    return gw


def pooling(cupy: Any, name: str, x: Any) -> Any:
    """A pooling of `layers.POOLINGS`."""
    x = as_float64(cupy, x)
    if name == "global average":
        return x.mean(axis=(1, 2), keepdims=True)
    window, stride = (3, 2) if name == "max 3x3, stride 2" else (2, 2)
    if window == 3:
        x = cupy.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    rows, columns = ((n - window) // stride + 1 for n in x.shape[1:3])
    parts = [
        x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i, j in product(range(window), repeat=2)
    ]
    result = parts[0]
    for part in parts[1:]:
        result = result + part if name == "average 2x2" else cupy.maximum(result, part)
    return result / 4 if name == "average 2x2" else result


def image_filter(cupy: Any, image: Any, window: Any) -> Any:
    """An image convolved with an odd window, to its own size, zeros around it."""
    image, window = as_float64(cupy, image), window.get().astype(np.float64)
    rows, columns = image.shape
    side = len(window) // 2
    wide = cupy.pad(image, side)
    result = cupy.zeros((rows, columns))
    for i, j in product(range(len(window)), repeat=2):
        result += window[len(window) - 1 - i, len(window) - 1 - j] * wide[i : i + rows, j : j + columns]
    return result
