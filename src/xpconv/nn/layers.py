"""Layers without spatial axes, and the chain of layers."""
# ruff: noqa: ARG002 (most layers compute the same in training and in use)

from collections.abc import Iterator
from math import prod

import numpy
from array_api_compat import array_namespace

from xpconv.nn.base import Backward, Buffer, Layer, Parameter, Rng, initial_constant, initial_weight
from xpconv.nn.spatial import channel_axis
from xpconv.nn.transfer import like
from xpconv.spec import Array, Layout, whole_number


class Flatten(Layer):
    """Lay each item of the batch out as one row: ``(N, ...)`` becomes ``(N, features)``.

    Examples
    --------
    >>> import numpy
    >>> Flatten()(numpy.ones((2, 4, 4, 3))).shape
    (2, 48)
    """

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""
        xp = array_namespace(x)
        y = xp.reshape(x, (x.shape[0], prod(x.shape[1:])))
        return y, lambda gy: xp.reshape(gy, x.shape)


class Dense(Layer):
    """Multiply by a learned matrix, ``y = x @ weight + bias``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        Whether a number per output feature, zero at first, is added.
    init : "he" or "glorot"
        Normal of variance ``2 / in_features`` (for relu and kin), or uniform of variance
        ``2 / (in_features + out_features)``.
    rng : int, numpy.random.Generator or None
        Where the weight is drawn from, as in `numpy.random.default_rng`.

    Attributes
    ----------
    weight, bias : Parameter
        Of shapes ``(in_features, out_features)`` and ``(out_features,)``; bias is None where it was not wanted.

    Examples
    --------
    >>> import numpy
    >>> Dense(3, 2, rng=0)(numpy.ones((4, 3))).shape
    (4, 2)
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, init: str = "he", rng: Rng = None
    ) -> None:
        shape = (whole_number("in_features", in_features), whole_number("out_features", out_features))
        self.weight = initial_weight(init, shape, fan_in=in_features, fan_out=out_features, rng=rng)
        self.bias = Parameter(initial_constant(0, out_features)) if bias else None

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y (..., out_features)`` of ``x (..., in_features)``, and ``backward``; see `Layer.forward`."""
        weight = self.weight.value
        if x.ndim < 2 or x.shape[-1] != weight.shape[0]:
            raise ValueError(
                f"x must be (..., {weight.shape[0]}) to meet weight {tuple(weight.shape)}, got {tuple(x.shape)}; "
                "put a Flatten before, or change in_features"
            )
        xp = array_namespace(x)
        rows = prod(x.shape[:-1])
        y = xp.matmul(x, weight)
        if self.bias is not None:
            y = y + self.bias.value

        def backward(gy: Array) -> Array:
            gy_rows = xp.reshape(gy, (rows, weight.shape[1]))
            x_rows = xp.reshape(x, (rows, weight.shape[0]))
            self.weight.add_grad(xp.matmul(xp.matrix_transpose(x_rows), gy_rows))
            if self.bias is not None:
                self.bias.add_grad(xp.sum(gy_rows, axis=0))
            return xp.matmul(gy, xp.matrix_transpose(weight))

        return y, backward


class Dropout(Layer):
    """Set a random part of the input to zero while training, and scale the rest up so that the mean stays.

    ``y = x * kept / (1 - rate)``, kept being 1 with probability ``1 - rate``, else 0; in use ``y = x``. The choice is
    drawn on the host, so that every library and device makes the same one.

    Parameters
    ----------
    rate : float, 0 <= rate < 1
        Part that is set to zero.
    rng : int, numpy.random.Generator or None
        Where the choice is drawn from, as in `numpy.random.default_rng`.

    Examples
    --------
    >>> import numpy
    >>> layer = Dropout(0.5, rng=0)
    >>> layer(numpy.ones(4))
    array([1., 1., 1., 1.])
    >>> layer.forward(numpy.ones(4), training=True)[0]
    array([2., 0., 0., 0.])
    """

    def __init__(self, rate: float, *, rng: Rng = None) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be at least 0 and less than 1, got {rate}")
        self.rate = rate
        self._generator = numpy.random.default_rng(rng)

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""
        if not training or self.rate == 0:
            return x, lambda gy: gy
        kept = like(self._generator.random(x.shape) >= self.rate, x)
        scale = array_namespace(x).astype(kept, x.dtype) / (1 - self.rate)
        return x * scale, lambda gy: gy * scale


class BatchNorm(Layer):
    """Bring each channel to mean zero and variance one over the batch, then scale and shift it as learned.

    ``y = (x - mean) / sqrt(variance + epsilon) * scale + shift``. In training, mean and variance are those of the
    batch over all axes but the channels', and ``running += momentum * (batch - running)`` (with the unbiased
    variance, as in PyTorch); in use they are the running ones. https://arxiv.org/abs/1502.03167

    Parameters
    ----------
    channels : int
    momentum : float
        Weight of the newest batch in the running statistics.
    epsilon : float
    layout : "channels_last" or "channels_first"

    Attributes
    ----------
    scale, shift : Parameter, of shape (channels,)
    mean, variance : Buffer, of shape (channels,), the running statistics

    Examples
    --------
    >>> import numpy
    >>> y, backward = BatchNorm(1).forward(numpy.array([[1.0], [3.0]]))
    >>> y.round(3)
    array([[-1.],
           [ 1.]])
    """

    def __init__(
        self, channels: int, *, momentum: float = 0.1, epsilon: float = 1e-5, layout: Layout = "channels_last"
    ) -> None:
        whole_number("channels", channels)
        self.momentum = momentum
        self.epsilon = epsilon
        self._channel_axis = channel_axis(layout)
        self.scale = Parameter(initial_constant(1, channels))
        self.shift = Parameter(initial_constant(0, channels))
        self.mean = Buffer(initial_constant(0, channels))
        self.variance = Buffer(initial_constant(1, channels))

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""
        self._check(x)
        xp = array_namespace(x)
        channels = self._channel_axis % x.ndim
        others = tuple(axis for axis in range(x.ndim) if axis != channels)
        along_channels = tuple(n if axis == channels else 1 for axis, n in enumerate(x.shape))
        if training:
            mean = xp.mean(x, axis=others)
            variance = xp.mean((x - xp.reshape(mean, along_channels)) ** 2, axis=others)
            self._remember(mean, variance, count=prod(x.shape) // x.shape[channels])
        else:
            mean, variance = self.mean.value, self.variance.value
        scale = xp.reshape(self.scale.value, along_channels)
        rate = xp.reshape(1 / xp.sqrt(variance + self.epsilon), along_channels)
        normal = (x - xp.reshape(mean, along_channels)) * rate

        def backward(gy: Array) -> Array:
            self.scale.add_grad(xp.sum(gy * normal, axis=others))
            self.shift.add_grad(xp.sum(gy, axis=others))
            if training:  # mean and variance depend on x as well
                gy = gy - xp.mean(gy, axis=others, keepdims=True)
                gy = gy - normal * xp.mean(gy * normal, axis=others, keepdims=True)
            return gy * (scale * rate)

        return normal * scale + xp.reshape(self.shift.value, along_channels), backward

    def _remember(self, mean: Array, variance: Array, *, count: int) -> None:
        if count < 2:
            raise ValueError(
                "x has one value per channel, which has no variance; give BatchNorm at least 2 items, or change "
                "batch_size so that no batch of one is left"
            )
        xp = array_namespace(mean)
        for buffer, batch in ((self.mean, mean), (self.variance, variance * (count / (count - 1)))):
            buffer.value = buffer.value + self.momentum * (xp.astype(batch, buffer.value.dtype) - buffer.value)

    def _check(self, x: Array) -> None:
        channels = self.scale.value.shape[0]
        if x.ndim < 2 or x.shape[self._channel_axis] != channels:
            raise ValueError(
                f"BatchNorm has {channels} channels, x has shape {tuple(x.shape)}; change channels or layout"
            )


class Sequential(Layer):
    """Chain layers, each taking what the one before returns.

    Parameters
    ----------
    *layers : Layer

    Attributes
    ----------
    layers : list of Layer
        The names of the tensors count them: ``"0.weight"`` is the first layer's weight.

    Examples
    --------
    >>> import numpy
    >>> model = Sequential(Dense(3, 4, rng=0), Dense(4, 2, rng=1))
    >>> model(numpy.ones((5, 3))).shape
    (5, 2)
    >>> list(model.parameters())
    ['0.weight', '0.bias', '1.weight', '1.bias']
    """

    def __init__(self, *layers: Layer) -> None:
        self.layers = list(layers)

    def __call__(self, x: Array) -> Array:
        """Compute the chain as in use; no layer's output outlives the next one's."""
        for layer in self.layers:
            x = layer(x)
        return x

    def activations_of(self, x: Array) -> list[Array]:
        """Return the output of every layer, in order, computed as in use: the feature maps to look at."""
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""
        steps = []
        for layer in self.layers:
            x, step = layer.forward(x, training=training)
            steps.append(step)

        def backward(gy: Array) -> Array:
            for step in reversed(steps):
                gy = step(gy)
            return gy

        return x, backward

    def _members(self) -> Iterator[tuple[str, Layer]]:
        for position, layer in enumerate(self.layers):
            yield str(position), layer
