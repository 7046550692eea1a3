"""Picture filters: the kernels that have a name, kernels from a file or a literal, and how they are applied."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from xpconv.convolution import conv
from xpconv.device import backend, to_device


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """Kernels, and how what they give becomes a picture again.

    ``picture = offset + scale * response``, in units of the brightest value; with several kernels the response is
    the root of the sum of their squares, the length of the gradient.

    Parameters
    ----------
    name : str
    kernels : array of shape (count, height, width); (count, *window) for arrays of other axes
    scale, offset : float
    """

    name: str
    kernels: np.ndarray
    scale: float = 1.0
    offset: float = 0.0


def named_filter(text: str, size: int | None = None, *, any_axes: bool = False) -> Filter:
    """Read what stands after ``--kernel``: a name, a file ``*.npy``, or a literal such as ``"[[0, 1], [1, 0]]"``.

    Parameters
    ----------
    text : str
        ``sobel``, ``gaussian``, ``sharpen``, ``emboss``, ``laplacian``, ``box``, a path that ends in ``.npy``, or a
        2-d kernel written as a list of rows
    size : int, optional
        side of the gaussian (5 if not given) or the box (3), odd
    any_axes : bool
        whether a file or a literal may hold a kernel of other than 2 axes

    Returns
    -------
    Filter

    Raises
    ------
    ValueError
        no such name, an even size, a size for a kernel that has one of its own, or a kernel that is no 2-d array of
        finite real numbers within reason
    OSError
        the file cannot be read

    Examples
    --------
    >>> named_filter("box").kernels.shape
    (1, 3, 3)
    >>> named_filter("[[0, 1], [2, 0]]").kernels[0].tolist()
    [[0.0, 1.0], [2.0, 0.0]]
    """
    if text in _SIZED:
        default, kernel_of = _SIZED[text]
        return Filter(text, kernel_of(_odd(default if size is None else size))[np.newaxis])
    if size is not None:
        raise ValueError(f"--size {size} belongs to the kernels {' and '.join(_SIZED)}, {text} has a size of its own")
    if text in _FIXED:
        return _FIXED[text]
    if text.endswith(".npy"):
        return Filter(text, _checked(_load(Path(text)), text, any_axes)[np.newaxis])
    if text.lstrip().startswith("["):
        return Filter(text, _checked(_parse(text), text, any_axes)[np.newaxis])
    names = ", ".join(sorted([*_FIXED, *_SIZED]))
    raise ValueError(f'no kernel is called {text!r}; there are {names}, a file ending in .npy, and "[[...], [...]]"')


def apply_filter(
    pixels: np.ndarray, chosen: Filter, *, padding_mode: str = "symmetric", device: str = "auto"
) -> np.ndarray:
    """Convolve each channel of a picture with a filter, at the picture's size and depth.

    The sums are of floats; what leaves the range of an integer picture is cut off at its ends, after rounding.

    Parameters
    ----------
    pixels : array of shape (height, width, channels), of uint8, uint16 or floats from 0 to 1
    chosen : Filter
    padding_mode : str
        what lies beyond the border, as in `xpconv.conv2d`
    device : str
        as in `xpconv.backend`

    Returns
    -------
    array of pixels' shape and dtype

    Examples
    --------
    >>> import numpy as np
    >>> spot = np.zeros((3, 3, 1), np.uint8)
    >>> spot[1, 1] = 90
    >>> apply_filter(spot, named_filter("box"))[..., 0].tolist()
    [[10, 10, 10], [10, 10, 10], [10, 10, 10]]
    """
    xp, where = backend(device)
    sums_in = _sums_in(pixels.dtype)
    planes, weight = _planes(pixels).astype(sums_in), _weight(chosen, sums_in)
    response = _response(xp.asarray(planes, device=where), xp.asarray(weight, device=where), padding_mode)
    return _picture(to_device(response, "cpu"), chosen, pixels.dtype)


def lazily_filtered(pixels: Any, chosen: Filter, *, padding_mode: str = "symmetric") -> Any:
    """What `apply_filter` gives, of a Dask array, as a lazy one.

    Parameters
    ----------
    pixels : Dask array of shape (*size, channels), as many in size as the kernel has axes
        of the dtypes that `check_depth` lets pass, with chunks of known sizes
    chosen : Filter
    padding_mode : str
        what lies beyond the border, as in `xpconv.conv`

    Returns
    -------
    Dask array of pixels' shape, chunks and dtype

    Examples
    --------
    >>> import dask.array as da
    >>> lazily_filtered(da.ones((6, 4, 1), chunks=(3, 2, 1)), named_filter("box")).chunks
    ((3, 3), (2, 2), (1,))
    """
    sums_in = _sums_in(pixels.dtype)
    response = _response(_planes(pixels).astype(sums_in), _weight(chosen, sums_in), padding_mode)
    return _picture(response, chosen, pixels.dtype)


def check_depth(what: str, dtype: np.dtype) -> None:
    """Refuse what has no depth that sums of floats keep.

    Parameters
    ----------
    what : str
        how messages call the array
    dtype : numpy.dtype

    Raises
    ------
    ValueError
        neither integers of up to 32 bits nor floats of 16, 32 or 64

    Examples
    --------
    >>> check_depth("scan.npy", np.dtype("uint16"))
    """
    widest = {"i": 4, "u": 4, "f": 8}.get(dtype.kind, 0)
    if dtype.itemsize > widest:
        raise ValueError(f"{what} holds {dtype}; filters take integers of up to 32 bits, and floats of 16, 32 or 64")


def _sums_in(dtype: np.dtype) -> type[np.floating]:
    """The floats that hold every value of the dtype, or are as wide."""
    return np.float64 if dtype.itemsize >= (8 if dtype.kind == "f" else 4) else np.float32


def _planes(pixels: Any) -> Any:
    """Each channel as an image of a batch: (channels, *size, 1)."""
    return np.moveaxis(pixels, -1, 0)[..., np.newaxis]


def _weight(chosen: Filter, dtype: type[np.floating]) -> np.ndarray:
    """The kernels as filters of one channel: (*window, 1, kernels)."""
    return np.moveaxis(chosen.kernels, 0, -1)[..., np.newaxis, :].astype(dtype)


def _response(planes: Any, weight: Any, padding_mode: str) -> Any:
    """What the kernels answer, or the length of their answers: (channels, *size)."""
    response = conv(planes, weight, padding="same", padding_mode=padding_mode)
    if response.shape[-1] == 1:
        return response[..., 0]
    xp = array_namespace(response)
    return xp.sqrt(xp.sum(response**2, axis=-1))


def _picture(response: Any, chosen: Filter, dtype: np.dtype) -> Any:
    """A response as pixels of the dtype: (*size, channels)."""
    lowest, brightest = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (0, 1.0)
    picture = np.moveaxis(response, 0, -1) * chosen.scale + brightest * chosen.offset
    if dtype.kind in "iu":
        picture = np.clip(np.rint(picture), lowest, brightest)
    return picture.astype(dtype)


# -- kernels ---------------------------------------------------------------------------------------------------------


def _box(size: int) -> np.ndarray:
    return np.full((size, size), 1 / size**2)


def _gaussian(size: int) -> np.ndarray:
    """The bell curve cut at three standard deviations."""
    sigma = size / 6
    bell = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    bell /= bell.sum()
    return np.outer(bell, bell)


_SIZED: dict[str, tuple[int, Callable[[int], np.ndarray]]] = {"gaussian": (5, _gaussian), "box": (3, _box)}

_SOBEL = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])

_FIXED = {
    # A step from black to white answers 4; half of it shows as white, for few edges of a photograph are so steep.
    "sobel": Filter("sobel", np.stack([_SOBEL, _SOBEL.T]), scale=0.5),
    "sharpen": Filter("sharpen", np.array([[[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]])),
    # These two give zero on a plain surface: mid-grey shows both signs.
    "emboss": Filter("emboss", np.array([[[1.0, 1, 0], [1, 0, -1], [0, -1, -1]]]), scale=0.5, offset=0.5),
    "laplacian": Filter("laplacian", np.array([[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]), offset=0.5),
}


# -- reading a kernel ------------------------------------------------------------------------------------------------

_HEAVIEST = 1e30  # sum of a kernel's magnitudes, which times 65,535 stays far below float32's 3.4e38


def _odd(size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"--size must be odd and at least 1, so that the kernel has a centre, got {size}")
    return size


def _load(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:  # pickled, cut short, or another format altogether
        raise ValueError(
            f"{path} holds no plain array that NumPy can read ({error}); write it with numpy.save"
        ) from None


def _parse(text: str) -> np.ndarray:
    try:
        return np.asarray(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(
            f'the kernel {text!r} is no list of equally long rows of numbers, as "[[1, 0], [0, -1]]"'
        ) from None


def _checked(kernel: np.ndarray, text: str, any_axes: bool) -> np.ndarray:
    if kernel.size == 0 or (kernel.ndim == 0 if any_axes else kernel.ndim != 2):
        axes = "axes" if any_axes else "two axes"
        raise ValueError(f"the kernel {text} must have {axes} and at least one value, it has shape {kernel.shape}")
    if kernel.dtype.kind not in "iufb":
        raise ValueError(f"the kernel {text} must hold real numbers, it holds {kernel.dtype}")
    if not np.isfinite(kernel).all():
        raise ValueError(f"the kernel {text} holds NaN or infinity")
    with np.errstate(over="ignore"):
        kernel = kernel.astype(np.float64)
        weight = np.abs(kernel).sum()
    if weight >= _HEAVIEST:
        raise ValueError(
            f"the kernel {text} is too large for sums in float32: its values add up to {weight:.3g}, "
            f"the limit is {_HEAVIEST:g}"
        )
    return kernel
