"""Layers over spatial axes: convolution, correlation and pooling."""
# ruff: noqa: ARG002 (most layers compute the same in training and in use)

from collections.abc import Callable, Sized
from math import prod
from typing import Any, ClassVar, NamedTuple

from array_api_compat import array_namespace

from xpconv.convolution import conv, conv_grad_input, conv_grad_weight, corr, corr_grad_input, corr_grad_weight
from xpconv.nn.base import Backward, Layer, Parameter, Rng, initial_constant, initial_weight
from xpconv.pooling import avg_pool, avg_pool_grad, global_avg_pool, max_pool, max_pool_grad
from xpconv.spec import (
    Array,
    Layout,
    Padding,
    PerAxis,
    checked_layout,
    checked_padding_mode,
    padding_per_axis,
    per_axis,
    whole_number,
)


class _Operation(NamedTuple):
    """One product of input and kernel, and its two gradients."""

    forward: Callable[..., Array]
    grad_input: Callable[..., Array]
    grad_weight: Callable[..., Array]


_CONVOLUTION = _Operation(conv, conv_grad_input, conv_grad_weight)
_CORRELATION = _Operation(corr, corr_grad_input, corr_grad_weight)


def channel_axis(layout: Layout) -> int:
    """Return the axis of the channels in an array that has a batch axis."""
    return -1 if checked_layout(layout) == "channels_last" else 1


def _spatial_axes(x: Array, layout: Layout) -> tuple[int, ...]:
    first = 1 if layout == "channels_last" else 2
    return tuple(range(first, first + x.ndim - 2))


def _size(x: Array, layout: Layout) -> tuple[int, ...]:
    return tuple(x.shape[axis] for axis in _spatial_axes(x, layout))


class _KernelLayer(Layer):
    """A layer that slides a kernel over its input; the subclass says how many axes and whether it is flipped."""

    _axes: ClassVar[int]
    _operation: ClassVar[_Operation]

    def __init__(
        self,
        in_channels: int,
        filters: int,
        window: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: Padding = "valid",
        dilation: PerAxis = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        bias: bool = True,
        init: str = "he",
        layout: Layout = "channels_last",
        rng: Rng = None,
    ) -> None:
        """Draw the weight on the host, in float32; `Layer.to` moves it.

        Parameters
        ----------
        in_channels, filters : int
            Channels of the input and of the output.
        window : int or one int per spatial axis, in elements
        stride, padding, dilation, groups, padding_mode, layout
            As in `xpconv.conv`.
        bias : bool
            Whether a number per filter, zero at first, is added.
        init : "he" or "glorot"
            Normal of variance ``2 / fan_in`` (for relu and kin), or uniform of variance ``2 / (fan_in + fan_out)``.
        rng : int, numpy.random.Generator or None
            Where the weight is drawn from, as in `numpy.random.default_rng`.
        """
        for name, count in (("in_channels", in_channels), ("filters", filters), ("groups", groups)):
            whole_number(name, count)
        if in_channels % groups or filters % groups:
            raise ValueError(f"groups {groups} does not divide in_channels {in_channels} and filters {filters}")
        self.window = per_axis("window", window, self._axes)
        self.geometry: dict[str, Any] = {
            "stride": per_axis("stride", stride, self._axes),
            "padding": padding_per_axis(padding, self._axes),
            "dilation": per_axis("dilation", dilation, self._axes),
            "groups": groups,
            "padding_mode": checked_padding_mode(padding_mode),
            "layout": layout,
        }
        self._channel_axis = channel_axis(layout)
        read = in_channels // groups
        shape = (*self.window, read, filters) if self._channel_axis == -1 else (filters, read, *self.window)
        taps = prod(self.window)
        self.weight = initial_weight(init, shape, fan_in=taps * read, fan_out=taps * (filters // groups), rng=rng)
        self.bias = Parameter(initial_constant(0, filters)) if bias else None

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`. `x` is ``(N, *size, C)``, or as `layout` says."""
        if x.ndim != self._axes + 2:
            raise ValueError(
                f"{type(self).__name__} takes a batch of {self._axes + 2} axes, got x of shape {tuple(x.shape)}; "
                "give a single item a batch axis with x[None]"
            )
        weight = self.weight.value  # the gradients are those of the weight that made y, whatever the optimiser does
        bias = None if self.bias is None else self.bias.value
        y = self._operation.forward(x, weight, bias, **self.geometry)

        def backward(gy: Array) -> Array:
            self.weight.add_grad(self._operation.grad_weight(x, gy, window=self.window, **self.geometry))
            if self.bias is not None:
                self.bias.add_grad(_sum_to_channels(gy, self._channel_axis))
            return self._operation.grad_input(gy, weight, size=_size(x, self.geometry["layout"]), **self.geometry)

        return y, backward


def _sum_to_channels(gy: Array, channels: int) -> Array:
    channels %= gy.ndim
    return array_namespace(gy).sum(gy, axis=tuple(axis for axis in range(gy.ndim) if axis != channels))


class Conv1D(_KernelLayer):
    """Convolve signals with learned kernels, ``y = conv(x, weight) + bias``: the kernel is flipped.

    Attributes
    ----------
    weight, bias : Parameter
        Of shapes ``(*window, in_channels / groups, filters)`` and ``(filters,)``; bias is None where it was not wanted.

    Examples
    --------
    >>> import numpy
    >>> Conv1D(2, 4, 3, padding="same", rng=0)(numpy.ones((1, 8, 2))).shape
    (1, 8, 4)
    """

    _axes, _operation = 1, _CONVOLUTION


class Conv2D(_KernelLayer):
    """Convolve images with learned kernels, ``y = conv(x, weight) + bias``: the kernel is flipped.

    Attributes
    ----------
    weight, bias : Parameter
        Of shapes ``(*window, in_channels / groups, filters)`` and ``(filters,)``; bias is None where it was not wanted.

    Examples
    --------
    >>> import numpy
    >>> Conv2D(1, 6, 5, rng=0)(numpy.ones((2, 28, 28, 1))).shape
    (2, 24, 24, 6)
    """

    _axes, _operation = 2, _CONVOLUTION


class Conv3D(_KernelLayer):
    """Convolve volumes with learned kernels, ``y = conv(x, weight) + bias``: the kernel is flipped.

    Attributes
    ----------
    weight, bias : Parameter
        Of shapes ``(*window, in_channels / groups, filters)`` and ``(filters,)``; bias is None where it was not wanted.

    Examples
    --------
    >>> import numpy
    >>> Conv3D(1, 2, 3, rng=0)(numpy.ones((1, 4, 4, 4, 1))).shape
    (1, 2, 2, 2, 2)
    """

    _axes, _operation = 3, _CONVOLUTION


class Corr1D(_KernelLayer):
    """Correlate signals with learned kernels, as deep-learning frameworks do: `Conv1D` without the flip.

    Attributes
    ----------
    weight, bias : Parameter
        Of shapes ``(*window, in_channels / groups, filters)`` and ``(filters,)``; bias is None where it was not wanted.

    Examples
    --------
    >>> import numpy
    >>> Corr1D(2, 4, 3, stride=2, rng=0)(numpy.ones((1, 9, 2))).shape
    (1, 4, 4)
    """

    _axes, _operation = 1, _CORRELATION


class Corr2D(_KernelLayer):
    """Correlate images with learned kernels, as deep-learning frameworks do: `Conv2D` without the flip.

    Attributes
    ----------
    weight, bias : Parameter
        Of shapes ``(*window, in_channels / groups, filters)`` and ``(filters,)``; bias is None where it was not wanted.

    Examples
    --------
    With ``layout="channels_first"`` the weight has the shape a framework gives it.

    >>> import numpy
    >>> layer = Corr2D(3, 8, 3, padding=1, layout="channels_first", rng=0)
    >>> layer.weight.value.shape, layer(numpy.ones((2, 3, 5, 5))).shape
    ((8, 3, 3, 3), (2, 8, 5, 5))
    """

    _axes, _operation = 2, _CORRELATION


class Corr3D(_KernelLayer):
    """Correlate volumes with learned kernels, as deep-learning frameworks do: `Conv3D` without the flip.

    Attributes
    ----------
    weight, bias : Parameter
        Of shapes ``(*window, in_channels / groups, filters)`` and ``(filters,)``; bias is None where it was not wanted.

    Examples
    --------
    >>> import numpy
    >>> Corr3D(1, 2, 2, rng=0)(numpy.ones((1, 3, 3, 3, 1))).shape
    (1, 2, 2, 2, 2)
    """

    _axes, _operation = 3, _CORRELATION


def _check_pooling(
    window: PerAxis, stride: PerAxis | None, padding: Padding, dilation: PerAxis, layout: Layout
) -> None:
    """Refuse what no input could be pooled with; how many axes there are is for the input to say."""
    for name, value in (("window", window), ("stride", stride), ("dilation", dilation)):
        if value is not None:
            per_axis(name, value, _entries(value))
    padding_per_axis(padding, 2 if isinstance(padding, str) else _entries(padding))
    checked_layout(layout)


def _entries(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 1


class MaxPool(Layer):
    """Take the maximum of each window; the gradient goes to the element that won.

    Parameters
    ----------
    window, stride, padding, dilation, ceil_mode, layout
        As in `xpconv.max_pool`; the input, ``(N, *size, C)``, says how many spatial axes there are.

    Examples
    --------
    >>> import numpy
    >>> MaxPool(2)(numpy.ones((1, 8, 8, 3))).shape
    (1, 4, 4, 3)
    """

    def __init__(
        self,
        window: PerAxis,
        *,
        stride: PerAxis | None = None,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        ceil_mode: bool = False,
        layout: Layout = "channels_last",
    ) -> None:
        _check_pooling(window, stride, padding, dilation, layout)
        self.window = window
        self.geometry: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
            "layout": layout,
        }

    def __call__(self, x: Array) -> Array:
        """Pool without the indices that a gradient needs."""
        return max_pool(x, self.window, **self.geometry)

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""
        layout = self.geometry["layout"]
        y, indices = max_pool(x, self.window, return_indices=True, **self.geometry)
        size = _size(x, layout)
        return y, lambda gy: max_pool_grad(gy, indices, size=size, layout=layout)


class AvgPool(Layer):
    """Take the mean of each window.

    Parameters
    ----------
    window, stride, padding, dilation, ceil_mode, count_include_pad, layout
        As in `xpconv.avg_pool`; the input, ``(N, *size, C)``, says how many spatial axes there are.

    Examples
    --------
    >>> import numpy
    >>> AvgPool(2)(numpy.arange(4.0).reshape(1, 4, 1)).ravel()
    array([0.5, 2.5])
    """

    def __init__(
        self,
        window: PerAxis,
        *,
        stride: PerAxis | None = None,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
        layout: Layout = "channels_last",
    ) -> None:
        _check_pooling(window, stride, padding, dilation, layout)
        self.window = window
        self.geometry: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
            "layout": layout,
        }

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""
        size = _size(x, self.geometry["layout"])
        y = avg_pool(x, self.window, **self.geometry)
        return y, lambda gy: avg_pool_grad(gy, self.window, size=size, **self.geometry)


class GlobalAvgPool(Layer):
    """Take the mean of each channel over all spatial axes: ``(N, *size, C)`` becomes ``(N, C)``.

    Parameters
    ----------
    layout : "channels_last" or "channels_first"

    Examples
    --------
    >>> import numpy
    >>> GlobalAvgPool()(numpy.ones((2, 7, 7, 5))).shape
    (2, 5)
    """

    def __init__(self, *, layout: Layout = "channels_last") -> None:
        checked_layout(layout)
        self.layout = layout

    def forward(self, x: Array, *, training: bool = True) -> tuple[Array, Backward]:
        """Return ``y`` and ``backward``; see `Layer.forward`."""

        def backward(gy: Array) -> Array:
            xp = array_namespace(gy)
            share = gy / prod(_size(x, self.layout))
            for axis in _spatial_axes(x, self.layout):
                share = xp.expand_dims(share, axis=axis)
            return xp.broadcast_to(share, x.shape)

        return global_avg_pool(x, layout=self.layout), backward
