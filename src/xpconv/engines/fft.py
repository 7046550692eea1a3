"""Convolution as a product of spectra, on any library with the array API's `fft` extension.

Large windows cost far less this way. Real single precision is transformed in double, so the error stays near the
dtype's own; integers are rounded back, exact while the results stay below 2^53.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from scipy.fft import next_fast_len

from xpconv.dtypes import kind_of, own_dtype
from xpconv.engines.spacing import spread
from xpconv.spec import Array, ConvSpec


def conv(x: Array, w: Array, spec: ConvSpec) -> Array:
    """Result (N, *out, F) for padded `x` (N, *padded, C) and `w` (*window, C / groups, F)."""
    xp = array_namespace(x)
    axes = tuple(range(spec.axes))
    lengths = tuple(next_fast_len(n, real=True) for n in spec.padded_size)
    is_complex = kind_of(x) == "complex floating"
    work = own_dtype(xp, "complex128", "complex64") if is_complex else own_dtype(xp, "float64", "float32")
    forward, inverse = (xp.fft.fftn, xp.fft.ifftn) if is_complex else (xp.fft.rfftn, xp.fft.irfftn)
    x_spectrum = forward(xp.astype(x, work), s=lengths, axes=tuple(a + 1 for a in axes))
    w_spectrum = forward(_spread_kernel(xp.astype(w, work), spec, xp), s=lengths, axes=axes)
    y = inverse(_product(x_spectrum, w_spectrum, spec, xp), s=lengths, axes=tuple(a + 1 for a in axes))
    y = y[:, *_result_positions(spec), ...]
    if kind_of(x) == "integral":
        y = xp.astype(xp.round(y), own_dtype(xp, "int64", "int32"))  # the widest first, so that the last cast wraps
    return xp.astype(y, x.dtype)


def _spread_kernel(w: Array, spec: ConvSpec, xp: Any) -> Array:
    """The kernel as linear convolution reads it, with the dilation's zeros between its taps."""
    if not spec.flip:
        w = xp.flip(w, axis=tuple(range(spec.axes)))
    return spread(w, spec.dilation, first_axis=0)


def _product(x: Array, w: Array, spec: ConvSpec, xp: Any) -> Array:
    """Sum over the channels of a group, at every frequency."""
    batch, *frequencies, channels = x.shape
    groups, filters, per_group = spec.groups, spec.filters, channels // spec.groups
    w = xp.reshape(w, (*frequencies, per_group, groups, filters // groups))
    if per_group == 1:
        y = x[..., None] * w[..., 0, :, :]
    else:
        x = xp.moveaxis(xp.reshape(x, (batch, *frequencies, groups, per_group)), 0, -2)
        y = xp.moveaxis(x @ xp.moveaxis(w, -2, -3), -2, 0)
    return xp.reshape(y, (batch, *frequencies, filters))


def _result_positions(spec: ConvSpec) -> tuple[slice, ...]:
    """Where the windows' results lie in the linear convolution."""
    axes = zip(spec.reach, spec.out_size, spec.stride, strict=True)
    return tuple(slice(reach - 1, reach + (n - 1) * s, s) for reach, n, s in axes)
