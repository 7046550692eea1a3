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
_Values = tuple[Any, ...]
_Places = tuple[int | None, ...]  # in the arguments, those by position first


def repeating(describe: Callable[..., Request], array_names: frozenset[str]) -> Callable[..., Any]:
    """The public function of a description: describes a call the first time it sees its kind, and repeats it later.

    `array_names` are the parameters that take arrays.
    """
    known = _Calls(array_names)
    find = known.get

    def function(*args: Any, **kwargs: Any) -> Any:
        key = _key(args, kwargs, array_names)
        call = find(key)
        if call is not None and call.replay is not None:
            try:
                if call.pick is None:
                    result = call.replay(*args, *call.missing)
                else:
                    result = call.replay(*call.pick((*args, *kwargs.values(), None)))
            except MemoryError:
                result = NotImplemented  # `run` tries again with the smallest tiles
            if result is not NotImplemented:
                return result
        return known.answer(key, describe, args, kwargs)

    return function


class _Calls(dict[_Key, "_Known"]):
    """The calls of one function that were described before."""

    def __init__(self, array_names: frozenset[str]) -> None:
        self._array_names = array_names

    def answer(self, key: _Key, describe: Callable[..., Request], args: _Values, kwargs: dict[str, Any]) -> Any:
        """What a call gives that cannot be repeated as it was prepared."""
        values, call = (*args, *kwargs.values()), self.get(key)
        with device_of(values):
            if call is not None and not call.writes:
                return run(call.request(values))
            request = describe(*args, **kwargs)  # and check what is written to, which no key tells
            result = run(request)  # first, so that nothing is remembered of a call that fails
            named = {name for name, value in kwargs.items() if _is_array(value)}  # of others the key tells no dtype
            is_told = call is None and named <= self._array_names
            if is_told and (places := _places(request, values)) is not None:
                self._remember(key, request, places, len(args))
        return result

    def _remember(self, key: _Key, request: Request, places: _Places, by_position: int) -> None:
        """The call, unless its engine will soon compute it another way."""
        replay = _replay(request)
        if replay is NotImplemented:
            return
        if len(self) >= _MOST:
            self.clear()
        self[key] = _Known(request, places, by_position, replay)


class _Known:
    """A call that was described before: its request without arrays, and where the arrays stand in the arguments.

    Most often they are the arguments by position, in their order, but for some that are `missing`; of others `pick`
    takes them out of all values, with None as the last of these.
    """

    def __init__(
        self, request: Request, places: _Places, by_position: int, replay: Callable[..., Any] | None
    ) -> None:
        self._all = _picked(tuple(-1 if place is None else place for place in places))
        given, missing = places[:by_position], places[by_position:]
        in_order = given == tuple(range(by_position)) and missing == (None,) * len(missing)
        self.missing, self.pick = missing, None if in_order else self._all
        self.replay, self.writes = _whole(replay, request), request.out is not None
        self._request = replace(request, given=(), source=(), out=None)  # without the arrays, which would be kept alive

    def request(self, values: _Values) -> Request:
        """The request with the arrays of this call."""
        arrays, make = self._all((*values, None)), self._request.make
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

    That is so where an array was converted or cast, stands for a parameter, or is given twice, where the call has a
    tail of the user's, and where another value is none that a key tells.
    """
    if (request.then is not None and request.make is None) or request.by_value:
        return None
    given = [(place, value) for place, value in enumerate(values) if _is_array(value)]
    if len(given) + sum(map(_is_plain, values)) < len(values):
        return None
    places = {id(value): place for place, value in given}
    arrays = request.source or request.given
    arrays = arrays if request.out is None else (*arrays, request.out)
    computed = {id(array) for array in arrays if array is not None}
    if len(places) < len(given) or computed != set(places):
        return None
    return tuple(None if array is None else places[id(array)] for array in arrays)


def _key(args: _Values, kwargs: dict[str, Any], array_names: frozenset[str]) -> _Key:
    """What the meaning of a call follows from. Of an unknown value it is a key that no other call has."""
    key: _Key
    if array_names.isdisjoint(kwargs):
        key = current_limit(), _written(kwargs)  # in a third of the time that a look at each of five takes
    else:
        key = current_limit(), *kwargs
        args = (*args, *kwargs.values())
    for value in args:
        key += _PART_OF[type(value)](value)
    return key


def _written(value: Any) -> Hashable:
    """A plain value by its type and all that is in it.

    An array within it is written as bytes, which do not tell its dtype. But only calls of plain values are remembered,
    and what is written as a plain value is one: it has the same types in the same places.
    """
    try:
        return marshal.dumps(value, _BY_VALUE)
    except ValueError:  # something in it cannot be written
        return object()


_BY_VALUE = 2  # the version of the format in which what is equal is written alike, the same object or not
_PLAIN: frozenset[type] = frozenset({int, str, bool, float, complex, type(None), tuple, list})


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


class _PartOf(dict[type, Callable[[Any], _Key]]):
    """What makes a value of a type parts of the key: of an array all but its values, of the unknown a new object."""

    def __missing__(self, kind: type) -> Callable[[Any], _Key]:
        make = _ARRAYS.get(_name_of(kind))
        if make is None:
            return lambda _: (object(),)
        self[kind] = make
        return make


def _is_array(value: Any) -> bool:
    return _name_of(type(value)) in _ARRAYS


def _name_of(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__name__


_PART_OF = _PartOf(dict.fromkeys(_PLAIN, lambda value: (_written(value),)))


def _cupy_array(array: Array) -> _Key:
    data = array.data
    return data.device_id, array.shape, array.dtype, array.strides, data.ptr % 16


_ARRAYS: dict[tuple[str, str], Callable[[Any], _Key]] = {
    ("numpy", "ndarray"): attrgetter("shape", "dtype", "strides"),
    ("cupy", "ndarray"): _cupy_array,
}
