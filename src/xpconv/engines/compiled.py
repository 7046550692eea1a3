"""The compiled kernels, called on NumPy arrays: what they take, once they are compiled, and the calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any

import numpy as np

from xpconv.activations import LEAK
from xpconv.cpu import planes, separable, winograd
from xpconv.cpu.gradient_parts import Part, parts_of
from xpconv.cpu.plan import READ_SINGLE, SINGLE, Compiled, kernel_for, passes_pay, winograd_gradient_pays
from xpconv.cpu.results import new
from xpconv.engines.agnostic import as_layout, channels_last, padding_source
from xpconv.engines.finishing import activate, finished
from xpconv.plan import Plan, conv_operations
from xpconv.request import Index
from xpconv.spec import Array, ConvSpec, PoolSpec
from xpconv.workspace import current_limit


@cache
def kernels() -> ModuleType | None:
    """The compiled kernels; None without the extra "fast"."""
    try:
        from xpconv.cpu.compiled import kernels as present
    except ImportError:
        return None
    return present


def found() -> ModuleType:
    """The compiled kernels, where a plan has found them."""
    present = kernels()
    assert present is not None
    return present


def thread_count() -> int:
    """How many threads their calls may take now: none without them."""
    present = kernels()
    return 0 if present is None else present.thread_count()


def threads_for(operations: int) -> int:
    """Of those, for so many multiplications and additions."""
    return thread_count() if operations // 2 > SINGLE else 1


@cache  # NumPy makes a dtype's name anew each time
def _summed_in(dtype: Any) -> str:
    """The name of the dtype that sums are kept in."""
    return "float32" if dtype.name in ("float16", "bfloat16") else dtype.name


# --- Convolution ------------------------------------------------------------------------------------------------------


def takes(dtype: Any, spec: ConvSpec) -> Compiled:
    """What the compiled kernels take of the convolution, once they are there."""
    present = kernels()
    return Compiled() if present is None else present.takes(_summed_in(dtype), spec, current_limit())


def kernel_of(dtype: Any, spec: ConvSpec, method: str) -> str:
    """The kernels that a method is left to now, by name; "" for NumPy."""
    kernel = kernel_for(spec, method, takes(dtype, spec))
    return kernel if kernel and is_ready(kernel, dtype, spec) else ""


def is_ready(kernel: str, dtype: Any, spec: ConvSpec | PoolSpec) -> bool:
    """Whether the kernels of that name that read such windows are there; else they are being compiled."""
    return found().is_ready(kernel, _summed_in(dtype), spec)


def meanwhile(numpys: Plan) -> Plan:
    """NumPy's plan of what kernels would take that are not there."""
    return replace(numpys, tile=f"{numpys.tile}; by NumPy, as {found().why_not_ready()}")


def settled() -> int | None:
    """The number of libraries that calls have asked for; None while one of them is being compiled."""
    present = kernels()
    return 0 if present is None else present.settled()


def by_kernels(
    kernel: str, x: Array, w: Array, bias: Array | None, spec: ConvSpec, fill: complex, activation: str | None,
    out: Array | None = None, *, careful: bool = False,
) -> Any:  # fmt: skip
    """By compiled kernels, which read `x` where it lies, pad on the way, and store the finished result."""
    if out is not None and not is_written_by(kernel, out):
        out = None
    y = new(spec.y_shape, x.dtype) if out is None else out
    stored, finish = stored_and_left(activation)
    y_last = channels_last(y, spec.layout) if out is None else out
    usable = prepared(kernel, x, w, y_last, spec, fill, stored)(x, w, bias, y)
    if careful and not usable:
        return None
    return y if finish is None else finish(y)


def stored_and_left(activation: str | None) -> tuple[str | None, Callable[[Array], Array] | None]:
    """The activation that kernels store, and what is left to do to their result, in its place; one at most."""
    if activation is None or activation in _STORED:
        return activation, None
    return None, partial(activate, activation=activation)


_STORED = ("relu", "leaky_relu")


def by_axes(
    x: Array, w: Array, bias: Array | None, spec: ConvSpec, fill: complex, activation: str | None, out: Array | None
) -> Array | None:
    """Planes filtered along columns, then along rows, where the weight is a sum of few products of such filters.

    None where it is not, where memory does not reach for planes between the passes, and where a result is not finite:
    what would cancel at once may not cancel pass by pass.
    """
    if not passes_pay(spec) or fill != 0:
        return None
    held = spec.batch * spec.channels * spec.out_size[0] * spec.size[1] * x.itemsize
    if held > current_limit():
        return None
    products = separable.factors(w, spec)
    if products is None or not passes_pay(spec, len(products)):
        return None
    if len(products) > 1 and held + math.prod(spec.y_shape) * x.itemsize > current_limit():  # a part of the sum
        return None
    (bias_within, rest) = (bias, None) if len(products) == 1 else (None, bias)
    parts = (_two_passes(x, taps, bias_within, spec, out if k == 0 else None) for k, taps in enumerate(products))
    y = next(parts)
    y = channels_last(y, spec.layout) if y is not out else out
    for part in parts:
        y += channels_last(part, spec.layout)
    if not finite(y):
        return None
    return finished(y, rest, activation, spec.layout, y.dtype)


def _two_passes(x: Array, taps: tuple[Array, ...], bias: Array | None, spec: ConvSpec, out: Array | None) -> Array:
    """One product of filters (C, m) of the two axes, in the spec's layout."""
    (above, beside), none = spec.padding, (0, 0)
    columns = replace(
        spec, window=(spec.window[0], 1), stride=(spec.stride[0], 1), dilation=(spec.dilation[0], 1),
        padding=(above, none), flip=False,
    )  # fmt: skip
    rows = replace(
        spec, size=columns.out_size, window=(1, spec.window[1]), stride=(1, spec.stride[1]),
        dilation=(1, spec.dilation[1]), padding=(none, beside), flip=False,
    )  # fmt: skip
    down, across = (filters.T.reshape(-1, 1, spec.channels) for filters in taps)
    between = by_kernels("plane", x, down[:, None], None, columns, 0, None)
    return by_kernels("plane", channels_last(between, spec.layout), across[None], bias, rows, 0, None, out)


def in_full(out: Any, drop: Index, spec: ConvSpec, dtype: Any) -> Array | None:
    """The user's memory with the axes that its result is to lack; None where no result can be written there as it is.

    It can where the memory is NumPy's own, of the result's shape and dtype.
    """
    lacking = sum(isinstance(index, int) for index in drop)
    if type(out) is not np.ndarray or out.ndim + lacking != len(spec.y_shape):
        return None
    full: Array = out[tuple(None if isinstance(index, int) else index for index in drop)]
    return full if full.flags.aligned and (full.shape, full.dtype) == (spec.y_shape, dtype) else None


def is_written_by(kernel: str, y: Array) -> bool:
    """Whether kernels write a channels-last result that lies so: channels side by side, or all planes dense."""
    planes = np.moveaxis(y, -1, 1).flags.c_contiguous
    return planes or (y.strides[-2] if kernel in ("plane", "spectra") else y.strides[-1]) == y.itemsize


def prepared(
    kernel: str, x: Array, w: Array, y: Array, spec: ConvSpec, fill: complex, activation: str | None
) -> Callable[..., bool]:
    """The kernels' call for channels-last arrays that lie as these do."""
    call: Callable[..., bool] = found().prepared(
        kernel, x, w, y, spec, sources, float(fill.real), activation, LEAK, current_limit()
    )
    return call


@lru_cache(maxsize=128)
def sources(spec: ConvSpec | PoolSpec) -> tuple[Array, ...]:
    """For each spatial axis where the elements of the padded input come from, -1 for the padding's own."""
    if spec.padding_mode not in ("zeros", "constant"):
        pairs = zip(spec.size, spec.padding, strict=True)
        return tuple(padding_source(np, n, *pads, spec.padding_mode) for n, pads in pairs)
    steps = getattr(spec, "input_dilation", ()) or (1,) * spec.axes
    sources = []
    for n, step, (before, after) in zip(spec.size, steps, spec.padding, strict=True):
        end = (n - 1) * step + 1
        places = np.arange(-before, max(end, 0) + after)
        sources.append(np.where((places >= 0) & (places < end) & (places % step == 0), places // step, -1))
    return tuple(sources)


def takes_gradient(dtype: Any, spec: ConvSpec) -> bool:
    """Whether the gradient of the weight is left to kernels now."""
    return fits_gradient(dtype, spec) and is_ready("gradient", dtype, spec)


def fits_gradient(dtype: Any, spec: ConvSpec) -> bool:
    """Whether it is, once they are there."""
    present, large = kernels(), conv_operations(spec) > _LARGE_GRADIENT
    if not large or present is None or 0 in spec.out_size:
        return False
    return present.takes_weight_gradient(_summed_in(dtype), _parts_of(dtype, spec)[0].spec, current_limit())


def winograd_gradient_threads(dtype: Any, spec: ConvSpec) -> int:
    """How many sum the gradient of the weight in Winograd's domain, most often part by part; 0 where none does."""
    return _threads_of_part(dtype, _parts_of(dtype, spec)[0].spec)


def _threads_of_part(dtype: Any, spec: ConvSpec) -> int:
    """The same of one part."""
    present, name = kernels(), _summed_in(dtype)
    if present is None or not winograd.fits(spec) or not winograd_gradient_pays(spec):
        return 0
    threads: int = present.winograd_gradient_threads(name, spec, current_limit())
    return threads if threads and is_ready("winograd gradient", dtype, spec) else 0


def grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """The gradient of the weight by offset of the window, (*window, C / groups, F), of channels-last arrays."""
    parts = _parts_of(x.dtype, spec)
    if len(parts) == 1:
        return _grad_weight(x, gy, spec)
    gw = np.zeros((*spec.window, spec.channels // spec.groups, spec.filters), x.dtype)
    for part in parts:
        gw[part.taps] += _grad_weight(x[part.x], gy[part.gy], part.spec)
    return gw


def _parts_of(dtype: Any, spec: ConvSpec) -> list[Part]:
    """Whose gradients are added up."""
    return parts_of(spec, current_limit() // 4, np.dtype(_summed_in(dtype)).itemsize)


def _grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """Of one part."""
    present = found()
    to_turn = 0 if gy.strides[-1] == gy.itemsize else gy.nbytes
    if _threads_of_part(x.dtype, spec) and to_turn <= current_limit() // 4:
        gw = present.winograd_grad_weight(x, gy, spec, sources, current_limit())
        if finite(gw):
            return gw
    return present.grad_weight(x, gy, spec, sources, current_limit())


_LARGE_GRADIENT = 200_000  # operations that BLAS does while the kernels are being called


def laid_out(y: Array, layout: str) -> Array:
    """A channels-last result in a layout, in one piece of memory: turned by all threads."""
    present, turns = kernels(), layout == "channels_first" and y.size > 0 and y.flags.c_contiguous
    if not turns or present is None or y.dtype.char not in "fd" or not present.are_shared_ready(y.dtype.name):
        return np.ascontiguousarray(as_layout(y, layout))
    batch, *size, channels = y.shape
    return present.turned(y.reshape(batch, math.prod(size), channels)).reshape(batch, channels, *size)


def while_as_many_threads(again: Callable[..., Any], products: int) -> Callable[..., Any]:
    """The same, as long as as many threads are free as it was prepared for; one of few products takes one thread."""
    if products <= min(SINGLE, READ_SINGLE):
        return again
    threads = thread_count()

    def checked(*arrays: Array | None) -> Any:
        return again(*arrays) if thread_count() == threads else NotImplemented

    return checked


# --- What is not finite -----------------------------------------------------------------------------------------------


def finite(y: Array) -> bool:
    """Whether all values are: by all threads, or by their sum, which is read faster but may overflow."""
    present = kernels()
    if present is not None and y.dtype.char in "fd" and present.are_shared_ready(y.dtype.name) and _is_contiguous(y):
        return present.all_finite(y)
    return planes.finite(y)


def _is_contiguous(y: Array) -> bool:
    """Whether nothing lies between the elements of `y`, channels last or first."""
    return y.flags.c_contiguous or np.moveaxis(y, -1, 1).flags.c_contiguous
