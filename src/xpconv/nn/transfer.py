"""Between the host's NumPy arrays and the arrays a model is made of."""

from typing import Any

import numpy
from array_api_compat import array_namespace, device, is_cupy_array, is_torch_array

from xpconv.device import to_device
from xpconv.spec import Array


def to_host(array: Array) -> numpy.ndarray:
    """Return the array as NumPy's, from whatever device it is on."""
    if is_cupy_array(array) or is_torch_array(array):  # NumPy reads the others where they are
        array = to_device(array, "cpu")
    return numpy.asarray(array)


def from_host(host: numpy.ndarray, xp: Any, *, device: Any = None, dtype: Any = None) -> Array:
    """Return NumPy's array as one of the namespace `xp`, on `device`; `dtype` is a name, or None to leave it."""
    standard = array_namespace(xp.empty(0))  # of a bare library such as cupy, the namespace that follows the standard
    return standard.asarray(host, dtype=getattr(standard, dtype or host.dtype.name), device=device)


def like(host: numpy.ndarray, array: Array) -> Array:
    """Return NumPy's array in the library and on the device of `array`, its own dtype kept."""
    return from_host(host, array_namespace(array), device=device(array))
