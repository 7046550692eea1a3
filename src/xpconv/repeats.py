"""A repeated call: the same arguments but for the values in the arrays, which need not be read and planned again.

What a call means follows from the types, shapes and dtypes of the arrays it computes on and from its other arguments.
The description of a call is therefore remembered by these, and a later call of the same kind goes straight to its
engine, or, where the engine can prepare it, straight to what the engine would launch. A call that reads the values of
an array to be described, such as ``stride=np.array(2)``, is not remembered.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Hashable
from dataclasses import replace
from operator import attrgetter, itemgetter
from typing import Any

from xpconv.dispatch import device_of, engine_of, run
from xpconv.request import Request
from xpconv.spec import Array
from xpconv.workspace import current_limit

_MOST = 1024  # descriptions kept for one function; a program that makes more kinds of calls does not repeat them
_Key = tuple[Hashable, ...]
_Places = tuple[int | None, ...]  # in the arguments


class Repeats:
    """One public function: describes a call the first time it sees its kind, and repeats it later."""

    def __init__(self, describe: Callable[..., Request]) -> None:
        self._describe = describe
        self._known: dict[_Key, _Known] = {}

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the function gives for these arguments."""
        values = (*args, *kwargs.values()) if kwargs else args
        key = _key(tuple(kwargs), values)
        known = None if key is None else self._known.get(key)
        if known is not None and known.replay is not None:
            try:
                result = known.replay(*known.arrays(values))
            except MemoryError:
                result = NotImplemented  # `run` tries again with the smallest tiles
            if result is not NotImplemented:
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
        self._arrays = _picked(tuple(-1 if place is None else place for place in places))
        self.replay, self.writes = _whole(replay, request), request.out is not None
        self._request = replace(request, given=(), source=(), out=None)  # without the arrays, which would be kept alive

    def arrays(self, values: tuple[Any, ...]) -> tuple[Array | None, ...]:
        """Those of this call, as the engine takes them."""
        return self._arrays((*values, None))

    def request(self, values: tuple[Any, ...]) -> Request:
        """The request with the arrays of this call."""
        arrays, make = self.arrays(values), self._request.make
        return replace(self._request, given=arrays if make is None else make(*arrays))


def _whole(replay: Callable[..., Any] | None, request: Request) -> Callable[..., Any] | None:
    """A replay with what is done to the arrays before and to the result after it."""
    make, then = request.make, request.then
    if replay is None or make is None:
        return replay

    def again(*arrays: Array) -> Any:
        with device_of(arrays):
            result = replay(*make(*arrays))
            return result if result is NotImplemented or then is None else then(result)

    return again


def _picked(places: tuple[int, ...]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A function of a tuple: its entries at these places."""
    if len(places) == 1:
        return lambda values: (values[places[0]],)
    return itemgetter(*places)


def _replay(request: Request) -> Any:
    """What the engine has prepared; None for nothing, NotImplemented for nothing yet."""
    prepare = getattr(engine_of(request), "replay" if request.out is None else "replay_into", None)
    return None if prepare is None else prepare(request)


def _places(request: Request, values: tuple[Any, ...]) -> _Places | None:
    """Which arguments the request's arrays are, `out` the last; None where it does not hold for other arrays.

    That is so where an array was converted or cast, stands for a parameter, or is given twice, and where the call has
    a tail of the user's.
    """
    if (request.then is not None and request.make is None) or request.by_value:
        return None
    given = [(place, value) for place, value in enumerate(values) if _name_of(type(value)) in _ARRAYS]
    places = {id(value): place for place, value in given}
    arrays = request.source or request.given
    arrays = arrays if request.out is None else (*arrays, request.out)
    computed = {id(array) for array in arrays if array is not None}
    if len(places) < len(given) or computed != set(places):
        return None
    return tuple(None if array is None else places[id(array)] for array in arrays)


def _key(names: tuple[str, ...], values: tuple[Any, ...]) -> _Key | None:
    """What the meaning of a call follows from: values, the last of which are named; None where that is not plain."""
    parts = [_PART_OF[type(value)](value) for value in values]
    return None if None in parts else (current_limit(), names, *parts)


class _PartOf(dict[type, Callable[[Any], Hashable | None]]):
    """What makes a value of a type a part of the key: an array by all but its values; None of what is not plain."""

    def __missing__(self, kind: type) -> Callable[[Any], Hashable | None]:
        make = _ARRAYS.get(_name_of(kind), _nothing)
        if make is not _nothing:
            self[kind] = make
        return make


def _nothing(_: Any) -> None:
    return None


def _name_of(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__name__


def _float(value: float) -> Hashable:
    return float, repr(value)  # 0.0 and -0.0 are equal, NaN is not


def _bool(value: bool) -> Hashable:
    return bool, value  # which is equal to an integer


def _tuple(value: tuple[Any, ...]) -> Hashable | None:
    """Written down by value and type: of pads in a tenth of the time that a look at each entry takes.

    An array would be written as bytes, which do not tell its dtype: where there may be some, all entries are looked at.
    Whatever else Python can write, such as a list, is known by its values.
    """
    try:
        written = marshal.dumps(value, _BY_VALUE)
    except ValueError:  # something in it is not plain
        return None
    return None if _BYTES in written and not _is_plain(value) else written


_BY_VALUE = 2  # the version of the format in which what is equal is written alike, the same object or not
_BYTES = b"s"  # how bytes begin, and a letter of other entries too
_WRITTEN_WHOLE = int, str, bool, float, type(None)


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if type(value) in (tuple, list) else type(value) in _WRITTEN_WHOLE


_PART_OF = _PartOf({int: int, str: str, type(None): type, bool: _bool, float: _float, tuple: _tuple})


def _cupy_array(array: Array) -> Hashable:
    data = array.data
    return data.device_id, array.shape, array.dtype, array.strides, data.ptr % 16


_ARRAYS: dict[tuple[str, str], Callable[[Any], Hashable]] = {
    ("numpy", "ndarray"): attrgetter("shape", "dtype", "strides"),
    ("cupy", "ndarray"): _cupy_array,
}
