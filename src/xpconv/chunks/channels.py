"""Channels and filters in blocks: which of them meet in which chunk."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from xpconv.chunks.runs import Interval
from xpconv.spec import Sizes


class Maps(NamedTuple):
    """The channels and filters of one chunk."""

    channels: int
    filters: int
    groups: int


class Meeting(NamedTuple):
    """The filters of one chunk, and the channels that they read."""

    maps: Maps
    channels: Interval
    filters: Interval


def meetings(channels: Sizes, filters: Sizes, groups: int) -> tuple[Meeting, ...]:
    """Filters cut at their own edges and at those channel edges that lie between groups.

    A chunk of filters is a part of one group, or whole groups.
    """
    per_group, maps = channels[-1] // groups, filters[-1] // groups
    if not maps:
        return (Meeting(Maps(channels[-1], 0, groups), (0, channels[-1]), (0, 0)),)
    cuts = set(filters) | {edge // per_group * maps for edge in channels if per_group and edge % per_group == 0}
    for first, stop in pairwise(sorted(cuts)):
        if first // maps != (stop - 1) // maps:  # of several groups
            cuts |= {-(-first // maps) * maps, stop // maps * maps}
    return tuple(_meeting(first, stop, per_group, maps) for first, stop in pairwise(sorted(cuts)))


def _meeting(first: int, stop: int, per_group: int, maps: int) -> Meeting:
    start, end = first // maps, -(-stop // maps)  # of the groups
    read = (start * per_group, end * per_group)
    return Meeting(Maps(read[1] - read[0], stop - first, end - start), read, (first, stop))


def whole_groups(channels: int, filters: Sizes, groups: int) -> tuple[Meeting, ...]:
    """Channels and filters cut where an edge of the filters lies between groups."""
    per_group, maps = channels // groups, filters[-1] // groups
    cuts = sorted({0, groups} | {edge // maps for edge in filters if maps and edge % maps == 0})
    return tuple(
        Meeting(
            Maps((end - start) * per_group, (end - start) * maps, end - start),
            (start * per_group, end * per_group), (start * maps, end * maps),
        )
        for start, end in pairwise(cuts)
    )  # fmt: skip
