"""The memory that an operation may take beyond its inputs and its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral

DEFAULT_LIMIT = 64 * 2**20

_limit = ContextVar("xpconv_workspace_limit", default=DEFAULT_LIMIT)


@contextmanager
def workspace_limit(nbytes: int) -> Iterator[None]:
    """Limit, inside a ``with`` block, the memory taken beyond inputs and result.

    The limit holds in the thread that sets it, for all that the NumPy engine holds beside a copy of the weight, and for
    the scratch memory of the CuPy engine's kernels. What would hold more is computed piece by piece. The default is
    64 MiB. It does not hold for arrays that are made before an engine computes, where dtypes are mixed, integers are
    averaged or minima taken; nor for adaptive poolings, `fold`, and gradients of maxima that do not lie in one piece,
    of a single image that is larger; nor for input gradients of half precision with a padding mode.

    Between calls the NumPy engine keeps memory for the next ones: that of its last two results of more than 32 MiB,
    once nothing refers to them and where each is at most four times the limit, which the system may take back at any
    time; what calls computed in, of the kernels twice 32 MiB at most, of NumPy itself 12 MiB for each thread and
    purpose; and transformed weights, 256 MiB by kernels and as much by NumPy itself.

    Parameters
    ----------
    nbytes : int
        Bytes, at least 1. Rows of windows are cut in parts of 1 MiB or more, and not at all where they take less. More
        is taken where one tile or one window takes more: rows of tiles where ``method`` asks for "winograd", and
        spectra of kernels of hundreds of elements along both axes.

    Raises
    ------
    ValueError
        For anything but a positive integer.

    Examples
    --------
    >>> import numpy as np, xpconv
    >>> with xpconv.workspace_limit(4 * 2**20):
    ...     y = xpconv.conv2d(np.ones((1, 64, 64, 8)), np.ones((3, 3, 8, 8)))
    >>> y.shape
    (1, 62, 62, 8)
    """
    if not isinstance(nbytes, Integral) or isinstance(nbytes, bool) or nbytes < 1:
        raise ValueError(f"workspace_limit takes a positive number of bytes, got {nbytes!r}")
    token = _limit.set(int(nbytes))
    try:
        yield
    finally:
        _limit.reset(token)


current_limit = _limit.get  # the limit in force, in bytes
