"""The activations that a convolution applies by name, `H = phi(A)`, on any array-API library."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import array_api_compat

from xpconv.dtypes import kind
from xpconv.spec import Array

LEAK = 0.01  # leaky_relu's slope below zero, as in PyTorch and ONNX


def relu(a: Array) -> Array:
    """``max(a, 0)``; NaN stays NaN."""
    xp = array_api_compat.array_namespace(a)
    return xp.where(a < 0, xp.zeros_like(a), a)


def leaky_relu(a: Array) -> Array:
    """``a`` where ``a >= 0``, else ``0.01 a``."""
    xp = array_api_compat.array_namespace(a)
    return xp.where(a < 0, LEAK * a, a)


def sigmoid(a: Array) -> Array:
    """``1 / (1 + exp(-a))``, written with tanh, which cannot overflow."""
    xp = array_api_compat.array_namespace(a)
    return 0.5 * (xp.tanh(0.5 * a) + 1.0)


def tanh(a: Array) -> Array:
    """``tanh(a)``."""
    return array_api_compat.array_namespace(a).tanh(a)


def gelu(a: Array) -> Array:
    """``a Phi(a)`` with the normal distribution function Phi: the exact form, with erf (Hendrycks and Gimpel, 2016)."""
    xp = array_api_compat.array_namespace(a)
    a = xp.where(a == -math.inf, xp.zeros_like(a), a)  # the limit, where the product would be inf * 0
    return 0.5 * a * (1.0 + erf(a * math.sqrt(0.5)))


def silu(a: Array) -> Array:
    """``a / (1 + exp(-a))``."""
    xp = array_api_compat.array_namespace(a)
    a = xp.where(a == -math.inf, xp.zeros_like(a), a)  # the limit, where the product would be inf * 0
    return a * sigmoid(a)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    function.__name__: function for function in (relu, leaky_relu, sigmoid, tanh, gelu, silu)
}


def erf(a: Array) -> Array:
    """The error function, from the array's own library where it has one."""
    own = _erf_of(array_api_compat.array_namespace(a))
    return own(a) if own is not None else _erf_by_chebyshev(a)


@cache
def _erf_of(xp: Any) -> Callable[[Array], Array] | None:
    match xp.__name__.rpartition(".")[2] if xp.__name__.startswith("array_api_compat") else xp.__name__:
        case "numpy":
            from scipy.special import erf
        case "torch":
            from torch.special import erf
        case "jax.numpy":
            from jax.scipy.special import erf
        case "cupy":
            from cupyx.scipy.special import erf
        case _:
            return None
    return erf


_ERF_REACH = 6.0  # erf rounds to 1 in double precision from 5.93 on


@cache
def _erf_coefficients() -> tuple[float, ...]:
    from numpy.polynomial.chebyshev import chebinterpolate
    from scipy.special import erf

    return tuple(chebinterpolate(lambda t: erf(_ERF_REACH * t), 91)[1::2].tolist())


def _erf_by_chebyshev(a: Array) -> Array:
    """Odd Chebyshev series on [-6, 6] by Clenshaw's recurrence, absolute error below 2e-13."""
    xp = array_api_compat.array_namespace(a)
    t = xp.clip(a, -_ERF_REACH, _ERF_REACH) / _ERF_REACH
    twice = 2.0 * (2.0 * t * t - 1.0)  # 2 T_2(t): the odd series steps by two degrees
    later = latest = xp.zeros_like(t)
    for coefficient in reversed(_erf_coefficients()):
        later, latest = coefficient + twice * later - latest, later
    return t * (later - latest)


def checked_activation(name: str, activation: Any, xp: Any, dtype: Any) -> None:
    """Raise unless `activation` is None, one of the names, or a callable, and its values fit the result's dtype."""
    if activation is None or callable(activation):
        return
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is unknown; take None, a callable or one of {', '.join(map(repr, ACTIVATIONS))}"
        )
    held = kind(xp, dtype)
    if held == "real floating" or (activation == "relu" and held == "integral"):
        return
    raise TypeError(
        f"activation={activation!r} needs a real floating result but {name} makes {dtype}; cast the inputs to a float"
    )
