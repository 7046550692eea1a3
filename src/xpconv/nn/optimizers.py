"""Optimisers: `step` changes the parameters against their gradients, and forgets the gradients."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from array_api_compat import array_namespace

from xpconv.nn.base import Parameter
from xpconv.spec import Array


class Optimizer(ABC):
    """Step down the gradients: what SGD and Adam share.

    Write `update`, which returns what to take off a parameter.

    Examples
    --------
    >>> import numpy
    >>> class SignDescent(Optimizer):
    ...     def update(self, parameter, gradient):
    ...         return self.learning_rate * numpy.sign(gradient)
    >>> weight = Parameter(numpy.array([1.0]), grad=numpy.array([7.0]))
    >>> SignDescent(0.1).step({"weight": weight})
    >>> weight.value
    array([0.9])
    """

    def __init__(self, learning_rate: float) -> None:
        _check(learning_rate > 0, "learning_rate must be positive", learning_rate)
        self.learning_rate = learning_rate

    @abstractmethod
    def update(self, parameter: Parameter, gradient: Array) -> Array:
        """Return what `step` takes off the parameter's value."""

    def step(self, parameters: Mapping[str, Parameter]) -> None:
        """Change every parameter that has a gradient, and forget the gradient.

        Parameters
        ----------
        parameters : mapping of names to Parameter
            What `Layer.parameters` returns. The optimiser remembers each by identity, so the names do not matter.
        """
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.value = parameter.value - self.update(parameter, parameter.grad)
                parameter.grad = None


class SGD(Optimizer):
    """Take gradient steps, with momentum.

    ``v <- momentum * v + gradient + weight_decay * value``, ``value <- value - learning_rate * v`` (as in PyTorch).

    Parameters
    ----------
    learning_rate : float
    momentum : float, 0 <= momentum < 1
    weight_decay : float

    Examples
    --------
    >>> import numpy
    >>> weight = Parameter(numpy.array([1.0]), grad=numpy.array([0.5]))
    >>> SGD(0.1).step({"weight": weight})
    >>> weight.value
    array([0.95])
    """

    def __init__(self, learning_rate: float = 0.01, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate)
        _check(0 <= momentum < 1, "momentum must be at least 0 and less than 1", momentum)
        _check(weight_decay >= 0, "weight_decay must not be negative", weight_decay)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._velocities: dict[Parameter, Array] = {}

    def update(self, parameter: Parameter, gradient: Array) -> Array:
        """Return what `step` takes off the parameter's value."""
        velocity = gradient
        if self.weight_decay:
            velocity = velocity + self.weight_decay * parameter.value
        if self.momentum:
            if parameter in self._velocities:
                velocity = self.momentum * self._velocities[parameter] + velocity
            self._velocities[parameter] = velocity
        return self.learning_rate * velocity


class Adam(Optimizer):
    """Take gradient steps scaled by running moments of the gradient. https://arxiv.org/abs/1412.6980

    ``m <- b1 * m + (1 - b1) * g``, ``v <- b2 * v + (1 - b2) * g**2``, and after t steps
    ``value <- value - learning_rate * (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + epsilon)``.

    Parameters
    ----------
    learning_rate : float
    betas : pair of float, each at least 0 and less than 1
    epsilon : float

    Examples
    --------
    >>> import numpy
    >>> weight = Parameter(numpy.array([1.0]), grad=numpy.array([0.5]))
    >>> Adam(0.1).step({"weight": weight})
    >>> weight.value.round(6)
    array([0.9])
    """

    def __init__(
        self, learning_rate: float = 0.001, *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate)
        _check(all(0 <= beta < 1 for beta in betas), "betas must be at least 0 and less than 1", betas)
        _check(epsilon > 0, "epsilon must be positive", epsilon)
        self.betas = betas
        self.epsilon = epsilon
        self._moments: dict[Parameter, tuple[int, Array, Array]] = {}

    def update(self, parameter: Parameter, gradient: Array) -> Array:
        """Return what `step` takes off the parameter's value."""
        first, second = self.betas
        steps, mean, square = self._moments.get(parameter, (0, 0.0, 0.0))
        steps += 1
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * (gradient * gradient)
        self._moments[parameter] = steps, mean, square
        root = array_namespace(gradient).sqrt(square / (1 - second**steps))
        return self.learning_rate * (mean / (1 - first**steps)) / (root + self.epsilon)


def _check(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value}")
