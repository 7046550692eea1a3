"""Which axis of a chunked result is which, and how the axes of what it is made from follow it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xpconv.chunks.channels import Maps
from xpconv.chunks.graph import Axis
from xpconv.chunks.runs import Interval, edges_of, intervals_of, part_of
from xpconv.spec import Array, Sizes

Sources = list[tuple[Array, tuple[Axis, ...]]]


class Places:
    """The places of batch, space and channels among the axes of feature maps, behind some that are summed over."""

    def __init__(self, layout: str, axes: int, leading: int = 0) -> None:
        order = in_maps(layout, 0, tuple(range(1, axes + 1)), axes + 1)
        place = {axis: leading + position for position, axis in enumerate(order)}
        self.layout, self.batch, self.channels = layout, place[0], place[axes + 1]
        self.space = tuple(place[axis] for axis in range(1, axes + 1))

    def maps(self, batch: Sizes, space: Iterable[Iterable[Any]], channels: Axis) -> tuple[Axis, ...]:
        """The axes of feature maps whose space is gathered as the readings of each spatial axis say."""
        along = tuple(
            Axis(place, tuple(reading.part for reading in readings))
            for place, readings in zip(self.space, space, strict=True)
        )
        return in_maps(self.layout, whole(self.batch, batch), along, channels)


def whole(place: int | None, sizes: Sizes) -> Axis:
    """Along an axis one block for each place of the result, or all of them for every place."""
    edges = edges_of(sizes)
    return parts(place, ((0, edges[-1]),) if place is None else intervals_of(edges), edges)


def parts(place: int | None, intervals: Iterable[Interval], edges: Sizes) -> Axis:
    """Along an axis one interval for each place of the result."""
    return Axis(place, tuple(part_of(first, stop, edges) for first, stop in intervals))


def in_maps(layout: str, batch: Any, space: tuple[Any, ...], channels: Any) -> tuple[Any, ...]:
    """Entries in the order of the axes of feature maps."""
    return (batch, *space, channels) if layout == "channels_last" else (batch, channels, *space)


def by_layout(layout: str, entries: Any) -> tuple[Any, Any, Any]:
    """What belongs to the batch, to the spatial axes and to the channels, of entries one per axis of feature maps."""
    if layout == "channels_last":
        return entries[0], entries[1:-1], entries[-1]
    return entries[0], entries[2:], entries[1]


def by_weight(layout: str, entries: Any) -> tuple[Any, Any, Any]:
    """What belongs to the window, to a group's channels and to the filters, of entries one per axis of a weight."""
    if layout == "channels_last":
        return entries[:-2], entries[-2], entries[-1]
    return entries[2:], entries[1], entries[0]


def weight(layout: str, window: tuple[Any, ...], channels: Any, filters: Any) -> tuple[Any, ...]:
    """Entries in the order of a weight's axes."""
    return (*window, channels, filters) if layout == "channels_last" else (filters, channels, *window)


def bias_axis(place: int, maps: tuple[Maps, ...], bias: Array) -> Axis:
    """The part of the bias that each chunk of filters adds."""
    return parts(place, intervals_of(edges_of(m.filters for m in maps)), edges_of(bias.chunks[0]))
