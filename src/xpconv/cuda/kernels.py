"""How an array's dtype is called in the kernels."""

from __future__ import annotations

ELEMENTS = {
    "float16": "half_bits",
    "bfloat16": "bfloat_bits",
    "float32": "float",
    "float64": "double",
    "complex64": "Complex<float>",
    "complex128": "Complex<double>",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned",
    "uint64": "unsigned long long",
}
ITEMSIZE = {
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip


def signed(dtype: str) -> str:
    """The dtype whose instance adds and multiplies for this one: integers of both signs share the signed one."""
    return dtype.removeprefix("u") if dtype.startswith("uint") else dtype


def sum_size(dtype: str) -> int:
    """Bytes of the type that sums are kept in."""
    return max(ITEMSIZE[dtype], 4)


ARITHMETIC = tuple(name for name in ELEMENTS if signed(name) == name)  # one dtype for each arithmetic
