"""Axes and numbers: where a value lies on a logarithmic axis, its ticks, and how many digits it is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

_FEW_DECADES = 3.2  # below this, powers of ten alone are too few ticks

TIMES, UNKNOWN = "\u00d7", "\u2013"  # the multiplication sign, a dash


def _power(exponent: int) -> float:
    """Of ten, exact from one on."""
    return 10**exponent if exponent >= 0 else 1 / 10**-exponent


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], margin: float) -> LogAxis:
        """An axis on which these values lie, with a factor of room at both ends."""
        known = list(values)
        return cls(min(known) / margin, max(known) * margin)

    def rounded(self) -> LogAxis:
        """The axis widened to where a tick is.

        Examples
        --------
        >>> LogAxis(0.6, 3.9).rounded()
        LogAxis(low=0.5, high=5)
        >>> LogAxis(0.3, 120.0).rounded()
        LogAxis(low=0.1, high=1000)
        """
        decades = LogAxis(_power(floor(log10(self.low))), _power(ceil(log10(self.high))))
        wider = [decades.low, *LogAxis(self.low / 3, self.high * 3).ticks(), decades.high]
        return LogAxis(max(v for v in wider if v <= self.low), min(v for v in wider if v >= self.high))

    def at(self, value: float) -> float:
        """Where the value lies, in percent of the axis, and at its end if beyond.

        Examples
        --------
        >>> LogAxis(1, 100).at(10), LogAxis(1, 100).at(1000)
        (50.0, 100.0)
        """
        within = min(max(value, self.low), self.high)
        return round(100 * log10(within / self.low) / log10(self.high / self.low), 3)

    def ticks(self) -> list[float]:
        """Powers of ten, and on a short axis their doubles and fives too.

        Examples
        --------
        >>> LogAxis(0.5, 12).ticks(), LogAxis(0.5, 1200).ticks()
        ([0.5, 1, 2, 5, 10], [1, 10, 100, 1000])
        """
        steps = (1, 2, 5) if log10(self.high / self.low) < _FEW_DECADES else (1,)
        powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        values = [step * _power(power) if power >= 0 else step / _power(-power) for power in powers for step in steps]
        return [value for value in values if self.low <= value <= self.high]


def number(value: float | None) -> str:
    """Three digits, and all of a large number's before its point; a dash for what is not known.

    Examples
    --------
    >>> number(0.018), number(429.17), number(51200), number(7.5e-6), number(None)
    ('0.0180', '429', '51,200', '7.50e-06', '–')
    """
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def ratio(value: float) -> str:
    """A factor, with the digits that can be told apart.

    Examples
    --------
    >>> ratio(1.4), ratio(10.84), ratio(297.2)
    ('1.40', '10.8', '297')
    """
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def times(value: float | None) -> str:
    """A factor that says that it is one.

    Examples
    --------
    >>> times(1.4), times(None)
    ('1.40×', '–')
    """
    return UNKNOWN if value is None else f"{ratio(value)}{TIMES}"


def many(count: int, noun: str) -> str:
    """So many of them, in words.

    Examples
    --------
    >>> many(1, "row"), many(12, "row")
    ('1 row', '12 rows')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def percent(value: float | None) -> str:
    """A share, in whole percent.

    Examples
    --------
    >>> percent(2.043), percent(None)
    ('204 %', '–')
    """
    return UNKNOWN if value is None else f"{100 * value:.0f} %"
