"""Pictures on disk: read at their own depth, and written whole or not at all."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xpconv.files import check_writable, written_whole

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture as arrays.

    Parameters
    ----------
    pixels : array of shape (height, width, channels)
        one channel of grey or three of colour; uint8 or uint16, float32 as stored in the file
    alpha : array of shape (height, width) and uint8, or None
        how opaque each pixel is
    colour_profile : bytes or None
        the ICC profile that says how the channels look
    depth_lost : bool
        whether the file held more bits than could be read
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    colour_profile: bytes | None = None
    depth_lost: bool = False

    def with_pixels(self, pixels: np.ndarray) -> Picture:
        """Return this picture with other pixels, of the same shape."""
        return replace(self, pixels=pixels)


def read_picture(path: Path) -> Picture:
    """Read a picture, turned upright.

    Grey, colour, both with alpha, palettes, 16-bit grey and float grey keep their kind (a palette becomes the colours
    it stands for, black and white becomes grey); other colour spaces become RGB. Of an animation the first frame is
    read. Pillow reads 16-bit colour as 8-bit: `Picture.depth_lost` says so.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Picture

    Raises
    ------
    OSError
        the file cannot be read, or holds no picture that Pillow knows
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, and yet within Pillow's limit
            return _read(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise OSError(f"{path} cannot be read as a picture: {_reason(error)}") from None


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format that the name's extension says, whole or not at all.

    Parameters
    ----------
    path : Path
    picture : Picture

    Raises
    ------
    ValueError
        no format is written under this extension
    OSError
        the folder is missing or cannot be written, or the format cannot hold such a picture
    """
    check_output(path)
    kind = _format_of(path)
    try:
        with written_whole(path) as part:
            _to_image(picture).save(part, format=kind, icc_profile=picture.colour_profile)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {_reason(error)}{_hint(error, picture)}") from None


def check_output(path: Path) -> None:
    """Raise before the work what `write_picture` would raise after it, where the name alone shows it.

    Parameters
    ----------
    path : Path
    """
    check_writable(path)
    _format_of(path)


def _read(path: Path) -> Picture:
    with Image.open(path) as image:
        depth_lost = any(";16" in str(tile.args) for tile in image.tile) and image.mode not in _SIXTEEN_BIT
        return replace(_to_arrays(ImageOps.exif_transpose(image)), depth_lost=depth_lost)


def _to_arrays(image: Image.Image) -> Picture:
    profile = image.info.get("icc_profile")
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        return Picture(_sixteen_bit(image)[..., np.newaxis], colour_profile=profile)
    if image.mode == "F":
        return Picture(np.asarray(image)[..., np.newaxis])
    wanted = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + ("A" if image.has_transparency_data else "")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        profile = None  # it speaks of those channels, not of RGB
    bands = np.atleast_3d(np.asarray(image.convert(wanted)))
    if wanted.endswith("A"):
        return Picture(bands[..., :-1], bands[..., -1], profile)
    return Picture(bands, colour_profile=profile)


def _sixteen_bit(image: Image.Image) -> np.ndarray:
    """The values of 16-bit grey, which Pillow before 11 opens as 32-bit integers."""
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
        raise ValueError("its 32-bit integers do not fit 16 bits")
    return values.astype(np.uint16)


def _to_image(picture: Picture) -> Image.Image:
    bands: Any = picture.pixels
    if picture.alpha is not None:
        bands = np.concatenate([bands, picture.alpha[..., np.newaxis]], axis=-1)
    return Image.fromarray(np.ascontiguousarray(bands[..., 0] if bands.shape[-1] == 1 else bands))


def _format_of(path: Path) -> str:
    Image.init()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        extension = f"as {path.suffix!r}" if path.suffix else "without an extension"
        raise ValueError(f"{path}: no picture format is written {extension}; take .png")
    return kind


def _reason(error: Exception) -> str:
    """The error in a few words: an `OSError`'s own text repeats the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)


def _hint(error: OSError, picture: Picture) -> str:
    if not str(error).startswith("cannot write mode"):
        return ""
    return "; a .tiff can" if picture.pixels.dtype.kind == "f" else "; a .png can"
