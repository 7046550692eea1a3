"""Calls of the compiled kernels by name, whatever the plan would take."""

import numpy as np

import xpconv
from xpconv.engines import agnostic
from xpconv.engines import compiled as compiled_calls

LIMIT = 1 << 28

VIEWS_OF_PLANES = [  # of x (N, C, height, width), that lie in memory in all ways
    lambda x: x[:, :, ::-1, ::-1],
    lambda x: x[:, :, ::2],
    lambda x: x[..., ::2],
    lambda x: x[::-1, ::-1],
    lambda x: x.transpose(1, 0, 3, 2),
    lambda x: np.broadcast_to(x[:, :1], x.shape),
    lambda x: np.broadcast_to(x[:, :, :1], x.shape),
    lambda x: np.broadcast_to(x[..., :1], x.shape),
    lambda x: np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1),
]


def by_kernels(kernel, function, x, w, bias=None, limit=LIMIT, **options):
    """The answer of the kernels of that name to a call of `conv` or `corr`."""
    request = function.request(x, w, bias, **options)
    (x, w, bias), spec = request.arrays, request.spec
    x, w = agnostic.channels_last(x, spec.layout), agnostic.weight_last(w, spec.layout)
    with xpconv.workspace_limit(limit):
        assert kernel in ("depthwise", "plane") or takes(kernel, x.dtype, spec)  # which compute few lanes too, slowly
        return compiled_calls.by_kernels(
            kernel, x, w, bias, spec, request.options["fill_value"], request.options["activation"]
        )


def takes(kernel, dtype, spec):
    """Whether the kernels of that name take the convolution."""
    taken = compiled_calls.takes(dtype, spec)
    return {
        "direct": taken.filters > 0, "depthwise": taken.depthwise, "plane": taken.plane, "winograd": taken.winograd,
        "spectra": taken.spectra,
    }[kernel]  # fmt: skip
