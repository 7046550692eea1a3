"""A repeated call: the same arguments but for the values in the arrays, which need not be read and planned again.

What a call means follows from the types, shapes and dtypes of the arrays it computes on and from its other arguments.
The description of a call is therefore remembered by these, and a later call of the same kind goes straight to its
engine, or, where the engine can prepare it, straight to what the engine would launch. A call that reads the values of
an array to be described, such as ``stride=np.array(2)``, is not remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from xpconv.dispatch import device_of, engine_of, run
from xpconv.request import Request
from xpconv.spec import Array
from xpconv.workspace import current_limit

_MOST = 1024  # descriptions kept for one function; a program that makes more kinds of calls does not repeat them
_PLAIN = (int, str, type(None), bool)
_Key = tuple[Hashable, ...]
_Places = tuple[int | None, ...]  # in the arguments


class Repeats:
    """One public function: describes a call the first time it sees its kind, and repeats it later."""

    def __init__(self, describe: Callable[..., Request]) -> None:
        self._describe = describe
        self._known: dict[_Key, _Known] = {}

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the function gives for these arguments."""
        values = (*args, *kwargs.values())
        key = _key(kwargs, values)
        known = None if key is None else self._known.get(key)
        if known is not None and known.replay is not None and (result := known.again(values)) is not NotImplemented:
            return result
        with device_of(values):
            if known is not None and not known.writes:
                return run(known.request(values))
            request = self._describe(*args, **kwargs)  # and check what is written to, which no key tells
            result = run(request)  # first, so that nothing is remembered of a call that fails
            if key is not None and known is None and (places := _places(request, values)) is not None:
                self._remember(key, request, places)
        return result

    def _remember(self, key: _Key, request: Request, places: _Places) -> None:
        """The call, unless its engine will soon compute it another way."""
        replay = _replay(request)
        if replay is NotImplemented:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = _Known(request, places, replay)


class _Known:
    """A call that was described before: its request without arrays, and where the arrays stand in the arguments."""

    def __init__(self, request: Request, places: _Places, replay: Callable[..., Any] | None) -> None:
        self._places, self.replay = places, replay
        self.writes = request.out is not None
        self._request = replace(request, given=(), out=None)  # without the arrays, which would be kept alive

    def again(self, values: tuple[Any, ...]) -> Any:
        """The result by what the engine has prepared, or NotImplemented."""
        assert self.replay is not None
        try:
            return self.replay(*self._arrays(values))
        except MemoryError:
            return NotImplemented  # `run` tries again with the smallest tiles

    def request(self, values: tuple[Any, ...]) -> Request:
        """The request with the arrays of this call."""
        return replace(self._request, given=tuple(self._arrays(values)))

    def _arrays(self, values: tuple[Any, ...]) -> list[Array | None]:
        return [None if place is None else values[place] for place in self._places]


def _replay(request: Request) -> Any:
    """What the engine has prepared; None for nothing, NotImplemented for nothing yet."""
    prepare = getattr(engine_of(request), "replay" if request.out is None else "replay_into", None)
    return None if prepare is None else prepare(request)


def _places(request: Request, values: tuple[Any, ...]) -> _Places | None:
    """Which arguments the request's arrays are, `out` the last; None where it does not hold for other arrays.

    That is so where an array was converted or cast, stands for a parameter, or is given twice, and where the call has
    a tail.
    """
    if request.then is not None or request.by_value:
        return None
    given = [(place, value) for place, value in enumerate(values) if _name_of(type(value)) in _ARRAYS]
    places = {id(value): place for place, value in given}
    arrays = request.given if request.out is None else (*request.given, request.out)
    computed = {id(array) for array in arrays if array is not None}
    if len(places) < len(given) or computed != set(places):
        return None
    return tuple(None if array is None else places[id(array)] for array in arrays)


def _key(names: Iterable[str], values: tuple[Any, ...]) -> _Key | None:
    """What the meaning of a call follows from: values, the last of which are named; None where that is not plain."""
    parts: list[Hashable] = [current_limit(), *names]
    for value in values:
        part = _part_for(type(value))(value)  # type: ignore[arg-type]  # mypy: a type may be unhashable
        if part is None:
            return None
        parts.append(part)
    return tuple(parts)


@lru_cache(maxsize=256)
def _part_for(kind: type) -> Callable[[Any], Hashable | None]:
    """What makes a value of that type a part of the key: an array by all but its values, a plain one with its type."""
    return _ARRAYS.get(_name_of(kind), _plain)


def _name_of(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__name__


def _plain(value: Any) -> Hashable | None:
    kind = type(value)
    if kind is float:
        return kind, repr(value)  # 0.0 and -0.0 are equal, NaN is not
    if kind in _PLAIN:
        return kind, value
    if kind is tuple:
        parts = tuple([_plain(entry) for entry in value])
        return None if None in parts else parts
    return None


def _numpy_array(array: Array) -> Hashable:
    return array.shape, array.dtype, array.strides


def _cupy_array(array: Array) -> Hashable:
    data = array.data
    return data.device_id, array.shape, array.dtype, array.strides, data.ptr % 16


_ARRAYS: dict[tuple[str, str], Callable[[Any], Hashable]] = {
    ("numpy", "ndarray"): _numpy_array,
    ("cupy", "ndarray"): _cupy_array,
}
