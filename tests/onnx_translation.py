"""ONNX's operators said in xpconv's words, and enough of an evaluator to run the models of ONNX's backend tests.

What ONNX calls a convolution is a cross-correlation, so all of it is `corr*`, with channels first. Where the two
disagree about more than a name (flat indices, padding of the transposed convolution), the translation says how.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import xpconv

FIRST = "channels_first"
Arrays = list[np.ndarray]


def pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    """ONNX's (before, before, ..., after, after, ...) as one (before, after) per axis."""
    axes = len(pads) // 2
    return list(zip(pads[:axes], pads[axes:], strict=True))


def forward_padding(auto_pad: bytes, pads: Sequence[int] | None):
    if auto_pad != b"NOTSET":
        return auto_pad.decode().lower()  # "valid", "same_upper", "same_lower"
    return pairs(pads) if pads else 0


def corr(
    x,
    w,
    bias=None,
    *,
    auto_pad=b"NOTSET",
    pads=None,
    strides=1,
    dilations=1,
    group=1,
    kernel_shape=None,
    dtype=None,
):
    assert kernel_shape is None or tuple(kernel_shape) == w.shape[2:]
    padding = forward_padding(auto_pad, pads)
    geometry = {"stride": strides, "padding": padding, "dilation": dilations, "groups": group}
    return xpconv.corr(x, w, bias, **geometry, layout=FIRST, dtype=dtype)


def corr_integer(x, w, x_zero_point=0, w_zero_point=0, **attributes):
    """Zero points, for `w` one or one a filter, are subtracted in int16, which holds every difference of two bytes."""
    centred_x = x.astype(np.int16) - np.int16(x_zero_point)
    centred_w = w.astype(np.int16) - np.reshape(w_zero_point, (-1, *[1] * (w.ndim - 1))).astype(np.int16)
    return corr(centred_x, centred_w, **attributes, dtype=np.int32)


def corr_transpose(
    x,
    w,
    bias=None,
    *,
    auto_pad=b"NOTSET",
    pads=None,
    strides=None,
    dilations=None,
    group=1,
    output_padding=None,
    output_shape=None,
    kernel_shape=None,
):
    """ONNX may be told the size of the output: its padding then is what the widest possible output has too much.

    Where that output has too little instead, the missing elements are `output_padding`.
    """
    size, window = x.shape[2:], w.shape[2:]
    assert kernel_shape is None or tuple(kernel_shape) == window
    strides, dilations = strides or [1] * len(size), dilations or [1] * len(size)
    output_padding = output_padding or [0] * len(size)
    if auto_pad in (b"SAME_UPPER", b"SAME_LOWER") and output_shape is None:
        output_shape = [n * s for n, s in zip(size, strides, strict=True)]
    padding = pairs(pads) if pads else 0
    if output_shape is not None:
        widest = [(n - 1) * s + (m - 1) * d + 1 for n, s, m, d in zip(size, strides, window, dilations, strict=True)]
        excess = [n + extra - out for n, extra, out in zip(widest, output_padding, output_shape, strict=True)]
        smaller, larger = [max(n, 0) // 2 for n in excess], [(max(n, 0) + 1) // 2 for n in excess]
        before, after = (smaller, larger) if auto_pad == b"SAME_UPPER" else (larger, smaller)
        padding = list(zip(before, after, strict=True))
        output_padding = [extra + max(-n, 0) for extra, n in zip(output_padding, excess, strict=True)]
    geometry = {"stride": strides, "padding": padding, "dilation": dilations, "groups": group}
    return xpconv.corr_transpose(x, w, bias, **geometry, output_padding=output_padding, layout=FIRST)


def pooling(*, kernel_shape, auto_pad=b"NOTSET", pads=None, strides=1, dilations=1, ceil_mode=0) -> dict:
    """The arguments that every pooling shares. ONNX's stride is 1 when absent, not the window."""
    return {
        "window": tuple(kernel_shape),
        "stride": strides,
        "padding": forward_padding(auto_pad, pads),
        "dilation": dilations,
        "ceil_mode": bool(ceil_mode),
        "layout": FIRST,
    }


def max_pool(x, *, storage_order=0, **attributes):
    y, indices = xpconv.max_pool(x, **pooling(**attributes), return_indices=True)
    return y, tensor_indices(indices, x.shape, order="F" if storage_order else "C")


def avg_pool(x, *, count_include_pad=0, **attributes):
    return xpconv.avg_pool(x, **pooling(**attributes), count_include_pad=bool(count_include_pad))


def lp_pool(x, *, p=2, **attributes):
    return xpconv.lp_pool(x, **pooling(**attributes), p=p)


def global_max_pool(x):
    return xpconv.global_max_pool(x, keepdims=True, layout=FIRST)


def global_avg_pool(x):
    return xpconv.global_avg_pool(x, keepdims=True, layout=FIRST)


def max_unpool(y, indices, output_shape=None, *, kernel_shape, strides=None, pads=None):
    """ONNX's indices point into the smallest plane the pooling could have read, even if a larger one is asked for."""
    strides, pads = strides or [1] * len(kernel_shape), pairs(pads or [0] * 2 * len(kernel_shape))
    axes = zip(y.shape[2:], strides, kernel_shape, pads, strict=True)
    smallest = [(n - 1) * s + m - before - after for n, s, m, (before, after) in axes]
    size = smallest if output_shape is None else [int(n) for n in output_shape[2:]]
    position = np.unravel_index(plane_indices(indices, (*y.shape[:2], *smallest)), smallest)
    return xpconv.max_unpool(y, np.ravel_multi_index(position, size), size=size, layout=FIRST)


def col2im(columns, image_shape, block_shape, *, strides=None, pads=None, dilations=None):
    """The columns (N, C * prod(window), L) are xpconv's patches (N, C, *window, *out) with axes joined."""
    size, window = [int(n) for n in image_shape], [int(m) for m in block_shape]
    strides, dilations = strides or [1] * len(size), dilations or [1] * len(size)
    padding = pairs(pads or [0] * 2 * len(size))
    axes = zip(size, window, strides, dilations, padding, strict=True)
    out = [(n + before + after - (m - 1) * d - 1) // s + 1 for n, m, s, d, (before, after) in axes]
    patches = columns.reshape(len(columns), -1, *window, *out)
    geometry = {"stride": strides, "padding": padding, "dilation": dilations}
    return xpconv.fold(patches, size=tuple(size), window=tuple(window), **geometry, layout=FIRST)


def tensor_indices(indices, shape, *, order):
    """Positions in each plane, rows first, as positions in the tensor of `shape` whose planes are stored in `order`."""
    batch, channels, *size = shape
    in_plane = np.ravel_multi_index(np.unravel_index(indices, size), size, order=order)
    return in_plane + plane_starts(batch, channels, size)


def plane_indices(indices, shape):
    """The inverse of `tensor_indices` for rows first."""
    batch, channels, *size = shape
    return indices - plane_starts(batch, channels, size)


def plane_starts(batch, channels, size):
    return np.arange(batch * channels).reshape(batch, channels, *[1] * len(size)) * math.prod(size)


OPERATORS = {
    "Conv": corr,
    "ConvInteger": corr_integer,
    "ConvTranspose": corr_transpose,
    "MaxPool": max_pool,
    "AveragePool": avg_pool,
    "LpPool": lp_pool,
    "GlobalMaxPool": global_max_pool,
    "GlobalAveragePool": global_avg_pool,
    "MaxUnpool": max_unpool,
    "Col2Im": col2im,
}

# Models of these two, in a version that ONNX's own evaluator no longer runs, stand around some poolings.
RESHAPES = {
    "Squeeze": lambda x, *, axes: np.squeeze(x, axis=tuple(axes)),
    "Unsqueeze": lambda x, *, axes: np.expand_dims(x, axis=tuple(axes)),
}


def run_model(model: onnx.ModelProto, inputs: Arrays) -> Arrays:
    """Evaluate a model; the operators that xpconv has are xpconv's, the others ONNX's own."""
    graph = model.graph
    values = {"": None} | {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values |= zip((value.name for value in graph.input if value.name not in values), inputs, strict=True)
    for node in graph.node:
        arrays = [values[name] for name in node.input]
        translated = OPERATORS.get(node.op_type) or RESHAPES.get(node.op_type)
        if translated is None:
            versions = {opset.domain: opset.version for opset in model.opset_import}
            results = ReferenceEvaluator(node, opsets=versions).run(None, dict(zip(node.input, arrays, strict=True)))
        else:
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            results = translated(*arrays, **attributes)
        results = results if isinstance(results, list | tuple) else [results]
        values |= zip(node.output, results, strict=False)  # the node need not name the outputs it does not want
    return [values[value.name] for value in graph.output]
