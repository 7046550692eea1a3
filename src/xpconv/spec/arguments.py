"""What the user wrote about shapes, as integers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from xpconv.spec.windows import Padding, Pairs, PerAxis, Sizes

LAYOUTS = ("channels_last", "channels_first")
MODES = ("full", "same", "valid")
PADDING_NAMES = ("valid", "full", "same", "same_upper", "same_lower")
PADDING_MODES = ("zeros", "constant", "edge", "reflect", "symmetric", "wrap")
_MODE_ALIASES = {"replicate": "edge", "circular": "wrap"}


def per_axis(name: str, value: PerAxis, axes: int, *, least: int = 1) -> Sizes:
    """One integer per spatial axis, from one integer or a sequence."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(entries) != axes:
        raise ValueError(f"{name} has {len(entries)} entries but there are {axes} spatial axes; got {name}={value}")
    return tuple(_integer(name, entry, value, least, " or one integer per spatial axis") for entry in entries)


def axes_of(value: PerAxis, rank: int) -> int:
    """Spatial axes where no name fixes them: as many as entries, or all but batch and channels of an array."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return max(len(value), 1) if isinstance(value, (tuple, list)) else max(rank - 2, 1)


def whole_number(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an integer that is at least `least`."""
    return _integer(name, value, value, least, "")


def integers(name: str, value: int | Sequence[int] | None) -> Sizes | None:
    """One integer or several, of either sign, as a tuple."""
    if value is None:
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    entries = tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(_integer(name, entry, value, None, " or a sequence of them") for entry in entries)


def _integer(name: str, entry: Any, value: Any, least: int | None, also: str) -> int:
    try:
        number = operator.index(entry)
    except TypeError:
        raise ValueError(f"{name} must be an integer{also}, got {name}={value!r}") from None
    if least is not None and number < least:
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
    mode = one_of("padding_mode", mode, PADDING_MODES + tuple(_MODE_ALIASES))
    return _MODE_ALIASES.get(mode, mode)
