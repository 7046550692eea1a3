"""SciPy's `convolve` and `correlate` for the array you already have, in batches too.

One call is one convolution of `xpconv`: the axes that are not convolved become its batch, its groups or its filters,
whichever pairs the items without computing any of them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from array_api_compat import array_namespace, device

from xpconv.dispatch import arrays_of, cast_number, promoted
from xpconv.dtypes import kind_of
from xpconv.request import WHOLE, Request
from xpconv.spec import MODES, Array, ConvSpec, Pairing, Sizes, integers, one_of, signal_spec
from xpconv.variants import Variant, public

Mode: TypeAlias = Literal["full", "same", "valid"]
Method: TypeAlias = Literal["auto", "direct", "fft"]
Boundary: TypeAlias = Literal["fill", "wrap", "symm"]

METHODS = ("auto", "direct", "fft")
_PADDING_MODES = {"fill": "constant", "wrap": "wrap", "symm": "symmetric"}


def _signal(
    variant: Variant,
    in1: Array,
    in2: Array,
    mode: Mode = "full",
    method: Method = "auto",
    *,
    axes: int | Sequence[int] | None = None,
    boundary: Boundary = "fill",
    fillvalue: complex = 0,
) -> Request:
    """$summary

    ``$formula``,
    over every convolved axis, with n and m the lengths of `in1` and `in2`, and zero or the boundary beyond them.
    $remark

    Parameters
    ----------
    in1, in2 : array
        With as many axes each; with `axes` counted from the end, either may have more in front.
    mode : {"full", "same", "valid"}
        Which k to compute: "full" all n + m - 1 of them, "same" the n in the middle, from (m - 1) // 2 on, "valid"
        the abs(n - m) + 1 for which the shorter array lies within the longer. For "valid" either array may be the
        longer, but on every convolved axis the same one.
    method : {"auto", "direct", "fft"}
        "direct" adds up the products, "fft" multiplies spectra and rounds integers back, "auto" leaves it to the
        array's engine. Where that has only "auto", as for torch and JAX, the other two are computed with the
        library's elementwise operations and its `fft`.
    axes : int or sequence of int, optional
        Axes to convolve, without it all. The other axes pair the items of `in1` with those of `in2` as NumPy
        broadcasts, in every mode: an axis of length 1, or one that is not there, serves every item of the other array.
    boundary : {"fill", "wrap", "symm"}
        What lies around `in1`: `fillvalue`, its other end, or its mirror image. "valid" reads none of it.
    fillvalue : number
        For boundary="fill", in the dtype of the result.

    Returns
    -------
    array of dtype ``result_type(in1, in2)``
        Integers are exact and wrap as NumPy's do, except through method="fft", which is exact below 2^53 (2^24 where
        JAX has no float64).

    Raises
    ------
    ValueError
        For unknown words, axes that do not pair, an empty convolved axis (an empty batch gives an empty result), and
        "valid" with neither array the longer on every axis.
    TypeError
        For arrays of two libraries or devices, and for bool or object arrays.

    See Also
    --------
    scipy.signal.$name, scipy.signal.$with_boundary, scipy.signal.fftconvolve
        Whose arguments these are.

    Examples
    --------
    $example
    """
    in1, in2 = arrays_of(variant.name, in1=in1, in2=in2)
    in1, in2, _ = promoted(variant.name, None, in1, in2)
    one_of("method", method, METHODS)
    padding_mode, fill = _surroundings(boundary, fillvalue, in1)
    spec, pairing = signal_spec(
        tuple(in1.shape), tuple(in2.shape), name=variant.name, flip=variant.flip, mode=one_of("mode", mode, MODES),
        axes=integers("axes", axes), padding_mode=padding_mode,
    )  # fmt: skip
    options = {"fill_value": fill, "activation": None, "precision": "highest", "method": method}
    if len(pairing.order) == spec.axes == in1.ndim and (variant.flip or not _changes(in2, pairing)):
        x, w = (in2, in1) if pairing.swapped else (in1, in2)
        lift = ((None, None, ...),) * 2  # all axes are convolved, and those of items and channels are all that lacks
        return Request("conv", (x, w, None), spec, options, lift=lift, drop=(0, 0, ...), reference_methods=True)
    make, restore = partial(_made, variant, spec, pairing), partial(_restored, pairing=pairing)
    return Request(
        "conv", make(in1, in2), spec, options, lift=(WHOLE, WHOLE), then=restore, reference_methods=True,
        source=(in1, in2), make=make,
    )  # fmt: skip


def _changes(in2: Array, pairing: Pairing) -> bool:
    """Whether a correlation reads other values than the arrays hold, or in another order."""
    return pairing.swapped or kind_of(in2) == "complex floating"


def _made(variant: Variant, spec: ConvSpec, pairing: Pairing, in1: Array, in2: Array) -> tuple[Array, Array, None]:
    """Input and weight of the convolution."""
    kernel = in2 if variant.flip else _conjugate(in2)
    x, w = (kernel, in1) if pairing.swapped else (in1, kernel)
    x, w = _arranged(x, pairing, spec.x_shape), _arranged(w, pairing, spec.w_shape)
    if pairing.swapped and not variant.flip:
        x = _reversed(x)  # a correlation is the convolution with in2 reversed, and that does not mind which is which
    return x, w, None


def _surroundings(boundary: str, fillvalue: complex, in1: Array) -> tuple[str, Any]:
    """The padding mode and the fill value, in the words of `conv`."""
    one_of("boundary", boundary, tuple(_PADDING_MODES))
    if boundary != "fill":
        return _PADDING_MODES[boundary], 0
    fill = cast_number("fillvalue", fillvalue, "the result's dtype", in1)
    return ("zeros", 0) if fill == 0 else ("constant", fill)


def _conjugate(in2: Array) -> Array:
    return array_namespace(in2).conj(in2) if kind_of(in2) == "complex floating" else in2


def _reversed(x: Array) -> Array:
    """x (N, C, *size) from its far end."""
    return array_namespace(x).flip(x, axis=tuple(range(2, x.ndim)))


def _arranged(signal: Array, pairing: Pairing, shape: Sizes) -> Array:
    """A signal as input or weight of the convolution, whose axes are in the pairing's order."""
    xp = array_namespace(signal)
    if 0 in pairing.y_shape:
        return xp.zeros(shape, dtype=signal.dtype, device=device(signal))
    missing = len(pairing.order) - signal.ndim
    return xp.reshape(xp.permute_dims(signal[(*(None,) * missing, ...)], pairing.order), shape)


def _restored(y: Array, pairing: Pairing) -> Array:
    """The convolution's result with the axes of the user's."""
    xp = array_namespace(y)
    places = sorted(range(len(pairing.order)), key=pairing.order.__getitem__)
    return xp.permute_dims(xp.reshape(y, pairing.y_shape), tuple(places))


# --- Public names -----------------------------------------------------------------------------------------------------


def _example(name: str, result: str) -> str:
    return f"""\
>>> import numpy as np
>>> {name}([1, 2, 3], [0, 1, 2]).tolist()
{result}

Sixteen images, each with a kernel of its own:

>>> images, kernels = np.ones((16, 28, 28)), np.ones((16, 5, 5))
>>> {name}(images, kernels, mode="same", axes=(-2, -1)).shape
(16, 28, 28)"""


convolve = public(
    _signal, Variant("convolve", flip=True),
    summary="Convolve two arrays of any number of axes, in the words of SciPy.",
    formula="y[k] = sum over l of in1[l] * in2[k - l], for k = 0 ... n + m - 2",
    remark="The two may change places, except for the size of \"same\" and for what lies around `in1`.",
    with_boundary="convolve2d",
    example=_example("convolve", "[0, 1, 4, 7, 6]"),
)  # fmt: skip
correlate = public(
    _signal, Variant("correlate"),
    summary="Cross-correlate two arrays of any number of axes, in the words of SciPy: `in2` is conjugated.",
    formula="y[k] = sum over l of in1[l] * conj(in2[l - k + m - 1]), for k = 0 ... n + m - 2",
    remark=(
        "The lag of y[k] is k - (m - 1). Where SciPy's two correlations disagree, this is `scipy.signal.correlate`:\n"
        "for an even m \"same\" starts one lag later in `correlate2d`."
    ),
    with_boundary="correlate2d",
    example=_example("correlate", "[2, 5, 8, 3, 0]"),
)  # fmt: skip
