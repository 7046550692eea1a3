"""NumPy calls that are repeated: prepared once for all arrays that lie alike, with nothing left to decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from xpconv.cpu import strips
from xpconv.cpu.plan import READ_SINGLE, SINGLE, passes_pay, spectra_plan
from xpconv.cpu.results import maker
from xpconv.engines import compiled, pooled, small
from xpconv.engines.agnostic import (
    as_layout,
    channels_last,
    divisors_of,
    epilogue,
    exchanged,
    weight_as,
    weight_last,
)
from xpconv.engines.methods import planned, products_of_planes, summed, summed_if_finite
from xpconv.plan import conv_operations, operations
from xpconv.request import WHOLE, Request
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes, in_layout


def replay(request: Request) -> Callable[..., Any] | None:
    """A function of the request's arrays that computes it again with nothing left to decide; None where NumPy does.

    It answers NotImplemented where something has to be decided after all: fewer threads are free, or a result is not
    finite. Arrays that lack axes stand for themselves: the axes add nothing to where their elements lie. There is
    NotImplemented instead of a function while it is not settled who computes: kernels are being compiled.
    """
    pools = dict.fromkeys(pooled.REDUCTIONS, _replay_pool)
    prepare = {"conv": _replay_conv, "conv_grad_input": _replay_adjoint, **pools}
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
    return None if finish is not None else _for_as_many_threads(_into(call), conv_operations(spec) // 2)


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


def _for_as_many_threads(again: Callable[..., Any], products: int) -> Callable[..., Any]:
    """The same, as long as as many threads are free as it was prepared for; one of few products takes one thread."""
    if products <= min(SINGLE, READ_SINGLE):
        return again
    threads = compiled.thread_count()

    def checked(*arrays: Array | None) -> Any:
        return again(*arrays) if compiled.thread_count() == threads else NotImplemented

    return checked


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

    return _for_as_many_threads(again, conv_operations(request.spec) // 2)


def _prepared_conv(x: Array, y: Array, request: Request) -> tuple[str, Callable[..., bool], Any] | None:
    """The kernels of a convolution by name, their call, and what they leave to do; None where there are none.

    The call tells whether its result can be used.
    """
    w, spec, options = request.arrays[1], request.spec, request.options
    kernel = compiled.kernel_of(x.dtype, spec, planned(x, spec, options["method"]).method)
    if not kernel or (kernel == "plane" and passes_pay(spec)):  # which the values of the weight tell
        return None
    careful = options["method"] == "auto"
    stored, finish = compiled.stored_and_left(options["activation"])
    x, y, w_last = (channels_last(x, spec.layout), channels_last(y, spec.layout), weight_last(w, spec.layout))
    w_index, order = request.lift[1], _order(spec)
    prepared = compiled.prepared(kernel, x, w_last, y, spec, options["fill_value"], stored)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        return prepared(x, w[w_index].transpose(order), bias, y) or not careful

    # all others know where the weight lies, and no shape, and their results can be used
    return kernel, call if kernel == "winograd" else prepared, finish


def _replay_adjoint(gy: Array, request: Request) -> Callable[..., Any] | None:
    """An input gradient as one convolution, or as one for each phase of the stride, all by compiled kernels."""
    spec, activation = request.spec, request.options.get("activation")
    strided = set(spec.stride) != {1}
    if spec.padding_mode != "zeros" or (strided and spectra_plan(spec, "input")):
        return None
    stored, finish = compiled.stored_and_left(activation)
    if not strided and (method := _method_of_numpys(gy, spec.input_adjoint)):
        return _replay_adjoint_by_numpy(gy, method, request)
    layout = "channels_last" if strided else spec.layout  # phases are stored between each other, then turned
    shape = in_layout(layout, spec.batch, spec.size, spec.channels)
    gy, gx = channels_last(gy, spec.layout), channels_last(np.empty(shape, gy.dtype), layout)
    exchange = partial(_exchanged, lift=(*request.lift, WHOLE)[1], order=_order(spec), groups=spec.groups)
    w, calls = exchange(request.given[1]), []
    for part, place, taps in _parts_of_adjoint(spec):
        call = _prepared_part(gy, w[taps], gx[place], part, stored)
        if call is None:
            return None
        calls.append((call, place, taps))
    new, drop = maker(shape, gx.dtype), request.drop

    def again(gy: Array, w: Array, bias: Array | None) -> Any:
        gx, w = new(), exchange(w)
        last = channels_last(gx, layout)
        if not all(call(gy, w[taps], bias, last[place]) for call, place, taps in calls):
            return NotImplemented
        gx = compiled.laid_out(gx, spec.layout) if strided else gx
        return (gx if finish is None else finish(gx))[drop]

    return _for_as_many_threads(again, conv_operations(spec) // 2)


def _method_of_numpys(x: Array, spec: ConvSpec) -> str:
    """The method by which NumPy computes it; "" where kernels do."""
    method = planned(x, spec, "auto").method
    return "" if compiled.kernel_of(x.dtype, spec, method) else method


def _replay_adjoint_by_numpy(gy: Array, method: str, request: Request) -> Callable[..., Any] | None:
    """A small one, that is one convolution."""
    spec = request.spec
    computed = small.conv(gy.dtype, method, spec.input_adjoint, 0, request.options.get("activation"))
    if computed is None:
        return None
    exchange = partial(_exchanged, lift=(*request.lift, WHOLE)[1], order=_order(spec), groups=spec.groups)
    shape = np.empty(spec.x_shape, gy.dtype)[request.drop].shape

    def again(gy: Array, w: Array, bias: Array | None) -> Any:
        gx = computed(gy, weight_as(exchange(w), spec.layout), bias)
        return NotImplemented if gx is None else gx.reshape(shape)

    return again


def _order(spec: ConvSpec) -> Sizes:
    """The axes of a weight of the spec's layout as (*window, C / groups, F)."""
    return tuple(range(spec.axes + 2)) if spec.layout == "channels_last" else (*range(2, spec.axes + 2), 1, 0)


def _exchanged(w: Array, *, lift: Any, order: Sizes, groups: int) -> Array:
    """The weight as the input gradient reads it, channels last."""
    w = w[lift].transpose(order)
    return w.swapaxes(-1, -2) if groups == 1 else exchanged(w, groups)


def _parts_of_adjoint(spec: ConvSpec) -> list[tuple[ConvSpec, Any, Any]]:
    """Convolutions, the places of the input that they make, and the taps of the weight that they read."""
    if set(spec.stride) == {1}:
        return [(spec.input_adjoint, WHOLE, WHOLE)]
    phases = replace(spec, layout="channels_last").input_phases
    return [(phase.spec, (slice(None), *phase.places), phase.taps) for phase in phases]


def _prepared_part(
    gy: Array, w: Array, gx: Array, part: ConvSpec, activation: str | None
) -> Callable[..., bool] | None:
    """The kernels' call of a part; None for what they do not compute, or do not write where it belongs."""
    if 0 in part.window:  # no tap reaches these places
        return None
    kernel = compiled.kernel_of(gy.dtype, part, planned(gy, part, "auto").method)
    if not kernel or kernel == "plane" or not compiled.is_written_by(kernel, gx):
        return None
    return compiled.prepared(kernel, gy, w, gx, part, 0, activation)


def _replay_by_numpy(x: Array, method: str, request: Request) -> Callable[..., Any] | None:
    """What NumPy computes by a method whose plan the values of the arrays do not change."""
    spec, options = request.spec, request.options
    computed = small.conv(x.dtype, method, spec, options["fill_value"], options["activation"])
    computed = computed or _large(method, request)
    if computed is None:
        return None
    shape = _shape_of_result(x, request)

    def again(x: Array, w: Array, bias: Array | None) -> Any:
        y = computed(x, w, bias)
        return NotImplemented if y is None else y.reshape(shape)

    return again


def _shape_of_result(x: Array, request: Request) -> Sizes:
    """The user's."""
    return np.empty(request.spec.y_shape, x.dtype)[request.drop].shape


def _large(method: str, request: Request) -> Callable[..., Any] | None:
    """As `small.conv`, of any size."""
    (x_index, w_index), spec, fill = request.lift, request.spec, request.options["fill_value"]
    layout, activation = spec.layout, request.options["activation"]
    if method not in ("gemm", "winograd"):
        return None
    sums: Callable[[Array, Array], Array | None]
    if method == "gemm" and layout == "channels_first" and strips.is_product(spec):
        sums = _of_planes(spec)
    else:
        by = summed_if_finite if request.options["method"] == "auto" else summed
        sums = partial(by, method, spec=spec, fill=fill)

    def computed(x: Array, w: Array, bias: Array | None) -> Any:
        y = sums(channels_last(x[x_index], layout), weight_last(w[w_index], layout))
        return None if y is None else np.ascontiguousarray(epilogue(y, bias, activation, layout, y.dtype))

    return computed


def _of_planes(spec: ConvSpec) -> Callable[[Array, Array], Array]:
    """A function of what lies channels first, seen with its channels last."""
    layout = spec.layout

    def sums(x: Array, w: Array) -> Array:
        return channels_last(products_of_planes(as_layout(x, layout), weight_as(w, layout), spec), layout)

    return sums


def _replay_pool(x: Array, request: Request) -> Callable[..., Any] | None:
    spec, divisor, shape = _pooling(x, request)
    kernel, reduction = pooled.by(request.operation, x, request.spec), pooled.REDUCTIONS[request.operation]
    if request.options.get("return_indices"):
        return None
    if not kernel:
        return _replay_pool_by_numpy(x, shape, request)
    y = np.empty(spec.y_shape, x.dtype)
    call = pooled.prepared(kernel, reduction, x, y, spec, 1.0 if divisor is None else divisor)
    divisors = divisors_of(y, spec, request.options["count_include_pad"]) if divisor is None else None
    new = maker(shape, x.dtype)

    def again(x: Array) -> Any:
        y = new()
        call(x, y)
        if divisors is not None:
            whole = y.reshape(spec.y_shape)
            np.divide(whole, divisors, out=whole)
        return y

    return _for_as_many_threads(again, operations(spec) or 0)


def _replay_pool_by_numpy(x: Array, shape: Sizes, request: Request) -> Callable[..., Any] | None:
    """A small one."""
    if not isinstance(request.spec, PoolSpec):
        return None
    merged = small.pool(request.operation, x.dtype, request.spec, request.options)
    return None if merged is None else lambda x: merged(x).reshape(shape)


def _pooling(x: Array, request: Request) -> tuple[PoolSpec, float | None, Sizes]:
    """The windows, what all their sums are divided by, and the shape of the result."""
    spec, options = request.spec, request.options
    if request.operation in ("global_max_pool", "global_avg_pool"):
        spec = pooled.whole_maps(tuple(x.shape), spec)
        return spec, math.prod(spec.size), spec.y_shape if options["keepdims"] else (spec.batch, spec.channels)
    divisor = pooled.shared_divisor(spec, **options) if request.operation == "avg_pool" else 1.0
    return spec, divisor, _shape_of_result(x, request)
