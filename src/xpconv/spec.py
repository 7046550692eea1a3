"""Geometry of convolution and pooling as plain integers, checked once.

No arrays and no library here: what a user wrote about shapes becomes a frozen, hashable spec, or one clear
`ValueError`. Engines, layers and tests ask the spec and never compute a shape themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal, TypeAlias

Array: TypeAlias = Any
Layout: TypeAlias = Literal["channels_last", "channels_first"]
PerAxis: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int] | Sequence[Sequence[int]]
Sizes: TypeAlias = tuple[int, ...]
Pairs: TypeAlias = tuple[tuple[int, int], ...]

LAYOUTS = ("channels_last", "channels_first")
PADDING_NAMES = ("valid", "full", "same", "same_upper", "same_lower")
PADDING_MODES = ("zeros", "constant", "edge", "reflect", "symmetric", "wrap")
_MODE_ALIASES = {"replicate": "edge", "circular": "wrap"}


# --- What one sliding window does -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """A window sliding over the spatial axes. Tuples hold one entry per spatial axis, in elements."""

    layout: str
    batch: int
    channels: int
    size: Sizes
    window: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Pairs  # before and after; the adjoints of a spec may crop, which is negative padding

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    @cached_property
    def reach(self) -> Sizes:
        """Elements the dilated window spans: (m - 1) * d + 1."""
        return tuple((m - 1) * d + 1 for m, d in zip(self.window, self.dilation, strict=True))

    @cached_property
    def padded_size(self) -> Sizes:
        """Spatial size after padding."""
        return tuple(n + before + after for n, (before, after) in zip(self.size, self.padding, strict=True))

    @cached_property
    def whole_windows(self) -> Sizes:
        """Windows that fit on each padded axis: floor((padded - reach) / stride) + 1."""
        axes = zip(self.padded_size, self.reach, self.stride, strict=True)
        return tuple((n - reach) // s + 1 for n, reach, s in axes)

    @property
    def out_size(self) -> Sizes:
        """Spatial size of the result."""
        return self.whole_windows

    @property
    def taps(self) -> Iterator[Sizes]:
        """Every offset inside the window, in the order of memory."""
        return product(*map(range, self.window))

    @property
    def x_shape(self) -> Sizes:
        """Shape of the input, in the user's layout."""
        return in_layout(self.layout, self.batch, self.size, self.channels)


def in_layout(layout: str, batch: int, spatial: Sizes, channels: int) -> Sizes:
    """Shape of an array of feature maps."""
    return (batch, *spatial, channels) if layout == "channels_last" else (batch, channels, *spatial)


@dataclass(frozen=True)
class ConvSpec(Windows):
    """One convolution (`flip`) or cross-correlation, forward, with all sizes known."""

    filters: int
    groups: int
    flip: bool
    padding_mode: str = "zeros"
    input_dilation: Sizes = ()  # the adjoint of a stride: zeros between the input's elements; () is none

    @cached_property
    def spread_size(self) -> Sizes:
        """Spatial size with the zeros of `input_dilation` between the elements."""
        if not self.input_dilation:
            return self.size
        return tuple(max((n - 1) * d + 1, 0) for n, d in zip(self.size, self.input_dilation, strict=True))

    @cached_property
    def padded_size(self) -> Sizes:
        """Spatial size after input dilation and padding."""
        return tuple(n + before + after for n, (before, after) in zip(self.spread_size, self.padding, strict=True))

    @property
    def w_shape(self) -> Sizes:
        """Shape of the weight, in the user's layout."""
        if self.layout == "channels_last":
            return (*self.window, self.channels // self.groups, self.filters)
        return (self.filters, self.channels // self.groups, *self.window)

    @property
    def y_shape(self) -> Sizes:
        """Shape of the result, in the user's layout."""
        return in_layout(self.layout, self.batch, self.out_size, self.filters)

    @cached_property
    def remainder(self) -> Sizes:
        """Elements at the end of each padded axis that no window reaches."""
        axes = zip(self.padded_size, self.reach, self.stride, strict=True)
        return tuple((n - reach) % s for n, reach, s in axes)

    @property
    def valid(self) -> ConvSpec:
        """The same convolution of an input that is already padded."""
        return replace(self, size=self.padded_size, padding=((0, 0),) * self.axes, padding_mode="zeros")

    @property
    def input_adjoint(self) -> ConvSpec:
        """The convolution that takes `gy` back to the (unpadded, zero-padding) input.

        It reads the weight with the roles of its channels and filters exchanged inside each group, turns the other
        way, and has zeros between the elements of `gy` where the forward one has a stride.
        """
        axes = zip(self.padding, self.reach, self.remainder, strict=True)
        return replace(
            self,
            size=self.out_size,
            channels=self.filters,
            filters=self.channels,
            stride=(1,) * self.axes,
            input_dilation=self.stride,
            padding=tuple((reach - 1 - before, reach - 1 - after + rest) for (before, after), reach, rest in axes),
            flip=not self.flip,
        )

    @property
    def weight_adjoint(self) -> ConvSpec:
        """The correlation of `x` with `gy` that gives the weight's gradient.

        Batch and channels change places: its input is `x` as (C / groups, *size, groups * N), its weight is `gy` as
        (*out, N, F), its result (C / groups, *window, F), flipped afterwards where the forward one flips.
        """
        axes = zip(self.padding, self.remainder, strict=True)
        return replace(
            self,
            batch=self.channels // self.groups,
            channels=self.groups * self.batch,
            window=self.out_size,
            stride=self.dilation,
            dilation=self.stride,
            padding=tuple((before, after - rest) for (before, after), rest in axes),
            flip=False,
        )


@dataclass(frozen=True)
class PoolSpec(Windows):
    """One pooling, or the patches of one convolution."""

    ceil_mode: bool = False

    @cached_property
    def out_size(self) -> Sizes:
        """Windows per axis; `ceil_mode` adds the last partial one, unless it starts in the end padding."""
        if not self.ceil_mode:
            return self.whole_windows
        axes = zip(self.size, self.padding, self.padded_size, self.reach, self.stride, strict=True)
        return tuple(
            min(-(-(padded - reach) // s) + 1, -(-(n + before) // s)) for n, (before, _), padded, reach, s in axes
        )

    @cached_property
    def overhang(self) -> Sizes:
        """Elements that the last window of `ceil_mode` needs beyond the padded axis."""
        axes = zip(self.out_size, self.stride, self.reach, self.padded_size, strict=True)
        return tuple(max((out - 1) * s + reach - padded, 0) for out, s, reach, padded in axes)

    @property
    def reading(self) -> PoolSpec:
        """The same windows with the overhang made ordinary padding."""
        axes = zip(self.padding, self.overhang, strict=True)
        return replace(self, padding=tuple((lo, hi + more) for (lo, hi), more in axes))

    @property
    def y_shape(self) -> Sizes:
        """Shape of the result, in the user's layout."""
        return in_layout(self.layout, self.batch, self.out_size, self.channels)

    @property
    def patches_shape(self) -> Sizes:
        """Shape that `unfold` returns: (N, *out, *window, C) or (N, C, *window, *out)."""
        if self.layout == "channels_last":
            return (self.batch, *self.out_size, *self.window, self.channels)
        return (self.batch, self.channels, *self.window, *self.out_size)

    def positions(self, axis: int, offset: int) -> Sizes:
        """Where tap `offset` of each window lies on the unpadded axis; outside it where it lies in the padding."""
        first = offset * self.dilation[axis] - self.padding[axis][0]
        return tuple(first + i * self.stride[axis] for i in range(self.out_size[axis]))

    def counts(self, axis: int, include_padding: bool) -> Sizes:
        """Taps of each window that lie on the axis, or on the padded axis; the overhang never counts."""
        before, after = self.padding[axis] if include_padding else (0, 0)
        taps = zip(*(self.positions(axis, k) for k in range(self.window[axis])), strict=True)
        return tuple(sum(-before <= p < self.size[axis] + after for p in window) for window in taps)


@dataclass(frozen=True)
class AdaptiveSpec:
    """Pooling to a wanted size: window i covers floor(i n / out) up to, not including, ceil((i + 1) n / out)."""

    layout: str
    batch: int
    channels: int
    size: Sizes
    out_size: Sizes

    def spans(self, axis: int) -> Pairs:
        """Start and stop of every window."""
        n, out = self.size[axis], self.out_size[axis]
        return tuple((i * n // out, -(-(i + 1) * n // out)) for i in range(out))


@dataclass(frozen=True)
class ScatterSpec:
    """Values that go back to the flat positions of a plane."""

    layout: str
    batch: int
    channels: int
    out_size: Sizes  # of the values
    size: Sizes  # of the plane


@dataclass(frozen=True)
class Form:
    """How the user's arrays stand to the full ones: index tuples that add missing axes, and drop them from y."""

    x: tuple[Any, ...]
    w: tuple[Any, ...]
    y: tuple[Any, ...]


# --- What the user wrote, as integers ---------------------------------------------------------------------------------


def per_axis(name: str, value: PerAxis, axes: int, *, least: int = 1) -> Sizes:
    """One integer per spatial axis, from one integer or a sequence."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(entries) != axes:
        raise ValueError(f"{name} has {len(entries)} entries but there are {axes} spatial axes; got {name}={value}")
    return tuple(_integer(name, entry, value, least, " or one integer per spatial axis") for entry in entries)


def whole_number(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an integer that is at least `least`."""
    return _integer(name, value, value, least, "")


def _integer(name: str, entry: Any, value: Any, least: int, also: str) -> int:
    try:
        number = operator.index(entry)
    except TypeError:
        raise ValueError(f"{name} must be an integer{also}, got {name}={value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {name}={value!r}")
    return number


def padding_per_axis(padding: Padding, axes: int) -> str | Pairs:
    """The name of a padding, or one (before, after) per spatial axis."""
    if isinstance(padding, str):
        return one_of("padding", padding, PADDING_NAMES)
    if hasattr(padding, "tolist"):
        padding = padding.tolist()
    if isinstance(padding, (tuple, list)) and any(isinstance(entry, (tuple, list)) for entry in padding):
        pairs = tuple(tuple(entry) if isinstance(entry, (tuple, list)) else (entry, entry) for entry in padding)
        if len(pairs) != axes or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"padding takes one (before, after) per spatial axis and there are {axes}; got padding={padding}"
            )
        before, after = (tuple(_integer("padding", p[side], padding, 0, " per side") for p in pairs) for side in (0, 1))
        return tuple(zip(before, after, strict=True))
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and axes == 1:
        raise ValueError(f"padding={padding} is ambiguous for one spatial axis; write (({padding[0]}, {padding[1]}),)")
    return tuple((p, p) for p in per_axis("padding", padding, axes, least=0))  # type: ignore[arg-type]


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; take one of {', '.join(map(repr, allowed))}")
    return value


def checked_layout(layout: str) -> str:
    """`layout`, if it is one of the two."""
    return one_of("layout", layout, LAYOUTS)


def checked_padding_mode(mode: str) -> str:
    """The padding mode by its own name, aliases resolved."""
    return _MODE_ALIASES.get(mode) or one_of("padding_mode", mode, PADDING_MODES + tuple(_MODE_ALIASES))


def _resolved_padding(
    padding: str | Pairs, size: Sizes, window: Sizes, stride: Sizes, dilation: Sizes, flip: bool
) -> Pairs:
    """Padding in elements; a name is worked out from the geometry."""
    if not isinstance(padding, str):
        return padding
    axes = zip(size, window, stride, dilation, strict=True)
    return tuple(_named_padding(padding, n, m, s, d, flip) for n, m, s, d in axes)


def _named_padding(padding: str, n: int, m: int, s: int, d: int, flip: bool) -> tuple[int, int]:
    total = (m - 1) * d
    match padding:
        case "valid":
            return 0, 0
        case "full":
            return total, total
        case "same":  # the centre tap w[(m-1)//2] lies on every s-th element; flipped, it is read from the other end
            centre = (m - 1) // 2 * d
            return (total - centre, centre) if flip else (centre, total - centre)
    total = max((-(-n // s) - 1) * s + total + 1 - n, 0)
    half = total // 2
    return (half, total - half) if padding == "same_upper" else (total - half, half)


@lru_cache(maxsize=4096)
def padding_source(n: int, before: int, after: int, mode: str) -> Sizes:
    """Where each element of a padded axis comes from, as `numpy.pad` has it, also beyond the axis' own length.

    >>> padding_source(3, 2, 2, "reflect")
    (2, 1, 0, 1, 2, 1, 0)
    """
    period = {"edge": 1, "wrap": n, "symmetric": 2 * n, "reflect": max(2 * (n - 1), 1)}[mode]

    def source(p: int) -> int:
        if mode == "edge":
            return min(max(p, 0), n - 1)
        p %= period
        mirrored = 2 * n - 1 - p if mode == "symmetric" else period - p
        return p if p < n else mirrored

    return tuple(source(p) for p in range(-before, n + after))


# --- Specs of the operations ------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def conv_spec(
    x_shape: Sizes,
    w_shape: Sizes,
    *,
    name: str,
    axes: int | None,
    flip: bool,
    stride: Sizes,
    padding: str | Pairs,
    dilation: Sizes,
    groups: int,
    padding_mode: str,
    layout: str,
) -> tuple[ConvSpec, Form]:
    """Geometry of a forward convolution; `axes` is None where the weight tells, and plain forms are then excluded."""
    shapes = f"shapes: x {x_shape}, w {w_shape}"
    form = _conv_form(name, len(x_shape), len(w_shape), axes, layout, shapes)
    batch, size, channels = _split(layout, _lifted(x_shape, form.x))
    window, per_group, filters = _split_weight(layout, _lifted(w_shape, form.w))
    _check_sizes("x", x_shape)
    _check_sizes("w", w_shape)
    _check_groups("x", channels, "w", per_group, filters, groups, shapes)
    resolved = _resolved_padding(padding, size, window, stride, dilation, flip)
    spec = ConvSpec(
        layout, batch, channels, size, window, stride, dilation, resolved, filters, groups, flip, padding_mode
    )
    _check_fit(spec)
    _check_padding_source(spec)
    return spec, form


@lru_cache(maxsize=4096)
def conv_transpose_spec(
    x_shape: Sizes,
    w_shape: Sizes,
    *,
    name: str,
    axes: int | None,
    flip: bool,
    stride: Sizes,
    padding: str | Pairs,
    output_padding: Sizes,
    dilation: Sizes,
    groups: int,
    layout: str,
) -> tuple[ConvSpec, Form]:
    """Geometry of the forward convolution whose input gradient is the transposed convolution of `x`."""
    shapes = f"shapes: x {x_shape}, w {w_shape}"
    form = _transpose_form(_conv_form(name, len(x_shape), len(w_shape), axes, layout, shapes), layout)
    batch, given, filters = _split(layout, _lifted(x_shape, form.x))
    window, per_group, w_filters = _split_weight(layout, _lifted(w_shape, form.w))
    _check_sizes("x", x_shape)
    _check_sizes("w", w_shape)
    if filters != w_filters:
        raise ValueError(f"x has {filters} channels but w, the weight of the forward conv, makes {w_filters}; {shapes}")
    _check_groups("w", per_group * groups, "w", per_group, filters, groups, shapes)
    for extra, s, d in zip(output_padding, stride, dilation, strict=True):
        if extra >= max(s, d):
            raise ValueError(
                f"output_padding={extra} must be smaller than the stride or the dilation ({s}, {d}); "
                "pad the result instead"
            )
    wanted, resolved = _transposed_geometry(given, window, stride, padding, output_padding, dilation, flip)
    spec = ConvSpec(
        layout, batch, per_group * groups, wanted, window, stride, dilation, resolved, filters, groups, flip
    )
    if min(wanted) < 1:
        raise ValueError(f"the padding leaves nothing: the result's spatial size would be {wanted}; {shapes}")
    return spec, form


def _transposed_geometry(
    given: Sizes, window: Sizes, stride: Sizes, padding: str | Pairs, extra: Sizes, dilation: Sizes, flip: bool
) -> tuple[Sizes, Pairs]:
    """Size of the transposed result, and the padding with which the forward convolution makes exactly `given` of it."""
    axes = list(zip(given, window, stride, dilation, strict=True))
    if padding in ("same_upper", "same_lower"):  # TensorFlow's and ONNX's: the result is stride times as long
        pairs: Pairs = tuple(_named_padding(str(padding), n * s, m, s, d, flip) for n, m, s, d in axes)
        spans = [max((n - 1) * s + (m - 1) * d + 1, n * s) for n, m, s, d in axes]
    else:
        pairs = _resolved_padding(padding, given, window, stride, dilation, flip)
        spans = [(n - 1) * s + (m - 1) * d + 1 for n, m, s, d in axes]
    sizes = tuple(
        span - before - after + more for span, (before, after), more in zip(spans, pairs, extra, strict=True)
    )
    reached = [(n - 1) * s + (m - 1) * d + 1 for n, m, s, d in axes]
    forward = zip(pairs, reached, sizes, strict=True)
    return sizes, tuple((before, span - before - n) for (before, _), span, n in forward)


@lru_cache(maxsize=4096)
def conv_grad_input_spec(
    gy_shape: Sizes, w_shape: Sizes, *, name: str, size: Sizes, padding: str | Pairs, layout: str, **geometry: Any
) -> tuple[ConvSpec, Form]:
    """Geometry of the forward convolution that made `gy`; the form's x is gy's."""
    axes = len(w_shape) - 2
    if axes < 1:
        raise ValueError(f"{name} takes w of at least 3 axes, (*window, C / groups, F) in some order; got w {w_shape}")
    _check_rank(name, "gy", gy_shape, axes, f"shapes: gy {gy_shape}, w {w_shape}")
    _, per_group, filters = _split_weight(layout, w_shape)
    batch = gy_shape[0] if len(gy_shape) == axes + 2 else 1
    x_shape = in_layout(layout, batch, size, per_group * geometry["groups"])
    spec, _ = conv_spec(
        x_shape, w_shape, name=name, axes=None, padding=padding, layout=layout, stride=geometry["stride"],
        dilation=geometry["dilation"], groups=geometry["groups"], padding_mode=geometry["padding_mode"],
        flip=geometry["flip"],
    )  # fmt: skip
    form = _batch_form(len(gy_shape) == axes + 2)
    _check_gradient(gy_shape, spec.y_shape, form, f"a forward {name} from size {size} with w {w_shape}")
    return spec, form


@lru_cache(maxsize=4096)
def conv_grad_weight_spec(
    x_shape: Sizes, gy_shape: Sizes, *, name: str, window: Sizes, padding: str | Pairs, layout: str, **geometry: Any
) -> tuple[ConvSpec, Form]:
    """Geometry of the forward convolution that made `gy` from `x`."""
    axes, groups = len(window), geometry["groups"]
    shapes = f"shapes: x {x_shape}, gy {gy_shape}"
    _check_rank(name, "x", x_shape, axes, shapes)
    _check_rank(name, "gy", gy_shape, axes, shapes)
    if len(x_shape) != len(gy_shape):
        raise ValueError(f"x and gy must both have the batch axis or both lack it; {shapes}")
    form = _batch_form(len(x_shape) == axes + 2)
    full_x, full_gy = _lifted(x_shape, form.x), _lifted(gy_shape, form.x)
    _, _, channels = _split(layout, full_x)
    _, _, filters = _split(layout, full_gy)
    if channels % groups or filters % groups:
        raise ValueError(f"groups={groups} must divide x's {channels} channels and gy's {filters}; {shapes}")
    per_group = channels // groups
    w_shape = (*window, per_group, filters) if layout == "channels_last" else (filters, per_group, *window)
    spec, _ = conv_spec(
        full_x, w_shape, name=name, axes=None, padding=padding, layout=layout, stride=geometry["stride"],
        dilation=geometry["dilation"], groups=groups, padding_mode=geometry["padding_mode"], flip=geometry["flip"],
    )  # fmt: skip
    _check_gradient(gy_shape, spec.y_shape, form, f"a forward {name} of x {x_shape} with window {window}")
    return spec, form


@lru_cache(maxsize=4096)
def pool_spec(
    x_shape: Sizes,
    *,
    name: str,
    window: Sizes,
    stride: Sizes,
    padding: str | Pairs,
    dilation: Sizes,
    ceil_mode: bool,
    layout: str,
    plain: bool,
) -> tuple[PoolSpec, Form]:
    """Geometry of a pooling or of patches; `plain` admits an image with neither batch nor channels."""
    axes = len(window)
    form = _pool_form(name, "x", x_shape, axes, layout, plain)
    batch, size, channels = _split(layout, _lifted(x_shape, form.x))
    _check_sizes("x", x_shape)
    resolved = _resolved_padding(padding, size, window, stride, dilation, flip=False)
    spec = PoolSpec(layout, batch, channels, size, window, stride, dilation, resolved, bool(ceil_mode))
    _check_fit(spec)
    return spec, form


def fold_spec(patches_shape: Sizes, *, size: Sizes, window: Sizes, layout: str, **geometry: Any) -> tuple[
    PoolSpec, Form
]:
    """Geometry of the `unfold` whose adjoint takes the patches back to an array of spatial `size`."""
    axes = len(window)
    expected = 2 * axes + 2
    if len(patches_shape) not in (expected, expected - 1):
        raise ValueError(
            f"fold takes patches of {expected - 1} or {expected} axes for {axes} spatial ones, got {patches_shape}"
        )
    batched = len(patches_shape) == expected
    batch = patches_shape[0] if batched else 1
    channels = patches_shape[-1] if layout == "channels_last" else patches_shape[1 if batched else 0]
    spec, _ = pool_spec(
        in_layout(layout, batch, size, channels), name="fold", window=window, ceil_mode=False, layout=layout,
        plain=False, **geometry,
    )  # fmt: skip
    form = _batch_form(batched)
    if _lifted(patches_shape, form.x) != spec.patches_shape:
        wanted = spec.patches_shape if batched else spec.patches_shape[1:]
        raise ValueError(f"patches have shape {patches_shape} but size {size} and window {window} make {wanted}")
    return spec, form


@lru_cache(maxsize=4096)
def adaptive_spec(x_shape: Sizes, *, name: str, size: Sizes, layout: str) -> tuple[AdaptiveSpec, Form]:
    """Geometry of a pooling to a wanted spatial size."""
    axes = len(size)
    form = _pool_form(name, "x", x_shape, axes, layout, plain=False)
    batch, given, channels = _split(layout, _lifted(x_shape, form.x))
    _check_sizes("x", x_shape)
    if min(given) < 1:
        raise ValueError(f"{name} needs a spatial size of at least 1, got x {x_shape}")
    return AdaptiveSpec(layout, batch, channels, given, size), form


@lru_cache(maxsize=4096)
def scatter_spec(
    shape: Sizes, indices_shape: Sizes, *, name: str, argument: str, size: Sizes, layout: str
) -> tuple[ScatterSpec, Form]:
    """Geometry of values with an index each, sent to a plane of spatial `size`."""
    if shape != indices_shape:
        raise ValueError(f"{name} takes one index per value: {argument} has shape {shape}, indices {indices_shape}")
    form = _pool_form(name, argument, shape, len(size), layout, plain=True)
    batch, out_size, channels = _split(layout, _lifted(shape, form.x))
    _check_sizes(argument, shape)
    return ScatterSpec(layout, batch, channels, out_size, size), form


@lru_cache(maxsize=4096)
def global_axes(x_shape: Sizes, *, name: str, layout: str) -> Sizes:
    """The spatial axes of a batch of feature maps."""
    if len(x_shape) < 3:
        raise ValueError(f"{name} takes x of at least 3 axes, batch, channels and space; got x {x_shape}")
    axes = range(1, len(x_shape) - 1) if layout == "channels_last" else range(2, len(x_shape))
    if any(x_shape[axis] == 0 for axis in axes):
        raise ValueError(f"{name} needs a spatial size of at least 1, got x {x_shape}")
    return tuple(axes)


def check_gradient(name: str, gy_shape: Sizes, y_shape: Sizes, form: Form) -> None:
    """Check that `gy` has the shape of the result it is the gradient of."""
    _check_gradient(gy_shape, y_shape, form, f"the forward {name}")


def check_bias(bias_shape: Sizes, filters: int, form: Form) -> None:
    """Check one number per filter; a single map may have a single number."""
    single = form.w != (...,) and bias_shape == ()
    if bias_shape != (filters,) and not single:
        raise ValueError(f"bias has shape {bias_shape} but there are {filters} filters: pass shape ({filters},)")


# --- Checks -----------------------------------------------------------------------------------------------------------


def _conv_form(name: str, x_rank: int, w_rank: int, axes: int | None, layout: str, shapes: str) -> Form:
    """The forms that API.md admits, as index tuples."""
    if axes is None:
        if w_rank < 3:
            raise ValueError(
                f"{name} reads the spatial axes off w, which needs at least 3 axes; {shapes}; "
                f"for plain signals and images take {name}1d, {name}2d or {name}3d"
            )
        axes, w_ranks = w_rank - 2, (w_rank,)
    else:
        w_ranks = (axes, axes + 1, axes + 2)
    if w_rank not in w_ranks:
        raise ValueError(f"{name} takes w of {axes} to {axes + 2} axes, got {w_rank}; {shapes}")
    if w_rank == axes:
        if x_rank != axes:
            raise ValueError(f"{name} with a plain w of {axes} axes takes x of {axes} axes, got {x_rank}; {shapes}")
        w_lift = (..., None, None) if layout == "channels_last" else (None, None)
        return Form(_plain(layout), w_lift, _dropped(True, True, layout))
    if x_rank not in (axes + 1, axes + 2):
        raise ValueError(f"{name} with this w takes x of {axes + 1} or {axes + 2} axes, got {x_rank}; {shapes}")
    one_map = w_rank == axes + 1
    if one_map:
        w_lift = (..., None) if layout == "channels_last" else (None,)
    else:
        w_lift = (...,)
    single = x_rank == axes + 1
    return Form((None,) if single else (...,), w_lift, _dropped(single, one_map, layout))


def _transpose_form(form: Form, layout: str) -> Form:
    """In the transposed weight (*window, F, C), a missing axis is F, not C."""
    if form.w == (..., None):
        return replace(form, w=(..., None, slice(None)))
    if form.w == (None,) and layout == "channels_first":
        return replace(form, w=(slice(None), None))
    return form


def _plain(layout: str) -> tuple[Any, ...]:
    return (None, ..., None) if layout == "channels_last" else (None, None)


def _dropped(batch: bool, channels: bool, layout: str) -> tuple[Any, ...]:
    """Index that takes the axes out of y again which the user's arrays did not have."""
    if layout == "channels_last":
        return ((0,) if batch else ()) + ((..., 0) if channels else (...,))
    return (0 if batch else slice(None), 0 if channels else slice(None), ...)


def _batch_form(batched: bool) -> Form:
    lift = (...,) if batched else (None,)
    return Form(lift, (...,), (...,) if batched else (0,))


def _pool_form(name: str, argument: str, shape: Sizes, axes: int, layout: str, plain: bool) -> Form:
    rank = len(shape)
    if plain and rank == axes:
        return Form(_plain(layout), (...,), _dropped(True, True, layout))
    _check_rank(name, argument, shape, axes, f"shape: {argument} {shape}")
    return _batch_form(rank == axes + 2)


def _check_rank(name: str, argument: str, shape: Sizes, axes: int, shapes: str) -> None:
    if len(shape) not in (axes + 1, axes + 2):
        raise ValueError(f"{name} takes {argument} of {axes + 1} or {axes + 2} axes, got {len(shape)}; {shapes}")


def _lifted(shape: Sizes, lift: tuple[Any, ...]) -> Sizes:
    """Shape after indexing with `lift`, whose None adds an axis and whose other entries keep theirs."""
    kept = iter(shape)
    result: list[int] = []
    for position, entry in enumerate(lift):
        if entry is None:
            result.append(1)
        elif entry is Ellipsis:
            later = sum(later is not None for later in lift[position + 1 :])
            rest = list(kept)
            result.extend(rest[: len(rest) - later])
            kept = iter(rest[len(rest) - later :])
        else:
            result.append(next(kept))
    return (*result, *kept)


def _split(layout: str, shape: Sizes) -> tuple[int, Sizes, int]:
    """Batch, spatial size, channels of a full shape."""
    if layout == "channels_last":
        return shape[0], shape[1:-1], shape[-1]
    return shape[0], shape[2:], shape[1]


def _split_weight(layout: str, shape: Sizes) -> tuple[Sizes, int, int]:
    """Window, channels per group, filters of a full weight."""
    if layout == "channels_last":
        return shape[:-2], shape[-2], shape[-1]
    return shape[2:], shape[1], shape[0]


def _check_sizes(argument: str, shape: Sizes) -> None:
    if not all(isinstance(n, int) for n in shape):
        raise ValueError(f"{argument} has an axis of unknown length, shape {shape}; compute its sizes first")


def _check_groups(x: str, channels: int, w: str, per_group: int, filters: int, groups: int, shapes: str) -> None:
    if channels != groups * per_group:
        read = f"{groups} groups x {per_group} = {groups * per_group}" if groups > 1 else f"{per_group}"
        raise ValueError(f"{x} has {channels} channels but {w} reads {read}; {shapes}")
    if filters % groups:
        raise ValueError(f"groups={groups} does not divide the {filters} filters of {w}; {shapes}")


def _check_fit(spec: Windows) -> None:
    axes = zip(spec.size, spec.window, spec.padding, spec.padded_size, spec.reach, strict=True)
    for axis, (n, m, pads, padded, reach) in enumerate(axes):
        if m < 1:
            raise ValueError(f"the window is empty: it is {m} long on spatial axis {axis}")
        if padded < reach:
            raise ValueError(
                f"the window does not fit: spatial axis {axis} is {n} long + {sum(pads)} padding, "
                f"the dilated window spans {reach}; pad more or shrink the window"
            )


def _check_padding_source(spec: ConvSpec) -> None:
    if spec.padding_mode in ("zeros", "constant"):
        return
    for axis, (n, pads) in enumerate(zip(spec.size, spec.padding, strict=True)):
        if n == 0 and any(pads):
            raise ValueError(f"padding_mode={spec.padding_mode!r} has nothing to repeat: spatial axis {axis} is empty")


def _check_gradient(gy_shape: Sizes, y_shape: Sizes, form: Form, forward: str) -> None:
    if _lifted(gy_shape, form.x) != y_shape:
        wanted = y_shape if form.x == (...,) else y_shape[1:]
        raise ValueError(f"gy has shape {gy_shape} but {forward} makes {wanted}")
