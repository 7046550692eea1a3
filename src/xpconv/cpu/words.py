"""A part of a result in words, as plans tell it."""

from __future__ import annotations

from collections.abc import Sequence

from xpconv.spec import Sizes


def part(places: Sequence[slice], images: int, out_size: Sizes, kind: str = "images") -> str:
    """Of so many images, or other maps, some, and some places along the first axes, as in ``results[places]``."""
    some, rows, *more = (place.stop - place.start for place in places)
    axes = enumerate(zip(more, out_size[1:], strict=False), start=1)
    further = "".join(f", {count} of {n} along axis {axis}" for axis, (count, n) in axes)
    return f"{some} of {images} {kind}, {rows} of {out_size[0]} rows{further}"
