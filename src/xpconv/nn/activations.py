"""Activations as layers: a function of each element, and its slope."""
# ruff: noqa: ARG002 (an activation is the same in training and in use)

from abc import abstractmethod
from math import pi, sqrt

from array_api_compat import array_namespace

from xpconv.activations import LEAK, erf, gelu, relu, sigmoid, silu, tanh
from xpconv.nn.base import Backward, Layer
from xpconv.spec import Array


class _Elementwise(Layer):
    """A layer that takes each element by itself; the slope is computed when a gradient asks for it."""

    @abstractmethod
    def _value(self, x: Array) -> Array: ...

    @abstractmethod
    def _slope(self, x: Array, y: Array) -> Array:
        """Return the derivative at `x`, whose value is `y`."""

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""
        y = self._value(x)
        return y, lambda gy: gy * self._slope(x, y)


class Relu(_Elementwise):
    """Return ``max(x, 0)``; the slope at 0 is 0.

    Examples
    --------
    >>> import numpy
    >>> Relu()(numpy.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def _value(self, x: Array) -> Array:
        return relu(x)

    def _slope(self, x: Array, y: Array) -> Array:
        return array_namespace(x).astype(x > 0, y.dtype)


class LeakyRelu(_Elementwise):
    """Return ``x`` where it is positive, else ``slope * x``.

    Parameters
    ----------
    slope : float

    Examples
    --------
    >>> import numpy
    >>> LeakyRelu(0.1)(numpy.array([-1.0, 2.0]))
    array([-0.1,  2. ])
    """

    def __init__(self, slope: float = LEAK) -> None:
        self.slope = slope

    def _value(self, x: Array) -> Array:
        return array_namespace(x).where(x < 0, self.slope * x, x)

    def _slope(self, x: Array, y: Array) -> Array:
        positive = array_namespace(x).astype(x > 0, y.dtype)
        return self.slope + (1 - self.slope) * positive


class Sigmoid(_Elementwise):
    """Return ``1 / (1 + exp(-x))``.

    Examples
    --------
    >>> import numpy
    >>> Sigmoid()(numpy.array([-1000.0, 0.0]))
    array([0. , 0.5])
    """

    def _value(self, x: Array) -> Array:
        return sigmoid(x)

    def _slope(self, x: Array, y: Array) -> Array:
        return y * (1 - y)


class Tanh(_Elementwise):
    """Return ``tanh(x)``.

    Examples
    --------
    >>> import numpy
    >>> Tanh()(numpy.array([0.0]))
    array([0.])
    """

    def _value(self, x: Array) -> Array:
        return tanh(x)

    def _slope(self, x: Array, y: Array) -> Array:
        return 1 - y * y


class Silu(_Elementwise):
    """Return ``x / (1 + exp(-x))``, also called swish. https://arxiv.org/abs/1702.03118

    Examples
    --------
    >>> import numpy
    >>> Silu()(numpy.array([0.0, 100.0]))
    array([  0., 100.])
    """

    def _value(self, x: Array) -> Array:
        return silu(x)

    def _slope(self, x: Array, y: Array) -> Array:
        s = sigmoid(x)
        return s + y * (1 - s)


class Gelu(_Elementwise):
    """Return ``x * Phi(x)``, with the normal distribution function ``Phi``. https://arxiv.org/abs/1606.08415

    Examples
    --------
    >>> import numpy
    >>> Gelu()(numpy.array([0.0, 1.0])).round(3)
    array([0.   , 0.841])
    """

    def _value(self, x: Array) -> Array:
        return gelu(x)

    def _slope(self, x: Array, y: Array) -> Array:
        density = array_namespace(x).exp(-0.5 * x * x) / sqrt(2 * pi)
        return 0.5 * (1 + erf(x * sqrt(0.5))) + x * density
