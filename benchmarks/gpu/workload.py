"""Small calls of every operation, for a tool that watches them; every allocation is CUDA's own, so that it sees each.

Prints a line for every call: `done NAME`, or `wrong NAME` where the result is not NumPy's.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import xpconv
from benchmarks.gpu.common import Record, cupy_of, reason

Call = tuple[str, str, tuple[Any, ...], dict[str, Any]]  # the second is the function's name in xpconv

# name: shape of x, shape of w, options; channels and filters as the tensor cores like them, and not
_LAYERS = {
    "3x3": ((2, 10, 9, 72), (3, 3, 72, 104), {"padding": 1}),
    "1x1": ((3, 9, 7, 64), (1, 1, 64, 128), {}),
    "few channels, stride 2": ((2, 17, 15, 3), (7, 7, 3, 32), {"padding": 3, "stride": 2}),
    "depthwise": ((2, 11, 13, 40), (3, 3, 1, 40), {"padding": 1, "groups": 40}),
    "groups and dilation": ((2, 12, 11, 32), (3, 2, 8, 24), {"groups": 4, "dilation": 2}),
    "signal": ((2, 90, 24), (5, 24, 40), {"padding": 2}),
    "volume": ((1, 5, 6, 7, 16), (3, 3, 3, 16, 24), {"padding": 1}),
}
_DTYPES = ("float32", "float16", "bfloat16")


def calls(*, emulated: bool) -> Iterator[Call]:
    """The most telling first: the tool may be stopped."""
    layers = dict(list(_LAYERS.items())[2:3]) if emulated else _LAYERS
    for dtype in _DTYPES[:1] if emulated else _DTYPES:
        for name, (x_shape, w_shape, options) in layers.items():
            x, w = _whole(x_shape, dtype), _whole(w_shape, dtype)
            yield f"corr {name} {dtype}", "corr", (x, w), options
            gy = _whole(xpconv.corr(np.zeros(x_shape), np.zeros(w_shape), **options).shape, dtype)
            size, window = {"size": x_shape[1:-1]}, {"window": w_shape[:-2]}
            yield f"corr_grad_input {name} {dtype}", "corr_grad_input", (gy, w), options | size
            yield f"corr_grad_weight {name} {dtype}", "corr_grad_weight", (x, gy), options | window
        image = _whole((2, 15, 14, 24), dtype)
        yield f"max_pool2d {dtype}", "max_pool2d", (image, 3), {"stride": 2, "padding": 1}
        yield f"avg_pool2d {dtype}", "avg_pool2d", (image, 2), {}
        yield f"global_max_pool {dtype}", "global_max_pool", (image,), {}
    if not emulated:
        x, w = _whole((2, 10, 9, 64), "float32"), _whole((3, 3, 64, 64), "float32")
        yield "corr tf32", "corr", (x, w), {"padding": 1, "precision": "tf32"}
        yield "unfold", "unfold", (x, 3), {"padding": 1}
        plain = _whole((200, 190), "float32"), _whole((7, 7), "float32")
        yield "conv2d of an image", "conv2d", plain, {"padding": "same", "padding_mode": "reflect"}


def _whole(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = np.random.default_rng(3).integers(-2, 3, shape).astype(np.float32)
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        return values.astype(bfloat16)
    return values.astype(dtype)


def main() -> None:
    """Make all calls, or every so manieth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    asked = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)  # a kernel that cannot be had would be replaced with a warning
    record = Record(Path("unused"), emulated=asked.emulated, seconds=1e9)
    with cupy_of(record) as cupy:
        if not record.emulated:
            cupy.cuda.set_allocator(None)
        for name, function, arguments, options in list(calls(emulated=asked.emulated))[asked.start :: asked.step]:
            try:
                wrong = _call(cupy, function, arguments, options)
            except Exception as error:
                wrong = reason(error)
            print(f"wrong {name}: {wrong}" if wrong else f"done {name}", flush=True)


def _call(cupy: Any, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """What is wrong with the call's result."""
    function = getattr(xpconv, name)
    got = function(*[cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments], **options)
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in arguments]
    right = function(*wide, **{key: value for key, value in options.items() if key != "precision"})
    got = got.get().astype(np.float64)
    return "" if np.allclose(got, right, rtol=2.0**-7, atol=1e-3) else f"off by {np.abs(got - right).max()}"


if __name__ == "__main__":
    main()
