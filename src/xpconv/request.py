"""One call, described: what a public function hands to dispatch, and what `explain` reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import getitem
from typing import Any, TypeAlias

from xpconv.plan import Arrays

Index: TypeAlias = tuple[Any, ...]
WHOLE: Index = (...,)


@dataclass(slots=True)
class Request:
    """One call, described: what to compute, on which arrays, and how the result is handed over."""

    operation: str  # the engine's function
    given: Arrays  # of one dtype, but for indices; the first is never None
    spec: Any
    options: dict[str, Any] = field(default_factory=dict)
    lift: tuple[Index, ...] = ()  # for each array the index that adds the axes it lacks
    drop: Index = WHOLE  # the index that removes from the result the axes the user's arrays did not have
    then: Callable[[Any], Any] | None = None  # applied to the whole result, last of all
    out: Any = None
    reference_methods: bool = False  # a method that the array's engine lacks is taken from the agnostic engine
    source: Arrays = ()  # the user's arrays, where those given are made of them
    make: Callable[..., Arrays] | None = None  # makes them
    by_value: bool = False  # values were looked at: the description holds for these arrays alone

    @property
    def arrays(self) -> Arrays:
        """The arrays in their full forms."""
        return lifted_arrays(self.given, self.lift)


def lifted_arrays(arrays: Arrays, lift: tuple[Index, ...], lifted: Callable[[Any, Index], Any] = getitem) -> Arrays:
    """Arrays with the axes that they lack."""
    if all(index == WHOLE for index in lift):
        return arrays
    indices = (*lift, *(WHOLE,) * (len(arrays) - len(lift)))
    return tuple(a if a is None or i == WHOLE else lifted(a, i) for a, i in zip(arrays, indices, strict=True))
