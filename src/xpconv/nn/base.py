"""What every layer shares: named tensors, and moving them to a library, a device or a dtype."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy
from array_api_compat import array_namespace

from xpconv.nn.transfer import from_host, to_host
from xpconv.spec import Array

Backward = Callable[[Array], Array]
Rng = int | numpy.random.Generator | None


@dataclass(eq=False, slots=True)
class Parameter:
    """Hold one array that training changes, and the gradient gathered for it.

    Attributes
    ----------
    value : array
    grad : array of value's shape, or None until a backward has run since the last step of the optimiser

    Examples
    --------
    >>> import numpy
    >>> weight = Parameter(numpy.zeros(2))
    >>> weight.add_grad(numpy.ones(2))
    >>> weight.add_grad(numpy.ones(2))
    >>> weight.grad
    array([2., 2.])
    """

    value: Array
    grad: Array | None = None

    def add_grad(self, grad: Array) -> None:
        """Add `grad`, in value's dtype, to what earlier calls have gathered."""
        grad = array_namespace(grad).astype(grad, self.value.dtype, copy=False)
        self.grad = grad if self.grad is None else self.grad + grad


@dataclass(eq=False, slots=True)
class Buffer:
    """Hold one array that is saved with the weights and has no gradient, such as a running mean.

    Attributes
    ----------
    value : array

    Examples
    --------
    >>> import numpy
    >>> Buffer(numpy.zeros(2)).value
    array([0., 0.])
    """

    value: Array


class Layer(ABC):
    """Map an array to an array, and a gradient back: write `forward` and the rest follows.

    Tensors (`Parameter`, `Buffer`) and layers kept as attributes are found by name.

    Examples
    --------
    >>> import numpy
    >>> class Scale(Layer):
    ...     def __init__(self):
    ...         self.factor = Parameter(numpy.array([3.0]))
    ...
    ...     def forward(self, x, *, training=True):
    ...         def backward(gy):
    ...             self.factor.add_grad((gy * x).sum(keepdims=True))
    ...             return gy * self.factor.value
    ...
    ...         return x * self.factor.value, backward
    >>> layer = Scale()
    >>> layer(numpy.array([1.0, 2.0]))
    array([3., 6.])
    >>> y, backward = layer.forward(numpy.array([1.0, 2.0]))
    >>> backward(numpy.ones(2)), layer.factor.grad
    (array([3., 3.]), array([3.]))
    """

    @abstractmethod
    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``, which takes the gradient of y to that of x and gathers the parameters' own.

        Parameters
        ----------
        x : array
        training : bool
            False computes as in use: Dropout passes everything, BatchNorm takes its running statistics.
        """

    def __call__(self, x: Array) -> Array:
        """Compute the layer as in use: no training, no gradient, nothing kept."""
        return self.forward(x, training=False)[0]

    def state(self) -> dict[str, Parameter | Buffer]:
        """Return every parameter and buffer by its dotted name; one that is shared has its first name only."""
        named: dict[str, Parameter | Buffer] = {}
        seen: set[int] = set()
        for name, tensor in self._named_tensors():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                named[name] = tensor
        return named

    def parameters(self) -> dict[str, Parameter]:
        """Return what training changes, by its dotted name: what an optimiser's step takes."""
        return {name: tensor for name, tensor in self.state().items() if isinstance(tensor, Parameter)}

    def to(self, xp: Any, *, device: Any = None, dtype: str | None = None) -> Self:
        """Move every tensor to the namespace `xp` and `device`, forget the gradients, and return the layer.

        Parameters
        ----------
        xp : namespace of the array API, such as numpy or cupy
        device : that library's device, or None for its current one
        dtype : "float16", "float32" or "float64", or None to leave it
        """
        for tensor in self.state().values():
            tensor.value = from_host(to_host(tensor.value), xp, device=device, dtype=dtype)
            if isinstance(tensor, Parameter):
                tensor.grad = None
        return self

    def _members(self) -> Iterator[tuple[str, Any]]:
        yield from vars(self).items()

    def _named_tensors(self) -> Iterator[tuple[str, Parameter | Buffer]]:
        for name, member in self._members():
            if isinstance(member, Parameter | Buffer):
                yield name, member
            elif isinstance(member, Layer):
                for inner, tensor in member._named_tensors():
                    yield f"{name}.{inner}", tensor


def initial_weight(init: str, shape: tuple[int, ...], *, fan_in: int, fan_out: int, rng: Rng) -> Parameter:
    """Draw a float32 weight on the host: He normal (for relu and kin) or Glorot uniform (for tanh, sigmoid, logits).

    He, variance 2 / fan_in: https://arxiv.org/abs/1502.01852. Glorot, variance 2 / (fan_in + fan_out): AISTATS 2010.
    """
    generator = numpy.random.default_rng(rng)
    if init == "he":
        weight = generator.normal(0.0, (2 / fan_in) ** 0.5, shape)
    elif init == "glorot":
        limit = (6 / (fan_in + fan_out)) ** 0.5
        weight = generator.uniform(-limit, limit, shape)
    else:
        raise ValueError(f'init must be "he" or "glorot", got {init!r}')
    return Parameter(weight.astype(numpy.float32))


def initial_constant(number: float, size: int) -> Array:
    """Make `size` float32 copies of `number` on the host."""
    return numpy.full(size, number, numpy.float32)
