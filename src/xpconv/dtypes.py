"""What kind of number a dtype holds, in every library; bfloat16 counts as a float wherever it comes from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from array_api_compat import array_namespace

from xpconv.spec import Array

KINDS = ("integral", "real floating", "complex floating")  # in the order in which each holds the ones before it
NO_ARITHMETIC = ("torch.uint16", "torch.uint32", "torch.uint64")  # torch stores them, and little else
_NARROW = ("float16", "bfloat16")


@lru_cache(maxsize=256)
def kind(xp: Any, dtype: Any) -> str | None:
    """The kind of a dtype of the namespace `xp`; None for bool, strings and all that cannot be computed with."""
    if str(dtype) in NO_ARITHMETIC:
        return None
    if short_name(dtype) == "bfloat16":
        return "real floating"
    try:
        return next((kind for kind in KINDS if xp.isdtype(dtype, kind)), None)
    except TypeError:  # a dtype that the library itself does not classify
        return None


def kind_of(x: Array) -> str | None:
    """The kind of number that `x` holds."""
    return kind(array_namespace(x), x.dtype)


def short_name(dtype: Any) -> str:
    """A dtype's name without its library: torch.float32 and numpy's float32 are "float32"."""
    return _short_name(type(dtype).__module__, dtype)


@lru_cache(maxsize=256)
def _short_name(library: str, dtype: Any) -> str:  # noqa: ARG001  first in the key: no two libraries' are compared
    return str(getattr(dtype, "__name__", dtype)).rpartition(".")[2]


def own_dtype(xp: Any, name: str, substitute: str) -> Any:
    """The namespace's dtype of that name, or the substitute where it is switched off, as in JAX."""
    own = xp.__array_namespace_info__().dtypes()
    return own.get(name, own[substitute])


def index_dtype(xp: Any) -> Any:
    """The dtype of positions: int64, but for JAX, which has it only where the user switched it on."""
    return xp.__array_namespace_info__().default_dtypes()["indexing"]


def widened(x: Array) -> Array:
    """`x` in the dtype that sums are kept in: float32 for the 16-bit floats, else its own."""
    if short_name(x.dtype) not in _NARROW:
        return x
    xp = array_namespace(x)
    return xp.astype(x, xp.float32)
