"""From the type of an array to the engine that computes on it.

All errors about libraries, devices and dtypes are written here. A public function describes its call as a `Request`;
`run` finds the engine, lets the agnostic one answer where it declines, and gives the result back in the form the
arrays came in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from numbers import Number
from types import ModuleType
from typing import Any

import array_api_compat

from xpconv.dtypes import KINDS, NO_ARITHMETIC, kind, kind_of, short_name
from xpconv.plan import Arrays
from xpconv.request import WHOLE, Request, lifted_arrays
from xpconv.spec import Array
from xpconv.workspace import workspace_limit

_ENGINES = ("numpy", "cupy", "torch", "jax", "dask")  # every other library of the array API runs on the agnostic engine
_SAME_LIBRARY = {"jaxlib": "jax", "ml_dtypes": "numpy"}
_OPTIONAL = ("bias", "out")
_TOO_LARGE, _WRITTEN = object(), object()


def device_of(arguments: Iterable[Any]) -> AbstractContextManager[Any]:
    """A context in which the device of the CuPy arrays among the arguments is the current one."""
    for argument in arguments:
        if array_api_compat.is_cupy_array(argument):
            return import_module("cupy").cuda.Device(argument.data.device_id)
    return nullcontext()


def run(request: Request) -> Any:
    """Compute what the request describes."""
    engine = engine_of(request)
    arrays = arrays_for(engine, request)
    try:
        result = _computed(engine, request, arrays)
    except MemoryError:  # CuPy's is one too
        result = _TOO_LARGE  # tried again below: here the error still holds what was allocated
    if result is _TOO_LARGE:
        with workspace_limit(1):  # the smallest tiles
            result = _computed(engine, request, arrays)
    if result is _WRITTEN:
        return request.out
    if isinstance(result, tuple):
        result = tuple(_as_asked(engine, part, request, arrays) for part in result)
    else:
        result = _as_asked(engine, result, request, arrays)
    if request.then is not None:
        result = request.then(result)
    return result if request.out is None else _write(request.out, result)


def arrays_for(engine: ModuleType, request: Request) -> Arrays:
    """The request's arrays in their full forms, in which lazy ones are only described."""
    lifted = getattr(engine, "lifted", None)
    return request.arrays if lifted is None else lifted_arrays(request.given, request.lift, lifted)


def _as_asked(engine: ModuleType, result: Array, request: Request, arrays: Arrays) -> Array:
    """The result without the axes that the user's arrays did not have, in memory of its own."""
    if request.drop != WHOLE:
        result = getattr(engine, "dropped", operator.getitem)(result, request.drop)
    shared = any(array is not None and _overlap(result, array) for array in arrays)
    return array_api_compat.array_namespace(result).asarray(result, copy=True) if shared else result


def _computed(engine: ModuleType, request: Request, arrays: Arrays) -> Any:
    """The engine's result, or the agnostic engine's where it declines; `_WRITTEN` where it is in `out` already."""
    if request.out is not None and (into := getattr(engine, "into", None)) is not None and into(request):
        return _WRITTEN
    operation = getattr(engine, request.operation, None)
    result = NotImplemented if operation is None else operation(*arrays, request.spec, **request.options)
    if result is NotImplemented:
        return getattr(agnostic_engine(), request.operation)(*arrays, request.spec, **request.options)
    return result


# --- Engines ----------------------------------------------------------------------------------------------------------


def library_of(array_type: type) -> str:
    """The package an array type belongs to, subclasses included."""
    for base in array_type.__mro__[:-1]:
        name = base.__module__.partition(".")[0]
        library = _SAME_LIBRARY.get(name, name)
        if library in _ENGINES:
            return library
    return array_type.__module__.partition(".")[0]


@lru_cache(maxsize=256)
def engine_for(array_type: type) -> ModuleType:
    """The engine's module, loaded with its first array."""
    library = library_of(array_type)
    return import_module(f"xpconv.engines.{library if library in _ENGINES else 'agnostic'}")


def agnostic_engine() -> ModuleType:
    """The reference, and the one fallback."""
    return import_module("xpconv.engines.agnostic")


def engine_of(request: Request) -> ModuleType:
    """The engine that is asked first; it must have the method that was asked for."""
    engine = engine_for(type(request.given[0]))  # type: ignore[arg-type]  # mypy: a type may be unhashable
    method = request.options.get("method", "auto")
    if array_api_compat.is_dask_array(request.given[0]):
        engine_of(replace(request, given=(chunk_of(request.given[0]),)))  # which must have the method
        return engine
    if request.reference_methods and method not in engine.METHODS:
        engine = agnostic_engine()
    if method not in engine.METHODS:
        has = ", ".join(map(repr, engine.METHODS))
        name = engine.__name__.rpartition(".")[2]
        raise ValueError(f"method={method!r} is not in the {name} engine; it has {has}")
    return engine


# --- Arrays: one library, one device ----------------------------------------------------------------------------------


def arrays_of(name: str, **arguments: Any) -> tuple[Array | None, ...]:
    """The arguments as arrays of one library on one device; lists and scalars become NumPy arrays.

    Beside a Dask array, arrays of the library of its chunks become Dask arrays of one chunk.
    """
    arrays = {argument: _as_array(name, argument, value) for argument, value in arguments.items()}
    if any(map(array_api_compat.is_dask_array, arrays.values())):
        arrays = _in_chunks(name, arrays)
    present = {argument: array for argument, array in arrays.items() if array is not None}
    libraries = {library_of(type(array)) for array in present.values()}
    if len(libraries) > 1:
        given = ", ".join(_type_name(arguments[argument]) for argument in present)
        raise TypeError(f"{name} needs arrays of one library, got {given}")
    if len(present) > 1 and libraries != {"numpy"}:
        _check_devices(name, present)
    return tuple(arrays.values())


def _as_array(name: str, argument: str, value: Any) -> Array | None:
    if value is None:
        if argument in _OPTIONAL:
            return None
        raise TypeError(f"{name} needs an array for {argument}, got None")
    if isinstance(value, (list, tuple, int, float, complex)) or library_of(type(value)) == "numpy":
        return _numpy_array(name, argument, value)
    if not array_api_compat.is_array_api_obj(value):
        raise TypeError(
            f"{name} cannot compute on {argument} of type {_type_name(value)}; pass an array of NumPy, CuPy, torch, "
            "JAX or another array-API library"
        )
    _check_dtype(name, argument, array_api_compat.array_namespace(value), value.dtype)
    return value


def _in_chunks(name: str, arrays: dict[str, Array | None]) -> dict[str, Array | None]:
    """Arrays as Dask arrays whose chunks are of one library, and whose chunk sizes are known."""
    from dask.array import from_array

    if arrays.get("out") is not None:
        raise TypeError(f"{name} cannot write the lazy result of Dask arrays into out; leave out= away, and store it")
    chunks = {argument: chunk_of(array) for argument, array in arrays.items() if array is not None}
    if len({library_of(type(chunk)) for chunk in chunks.values()}) > 1:
        given = ", ".join(f"{argument} of {_type_name(chunk)}" for argument, chunk in chunks.items())
        raise TypeError(f"{name} needs chunks of one library, got {given}; move one with map_blocks")
    for argument, array in arrays.items():
        if any(n != n for sizes in getattr(array, "chunks", ()) for n in sizes):  # NaN
            raise ValueError(f"{argument} has chunks of unknown sizes; call {argument}.compute_chunk_sizes() first")
    return {
        argument: array
        if array is None or array_api_compat.is_dask_array(array)
        else from_array(array, chunks=-1, asarray=False)
        for argument, array in arrays.items()
    }


def chunk_of(array: Array) -> Array:
    """The array, or an empty one like the chunks of a Dask array."""
    return array._meta if array_api_compat.is_dask_array(array) else array


def _numpy_array(name: str, argument: str, value: Any) -> Array:
    import numpy as np

    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} has no rule for the mask of {argument}; pass {argument}.filled(...)")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{argument} is not a rectangular array of numbers: {error}") from None
    _check_dtype(name, argument, np, array.dtype)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_dtype(name: str, argument: str, xp: Any, dtype: Any) -> None:
    if kind(xp, dtype) is not None:
        return
    if str(dtype) in NO_ARITHMETIC:
        raise TypeError(f"{name} does not take {dtype} ({argument}): torch has no arithmetic for it; cast it to int64")
    if "bool" in str(dtype):
        raise TypeError(f"{name} does not take bool ({argument}); cast it, for example to uint8 or float32")
    raise TypeError(f"{name} does not take dtype {dtype} ({argument}); it takes integers, floats and complex numbers")


def _check_devices(name: str, arrays: dict[str, Array]) -> None:
    present = {argument: array_api_compat.device(array) for argument, array in arrays.items()}
    devices = {argument: str(device) for argument, device in present.items() if device is not None}  # None: traced
    if len(set(devices.values())) > 1:
        given = ", ".join(f"{argument} on {device}" for argument, device in devices.items())
        raise TypeError(f"{name} needs its arrays on one device, got {given}; move one with xpconv.to_device")


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


# --- Dtypes -----------------------------------------------------------------------------------------------------------


def promoted(name: str, dtype: Any, x: Array, w: Array, bias: Array | None = None) -> tuple[Array | None, ...]:
    """x, w and bias in the dtype of the result: `result_type(x, w)`, or the wider one asked for."""
    xp = array_api_compat.array_namespace(x)
    result = _result_dtype(xp, x.dtype, w.dtype)
    if dtype is not None:
        result = _widened(name, xp, result, dtype)
    if bias is not None and bias.dtype != result and not _holds(xp, result, bias.dtype):
        raise TypeError(
            f"bias is {bias.dtype} but the result of {name} is {result}, which cannot hold it; cast the bias, or ask "
            "for a wider result with dtype="
        )
    return tuple(a if a is None or a.dtype == result else xp.astype(a, result) for a in (x, w, bias))


@lru_cache(maxsize=1024)
def _result_dtype(xp: Any, first: Any, second: Any) -> Any:
    try:
        result = xp.result_type(first, second)
    except (TypeError, ValueError, RuntimeError) as error:  # of the standard, or of what the library adds to it
        integral = kind(xp, first) == "integral"
        if integral == (kind(xp, second) == "integral"):
            raise TypeError(f"{first} and {second} have no common dtype; cast one of them") from error
        return second if integral else first  # the standard leaves integer with float open: the float decides
    return result


def _widened(name: str, xp: Any, result: Any, dtype: Any) -> Any:
    if short_name(dtype) == short_name(result):
        return result
    asked = _as_dtype(name, xp, dtype)
    if _result_dtype(xp, asked, result) != asked:
        raise TypeError(f"dtype={dtype} cannot hold what {name} makes of these inputs, which is {result}")
    return asked


def _as_dtype(name: str, xp: Any, dtype: Any) -> Any:
    """The library's own dtype object, from one, from NumPy's, or from a name."""
    import numpy as np

    try:
        wanted = np.dtype(dtype).name  # also of float, "f8" and the like
    except TypeError:
        wanted = short_name(dtype)
    narrow = {half: getattr(xp, half, None) for half in ("float16", "bfloat16")}  # not of the standard
    own = xp.__array_namespace_info__().dtypes() | narrow
    if own.get(wanted) is None:
        raise TypeError(f"dtype={dtype!r} is not a numeric dtype that {_library_name(xp)} has here; {name} needs one")
    return own[wanted]


def _library_name(xp: Any) -> str:
    return xp.__name__.removeprefix("array_api_compat.")


def _holds(xp: Any, wide: Any, narrow: Any) -> bool:
    """Whether a bias may be cast: to more digits or fewer, never from float to integer or complex to real."""
    return KINDS.index(kind(xp, narrow) or "") <= KINDS.index(kind(xp, wide) or "")


def cast_fill(fill_value: Any, padding_mode: str, x: Array) -> Any:
    """The fill value in x's dtype, as a Python number."""
    if padding_mode == "constant":
        return cast_number("fill_value", fill_value, "x's dtype", x)
    if not (isinstance(fill_value, Number) and fill_value == 0):
        raise ValueError(f"fill_value={fill_value} needs padding_mode='constant', got {padding_mode!r}")
    return 0


def cast_number(argument: str, value: Any, whose: str, x: Array) -> Any:
    """A number rounded to the dtype of `x`, which the user knows as `whose`, as a Python number."""
    held = kind_of(x)
    casts: dict[str | None, Callable[[Any], Any]] = {"integral": _whole, "real floating": float}
    try:
        number = casts.get(held, complex)(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{argument}={value!r} cannot be cast to {whose} {x.dtype}") from None
    xp = array_api_compat.array_namespace(x)
    if held == "integral" and not xp.iinfo(x.dtype).min <= number <= xp.iinfo(x.dtype).max:
        limits = xp.iinfo(x.dtype)
        raise ValueError(f"{argument}={value} is outside {whose} {x.dtype}, {limits.min} to {limits.max}")
    return _rounded(number, short_name(x.dtype))


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, float) or not hasattr(value, "__index__") else operator.index(value)


def _rounded(number: Any, dtype: str) -> Any:
    """A float in the precision of the dtype, infinite beyond its range; bfloat16's stay as they are given."""
    import numpy as np

    if dtype not in ("float16", "float32", "complex64"):
        return number
    with np.errstate(over="ignore"):
        return np.dtype(dtype).type(number).item()


# --- out= -------------------------------------------------------------------------------------------------------------


def check_out(out: Any, **inputs: Array | None) -> None:
    """`out` must be an array that can be written and shares no memory with an input."""
    if out is None:
        return
    if not array_api_compat.is_array_api_obj(out):
        raise TypeError(f"out must be an array, got {_type_name(out)}")
    if not array_api_compat.is_writeable_array(out):
        raise TypeError(f"out cannot be written: {_type_name(out)} is read-only or immutable")
    for argument, array in inputs.items():
        if array is not None and _overlap(out, array):
            raise ValueError(f"out overlaps {argument}; pass memory of its own")


def _overlap(first: Array, second: Array) -> bool:
    """Whether two arrays share memory, where their library lets memory be shared and written."""
    if array_api_compat.is_numpy_array(first):
        import numpy as np

        try:  # mypy's stub has only the two named bounds
            return bool(np.shares_memory(first, second, max_work=1 << 20))  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True  # their bounds overlap, and proving more would take too long
    if array_api_compat.is_torch_array(first):
        return _storage(first) is not None and _storage(first) == _storage(second)
    if array_api_compat.is_cupy_array(first):
        return bool(array_api_compat.array_namespace(first).may_share_memory(first, second))  # by their bounds
    return first is second


def _storage(tensor: Array) -> int | None:
    """Address of a torch tensor's memory; None where it has none, as inside `torch.vmap`."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):
        return None


def _write(out: Array, result: Array) -> Array:
    if tuple(out.shape) != tuple(result.shape) or out.dtype != result.dtype:
        raise ValueError(f"out is {tuple(out.shape)} {out.dtype}, the result {tuple(result.shape)} {result.dtype}")
    out[...] = result
    return out
