"""Weights in files: safetensors, a table of names and numbers that cannot carry code."""

import os
from pathlib import Path
from typing import TypeVar

import numpy
from array_api_compat import array_namespace, device

from xpconv.files import written_whole
from xpconv.nn.base import Layer
from xpconv.nn.extras import require
from xpconv.nn.transfer import from_host, to_host

AnyLayer = TypeVar("AnyLayer", bound=Layer)


def save(model: Layer, path: str | os.PathLike[str]) -> None:
    """Write every parameter and buffer of the model to a safetensors file; nothing half-written is ever at `path`.

    Parameters
    ----------
    model : Layer
    path : path of the file, replaced if it is there

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.nn import Dense
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Dense(2, 1, rng=0), f"{folder}/dense.safetensors")
    ...     load(Dense(2, 1), f"{folder}/dense.safetensors").weight.value.shape
    (2, 1)
    """
    safetensors = require("safetensors.numpy", extra="nn")
    tensors = {name: numpy.ascontiguousarray(to_host(tensor.value)) for name, tensor in model.state().items()}
    with written_whole(Path(path)) as part, part.open("xb") as file:
        file.write(safetensors.save(tensors))
        file.flush()
        os.fsync(file.fileno())


def load(model: AnyLayer, path: str | os.PathLike[str]) -> AnyLayer:
    """Read every parameter and buffer of the model from a file that `save` wrote, and return the model.

    The tensors keep the model's library, device and dtypes. A model that the file does not fit is left as it was.

    Parameters
    ----------
    model : Layer
    path : path of the file

    Raises
    ------
    ValueError
        Where the file is not safetensors, or names, or shapes differ from the model's.

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.nn import Dense
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Dense(2, 1, rng=0), f"{folder}/dense.safetensors")
    ...     load(Dense(2, 1), f"{folder}/dense.safetensors").bias.value.tolist()
    [0.0]
    """
    safetensors = require("safetensors.numpy", extra="nn")
    try:
        tensors = safetensors.load(Path(path).read_bytes())
    except require("safetensors", extra="nn").SafetensorError as problem:
        raise ValueError(f"{path} is not a safetensors file: {problem}") from None
    state = model.state()
    _check(path, {name: tuple(tensor.value.shape) for name, tensor in state.items()}, tensors)
    for name, tensor in state.items():
        value = tensor.value
        host = tensors[name].astype(to_host(value).dtype)
        tensor.value = from_host(host, array_namespace(value), device=device(value))
    return model


def _check(path: object, wanted: dict[str, tuple[int, ...]], found: dict[str, numpy.ndarray]) -> None:
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    misshapen = [
        f"{name} is {found[name].shape}, the model has {shape}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    listed = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    problems = [f"{kind}: {', '.join(names)}" for kind, names in listed if names]
    if problems:
        raise ValueError(f"{path} does not fit the model; {'; '.join(problems)}")
