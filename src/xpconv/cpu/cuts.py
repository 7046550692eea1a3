"""Parts of a result along its first axes: where a limit cuts it, and a part in words, as plans tell it."""

from __future__ import annotations

from collections.abc import Sequence

from xpconv.spec import Sizes

SHORT_BYTES = 1 << 20  # of a row that is not cut: each part takes some calls


def along(rows: Sequence[int], limit: int) -> tuple[int, int]:
    """The first axis whose rows, of so many bytes, keep to a limit or are short, else the last, and what they keep to.

    A row of an axis is one place along it and along each before it, and all of the others.
    """
    enough = max(limit, SHORT_BYTES)
    axis = next((axis for axis, nbytes in enumerate(rows) if nbytes <= enough), len(rows) - 1)
    return axis, enough if axis else limit


def evenly(size: int, most: int) -> list[slice]:
    """As many places as `size` in the fewest parts of at most `most`, all but the last of one length."""
    if size == 0:
        return []
    each = -(-size // -(-size // most))
    return [slice(begin, min(begin + each, size)) for begin in range(0, size, each)]


def in_words(places: Sequence[slice], images: int, out_size: Sizes, kind: str = "images") -> str:
    """Of so many images, or other maps, some, and some places along the first axes, as in ``results[places]``."""
    some, rows, *more = (place.stop - place.start for place in places)
    axes = enumerate(zip(more, out_size[1:], strict=False), start=1)
    further = "".join(f", {count} of {n} along axis {axis}" for axis, (count, n) in axes)
    return f"{some} of {images} {kind}, {rows} of {out_size[0]} rows{further}"
