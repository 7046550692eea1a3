"""Tensor maps for the emulated tensor copies, encoded by the arguments of CUDA's driver and under its conditions.

The result is passed to a kernel by value, as the device's 128 opaque bytes are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MAGIC = 0x70616D78
_SWIZZLE_BYTES = (0, 32, 64, 128)  # by CUtensorMapSwizzle
_ELEMENT_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)  # by CUtensorMapDataType

# Mirrors TensorMapContents in tensor_map.h.
_CONTENTS = np.dtype(
    [
        ("address", "u8"),
        ("strides", "u8", 4),
        ("magic", "u4"),
        ("sizes", "u4", 5),
        ("box", "u2", 5),
        ("channels", "u2"),
        ("pixels", "u2"),
        ("lower", "i2", 3),
        ("upper", "i2", 3),
        ("element_strides", "u1", 5),
        ("rank", "u1"),
        ("element_bytes", "u1"),
        ("im2col", "u1"),
        ("swizzle_bytes", "u1"),
        ("nan_fill", "u1"),
    ]
)
TENSOR_MAP = np.dtype("V128")


def encode_tiled(
    data_type: int,
    rank: int,
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    element_strides: Sequence[int],
    interleave: int = 0,
    swizzle: int = 0,
    l2_promotion: int = 0,  # noqa: ARG001  a hint
    nan_fill: int = 0,
) -> np.ndarray:
    """As cuTensorMapEncodeTiled; sizes run from the innermost dimension outwards, strides (bytes) from the second."""
    contents = _common(data_type, rank, address, sizes, strides, element_strides, interleave, swizzle, nan_fill)
    _require(len(box) == rank, f"box has {len(box)} entries for rank {rank}")
    _require(all(1 <= extent <= 256 for extent in box), f"box {tuple(box)}: each is from 1 to 256")
    _require_row(box[0] * _ELEMENT_BYTES[data_type], _SWIZZLE_BYTES[swizzle])
    contents["box"][:rank] = box
    return _opaque(contents)


def encode_im2col(
    data_type: int,
    rank: int,
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    lower_corner: Sequence[int],
    upper_corner: Sequence[int],
    channels: int,
    pixels: int,
    element_strides: Sequence[int],
    interleave: int = 0,
    swizzle: int = 0,
    l2_promotion: int = 0,  # noqa: ARG001  a hint
    nan_fill: int = 0,
) -> np.ndarray:
    """As cuTensorMapEncodeIm2col: sizes are channels, width, height, depth, images; corners are of the spatial ones."""
    _require(3 <= rank <= 5, f"rank {rank}; im2col needs 3 to 5")
    contents = _common(data_type, rank, address, sizes, strides, element_strides, interleave, swizzle, nan_fill)
    limit = {3: 2**15, 4: 2**7, 5: 2**4}[rank]
    for name, corner in (("lower_corner", lower_corner), ("upper_corner", upper_corner)):
        _require(len(corner) == rank - 2, f"{name} has {len(corner)} entries for rank {rank}")
        _require(
            all(-limit <= c < limit for c in corner), f"{name} {tuple(corner)}: each is from {-limit} to {limit - 1}"
        )
    _require(1 <= channels <= 256, f"{channels} channels; 1 to 256")
    _require(1 <= pixels <= 1024, f"{pixels} pixels; 1 to 1024")
    _require_row(channels * _ELEMENT_BYTES[data_type], _SWIZZLE_BYTES[swizzle])
    contents["im2col"] = 1
    contents["channels"], contents["pixels"] = channels, pixels
    contents["lower"][: rank - 2] = lower_corner
    contents["upper"][: rank - 2] = upper_corner
    return _opaque(contents)


def _common(
    data_type: int,
    rank: int,
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    element_strides: Sequence[int],
    interleave: int,
    swizzle: int,
    nan_fill: int,
) -> np.ndarray:
    _require(1 <= rank <= 5, f"rank {rank}; 1 to 5")
    _require(interleave == 0, "interleaved layouts are not emulated")
    _require(len(sizes) == rank, f"{len(sizes)} sizes for rank {rank}")
    _require(len(strides) == rank - 1, f"{len(strides)} strides for rank {rank}")
    _require(len(element_strides) == rank, f"{len(element_strides)} element strides for rank {rank}")
    _require(address % 16 == 0, f"address {address:#x} is not a multiple of 16")
    _require(all(1 <= size <= 2**32 for size in sizes), f"sizes {tuple(sizes)}: each is from 1 to 2**32")
    _require(
        all(0 <= stride < 2**40 and stride % 16 == 0 for stride in strides),
        f"strides {tuple(strides)}: each is a multiple of 16 below 2**40",
    )
    _require(all(1 <= step <= 8 for step in element_strides), f"element strides {tuple(element_strides)}: 1 to 8")
    _require(element_strides[0] == 1, "a stride along the innermost dimension is not emulated")
    contents = np.zeros((), _CONTENTS)
    contents["magic"], contents["address"], contents["rank"] = _MAGIC, address, rank
    contents["sizes"][:rank] = sizes
    contents["strides"][: rank - 1] = strides
    contents["element_strides"][:rank] = element_strides
    contents["element_bytes"] = _ELEMENT_BYTES[data_type]
    contents["swizzle_bytes"] = _SWIZZLE_BYTES[swizzle]
    contents["nan_fill"] = nan_fill
    return contents


def _require_row(row_bytes: int, swizzle_bytes: int) -> None:
    _require(row_bytes % 16 == 0, f"a row of the box has {row_bytes} bytes, not a multiple of 16")
    if swizzle_bytes:
        _require(row_bytes <= swizzle_bytes, f"a row of the box has {row_bytes} bytes, beyond the swizzle")


def _require(condition: bool, message: str) -> None:
    """What the driver answers with CUDA_ERROR_INVALID_VALUE."""
    if not condition:
        raise ValueError(message)


def _opaque(contents: np.ndarray) -> np.ndarray:
    opaque = np.zeros(1, TENSOR_MAP)
    opaque.view(np.uint8)[: contents.nbytes] = np.frombuffer(contents.tobytes(), np.uint8)
    return opaque
