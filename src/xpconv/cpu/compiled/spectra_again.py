"""Tiles again, by products: those whose spectra have spread a value that is not finite."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xpconv.cpu.compiled import plane
from xpconv.cpu.compiled.call import Call
from xpconv.spec import Array, ConvSpec

_MOST = 4  # times what is computed again, that a result has at least: of fewer, all is computed at once


@dataclass(frozen=True)
class Place:
    """A tile's results: of an image and a channel those in some rows and columns."""

    image: int
    channel: int
    rows: slice
    columns: slice


def can(call: Call, places: list[Place]) -> bool:
    """Whether the tiles are few, and kernels that compute them are there."""
    spec = call.spec
    again = sum((at.rows.stop - at.rows.start) * (at.columns.stop - at.columns.start) for at in places)
    if _MOST * again > spec.batch * spec.channels * spec.out_size[0] * spec.out_size[1] or 0 in spec.size:
        return False
    ready = plane.is_ready(call.dtype, spec)
    return ready and all(plane.takes(call.dtype, _alone(spec, at), call.limit) for at in places)


def compute(call: Call, places: list[Place], x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Write the results of tiles to `y`."""
    spec = call.spec
    x = np.lib.stride_tricks.as_strided(x, (spec.batch, *spec.size, spec.channels), call.x_strides)
    y = np.lib.stride_tricks.as_strided(y, (spec.batch, *spec.out_size, spec.channels), call.y_strides)
    for at in places:
        part = _padded(call, x[at.image, ..., at.channel], at)[np.newaxis, ..., np.newaxis]
        one = slice(at.channel, at.channel + 1)
        alone = replace(call, spec=_alone(spec, at), x_strides=part.strides, fill=0.0)
        added = None if bias is None else bias.reshape(-1)[one]
        plane.Plane(alone)(part, w[..., one], added, y[at.image, at.rows, at.columns, one])


def _alone(spec: ConvSpec, at: Place) -> ConvSpec:
    """A tile as a convolution by itself, of what it reads of the padded plane."""
    out = (at.rows.stop - at.rows.start, at.columns.stop - at.columns.start)
    size = tuple(n + reach - 1 for n, reach in zip(out, spec.reach, strict=True))
    none = ((0, 0), (0, 0))
    return replace(spec, batch=1, size=size, channels=1, filters=1, groups=1, padding=none, padding_mode="zeros")


def _padded(call: Call, x: Array, at: Place) -> Array:
    """What a tile reads of a padded plane."""
    spans = zip(call.sources(call.spec), (at.rows, at.columns), call.spec.reach, strict=True)
    down, across = (sources[part.start : part.stop + reach - 1] for sources, part, reach in spans)
    part = x[np.ix_(down, across)]
    part[down < 0], part[:, across < 0] = call.fill, call.fill
    return part
