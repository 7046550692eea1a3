"""JAX: one compiled function, channels last, waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from math import prod
from typing import Any

import numpy as np

from xpconv.bench.cases import Case, is_gradient
from xpconv.bench.data import Data
from xpconv.bench.sides import Place, Side, Unsuited
from xpconv.layers import POOLING_GRADIENTS, POOLINGS


def sides(_: str, case: Case, data: Data, place: Place) -> Iterator[Side]:
    """One; its threads are as many as JAX itself takes."""
    import jax

    if case.plain:
        raise Unsuited("is compared on layers of several maps")
    if case.operation in POOLING_GRADIENTS:
        raise Unsuited("has no gradients of pooling by themselves")
    platform, _, index = place.device.partition(":")
    device = jax.devices(platform)[int(index or 0)]
    names = {"input gradient": ("gy", "w"), "weight gradient": ("x", "gy")}.get(case.operation, ("x", "w"))
    with _wide(jax):
        arrays = [jax.device_put(data[name], device) for name in names[: 1 if case.operation in POOLINGS else 2]]
        call = jax.jit(_function(case)).lower(*arrays).compile()
    yield Side("jax", lambda: call(*arrays).block_until_ready(), np.asarray)


def _wide(jax: Any) -> AbstractContextManager[Any]:
    """A context in which float64 is not float32; what is made in it computes so later too."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before JAX 0.8

    return enable_x64()


def _function(case: Case) -> Callable[..., Any]:
    import jax
    from jax import lax, numpy

    letters = "HWD"[: case.axes]
    dimensions = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def conv(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x, w, case.stride, case.padding, rhs_dilation=case.dilation, dimension_numbers=dimensions,
            feature_group_count=case.groups,
        )  # fmt: skip

    def pool(x: Any) -> Any:
        if case.operation == "global average":
            return x.mean(axis=range(1, case.axes + 1), keepdims=True)
        window, stride, around = (1, *case.window, 1), (1, *case.stride, 1), ((0, 0), *case.padding, (0, 0))
        if case.operation == "max pool":
            return lax.reduce_window(x, -numpy.inf, lax.max, window, stride, around)
        return lax.reduce_window(x, 0.0, lax.add, window, stride, around) / prod(case.window)

    if case.operation in POOLINGS:
        return pool
    if not is_gradient(case):
        return conv
    if case.operation == "input gradient":
        return lambda gy, w: jax.linear_transpose(
            lambda x: conv(x, w), jax.ShapeDtypeStruct(case.x_shape, gy.dtype)
        )(gy)[0]  # fmt: skip
    return lambda x, gy: jax.linear_transpose(
        lambda w: conv(x, w), jax.ShapeDtypeStruct(case.w_shape, gy.dtype)
    )(gy)[0]  # fmt: skip
