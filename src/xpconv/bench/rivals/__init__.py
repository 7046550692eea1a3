"""The libraries that xpconv is compared with; each is imported when it is first asked for a side."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from xpconv.bench.cases import Case
from xpconv.bench.data import Data
from xpconv.bench.sides import Place, Side, Unsuited
from xpconv.spec import one_of


@dataclass(frozen=True)
class Rival:
    """A library: the modules that it needs, what installs them, and the module here that makes its sides."""

    modules: tuple[str, ...]
    install: str
    maker: str

    @property
    def missing(self) -> str:
        """The first of its modules that is not installed, or nothing."""
        return next((name for name in self.modules if find_spec(name) is None), "")


RIVALS = {
    "torch": Rival(("torch",), "torch", "torch"),
    "jax": Rival(("jax",), "jax", "jax"),
    "scipy": Rival(("scipy",), "scipy", "filters"),
    "opencv": Rival(("cv2",), "opencv-python-headless", "filters"),
    "onnxruntime": Rival(("onnxruntime", "onnx"), "onnxruntime onnx", "onnxruntime"),
    "cupyx": Rival(("cupyx",), '"xpconv[cuda13]"', "filters"),
    "numpy": Rival(("numpy",), "numpy", "filters"),
}
NOBODY = "none"


def why_missing(name: str) -> str:
    """In one line, with the command that installs it; nothing where a rival is installed."""
    absent = RIVALS[name].missing
    return f"{absent} is not installed: pip install {RIVALS[name].install}" if absent else ""


def chosen(asked: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The rivals asked for, without any those that are installed; and of those that nobody named, why they are missing.

    Raises
    ------
    ValueError
        a name that is no rival's
    RuntimeError
        a rival that is named and not installed
    """
    names = list(dict.fromkeys(asked))
    for name in names:
        one_of("--rivals", name, (*RIVALS, NOBODY))
        if name != NOBODY and (why := why_missing(name)):
            raise RuntimeError(f"--rivals {name}: {why}")
    if names:
        return [name for name in names if name != NOBODY], {}
    missing = {name: why for name in RIVALS if (why := why_missing(name))}
    return [name for name in RIVALS if name not in missing], missing


def sides_of(names: Iterable[str], case: Case, data: Data, place: Place) -> tuple[list[Side], dict[str, str]]:
    """The rivals' sides, and why others have none."""
    found: list[Side] = []
    left_out = {}
    for name in names:
        if why := why_missing(name):
            left_out[name] = why
            continue
        try:
            found += import_module(f"xpconv.bench.rivals.{RIVALS[name].maker}").sides(name, case, data, place)
        except Exception as error:  # a rival that cannot is left out with its reason
            left_out[name] = reason(error)
    return found, left_out


def rival_of(side: str) -> str:
    """Whose a side is, from its name: torch's own memory format is "torch", its other one "torch channels_last"."""
    return side.partition(" ")[0]


def reason(error: BaseException) -> str:
    """Its first line, which says why."""
    line = next(iter(str(error).strip().splitlines()), "")[:200]
    return line if isinstance(error, Unsuited) else f"{type(error).__name__}: {line}".rstrip(": ")


def without_gradients(names: Iterable[str]) -> AbstractContextManager[Any]:
    """torch's inference mode, where torch takes part and is installed."""
    if "torch" not in names or RIVALS["torch"].missing:
        return nullcontext()
    return import_module("torch").inference_mode()
