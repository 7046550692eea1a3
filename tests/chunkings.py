"""Dask arrays in random chunks, and calls that must not compute before they are asked to."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np


def cut(n, rng, most=4):
    """Random chunk sizes of one axis, of one element too."""
    sizes = []
    while n > 0:
        sizes.append(int(rng.integers(1, min(n, most) + 1)))
        n -= sizes[-1]
    return tuple(sizes) or (0,)


def in_chunks(array, rng, most=4):
    """A NumPy array as a Dask array in random chunks."""
    return da.from_array(array, chunks=tuple(cut(n, rng, most) for n in array.shape))


def _refuse(*_, **__):
    raise AssertionError("a graph was computed while it was built")


def lazily(function, *arrays, **options):
    """The lazy result of a call under a scheduler that raises."""
    with dask.config.set(scheduler=_refuse):
        return function(*arrays, **options)


def call(function, *arrays, rng, most=4, **options):
    """The function's result on arrays in random chunks: right as promised before it is computed, and chunk by chunk."""
    own = [in_chunks(a, rng, most) if isinstance(a, np.ndarray) and a.ndim else a for a in arrays]
    promised = lazily(function, *own, **options)
    return tuple(map(_computed, promised)) if isinstance(promised, tuple) else _computed(promised)


def _computed(promised):
    """A lazy array as NumPy's, put together from chunks that have the shape and the dtype that it told."""
    assert isinstance(promised, da.Array)
    assert all(size > 0 or sizes == (0,) for sizes in promised.chunks for size in sizes)
    keys = promised.to_delayed(optimize_graph=True)
    parts = iter(dask.compute(*keys.ravel().tolist(), scheduler="synchronous"))
    edges = [np.cumsum((0, *sizes)) for sizes in promised.chunks]
    whole = np.empty(promised.shape, promised.dtype)
    for place in np.ndindex(*promised.numblocks):
        part = next(parts)
        box = tuple(slice(edge[i], edge[i + 1]) for edge, i in zip(edges, place, strict=True))
        assert (part.shape, part.dtype) == (whole[box].shape, whole.dtype)
        whole[box] = part
    return whole
