"""From the times that methods are expected to take to one of them, and why not the others."""

from __future__ import annotations

import math

ROUNDING = ("winograd", "fft")  # methods that round what the definition does not
WORTH = 0.75  # of the time of a method that does not, that one of these may take at most
WORTH_OF_SUMS = 0.9  # that one may take which rounds hardly more than sums do


def chosen(seconds: dict[str, float], spectral: bool, worth: dict[str, float]) -> tuple[str, str]:
    """The method that is expected to be fastest, and why; one that rounds only where it takes no more than its `worth`,
    a share of the time of the fastest one that does not.
    """
    there = {name: s for name, s in seconds.items() if s < math.inf and (spectral or name not in ROUNDING)}
    plain = min(s for name, s in there.items() if name not in ROUNDING)
    worth_it = [name for name, s in there.items() if name not in ROUNDING or s < worth[name] * plain]
    method = min(worth_it, key=there.__getitem__)
    times = ", ".join(f"{name} {s:.2g} s" for name, s in there.items())
    quicker = min(there, key=there.__getitem__) != method
    return method, f"{'nearly ' if quicker else ''}the least expected time: {times}"


def rejections(
    method: str, seconds: dict[str, float], spectral: bool, worth: dict[str, float]
) -> tuple[tuple[str, str], ...]:
    """The other methods, and why each is not taken."""
    return tuple((name, _why_not(name, method, seconds, spectral, worth)) for name in seconds if name != method)


def _why_not(name: str, method: str, seconds: dict[str, float], spectral: bool, worth: dict[str, float]) -> str:
    if seconds[name] == math.inf:
        return "does not take this geometry"
    if name in ROUNDING and not spectral:
        return "rounds, which integers cannot bear"
    times = f"{seconds[name] / seconds[method]:.2g} times the expected time"
    if seconds[name] < seconds[method]:
        return f"{times}, which is not worth its rounding: it has to save {1 - worth[name]:.0%}"
    return times
