"""Zeros between the elements of an array: the adjoint of a stride, and the taps of a dilated kernel."""

from __future__ import annotations

from array_api_compat import array_namespace, device

from xpconv.spec import Array, Sizes


def spread(x: Array, steps: Sizes, *, first_axis: int) -> Array:
    """x with its elements `steps` apart, one step per axis from `first_axis` on."""
    xp = array_namespace(x)
    for axis, step in enumerate(steps, start=first_axis):
        n = x.shape[axis]
        if step == 1 or n < 2:
            continue
        zeros = xp.zeros((*x.shape[: axis + 1], step - 1, *x.shape[axis + 1 :]), dtype=x.dtype, device=device(x))
        spaced = xp.concat((xp.expand_dims(x, axis=axis + 1), zeros), axis=axis + 1)
        spaced = xp.reshape(spaced, (*x.shape[:axis], n * step, *x.shape[axis + 1 :]))
        x = spaced[(slice(None),) * axis + (slice(0, (n - 1) * step + 1), ...)]
    return x
