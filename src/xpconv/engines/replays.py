"""NumPy calls that are repeated: prepared once for all arrays that lie alike, with nothing left to decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xpconv.cpu.plan import passes_pay
from xpconv.cpu.results import maker
from xpconv.engines import averages, compiled, numpy_pools, piecewise, pooled, small
from xpconv.engines.agnostic import (
    as_layout,
    channels_last,
    weight_as,
    weight_last,
)
from xpconv.engines.finishing import finished
from xpconv.engines.gradient_replays import input_gradient, weight_gradient, weight_order
from xpconv.engines.methods import is_product_of_planes, planned, products_of_planes, summed, summed_if_finite
from xpconv.plan import conv_operations, operations
from xpconv.request import Request
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes


def replay(request: Request) -> Callable[..., Any] | None:
    """A function of the request's arrays that computes it again with nothing left to decide; None where NumPy does.

    It answers NotImplemented where something has to be decided after all: fewer threads are free, or a result is not
    finite. Arrays that lack axes stand for themselves: the axes add nothing to where their elements lie. There is
    NotImplemented instead of a function while it is not settled who computes: kernels are being compiled.
    """
    pools = dict.fromkeys(pooled.REDUCTIONS, _replay_pool)
    convolutions = {"conv": _replay_conv, "conv_grad_input": input_gradient, "conv_grad_weight": weight_gradient}
    prepare = {**convolutions, **pools}
    x: Any = request.arrays[0]
    if request.operation not in prepare or x.dtype.char not in "fd":
        return None
    return _if_settled(lambda: prepare[request.operation](x, request))


def _if_settled(prepare: Callable[[], Any]) -> Any:
    """What is prepared, with all kernels that were there at its end; NotImplemented where more will be there soon."""
    while (before := compiled.settled()) is not None:
        prepared = prepare()
        if compiled.settled() == before:
            return prepared
    return NotImplemented


def replay_into(request: Request) -> Callable[..., Any] | None:
    """The same of a convolution that is written to `out`, the last of the arrays; None where NumPy copies it there.

    It also answers NotImplemented where `out` cannot be written, or may share memory with what is read.
    """
    return _if_settled(lambda: _replay_into(request))


def _replay_into(request: Request) -> Callable[..., Any] | None:
    spec, x = request.spec, request.arrays[0]
    if request.operation != "conv" or x is None or x.dtype.char not in "fd":
        return None
    method = planned(x, spec, request.options["method"]).method
    if not compiled.kernel_of(x.dtype, spec, method):
        return _replay_into_by_numpy(x, method, request)
    out = compiled.in_full(request.out, request.drop, spec, x.dtype)
    if out is None:
        return None
    prepared = _prepared_conv(x, out, request)
    if prepared is None or not compiled.is_written_by(prepared[0], channels_last(out, spec.layout)):
        return None
    _, call, finish = prepared
    return None if finish is not None else compiled.while_as_many_threads(_into(call), conv_operations(spec) // 2)


def _replay_into_by_numpy(x: Array, method: str, request: Request) -> Callable[..., Any] | None:
    computed = _replay_by_numpy(x, method, request)
    out, shape = request.out, _shape_of_result(x, request)
    if computed is None or type(out) is not np.ndarray or (out.shape, out.dtype) != (shape, x.dtype):
        return None

    def call(x: Array, w: Array, bias: Array | None, out: Array) -> bool:
        y = computed(x, w, bias)
        if y is NotImplemented:
            return False
        out[...] = y
        return True

    return _into(call)


def _into(call: Callable[..., bool]) -> Callable[..., Any]:
    """What tells of memory to write to whether it has been written, as a replay that looks at the memory before."""

    def again(x: Array, w: Array, bias: Array | None, out: Array) -> Any:
        shared = any(a is not None and np.may_share_memory(out, a) for a in (x, w, bias))
        if shared or not out.flags.writeable or not call(x, w, bias, out):
            return NotImplemented
        return out

    return again


def _replay_conv(x: Array, request: Request) -> Callable[..., Any] | None:
    method = planned(x, request.spec, request.options["method"]).method
    if not compiled.kernel_of(x.dtype, request.spec, method):
        return _replay_by_numpy(x, method, request)
    y = np.empty(request.spec.y_shape, x.dtype)
    prepared = _prepared_conv(x, y, request)
    if prepared is None:
        return None
    new, (_, call, finish) = maker(y[request.drop].shape, x.dtype), prepared

    def again(x: Array, w: Array, bias: Array | None) -> Any:
        y = new()
        if not call(x, w, bias, y):
            return NotImplemented
        return y if finish is None else finish(y)

    return compiled.while_as_many_threads(again, conv_operations(request.spec) // 2)


def _prepared_conv(x: Array, y: Array, request: Request) -> tuple[str, Callable[..., bool], Any] | None:
    """The kernels of a convolution by name, their call, and what they leave to do; None where there are none.

    The call tells whether its result can be used.
    """
    w, spec, options = request.arrays[1], request.spec, request.options
    kernel = compiled.kernel_of(x.dtype, spec, planned(x, spec, options["method"]).method)
    if not kernel or (kernel == "plane" and passes_pay(spec)):  # which the values of the weight tell
        return None
    stored, finish = compiled.stored_and_left(options["activation"])
    x, y, w_last = (channels_last(x, spec.layout), channels_last(y, spec.layout), weight_last(w, spec.layout))
    w_index, order = request.lift[1], weight_order(spec)
    prepared = compiled.prepared(kernel, x, w_last, y, spec, options["fill_value"], stored)

    as_it_is = kernel == "winograd" and options["method"] != "auto"  # whatever is not finite: that was asked for

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        return prepared(x, w[w_index].transpose(order), bias, y) or as_it_is

    # all others know where the weight lies, and ask for no shape
    return kernel, call if kernel in ("winograd", "spectra") else prepared, finish


def _replay_by_numpy(x: Array, method: str, request: Request) -> Callable[..., Any] | None:
    """What NumPy computes by a method whose plan the values of the arrays do not change."""
    spec, options, shape = request.spec, request.options, _shape_of_result(x, request)
    computed = small.conv(x.dtype, method, spec, options["fill_value"], options["activation"], shape)
    whole = piecewise.computation(x, spec, method, is_apart=request.out is not None)
    if computed is None and whole.pieces():
        return None
    return computed or _large(whole, request, shape)


def _shape_of_result(x: Array, request: Request) -> Sizes:
    """The user's."""
    return np.broadcast_to(x.dtype.type(), request.spec.y_shape)[request.drop].shape


def _large(whole: piecewise.Computation, request: Request, shape: Sizes) -> Callable[..., Any]:
    """As `small.conv`, of any size."""
    (x_index, w_index), spec, fill, method = request.lift, request.spec, request.options["fill_value"], whole.method
    layout, activation = spec.layout, request.options["activation"]
    sums: Callable[[Array, Array], Array | None]
    if method == "gemm" and is_product_of_planes(request.arrays[0], spec):
        sums = _of_planes(spec)
    else:
        by = summed_if_finite if request.options["method"] == "auto" else summed
        sums = partial(by, method, spec=spec, fill=fill)

    def computed(x: Array, w: Array, bias: Array | None) -> Any:
        with whole.rest():
            y = sums(channels_last(x[x_index], layout), weight_last(w[w_index], layout))
        if y is None:
            return NotImplemented
        return finished(y, bias, activation, layout, y.dtype).reshape(shape)

    return computed


def _of_planes(spec: ConvSpec) -> Callable[[Array, Array], Array]:
    """A function of what lies channels first, seen with its channels last."""
    layout = spec.layout

    def sums(x: Array, w: Array) -> Array:
        return channels_last(products_of_planes(as_layout(x, layout), weight_as(w, layout), spec), layout)

    return sums


def _replay_pool(x: Array, request: Request) -> Callable[..., Any] | None:
    if request.options.get("return_indices"):
        return None
    spec, divisor, shape = _pooling(x, request)
    kernel, reduction = pooled.by(request.operation, x, request.spec), pooled.REDUCTIONS[request.operation]
    if not kernel:
        return _replay_pool_by_numpy(x, shape, request)
    y = np.empty(spec.y_shape, x.dtype)
    if divisor is None:
        include = request.options["count_include_pad"]
        call = averages.prepared(kernel, x, y, spec, count_include_pad=include, lift=request.lift[0])
    else:
        call = pooled.prepared(kernel, reduction, x, y, spec, divisor)
    new = maker(shape, x.dtype)

    def again(x: Array) -> Any:
        y = new()
        call(x, y)
        return y

    return compiled.while_as_many_threads(again, operations(spec) or 0)


def _replay_pool_by_numpy(x: Array, shape: Sizes, request: Request) -> Callable[..., Any] | None:
    """Of windows, or of whole maps."""
    if not isinstance(request.spec, PoolSpec):
        return _of_maps(x, request)
    return numpy_pools.pool(request.operation, x.dtype, request.spec, request.options, shape)


def _of_maps(x: Array, request: Request) -> Callable[..., Any]:
    """As the agnostic engine pools them, without asking which library's arrays they are."""
    axes, keepdims = request.spec, request.options["keepdims"]
    if request.operation == "global_max_pool":
        return partial(np.maximum.reduce, axis=axes, keepdims=keepdims)
    count = np.array(math.prod(x.shape[axis] for axis in axes), x.dtype)  # read in half the time of a number

    def averaged(x: Array) -> Any:
        y = np.add.reduce(x, axis=axes, keepdims=keepdims)
        return np.divide(y, count, out=y)

    return averaged


def _pooling(x: Array, request: Request) -> tuple[PoolSpec, float | None, Sizes]:
    """The windows, what all their sums are divided by, and the shape of the result."""
    spec, options = request.spec, request.options
    if request.operation in ("global_max_pool", "global_avg_pool"):
        spec = pooled.whole_maps(tuple(x.shape), spec)
        shape = spec.y_shape if options["keepdims"] else (spec.batch, spec.channels)
        return spec, pooled.divisor_of_maps(request.operation, spec), shape
    divisor = pooled.shared_divisor(spec, **options) if request.operation == "avg_pool" else 1.0
    return spec, divisor, _shape_of_result(x, request)
