"""The definitions as plain loops over NumPy arrays, channels last: what every engine is held against.

Nothing here comes from xpconv. `pads` is one (before, after) per spatial axis, in elements.
"""

from __future__ import annotations

from itertools import product
from math import ceil, floor

import numpy as np


def named_pads(name, size, window, stride, dilation, flip):
    """(before, after) per axis of a padding's name, searched for rather than computed where the name says where."""
    return [_named_pad(name, n, m, s, d, flip) for n, m, s, d in zip(size, window, stride, dilation, strict=True)]


def _named_pad(name, n, m, s, d, flip):
    reach = (m - 1) * d + 1
    if name == "valid":
        return 0, 0
    if name == "full":
        return reach - 1, reach - 1
    if name == "same":
        centre = (m - 1) // 2
        before = next(p for p in range(reach) if offset_of(centre, m, flip) * d - p == 0)
        return before, reach - 1 - before
    total = max((ceil(n / s) - 1) * s + reach - n, 0)
    return (floor(total / 2), ceil(total / 2)) if name == "same_upper" else (ceil(total / 2), floor(total / 2))


def offset_of(k, m, flip):
    """Where in the window tap k of the kernel reads: from the far end when flipped."""
    return m - 1 - k if flip else k


def out_size(size, window, stride, dilation, pads):
    """floor((n + before + after - ((m - 1) d + 1)) / s) + 1, per axis."""
    axes = zip(size, window, stride, dilation, pads, strict=True)
    return tuple(floor((n + lo + hi - ((m - 1) * d + 1)) / s) + 1 for n, m, s, d, (lo, hi) in axes)


def padded(x, pads, mode="zeros", fill=0):
    """x (N, *size, C) with its spatial axes padded."""
    width = [(0, 0), *pads, (0, 0)]
    if mode in ("zeros", "constant"):
        return np.pad(x, width, constant_values=fill if mode == "constant" else 0)
    return np.pad(x, width, mode=mode)


def terms(size, window, stride, dilation, pads, flip):
    """Every (i, k, where): result position, kernel position, and the padded element they meet at."""
    for i in product(*map(range, out_size(size, window, stride, dilation, pads))):
        for k in product(*map(range, window)):
            axes = zip(i, k, window, stride, dilation, strict=True)
            yield i, k, tuple(a * s + offset_of(b, m, flip) * d for a, b, m, s, d in axes)


def conv(x, w, bias=None, *, flip, stride, dilation, pads, groups=1, mode="zeros", fill=0):
    """y[n, i, f] = sum over k, c of  x_padded[n, i s + o d, c] w[k, c, f],  o = m - 1 - k if flipped, else k."""
    size, window = x.shape[1:-1], w.shape[:-2]
    per_group, filters = w.shape[-2:]
    xs = padded(x, pads, mode, fill)
    shape = (x.shape[0], *out_size(size, window, stride, dilation, pads), filters)
    y = np.zeros(shape, dtype=np.result_type(x, w))
    for i, k, where in terms(size, window, stride, dilation, pads, flip):
        for n, f in product(range(x.shape[0]), range(filters)):
            first = f // (filters // groups) * per_group
            for c in range(per_group):
                y[(n, *i, f)] += xs[(n, *where, first + c)] * w[(*k, c, f)]
    return y if bias is None else y + bias


def conv_transpose(x, w, *, flip, stride, dilation, pads, extra, groups=1):
    """Every x[n, i, c] lays down w[k, f, c] at i s + o d; then the padding is cut off. None if that leaves nothing."""
    size, window = x.shape[1:-1], w.shape[:-2]
    per_group, channels = w.shape[-2:]
    axes = zip(size, window, stride, dilation, extra, strict=True)
    whole = tuple((n - 1) * s + (m - 1) * d + 1 + more for n, m, s, d, more in axes)
    if any(n - lo - hi < 1 for n, (lo, hi) in zip(whole, pads, strict=True)):
        return None
    y = np.zeros((x.shape[0], *whole, per_group * groups), np.result_type(x, w))
    for i, k in product(product(*map(range, size)), product(*map(range, window))):
        axes = zip(i, k, window, stride, dilation, strict=True)
        where = tuple(a * s + offset_of(b, m, flip) * d for a, b, m, s, d in axes)
        for n, c, f in product(range(x.shape[0]), range(channels), range(per_group)):
            group = c // (channels // groups)
            y[(n, *where, group * per_group + f)] += x[(n, *i, c)] * w[(*k, f, c)]
    return y[(slice(None), *(slice(lo, n - hi) for n, (lo, hi) in zip(whole, pads, strict=True)))]


def pool_out_size(size, window, stride, dilation, pads, ceil_mode):
    """Windows per axis; with ceil_mode also a last partial one, if it starts before the end padding."""
    result = []
    for n, m, s, d, (lo, hi) in zip(size, window, stride, dilation, pads, strict=True):
        whole = floor((n + lo + hi - ((m - 1) * d + 1)) / s) + 1
        if ceil_mode:
            whole = ceil((n + lo + hi - ((m - 1) * d + 1)) / s) + 1
            while (whole - 1) * s >= n + lo:
                whole -= 1
        result.append(whole)
    return tuple(result)


def pool_windows(size, window, stride, dilation, pads, ceil_mode):
    """Every result position with the positions its taps read, on the unpadded axes."""
    for i in product(*map(range, pool_out_size(size, window, stride, dilation, pads, ceil_mode))):
        taps = []
        for k in product(*map(range, window)):
            axes = zip(i, k, stride, dilation, pads, strict=True)
            taps.append(tuple(a * s + b * d - lo for a, b, s, d, (lo, _) in axes))
        yield i, taps


def inside(where, size, pads=None):
    """Whether a position lies on the axes, or on the padded axes."""
    pads = pads or [(0, 0)] * len(size)
    return all(-lo <= p < n + hi for p, n, (lo, hi) in zip(where, size, pads, strict=True))


def max_pool(x, *, window, stride, dilation, pads, ceil_mode=False):
    """Maximum of each window and its flat position; the first NaN wins, padding never does."""
    size = x.shape[1:-1]
    lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    shape = (x.shape[0], *pool_out_size(size, window, stride, dilation, pads, ceil_mode), x.shape[-1])
    y, indices = np.full(shape, lowest, x.dtype), np.full(shape, -1)
    for i, taps in pool_windows(size, window, stride, dilation, pads, ceil_mode):
        for n, c in product(range(x.shape[0]), range(x.shape[-1])):
            for where in filter(lambda p: inside(p, size), taps):
                best, value, here = y[(n, *i, c)], x[(n, *where, c)], (n, *i, c)
                if indices[here] < 0 or value > best or (value != value and best == best):
                    y[here], indices[here] = value, np.ravel_multi_index(where, size)
    return y, indices


def sum_pool(x, *, window, stride, dilation, pads, ceil_mode=False):
    """Sum of each window."""
    size = x.shape[1:-1]
    shape = (x.shape[0], *pool_out_size(size, window, stride, dilation, pads, ceil_mode), x.shape[-1])
    y = np.zeros(shape, x.dtype)
    for i, taps in pool_windows(size, window, stride, dilation, pads, ceil_mode):
        for where in filter(lambda p: inside(p, size), taps):
            y[(slice(None), *i)] += x[(slice(None), *where)]
    return y


def pool_counts(size, *, window, stride, dilation, pads, ceil_mode=False, include_padding=False):
    """Taps of each window that count."""
    counts = np.zeros(pool_out_size(size, window, stride, dilation, pads, ceil_mode))
    for i, taps in pool_windows(size, window, stride, dilation, pads, ceil_mode):
        counts[i] = sum(inside(where, size, pads if include_padding else None) for where in taps)
    return counts


def unfold(x, *, window, stride, dilation, pads):
    """patches[n, i, k, c] = x_padded[n, i s + k d, c]."""
    size, xs = x.shape[1:-1], padded(x, pads)
    shape = (x.shape[0], *out_size(size, window, stride, dilation, pads), *window, x.shape[-1])
    patches = np.zeros(shape, x.dtype)
    for i, k, where in terms(size, window, stride, dilation, pads, flip=False):
        patches[(slice(None), *i, *k)] = xs[(slice(None), *where)]
    return patches


def adaptive_spans(n, out):
    """The elements that each of `out` windows covers."""
    return [range(floor(i * n / out), ceil((i + 1) * n / out)) for i in range(out)]


def conv_by_taps(x, w, bias, *, flip, stride, dilation, pads, groups):
    """`conv` with the loop over taps alone, for sizes that plain loops take too long for."""
    window = w.shape[:-2]
    per_group, maps = x.shape[-1] // groups, w.shape[-1] // groups
    xs = padded(x, pads)
    out = out_size(x.shape[1:-1], window, stride, dilation, pads)
    y = np.zeros((x.shape[0], *out, w.shape[-1]), dtype=np.result_type(x, w))
    for k in product(*map(range, window)):
        axes = zip(k, window, stride, dilation, out, strict=True)
        cut = tuple(
            slice(offset_of(a, m, flip) * d, offset_of(a, m, flip) * d + (n - 1) * s + 1, s) for a, m, s, d, n in axes
        )
        for g in range(groups):
            taken = xs[(slice(None), *cut, slice(g * per_group, (g + 1) * per_group))]
            y[..., g * maps : (g + 1) * maps] += taken @ w[(*k, slice(None), slice(g * maps, (g + 1) * maps))]
    return y if bias is None else y + bias
