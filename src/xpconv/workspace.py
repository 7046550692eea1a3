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

    The limit holds in the thread that sets it, for what is cut into tiles: the NumPy engine's patches, bands,
    spectra of tiles and weight gradients; the scratch memory of its compiled kernels, beside which a copy of the
    weight is made; the scratch memory of the CuPy engine's kernels. The default is 64 MiB. It does not hold for what a
    padding mode other than "zeros" puts around an input: without compiled kernels, NumPy puts it around a copy.

    Beside it the NumPy engine keeps the memory of its last two results of more than 32 MiB, once nothing refers to
    them and where each is at most four times the limit, for the next ones of their size. The system may take that
    memory back at any time.

    Parameters
    ----------
    nbytes : int
        Bytes, at least 1. Rows of windows are cut in parts of 1 MiB or more, and not at all where they take less, or
        where ``method`` asks for "winograd" or spectra.

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
