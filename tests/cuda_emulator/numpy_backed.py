# ruff: noqa: ARG001, ARG002  the signatures are CuPy's
"""CuPy's array, computed by NumPy on emulated device memory.

What a library would stumble over is CuPy's: no conversion to or mixing with NumPy's arrays, 0-d arrays where NumPy
gives scalars, no warnings from arithmetic, indices beyond an axis that wrap around, memory that nothing has written.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import numpy as np

from cuda_emulator import emulated_cuda as cuda

_SCALARS = (bool, int, float, complex, np.generic)
_DTYPES = set("?bhilqBHILQefdFD")
_NO_CONVERSION = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


class Flags:
    """The flags that CuPy's arrays have."""

    __module__ = "cupy._core.flags"

    def __init__(self, c_contiguous: bool, f_contiguous: bool, owndata: bool) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata

    @property
    def fnc(self) -> bool:
        return self.f_contiguous and not self.c_contiguous

    @property
    def forc(self) -> bool:
        return self.f_contiguous or self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


class ndarray:
    """CuPy's array: a NumPy array that nobody sees, in memory that the emulator keeps account of."""

    __module__ = "cupy"
    __slots__ = ("_host", "_memory", "base")
    __array_priority__ = 100
    __hash__ = None

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        dtype = supported(dtype)
        if memptr is None:
            if strides is not None:
                raise ValueError("memptr is required if strides is given.")
            made = allocated(shape, dtype, order)
            self._host, self._memory, self.base = made._host, made._memory, None
            return
        offset = memptr.ptr - memptr.mem.ptr
        self._host, self._memory, self.base = memptr.mem.view(shape, dtype, offset, strides), memptr.mem, None

    # What it is

    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    device = property(lambda self: self._memory.device)
    T = property(lambda self: self if self.ndim < 2 else call(np.transpose, self))
    mT = property(lambda self: call(np.matrix_transpose, self))
    real = property(lambda self: call(np.real, self) if self.dtype.kind == "c" else self)
    imag = property(lambda self: call(np.imag, self))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        self._host.shape = shape

    @property
    def flags(self) -> Flags:
        flags = self._host.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    @property
    def data(self) -> cuda.MemoryPointer:
        offset = self._host.__array_interface__["data"][0] - self._memory.ptr if self.size else 0
        return cuda.MemoryPointer(self._memory, offset)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": cuda.current_stream().ptr or 1,
            "version": 3,
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "data": (self.data.ptr, False),
        }

    # To the host and back

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(_NO_CONVERSION)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        cuda.synchronise(stream)
        self._memory.require_written(self._host)
        if out is None:
            return self._host.copy(order=order)
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
        if self.dtype != out.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if self.shape != out.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        out[...] = self._host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self._host.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        cuda.synchronise(stream)
        self._host[...] = arr
        self._memory.mark_written(self._host)

    def item(self, *index: Any) -> Any:
        if not index and self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item(*index)

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get())

    def __iter__(self) -> Any:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __reduce__(self) -> Any:
        return array, (self.get(),)

    # Copies and casts

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        if not copy and self.dtype == supported(dtype):
            return self
        return call(np.ndarray.astype, self, supported(dtype), order=order)

    def copy(self, order: str = "C") -> ndarray:
        with self.device:
            return call(np.array, self, order=order, copy=True)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def fill(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if value.shape:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = value.item()
        _assign(self, ..., value)

    # Elements

    def __getitem__(self, key: Any) -> ndarray:
        key = _index(self, key)
        if cuda.capturing() and _has_mask(key):
            raise cuda.fail_capture()
        return call(_taken, self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        key = _index(self, key)
        if isinstance(value, np.ndarray) and not _is_advanced(key):
            if value.shape:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = value.item()
        if isinstance(value, (list, tuple, np.ndarray)):
            if not _is_advanced(key):
                raise TypeError(f"Unsupported type {type(value)}")
            value = array(value, dtype=self.dtype)
        _assign(self, key, value)

    # NumPy's functions and operators on CuPy's arrays

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        own = UFUNCS.get(function)
        if method != "__call__" or own is None:
            return NotImplemented
        outs = options.pop("out", ())
        if any(not isinstance(x, (ndarray, *_SCALARS, np.ndarray)) for x in inputs + outs):
            return NotImplemented
        if function in _COMPARISONS:
            inputs = tuple(x.item() if isinstance(x, np.ndarray) and not x.ndim else x for x in inputs)
        return own(*inputs, *outs, **options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = FUNCTIONS.get(function)
        if own is None or any(kind is not ndarray for kind in types):
            return NotImplemented
        return own(*args, **kwargs)


def _operators() -> None:
    """The operators of the array: NumPy's ufuncs, in place too, and reflected."""
    binary = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
        "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power, "lshift": np.left_shift,
        "rshift": np.right_shift, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        "matmul": np.matmul, "divmod": np.divmod,
    }  # fmt: skip
    for name, function in binary.items():
        setattr(ndarray, f"__{name}__", _binary(function))
        setattr(ndarray, f"__r{name}__", _binary(function, reflected=True))
        if name not in ("matmul", "divmod"):  # CuPy has neither in place
            setattr(ndarray, f"__i{name}__", _in_place(function))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__{name}__", _binary(_COMPARED[name]))
    for name, function in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
        setattr(ndarray, f"__{name}__", lambda self, function=function: call(function, self))
    ndarray.__pos__ = lambda self: self
    for convert in (int, float, complex, repr, str):
        setattr(ndarray, f"__{convert.__name__}__", lambda self, convert=convert: convert(self.get()))
    ndarray.__format__ = lambda self, spec: format(self.get(), spec)


_COMPARED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_COMPARISONS = set(_COMPARED.values())


def _binary(function: np.ufunc, *, reflected: bool = False) -> Callable[[ndarray, Any], Any]:
    def operate(self: ndarray, other: Any) -> Any:
        if isinstance(other, (ndarray, *_SCALARS)):
            return call(function, other, self) if reflected else call(function, self, other)
        if _defers(self, other):
            return NotImplemented
        return function(other, self) if reflected else function(self, other)  # NumPy asks `__array_ufunc__`, as in CuPy

    return operate


def _in_place(function: np.ufunc) -> Callable[[ndarray, Any], ndarray]:
    def operate(self: ndarray, other: Any) -> ndarray:
        return UFUNCS[function](self, other, self)

    return operate


def _defers(own: Any, other: Any) -> bool:
    """Whether the other operand's type answers first, by NEP 13 and CuPy's addition to it."""
    if hasattr(other, "__array_ufunc__"):
        return other.__array_ufunc__ is None
    return getattr(other, "__array_priority__", 0) > own.__array_priority__


def _methods() -> None:
    """The methods that do what NumPy's do."""
    names = """all any argmax argmin argpartition argsort choose clip compress conj conjugate cumprod cumsum diagonal
        dot flatten max mean min nonzero partition prod ravel repeat reshape round searchsorted sort squeeze std sum
        swapaxes take trace transpose var view"""
    for name in names.split():
        setattr(ndarray, name, _method(getattr(np.ndarray, name)))
    ndarray.take = lambda self, indices, axis=None, out=None: take(self, indices, axis, out)
    ndarray.ptp = lambda self, *args, **kwargs: call(np.ptp, self, *args, **kwargs)
    ndarray.put = lambda self, indices, values, mode="wrap": _put(self, indices, values, mode)
    for name in ("tolist", "tobytes", "tofile", "dump", "dumps"):
        setattr(ndarray, name, lambda self, *args, name=name: getattr(self.get(), name)(*args))


def _method(function: Any) -> Callable[..., Any]:
    changes_itself = function in (np.ndarray.sort, np.ndarray.partition)

    @wraps(function)
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        result = call(function, self, *args, **kwargs)
        return None if changes_itself else result

    return method


# -- device arrays from NumPy's ----------------------------------------------------------------------------------------


def supported(dtype: Any) -> np.dtype:
    """The dtype, which must be one that CuPy has."""
    dtype = np.dtype(dtype)
    if dtype.char not in _DTYPES and dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def allocated(shape: Any, dtype: Any, order: str = "C", *, initialised: bool = False) -> ndarray:
    """A new array on the current device whose elements have no value yet."""
    plan = np.broadcast_to(np.empty((), dtype), shape)  # NumPy normalises and checks the shape; nothing is allocated
    memory = cuda.Memory(plan.size * plan.itemsize, initialised=initialised)
    return _over(np.ndarray(plan.shape, dtype, memory.bytes, order=order or "C"), memory, None)


def _over(host: np.ndarray, memory: cuda.Memory, base: ndarray | None) -> ndarray:
    made = ndarray.__new__(ndarray)
    made._host, made._memory, made.base = host, memory, base
    return made


def adopted(host: Any) -> ndarray:
    """A copy of a host array, or number, in new device memory; its order in memory is kept."""
    host = np.asanyarray(host)
    supported(host.dtype)
    memory = cuda.Memory(host.nbytes, initialised=True)
    if host.flags.c_contiguous:
        copy = np.ndarray(host.shape, host.dtype, memory.bytes)
    else:
        copy = np.ndarray(host.shape, host.dtype, memory.bytes, 0, np.empty_like(host).strides)
    copy[...] = host
    return _over(copy, memory, None)


def _view(host: np.ndarray, of: ndarray) -> ndarray:
    if not host.flags.writeable:  # NumPy's broadcast arrays and diagonals; CuPy knows no such flag
        host = of._memory.view(host.shape, host.dtype, _address(host) - of._memory.ptr, host.strides)
    return _over(host, of._memory, of.base if of.base is not None else of)


def _address(host: np.ndarray) -> int:
    return host.__array_interface__["data"][0]


def _shared_with(host: np.ndarray, operands: list[ndarray]) -> ndarray | None:
    """The operand whose memory a result of NumPy's lies in."""
    if host.base is None:
        return next((operand for operand in operands if operand._host is host), None)
    address = _address(host)
    for operand in operands:
        memory = operand._memory
        if memory.ptr <= address < memory.ptr + memory.size and np.may_share_memory(host, memory.bytes):
            return operand
    return None


# -- calls of NumPy ----------------------------------------------------------------------------------------------------


def call(function: Callable[..., Any], *args: Any, out: Any = None, **kwargs: Any) -> Any:
    """A function of NumPy on device arrays: views stay views, everything else is new device memory."""
    operands: list[ndarray] = []
    hosts = _hosts(args, operands)
    options = {name: _hosts(value, operands) for name, value in kwargs.items()}
    out = out[0] if isinstance(out, tuple) else out
    if out is not None and not isinstance(out, ndarray):
        raise TypeError(f"Unsupported type {type(out)}")
    _check_devices(operands if out is None else [*operands, out])
    if cuda.capturing():
        return _captured(function, args, kwargs, out, operands)
    if function not in _LAZY:
        for operand in operands:
            operand._memory.require_written(operand._host)
    if out is not None:
        options["out"] = out._host
    with np.errstate(all="ignore"):
        result = function(*hosts, **options)
    if out is not None:
        out._memory.mark_written(out._host)
        return out
    return wrapped(result, operands, checked=function not in _LAZY)


def _hosts(value: Any, operands: list[ndarray]) -> Any:
    """The value with every device array in it replaced by what NumPy computes on."""
    if isinstance(value, ndarray):
        operands.append(value)
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if type(value) in (list, tuple):
        return type(value)(_hosts(item, operands) for item in value)
    return value


def _check_devices(operands: Iterable[ndarray]) -> None:
    current = cuda.get_device()
    for operand in operands:
        if operand._memory.device_id != current:
            raise ValueError(
                f"The device where the array resides ({operand._memory.device_id}) is different from the current "
                f"device ({current}). Peer access is unavailable between these devices."
            )


def wrapped(result: Any, operands: list[ndarray], *, checked: bool = True) -> Any:
    """NumPy's result as CuPy's: a view of an operand, or a new array; numbers are 0-d arrays."""
    if isinstance(result, np.ndarray):
        source = _shared_with(result, operands)
        if source is not None:
            return _view(result, source)
        if not checked:  # it was not known before whether the call would read anything
            for operand in operands:
                operand._memory.require_written(operand._host)
        return adopted(result)
    if isinstance(result, _SCALARS):
        return adopted(result)
    if isinstance(result, (tuple, list)):
        parts = [wrapped(part, operands, checked=checked) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
    return result


def _taken(host: np.ndarray, key: Any) -> np.ndarray:
    return host[key]


_LAZY = {
    _taken, np.ndarray.reshape, np.ndarray.ravel, np.ndarray.transpose, np.ndarray.squeeze, np.ndarray.swapaxes,
    np.ndarray.view, np.ndarray.diagonal, np.reshape, np.ravel, np.transpose, np.squeeze, np.swapaxes, np.expand_dims,
    np.moveaxis, np.rollaxis, np.broadcast_to, np.broadcast_arrays, np.atleast_1d, np.atleast_2d, np.atleast_3d,
    np.diagonal, np.flip, np.fliplr, np.flipud, np.rot90, np.real, np.imag, np.matrix_transpose, np.split,
    np.array_split, np.hsplit, np.vsplit, np.dsplit, np.meshgrid,
}  # fmt: skip  # may give views, which read nothing


# -- calls while a stream is captured ----------------------------------------------------------------------------------

_READS_BACK = {np.nonzero, np.ndarray.nonzero, np.unique, np.argwhere, np.flatnonzero, np.compress, np.ndarray.compress}


class _Weak:
    """An array without its memory: what a graph knows of it."""

    def __init__(self, array: ndarray) -> None:
        self.memory = weakref.ref(array._memory)
        host = array._host
        self.layout = host.shape, host.dtype, _address(host) - array._memory.ptr if host.size else 0, host.strides

    def array(self) -> ndarray:
        memory = self.memory()
        if memory is None:
            raise AssertionError("a graph is launched that uses memory which has been freed since it was captured")
        return _over(memory.view(*self.layout), memory, None)


def _weak(value: Any) -> Any:
    if isinstance(value, ndarray):
        return _Weak(value)
    return type(value)(map(_weak, value)) if type(value) in (list, tuple) else value


def _strong(value: Any) -> Any:
    if isinstance(value, _Weak):
        return value.array()
    return type(value)(map(_strong, value)) if type(value) in (list, tuple) else value


def _captured(function: Any, args: Any, kwargs: Any, out: Any, operands: list[ndarray]) -> Any:
    """Note the call down for the graph; its results have memory, and no values until the graph is launched."""
    if function in _READS_BACK:
        raise cuda.fail_capture()
    hosts, options = _hosts(args, []), {name: _hosts(value, []) for name, value in kwargs.items()}
    with np.errstate(all="ignore"):  # for the shapes only
        shapes = function(*hosts, **options) if out is None else None
    parts = shapes if isinstance(shapes, (tuple, list)) else [shapes]
    if all(isinstance(part, np.ndarray) and _shared_with(part, operands) is not None for part in parts):
        return wrapped(shapes, operands)
    results = out if out is not None else _unwritten(shapes)
    targets = results if isinstance(results, (tuple, list)) else [results]
    cuda.submit(_replay(function, _weak(args), {name: _weak(value) for name, value in kwargs.items()}, targets))
    return results


def _unwritten(shapes: Any) -> Any:
    if isinstance(shapes, (tuple, list)):
        return type(shapes)(_unwritten(shape) for shape in shapes)
    host = np.asarray(shapes)
    return allocated(host.shape, host.dtype)


def _replay(function: Any, args: Any, kwargs: Any, targets: Iterable[ndarray]) -> Callable[[], None]:
    places = [_Weak(target) for target in targets]

    def work() -> None:
        result = call(function, *_strong(args), **{name: _strong(value) for name, value in kwargs.items()})
        for place, value in zip(places, result if isinstance(result, (tuple, list)) else [result], strict=True):
            target = place.array()
            target._host[...] = value._host
            target._memory.mark_written(target._host)

    return work


# -- indices -----------------------------------------------------------------------------------------------------------


def _index(array_: ndarray, key: Any) -> tuple[Any, ...]:
    """The key of a subscript as a tuple with an ellipsis, so that NumPy gives a view where it would give a number."""
    parts = [_index_part(part) for part in (key if isinstance(key, tuple) else (key,))]
    axis = 0
    for place, part in enumerate(parts):
        if isinstance(part, ndarray):
            if part.dtype.kind not in "biu":
                raise IndexError(
                    f"arrays used as indices must be of integer or boolean type. (actual: {part.dtype.type})"
                )
            if part.dtype.kind != "b" and axis < array_.ndim and array_.shape[axis]:
                parts[place] = part % array_.shape[axis]  # CuPy wraps around what lies beyond
        axis += _axes_of(part, parts, array_.ndim)
    return tuple(parts) if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)


def _index_part(part: Any) -> Any:
    if part is None or part is Ellipsis or isinstance(part, (slice, ndarray)):
        return part
    if np.isscalar(part) and not isinstance(part, (bool, np.bool_)):
        return operator.index(part)
    part = array(part)
    return part.astype(np.int32) if not part.size and part.dtype == np.float64 else part


def _axes_of(part: Any, parts: list[Any], ndim: int) -> int:
    """How many axes one part of a key takes."""
    if part is None:
        return 0
    if part is Ellipsis:
        return ndim - sum(_axes_of(other, parts, ndim) for other in parts if other is not Ellipsis)
    return part.ndim if isinstance(part, ndarray) and part.dtype.kind == "b" else 1


def _is_advanced(key: Any) -> bool:
    return any(isinstance(part, (ndarray, _Weak)) for part in (key if isinstance(key, tuple) else (key,)))


def _has_mask(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return any(isinstance(part, ndarray) and part.dtype.kind == "b" for part in parts)


def _assign(target: ndarray, key: Any, value: Any) -> None:
    """Write the elements that the key names, on the stream's turn."""
    if not isinstance(value, (ndarray, *_SCALARS)):
        raise TypeError(f"Unsupported type {type(value)}")
    operands = [target]
    _hosts((key, value), operands)
    _check_devices(operands)
    if cuda.capturing() and _has_mask(key):
        raise cuda.fail_capture()
    place, given = _Weak(target), _weak((key, value))

    def write() -> None:
        own, sources = place.array(), []
        where, values = _hosts(_strong(given), sources)
        for source in sources:
            source._memory.require_written(source._host)
        with np.errstate(all="ignore"):
            own._host[where] = values
        if own._memory.written:
            return
        if _is_advanced(given[0]):
            _mark_each(own, where)
        else:
            own._memory.mark_written(own._host[where])

    cuda.submit(write)


def _mark_each(own: ndarray, where: Any) -> None:
    """Mark elements that an index array names: their places are what the same index takes from all places."""
    places = np.arange(own.size).reshape(own.shape)[where]
    for place in np.unique(places):
        own._memory.mark_written(own._host[(*np.unravel_index(place, own.shape), ...)])


def take(a: ndarray, indices: Any, axis: Any = None, out: Any = None, mode: Any = None) -> ndarray:
    """CuPy's: it wraps around, whatever the mode."""
    indices = indices if isinstance(indices, ndarray) else array(indices)
    return call(np.take, a, indices, axis=axis, out=out, mode="wrap")


def _put(a: ndarray, indices: Any, values: Any, mode: str) -> None:
    indices, values = (x if isinstance(x, ndarray) else array(x) for x in (indices, values))
    places = call(np.arange, a.size).reshape(a.shape)
    spots = call(np.take, places.ravel(), indices.ravel(), mode=mode)
    for spot, value in zip(spots.get(), np.resize(values.get(), spots.size), strict=True):
        _assign(a, tuple(map(int, np.unravel_index(spot, a.shape))), value.item())


# -- functions of the module -------------------------------------------------------------------------------------------


class ufunc:
    """CuPy's elementwise function: its operands are device arrays and numbers, nothing else."""

    __module__ = "cupy._core._kernel"

    def __init__(self, function: np.ufunc) -> None:
        self._function, self.__doc__ = function, function.__doc__
        self.__name__ = self.name = function.__name__
        self.nin, self.nout, self.nargs, self.types = function.nin, function.nout, function.nargs, function.types

    def __repr__(self) -> str:
        return f"<ufunc '{self.__name__}'>"

    def __call__(self, *args: Any, out: Any = None, **options: Any) -> Any:
        operands, outs = args[: self.nin], args[self.nin :]
        for operand in operands:
            if not isinstance(operand, (ndarray, *_SCALARS)):
                raise TypeError(f"Unsupported type {type(operand)}")
        return call(self._function, *operands, out=outs[0] if outs else out, **options)

    def _part(self, method: str, args: Any, kwargs: Any) -> Any:
        return call(getattr(self._function, method), *args, **kwargs)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        return self._part("reduce", args, kwargs)

    def accumulate(self, *args: Any, **kwargs: Any) -> Any:
        return self._part("accumulate", args, kwargs)

    def outer(self, *args: Any, **kwargs: Any) -> Any:
        return self._part("outer", args, kwargs)


UFUNCS: dict[np.ufunc, Any] = {value: ufunc(value) for value in vars(np).values() if isinstance(value, np.ufunc)}
FUNCTIONS: dict[Any, Any] = {}  # NumPy's function to CuPy's


def on_arrays(function: Any) -> Any:
    """CuPy's function of this name: NumPy's, but for device arrays alone."""
    if isinstance(function, np.ufunc):
        return UFUNCS[function]

    @wraps(function)
    def on_device(*args: Any, **kwargs: Any) -> Any:
        if not any(map(_holds_array, (*args, *kwargs.values()))):
            raise TypeError(f"Unsupported type {type(args[0]) if args else None}")
        return call(function, *args, **kwargs)

    FUNCTIONS[function] = on_device
    return on_device


def _holds_array(value: Any) -> bool:
    return isinstance(value, ndarray) or (isinstance(value, (list, tuple)) and any(map(_holds_array, value)))


def creating(function: Any) -> Any:
    """CuPy's function that makes an array from shapes and numbers."""

    @wraps(function)
    def create(*args: Any, **kwargs: Any) -> Any:
        return call(function, *args, **kwargs)

    return create


def about_arrays(function: Any) -> Any:
    """A function that looks at what arrays are, not at their values, and answers with no array."""

    @wraps(function)
    def ask(*args: Any, **kwargs: Any) -> Any:
        return function(*_hosts(args, []), **{name: _hosts(value, []) for name, value in kwargs.items()})

    FUNCTIONS[function] = ask
    return ask


def array(
    obj: Any,
    dtype: Any = None,
    copy: Any = True,
    order: str | None = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """CuPy's: the one door for host arrays, and between devices."""
    dtype = None if dtype is None else supported(dtype)
    if isinstance(obj, ndarray):
        return _array_again(obj, obj.dtype if dtype is None else dtype, copy, order, ndmin)
    if _holds_array(obj):
        return call(np.array, obj, dtype=dtype)
    if (interface := getattr(obj, "__cuda_array_interface__", None)) is not None:
        return array(_of_interface(obj, interface), dtype, copy, order, ndmin=ndmin)
    if cuda.capturing():
        raise cuda.fail_capture()
    host = np.array(obj, dtype=dtype, order=order, ndmin=ndmin)
    supported(host.dtype)
    return adopted(host)


def _of_interface(owner: Any, interface: dict[str, Any]) -> ndarray:
    """Another library's array on the device, in the memory that it has."""
    memory = cuda.Memory.holding(interface["data"][0])
    pointer = cuda.MemoryPointer(memory, interface["data"][0] - memory.ptr)
    made = ndarray(interface["shape"], interface["typestr"], pointer, interface.get("strides"))
    made.base = owner
    return made


def _array_again(a: ndarray, dtype: Any, copy: Any, order: str | None, ndmin: int) -> ndarray:
    here = a._memory.device_id == cuda.get_device()
    ordered = order in (None, "K", "A") or a._host.flags[f"{order}_CONTIGUOUS"]
    if here and not copy and ordered and a.dtype == dtype and a.ndim >= ndmin:
        return a
    if here:
        return call(_cast, a, dtype, order or "K", ndmin)
    a._memory.require_written(a._host)  # CuPy copies from device to device
    return adopted(_cast(a._host, dtype, order or "K", ndmin))


def _cast(host: np.ndarray, dtype: Any, order: str, ndmin: int) -> np.ndarray:
    return np.array(host, dtype=dtype, order=order, ndmin=ndmin)


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: Any = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, bool(copy), order or "K", blocking=blocking)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, copy=False, order="C", ndmin=1)


def asfortranarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, copy=False, order="F", ndmin=1)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    if out is None:
        return np.asarray(a, order=order)
    out[...] = a
    return out


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return allocated(shape, supported(float if dtype is None else dtype), order)


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    if not isinstance(prototype, ndarray):
        raise TypeError(f"Unsupported type {type(prototype)}")
    like = np.empty_like(prototype._host, dtype=None if dtype is None else supported(dtype), order=order, shape=shape)
    memory = cuda.Memory(like.nbytes)
    return _over(memory.view(like.shape, like.dtype, 0, like.strides), memory, None)


def _filled_like(value: Any) -> Callable[..., ndarray]:
    def filled(a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
        made = empty_like(a, dtype, order, subok, shape)
        made.fill(value)
        return made

    return filled


zeros_like, ones_like = _filled_like(0), _filled_like(1)


def full_like(
    a: ndarray, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    made = empty_like(a, dtype, order, subok, shape)
    made[...] = fill_value
    return made


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if not isinstance(src, (ndarray, *_SCALARS)):
        raise TypeError(f"Unsupported type {type(src)}")
    _assign(dst, (...,) if where is None else (where, ...), src)


def from_dlpack(x: Any) -> ndarray:
    if not isinstance(x, ndarray):
        raise TypeError("the emulated CuPy exchanges no memory with other libraries")
    return x.view()


_operators()
_methods()
