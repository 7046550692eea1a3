"""How much a named padding adds."""

from __future__ import annotations

from xpconv.spec.windows import Pairs, Sizes


def resolved_padding(
    padding: str | Pairs, size: Sizes, window: Sizes, stride: Sizes, dilation: Sizes, flip: bool
) -> Pairs:
    """Padding in elements; a name is worked out from the geometry."""
    if not isinstance(padding, str):
        return padding
    axes = zip(size, window, stride, dilation, strict=True)
    return tuple(named_padding(padding, n, m, s, d, flip) for n, m, s, d in axes)


def named_padding(padding: str, n: int, m: int, s: int, d: int, flip: bool) -> tuple[int, int]:
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
