"""What samples say: medians and how sure they are, spreads, ratios within rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import TypeAlias

Round: TypeAlias = Mapping[str, float]  # seconds by candidate
_SURE = 0.95


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Of each candidate.

    Examples
    --------
    >>> medians([{"a": 1.0}, {"a": 5.0}, {"a": 2.0}])
    {'a': 2.0}
    """
    return {name: median(r[name] for r in rounds) for name in rounds[0]} if rounds else {}


def ratios(rounds: Sequence[Round], ours: str, peers: Iterable[str]) -> list[float]:
    """In each round the best peer's time over ours: above 1 we are faster."""
    peers = list(peers)
    return [min(r[peer] for peer in peers) / r[ours] for r in rounds] if peers else []


def spread(values: Sequence[float], low: float = 0.1, high: float = 0.9) -> tuple[float, float]:
    """Two quantiles, straight lines between the samples."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(low), at(high)


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(fmean(logarithms)) if logarithms else None


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the samples that hold the true median between them with 95 % certainty, whatever its distribution is.

    The k-th smallest and the k-th largest of n miss it with the probability that fewer than k of n coins fall on one
    side. Of fewer than six samples the smallest and the largest are all that can be said.

    Examples
    --------
    >>> median_interval([5.0, 1.0, 2.0, 9.0, 4.0, 6.0, 3.0, 8.0, 7.0])
    (2.0, 8.0)
    """
    ordered, n = sorted(values), len(values)
    k, missed = 1, 2 / 2**n
    while (more := missed + 2 * math.comb(n, k) / 2**n) <= 1 - _SURE and 2 * (k + 1) <= n:
        k, missed = k + 1, more
    return ordered[k - 1], ordered[n - k]


def deviation(values: Sequence[float]) -> float:
    """The standard deviation that the median of the distances from the median tells of: a few outliers do not count."""
    middle = median(values)
    return median(abs(value - middle) for value in values) * 1.4826


def short(value: float, digits: int = 4) -> float:
    """With the digits that count."""
    return float(f"{value:.{digits}g}")
