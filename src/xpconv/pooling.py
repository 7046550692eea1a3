"""The pooling family: what a call means, handed to the array's engine."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace, is_cupy_array, is_numpy_array

from xpconv.dispatch import arrays_of
from xpconv.dtypes import index_dtype, kind_of
from xpconv.indices import check_inside
from xpconv.request import Request
from xpconv.spec import (
    Array,
    Form,
    Layout,
    Padding,
    PerAxis,
    PoolSpec,
    adaptive_spec,
    avg_pool_grad_spec,
    axes_of,
    checked_layout,
    global_axes,
    padding_per_axis,
    per_axis,
    pool_spec,
    scatter_spec,
)
from xpconv.variants import Variant, public

# --- Windows ----------------------------------------------------------------------------------------------------------


def _max_pool(
    variant: Variant,
    x: Array,
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    layout: Layout = "channels_last",
) -> Request:
    """Take the $extreme of each window of `x`$over.

    ``y[i] = $extreme over k of x[i * stride + k * dilation - before]``. Padding never wins: a window of nothing but
    padding gives $nothing. NaN always wins.

    Parameters
    ----------
    $parameters
    return_indices : bool
        Also return where each value lies: its flat position in the unpadded spatial plane, as in PyTorch; of equal
        values the first, of NaN the first; -1 for a window of nothing but padding.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *out, C) and x's dtype
        out = floor((size + before + after - ((window - 1) * dilation + 1)) / stride) + 1.
    array of the same shape, int64
        With `return_indices`.

    Raises
    ------
    ValueError
        For shapes and values; a window that does not fit the padded input is one.
    TypeError
        For bool, object and complex arrays.

    Examples
    --------
    $example
    """
    (x,) = arrays_of(variant.name, x=x)
    _require_order(variant.name, x)
    spec, form = _geometry(variant, x, window, stride, padding, dilation, ceil_mode, layout)
    options = {"return_indices": return_indices}
    if variant.flip:
        return Request(
            "max_pool", _mirrored_arrays(x), spec, options, lift=(form.x,), drop=form.y, then=_mirrored_values,
            source=(x,), make=_mirrored_arrays,
        )  # fmt: skip
    return Request("max_pool", (x,), spec, options, lift=(form.x,), drop=form.y)


def _mirrored(x: Array) -> Array:
    """x in the opposite order, without loss: ``-x``, and ``-x - 1`` for integers, whose smallest has no negative."""
    return ~x if kind_of(x) == "integral" else -x


def _mirrored_arrays(x: Array) -> tuple[Array]:
    """What a minimum is the maximum of."""
    return (_mirrored(x),)


def _mirrored_values(result: Any) -> Any:
    """The values mirrored back; the indices, if there are any, stay."""
    return (_mirrored(result[0]), result[1]) if isinstance(result, tuple) else _mirrored(result)


def _sum_pool(
    variant: Variant,
    x: Array,
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    layout: Layout = "channels_last",
) -> Request:
    """Add up each window of `x`$over.

    ``y[i] = sum over k of x[i * stride + k * dilation - before]``, in x's dtype; integers wrap.

    Parameters
    ----------
    $parameters
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *out, C) and x's dtype

    Examples
    --------
    $example
    """
    (x,) = arrays_of(variant.name, x=x)
    spec, form = _geometry(variant, x, window, stride, padding, dilation, ceil_mode, layout)
    return Request("sum_pool", (x,), spec, lift=(form.x,), drop=form.y)


def _avg_pool(
    variant: Variant,
    x: Array,
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    divisor: float | None = None,
    layout: Layout = "channels_last",
) -> Request:
    """Take the mean of each window of `x`$over.

    ``y[i] = sum over k of x[i * stride + k * dilation - before] / count[i]``. A window of nothing but padding, whose
    count is 0, gives NaN.

    Parameters
    ----------
    $parameters
    count_include_pad : bool
        Whether padding counts; what `ceil_mode` reads beyond the padding never does.
    divisor : number, optional
        Divide by this instead of by the count.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *out, C) and x's dtype; the library's default float dtype for integers

    Examples
    --------
    $example
    """
    (x,) = arrays_of(variant.name, x=x)
    spec, form = _geometry(variant, x, window, stride, padding, dilation, ceil_mode, layout)
    options = {"count_include_pad": bool(count_include_pad), "divisor": _checked_divisor(divisor)}
    return Request("avg_pool", (_as_float(x),), spec, options, lift=(form.x,), drop=form.y)


def _lp_pool(
    variant: Variant,
    x: Array,
    window: PerAxis,
    *,
    p: float = 2,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    layout: Layout = "channels_last",
) -> Request:
    """Take the p-norm of each window of `x`$over.

    ``y[i] = (sum over k of |x[i * stride + k * dilation - before]|^p)^(1/p)``.

    Parameters
    ----------
    $parameters
    p : positive number
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *out, C) and x's dtype; real for complex `x`, the default float dtype for integers

    Examples
    --------
    $example
    """
    (x,) = arrays_of(variant.name, x=x)
    p = p.item() if hasattr(p, "item") else p
    if not (isinstance(p, (int, float)) and 0 < p < math.inf):
        raise ValueError(f"p must be positive and finite, got p={p!r}; for the maximum take max_pool of |x|")
    spec, form = _geometry(variant, x, window, stride, padding, dilation, ceil_mode, layout)
    return Request("lp_pool", (_as_float(x),), spec, {"p": p}, lift=(form.x,), drop=form.y)


# --- Whole maps, and wanted sizes -------------------------------------------------------------------------------------


def _global_max_pool(
    variant: Variant, x: Array, *, keepdims: bool = False, layout: Layout = "channels_last"
) -> Request:
    """Take the maximum of every map.

    Parameters
    ----------
    x : array of shape (N, *size, C)
    keepdims : bool
        Keep the spatial axes, one long.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, C), or (N, 1, ..., 1, C) with `keepdims`, and x's dtype

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.arange(8.0).reshape(1, 2, 2, 2)).tolist()
    [[6.0, 7.0]]
    """
    (x,) = arrays_of(variant.name, x=x)
    _require_order(variant.name, x)
    axes = global_axes(tuple(x.shape), name=variant.name, layout=checked_layout(layout))
    return Request("global_max_pool", (x,), axes, {"keepdims": bool(keepdims)})


def _global_avg_pool(
    variant: Variant, x: Array, *, keepdims: bool = False, layout: Layout = "channels_last"
) -> Request:
    """Take the mean of every map.

    Parameters
    ----------
    x : array of shape (N, *size, C)
    keepdims : bool
        Keep the spatial axes, one long.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, C), or (N, 1, ..., 1, C) with `keepdims`; integers give the default float dtype

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.arange(8.0).reshape(1, 2, 2, 2)).tolist()
    [[3.0, 4.0]]
    """
    (x,) = arrays_of(variant.name, x=x)
    axes = global_axes(tuple(x.shape), name=variant.name, layout=checked_layout(layout))
    return Request("global_avg_pool", (_as_float(x),), axes, {"keepdims": bool(keepdims)})


def _adaptive_max_pool(
    variant: Variant, x: Array, size: PerAxis, *, return_indices: bool = False, layout: Layout = "channels_last"
) -> Request:
    """Take the maximum of windows that divide `x` into a wanted size.

    Window i covers the elements from floor(i n / size) up to, not including, ceil((i + 1) n / size), as in PyTorch.

    Parameters
    ----------
    x : array of shape (N, *n, C), or (*n, C)
    size : int or one int per spatial axis
        A single int means as many spatial axes as `x` has with a batch axis.
    return_indices : bool
        Also return the flat position of each value in its plane.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *size, C) and x's dtype; with `return_indices` also an int64 array of that shape

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.arange(5.0).reshape(1, 5, 1), 2).ravel().tolist()
    [2.0, 4.0]
    """
    (x,) = arrays_of(variant.name, x=x)
    _require_order(variant.name, x)
    spec, form = _adaptive_geometry(variant, x, size, layout)
    return Request("adaptive_max_pool", (x,), spec, {"return_indices": return_indices}, lift=(form.x,), drop=form.y)


def _adaptive_avg_pool(variant: Variant, x: Array, size: PerAxis, *, layout: Layout = "channels_last") -> Request:
    """Take the mean of windows that divide `x` into a wanted size.

    Window i covers the elements from floor(i n / size) up to, not including, ceil((i + 1) n / size), as in PyTorch.

    Parameters
    ----------
    x : array of shape (N, *n, C), or (*n, C)
    size : int or one int per spatial axis
        A single int means as many spatial axes as `x` has with a batch axis.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *size, C) and x's dtype; the library's default float dtype for integers

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.arange(5.0).reshape(1, 5, 1), 2).ravel().tolist()
    [1.0, 3.0]
    """
    (x,) = arrays_of(variant.name, x=x)
    spec, form = _adaptive_geometry(variant, x, size, layout)
    return Request("adaptive_avg_pool", (_as_float(x),), spec, lift=(form.x,), drop=form.y)


# --- Back to the input ------------------------------------------------------------------------------------------------


def _max_unpool(
    variant: Variant, y: Array, indices: Array, *, size: PerAxis, layout: Layout = "channels_last"
) -> Request:
    """Put every value at its index in a plane of zeros.

    ``x[n, indices[n, i, c], c] = y[n, i, c]``; of values that share an index the last counts.

    Parameters
    ----------
    y, indices : arrays of shape (N, *out, C), (*out, C) or (*out,)
        As `max_pool` returns them with ``return_indices=True``.
    size : int or one int per spatial axis
        Spatial sizes of the plane. A single int means as many spatial axes as `y` has with a batch axis.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *size, C) and y's dtype

    Raises
    ------
    ValueError
        For an index outside the plane, wherever the values can be looked at: not under `jax.jit`; of a lazy Dask
        array when it is computed.

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.full((1, $ones 1), 5.0), np.full((1, $ones 1), 2), size=$size).ravel().tolist()
    $plane
    """
    return _scatter(variant, "max_unpool", "y", y, indices, size, layout)


def _max_pool_grad(
    variant: Variant, gy: Array, indices: Array, *, size: PerAxis, layout: Layout = "channels_last"
) -> Request:
    """Take the gradient of `max_pool`, or of `min_pool`, back to its input.

    ``gx[n, indices[n, i, c], c] += gy[n, i, c]``; windows of nothing but padding, index -1, give nothing. An index
    outside the plane raises; of CuPy arrays, where looking would make the host wait for the device, it gives nothing.

    Parameters
    ----------
    gy, indices : arrays of shape (N, *out, C), (*out, C) or (*out,)
        The gradient, and the indices that ``return_indices=True`` gave.
    size : int or one int per spatial axis
        Spatial sizes of the input. A single int means as many spatial axes as `gy` has with a batch axis.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *size, C) and gy's dtype

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.ones((2, 1)), np.array([[1], [1]]), size=(3,)).ravel().tolist()
    [0.0, 2.0, 0.0]
    """
    return _scatter(variant, "max_pool_grad", "gy", gy, indices, size, layout)


def _avg_pool_grad(
    variant: Variant,
    gy: Array,
    window: PerAxis,
    *,
    size: PerAxis,
    stride: PerAxis | None = None,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    divisor: float | None = None,
    layout: Layout = "channels_last",
) -> Request:
    """Take the gradient of `avg_pool` back to its input: each window shares its gradient out evenly.

    Parameters
    ----------
    gy : array of shape (N, *out, C), (*out, C) or (*out,)
    window, stride, padding, dilation, ceil_mode, count_include_pad, divisor, layout
        Of the forward call.
    size : int or one int per spatial axis
        Spatial sizes of the input.

    Returns
    -------
    array of shape (N, *size, C) and gy's dtype

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.ones((1, 2, 1)), 2, size=4).ravel().tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    (gy,) = arrays_of(variant.name, gy=gy)
    axes = _axes(variant, gy, window)
    windows = per_axis("window", window, axes)
    spec, form = avg_pool_grad_spec(
        tuple(gy.shape),
        name=variant.name,
        size=per_axis("size", size, axes, least=0),
        window=windows,
        stride=windows if stride is None else per_axis("stride", stride, axes),
        padding=padding_per_axis(padding, axes),
        dilation=per_axis("dilation", dilation, axes),
        ceil_mode=bool(ceil_mode),
        layout=checked_layout(layout),
    )
    options = {"count_include_pad": bool(count_include_pad), "divisor": _checked_divisor(divisor)}
    return Request("avg_pool_grad", (_as_float(gy),), spec, options, lift=(form.x,), drop=form.y)


# --- Shared by the bodies ---------------------------------------------------------------------------------------------


def _axes(variant: Variant, x: Array, window: PerAxis) -> int:
    """Spatial axes: fixed by the name, else told by the window, else all between batch and channels."""
    return variant.axes or axes_of(window, x.ndim)


def _geometry(
    variant: Variant,
    x: Array,
    window: PerAxis,
    stride: PerAxis | None,
    padding: Padding,
    dilation: PerAxis,
    ceil_mode: bool,
    layout: Layout,
) -> tuple[PoolSpec, Form]:
    axes = _axes(variant, x, window)
    windows = per_axis("window", window, axes)
    return pool_spec(
        tuple(x.shape),
        name=variant.name,
        window=windows,
        stride=windows if stride is None else per_axis("stride", stride, axes),
        padding=padding_per_axis(padding, axes),
        dilation=per_axis("dilation", dilation, axes),
        ceil_mode=bool(ceil_mode),
        layout=checked_layout(layout),
        plain=True,
    )


def _adaptive_geometry(variant: Variant, x: Array, size: PerAxis, layout: Layout) -> tuple[Any, Form]:
    sizes = per_axis("size", size, _axes(variant, x, size))
    return adaptive_spec(tuple(x.shape), name=variant.name, size=sizes, layout=checked_layout(layout))


def _scatter(
    variant: Variant, operation: str, argument: str, values: Array, indices: Array, size: PerAxis, layout: Layout
) -> Request:
    values, indices = arrays_of(variant.name, **{argument: values, "indices": indices})
    if kind_of(indices) != "integral":
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    sizes = per_axis("size", size, _axes(variant, values, size), least=0)
    shapes = tuple(values.shape), tuple(indices.shape)
    spec, form = scatter_spec(*shapes, name=variant.name, argument=argument, size=sizes, layout=checked_layout(layout))
    looks = operation == "max_unpool" or not _is_looked_at_later(indices)
    if looks:
        check_inside(indices, math.prod(sizes), least=0 if operation == "max_unpool" else -1)
    xp = array_namespace(indices)
    indices = xp.astype(indices, index_dtype(xp), copy=False)  # a narrow one cannot count the plane
    return Request(operation, (values, indices), spec, lift=(form.x, form.x), drop=form.y, by_value=looks)


def _is_looked_at_later(indices: Array) -> bool:
    """Whether an engine that adds gradients at them sees to indices outside the plane.

    On a GPU, whose host would wait at every training step, it leaves them out. NumPy's raises as it adds; it does not
    know of unsigned indices that wrap as they are cast.
    """
    return is_cupy_array(indices) or (is_numpy_array(indices) and indices.dtype.kind == "i")


def _require_order(name: str, x: Array) -> None:
    if kind_of(x) == "complex floating":
        raise TypeError(f"{name} needs an order, and {x.dtype} has none; pool the absolute value or the parts")


def _as_float(x: Array) -> Array:
    """Integers in the library's default float dtype, everything else as it is."""
    if kind_of(x) != "integral":
        return x
    xp = array_namespace(x)
    return xp.astype(x, xp.__array_namespace_info__().default_dtypes()["real floating"])


def _checked_divisor(divisor: float | None) -> float | None:
    divisor = divisor.item() if divisor is not None and hasattr(divisor, "item") else divisor
    if divisor is not None and not (isinstance(divisor, (int, float)) and math.isfinite(divisor) and divisor != 0):
        raise ValueError(f"divisor must be a finite number other than zero, got {divisor!r}")
    return divisor


# --- Public names -----------------------------------------------------------------------------------------------------

_PARAMETERS = """x : array of shape (N, *size, C), (*size, C), or (*size,) for a plain signal or image
    channels_first: (N, C, *size) or (C, *size).
window : int or one int per spatial axis
    $window
stride : int or one int per spatial axis, optional
    The window where not given: neighbourhoods that do not overlap.
padding : int, one int per spatial axis, one (before, after) per spatial axis, or a name as in `corr`
    May exceed half the window.
dilation : int or one int per spatial axis
ceil_mode : bool
    Round the number of windows up, without those that would start in the padding at the end."""


def _words(name: str, axes: int | None, values: str, **words: str) -> dict[str, str]:
    counts = {None: "", 1: " (one spatial axis)", 2: " (two spatial axes)", 3: " (three spatial axes)"}
    window = "A single int means as many spatial axes as `x` has with a batch axis." if axes is None else "In elements."
    n = axes or 2
    example = [
        ">>> import numpy as np",
        f">>> {name}(np.arange({4**n}.0).reshape({(1, *(4,) * n, 1)}), 2)[0, ..., 0].ravel()[:2].tolist()",
        values,
    ]
    text = {"over": counts[axes], "parameters": _PARAMETERS.replace("$window", window), "example": "\n".join(example)}
    return text | words


def _max_words(axes: int | None = None) -> dict[str, str]:
    name, values = f"max_pool{axes}d" if axes else "max_pool", {1: "[1.0, 3.0]", 3: "[21.0, 23.0]"}
    nothing = "-inf, or the smallest integer"
    return _words(name, axes, values.get(axes or 2, "[5.0, 7.0]"), extreme="maximum", nothing=nothing)


def _min_words(axes: int | None = None) -> dict[str, str]:
    name = f"min_pool{axes}d" if axes else "min_pool"
    return _words(name, axes, "[0.0, 2.0]", extreme="minimum", nothing="inf, or the largest integer")


def _sum_words(axes: int | None = None) -> dict[str, str]:
    values = {1: "[1.0, 5.0]", 3: "[84.0, 100.0]"}
    return _words(f"sum_pool{axes}d" if axes else "sum_pool", axes, values.get(axes or 2, "[10.0, 18.0]"))


def _avg_words(axes: int | None = None) -> dict[str, str]:
    values = {1: "[0.5, 2.5]", 3: "[10.5, 12.5]"}
    return _words(f"avg_pool{axes}d" if axes else "avg_pool", axes, values.get(axes or 2, "[2.5, 4.5]"))


def _unpool_words(axes: int | None = None) -> dict[str, str]:
    n = axes or 2
    plane = [5.0 if place == 2 else 0.0 for place in range(2**n if n > 1 else 3)]
    return {"ones": ", ".join("1" * n) + ",", "size": str((2,) * n if n > 1 else 3), "plane": str(plane)}


def _lp_words(axes: int | None = None) -> dict[str, str]:
    name, n = f"lp_pool{axes}d" if axes else "lp_pool", axes or 2
    words = _words(name, axes, "")
    call = f"{name}(np.full({(1, *(2,) * n, 1)}, 3.0), 2, p=1).item()"
    return words | {"example": f">>> import numpy as np\n>>> {call}\n{3.0 * 2**n}"}


max_pool = public(_max_pool, Variant("max_pool"), **_max_words())
max_pool1d = public(_max_pool, Variant("max_pool1d", 1), **_max_words(1))
max_pool2d = public(_max_pool, Variant("max_pool2d", 2), **_max_words(2))
max_pool3d = public(_max_pool, Variant("max_pool3d", 3), **_max_words(3))
min_pool = public(_max_pool, Variant("min_pool", flip=True), **_min_words())
min_pool1d = public(_max_pool, Variant("min_pool1d", 1, flip=True), **_min_words(1))
min_pool2d = public(_max_pool, Variant("min_pool2d", 2, flip=True), **_min_words(2))
min_pool3d = public(_max_pool, Variant("min_pool3d", 3, flip=True), **_min_words(3))
sum_pool = public(_sum_pool, Variant("sum_pool"), **_sum_words())
sum_pool1d = public(_sum_pool, Variant("sum_pool1d", 1), **_sum_words(1))
sum_pool2d = public(_sum_pool, Variant("sum_pool2d", 2), **_sum_words(2))
sum_pool3d = public(_sum_pool, Variant("sum_pool3d", 3), **_sum_words(3))
avg_pool = public(_avg_pool, Variant("avg_pool"), **_avg_words())
avg_pool1d = public(_avg_pool, Variant("avg_pool1d", 1), **_avg_words(1))
avg_pool2d = public(_avg_pool, Variant("avg_pool2d", 2), **_avg_words(2))
avg_pool3d = public(_avg_pool, Variant("avg_pool3d", 3), **_avg_words(3))
lp_pool = public(_lp_pool, Variant("lp_pool"), **_lp_words())
lp_pool1d = public(_lp_pool, Variant("lp_pool1d", 1), **_lp_words(1))
lp_pool2d = public(_lp_pool, Variant("lp_pool2d", 2), **_lp_words(2))
lp_pool3d = public(_lp_pool, Variant("lp_pool3d", 3), **_lp_words(3))

global_max_pool = public(_global_max_pool, Variant("global_max_pool"))
global_avg_pool = public(_global_avg_pool, Variant("global_avg_pool"))
adaptive_max_pool = public(_adaptive_max_pool, Variant("adaptive_max_pool"))
adaptive_avg_pool = public(_adaptive_avg_pool, Variant("adaptive_avg_pool"))
max_unpool = public(_max_unpool, Variant("max_unpool"), **_unpool_words())
max_unpool1d = public(_max_unpool, Variant("max_unpool1d", 1), **_unpool_words(1))
max_unpool2d = public(_max_unpool, Variant("max_unpool2d", 2), **_unpool_words(2))
max_unpool3d = public(_max_unpool, Variant("max_unpool3d", 3), **_unpool_words(3))
max_pool_grad = public(_max_pool_grad, Variant("max_pool_grad"))
avg_pool_grad = public(_avg_pool_grad, Variant("avg_pool_grad"))
