"""What the tasks of a scattering do: values travel in buckets, each with its destination, until they are put."""

from __future__ import annotations

from math import prod
from typing import TypeAlias

from array_api_compat import array_namespace, device

from xpconv.chunks.runs import Interval
from xpconv.chunks.work import computed, zeros
from xpconv.dispatch import agnostic_engine
from xpconv.indices import check_inside
from xpconv.spec import Array, ScatterSpec, Sizes, in_layout

# One entry per value: the chunk of the plane that it goes to, its position there, its rank among the values, itself.
Bucket: TypeAlias = tuple[Array, Array, Array, Array]


def split(
    values: Array, indices: Array, *, spec: ScatterSpec, cuts: tuple[Sizes, ...], starts: Sizes, least: int
) -> Bucket:
    """A chunk of values as a bucket; `starts` is where the chunk begins on each axis of the values' plane."""
    check_inside(indices, prod(spec.size), least)
    agnostic = agnostic_engine()
    values, indices = (agnostic.channels_last(a, spec.layout) for a in (values, indices))
    xp, where = array_namespace(indices), device(indices)
    batch, *out, channels = indices.shape

    def along(axis: int, start: int, count: int) -> Array:
        """Positions along one axis, shaped to broadcast against the values."""
        positions = xp.arange(start, start + count, dtype=indices.dtype, device=where)
        return xp.reshape(positions, (*(1,) * axis, count, *(1,) * (indices.ndim - axis - 1)))

    rank = xp.zeros_like(indices)
    for axis, (start, count, full) in enumerate(zip(starts, out, spec.out_size, strict=True), start=1):
        rank = rank * full + along(axis, start, count)
    chunk, place, plane = _destination(xp.maximum(indices, xp.zeros_like(indices)), spec.size, cuts)
    place = (along(0, 0, batch) * plane + place) * channels + along(len(out) + 1, 0, channels)
    kept = indices >= 0
    return chunk[kept], place[kept], rank[kept], values[kept]


def _destination(indices: Array, size: Sizes, cuts: tuple[Sizes, ...]) -> tuple[Array, Array, Array]:
    """Of flat positions in a plane the chunk that holds them, the flat positions in that chunk, and its size."""
    xp = array_namespace(indices)
    positions, rest = [], indices
    for n in reversed(size):
        positions.append(rest % max(n, 1))
        rest = rest // max(n, 1)
    chunk, place, plane = xp.zeros_like(indices), xp.zeros_like(indices), xp.ones_like(indices)
    for position, cut in zip(reversed(positions), cuts, strict=True):
        edges = xp.asarray(cut, dtype=indices.dtype, device=device(indices))
        block = xp.searchsorted(edges[1:-1], position, side="right")
        extent = edges[block + 1] - edges[block]
        chunk, place = chunk * (len(cut) - 1) + block, place * extent + position - edges[block]
        plane = plane * extent
    return chunk, place, plane


def exchange(*buckets: Bucket, width: int, base: int, digit: int) -> Bucket:
    """The values of all buckets whose destination has this digit at the place of `width`."""
    kept = [[entry[chunk // width % base == digit] for entry in (chunk, *rest)] for chunk, *rest in buckets]
    xp = array_namespace(kept[0][0])
    chunk, place, rank, values = (xp.concat(entries) for entries in zip(*kept, strict=True))
    return chunk, place, rank, values


def put(
    bucket: Bucket, *, operation: str, spec: ScatterSpec, box: tuple[Interval, ...], batch: int, channels: int
) -> Array:
    """One chunk of the plane, with the values that came to it, in their order in the whole array."""
    _, place, rank, values = bucket
    xp = array_namespace(values)
    size = tuple(stop - start for start, stop in box)
    shape, count = (batch, *size, channels), values.shape[0]
    if not count:
        return zeros(in_layout(spec.layout, batch, size, channels), values)
    order = xp.argsort(rank, stable=True)
    flat = ScatterSpec("channels_last", 1, 1, (count,), (prod(shape),))
    parts = tuple(xp.reshape(a[order], (1, count, 1)) for a in (values, place))
    return agnostic_engine().as_layout(xp.reshape(computed(operation, parts, flat, {}), shape), spec.layout)
