"""Libraries that filter one image or signal: OpenCV, SciPy, NumPy on the CPU, and CuPy's twin of SciPy on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from xpconv.bench.cases import Case
from xpconv.bench.data import Data
from xpconv.bench.sides import Place, Side, Unsuited


def sides(name: str, case: Case, data: Data, place: Place) -> Iterator[Side]:
    """Those of the library of that name."""
    if not case.plain:
        raise Unsuited("filters single maps alone")
    if place.is_cpu == (name == "cupyx"):
        raise Unsuited("computes on CUDA devices" if name == "cupyx" else "computes on the CPU")
    return _MAKERS[name](case, data, place)


def _opencv(case: Case, data: Data, place: Place) -> Iterator[Side]:
    if case.operation == "signal":
        raise Unsuited("has no filter of signals")
    import cv2

    cv2.setNumThreads(place.threads)
    call = partial(cv2.filter2D, data["x"], -1, data["w"], borderType=cv2.BORDER_CONSTANT)
    yield Side("opencv", call, np.asarray)


def _scipy(_: Case, data: Data, __: Place) -> Iterator[Side]:
    from scipy import signal

    yield from _of_signal("scipy", signal, data["x"], np.flip(data["w"]).copy(), np.asarray)


def _cupyx(_: Case, data: Data, place: Place) -> Iterator[Side]:
    from cupyx.scipy import signal

    import xpconv

    x, w = (xpconv.to_device(a, place.device) for a in (data["x"], np.flip(data["w"]).copy()))
    yield from _of_signal("cupyx", signal, x, w, lambda y: xpconv.to_device(y, "cpu"))


def _of_signal(name: str, signal: ModuleType, x: Any, w: Any, result: Any) -> Iterator[Side]:
    """The two of SciPy's functions that are fast somewhere: tile by tile, and what SciPy itself chooses."""
    for function in ("oaconvolve", "convolve"):
        yield Side(f"{name} {function}", partial(getattr(signal, function), x, w, "same"), result)


def _numpy(case: Case, data: Data, _: Place) -> Iterator[Side]:
    if case.operation != "signal":
        raise Unsuited("has no filter of images")
    yield Side("numpy", partial(np.convolve, data["x"], np.flip(data["w"]).copy(), "same"), np.asarray)


_MAKERS = {"opencv": _opencv, "scipy": _scipy, "cupyx": _cupyx, "numpy": _numpy}
