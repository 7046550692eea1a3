"""Flat positions in a plane, as max pooling returns them: whether those that come back lie in it."""

from __future__ import annotations

import math

from array_api_compat import array_namespace, is_cupy_array, is_dask_array

from xpconv.spec import Array


def check_inside(indices: Array, places: int, least: int) -> None:
    """Raise for an index outside the plane, wherever the values can be looked at."""
    if is_dask_array(indices) or math.prod(indices.shape) == 0:
        return
    xp = array_namespace(indices)
    try:
        lowest, highest = int(xp.min(indices)), int(xp.max(indices))
    except (TypeError, RuntimeError):
        if is_cupy_array(indices):
            raise  # the device's own error
        return  # traced by jax.jit or torch.vmap: there are no values yet
    if lowest < least or highest >= places:
        worst = highest if highest >= places else lowest
        raise ValueError(f"indices has {worst}, outside the plane of {places} elements that size gives")
