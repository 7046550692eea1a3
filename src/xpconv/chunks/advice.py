"""The warning for chunks that are too small for their windows."""

from __future__ import annotations

import sys
import warnings

from xpconv.chunks.windows import Reading, advised_chunks, halo_factor
from xpconv.spec import ConvSpec, PoolSpec, Sizes

MOST = 1.5  # elements read for each element of the array: from here on the rest costs more than half of it


def advise(
    operation: str, spec: ConvSpec | PoolSpec, space: tuple[Sizes, ...], reads: tuple[tuple[Reading, ...], ...]
) -> None:
    """Warn where the chunks read more than `MOST` times what they hold, and say which chunks would not."""
    factor = halo_factor(reads, spec.size)
    if factor > MOST:
        warnings.warn(
            f"{operation} reads {factor:.1f} elements for each that x has, since its windows reach {spec.reach} "
            f"elements and chunks are {tuple(map(max, space))}; rechunk x to {advised_chunks(spec, MOST)} or more",
            stacklevel=_frames_of_ours(),
        )


def _frames_of_ours() -> int:
    """How far up the first frame is that does not belong to this package, as `warnings.warn` counts."""
    frame, count = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("xpconv."):
        frame, count = frame.f_back, count + 1
    return count
