"""Which kernel was measured to be the fastest for a convolution on a device, kept in a file of the user's cache.

``xpconv bench --tune`` writes the file, and plans read it: a convolution that is in it is computed as it was fastest,
all others by the estimates of `cuda.plans`. Nothing depends on the file. One that cannot be used is told once and then
counts as none, and a name in it stands only for a kernel that takes the convolution anyway.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

from xpconv.cuda.geometry import Geometry
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.source import kernel_dir
from xpconv.files import cache_folder, check_writable, written_whole
from xpconv.spec import Sizes

FILE = "cuda-tuning.json"
FORMAT = 1  # of the file; one that another xpconv wrote with a higher number is left alone
_NUMBERS = (
    "batch", "groups", "channels", "filters", "size", "window", "stride", "dilation", "before", "out",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What was measured of one convolution."""

    plan: str  # the name of the fastest alternative
    microseconds: float  # of it
    default: float  # microseconds of the alternative that is taken where nothing was measured


@dataclass(frozen=True, eq=False)  # compared by identity: plans are remembered by it
class Measured:
    """All that was measured: by device, then by convolution."""

    devices: Mapping[str, Mapping[str, Entry]]

    def preferred(self, hardware: Hardware, convolution: str) -> str | None:
        """The name of the fastest alternative, where one was measured."""
        entry = self.devices.get(device_key(hardware), {}).get(convolution)
        return None if entry is None else entry.plan


class Unusable(Exception):
    """Why a file of measurements cannot be used; `newer` where another xpconv can use it."""

    def __init__(self, reason: str, *, newer: bool = False) -> None:
        super().__init__(reason)
        self.newer = newer


# --- Names ------------------------------------------------------------------------------------------------------------


def device_key(hardware: Hardware) -> str:
    """What measurements hold for; a slice of a device has the name of the whole, but fewer multiprocessors."""
    major, minor = hardware.capability
    return f"{hardware.name}, {major}.{minor}, {hardware.multiprocessors} multiprocessors"


def convolution_key(g: Geometry, dtype: str, precision: str, *, x_aligned: bool, w_aligned: bool) -> str:
    """What a convolution's speed follows from: its sizes, and which axes lie dense and aligned.

    Starts, strides, the flip and the activation are left out: they say what fits, which is asked again when a plan is
    made, and else cost all alternatives the same.
    """
    words = [f"{dtype} in TF32" if dtype == "float32" and precision == "tf32" else dtype]
    words += [f"{name}={_told(getattr(g, name))}" for name in _NUMBERS]
    dense = (
        _dense("ncdhw", g.strides.x, (g.batch, g.channels, *g.size)),
        _dense("fcdhw", g.strides.w, (g.filters, g.channels, *g.window)),
        _dense("nfdhw", g.strides.y, (g.batch, g.filters, *g.out)),
    )
    words += [g.padding_mode, f"dense={','.join(dense)}"]
    words.append(f"aligned={'x' * x_aligned}{'w' * w_aligned or '-' * (not x_aligned)}")
    return " ".join([*words, *(name for name in ("items_inner", "swapped") if getattr(g, name))])


def _told(value: int | Sizes) -> str:
    return str(value) if isinstance(value, int) else ",".join(map(str, value))


def _dense(axes: str, strides: Sizes, sizes: Sizes) -> str:
    """The axis whose neighbours lie side by side in memory."""
    steps = zip(axes, strides, sizes, strict=True)
    return next((axis for axis, stride, size in steps if size > 1 and abs(stride) == 1), "-")


# --- The file ---------------------------------------------------------------------------------------------------------


def path() -> Path:
    """Where measurements are kept."""
    return cache_folder() / FILE


def measured() -> Measured | None:
    """What the file holds, read once in a process; None where there is none for this xpconv."""
    complaint = ""
    if "measured" not in _of_process:
        with _lock:
            if "measured" not in _of_process:
                _of_process["measured"], complaint = _read_or_told()
    if complaint:
        warnings.warn(complaint, RuntimeWarning, stacklevel=2)
    return _of_process["measured"]


_lock = Lock()
_of_process: dict[str, Measured | None] = {}  # empty until the file was looked for


def forget() -> None:
    """Look for the file again at the next call."""
    _of_process.clear()


def check_recordable() -> None:
    """Raise before the measuring what `record` would raise after it."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    check_writable(target)
    try:
        read(target)
    except Unusable as unusable:
        if unusable.newer:
            raise RuntimeError(f"{target} is kept as it is: {unusable}; name another XPCONV_CACHE_DIR") from None


def record(hardware: Hardware, entries: Mapping[str, Entry]) -> None:
    """Add measurements to the file, and let this process plan by them."""
    target, device = path(), device_key(hardware)
    with _lock:
        try:
            known = read(target)
        except Unusable:  # whose writer is gone: `check_recordable` has spared a newer one
            known = None
        devices = dict(known.devices) if known else {}
        devices[device] = {**devices.get(device, {}), **entries}
        told = {name: {key: asdict(entry) for key, entry in found.items()} for name, found in devices.items()}
        with written_whole(target) as part:
            part.write_text(json.dumps({"format": FORMAT, "by": _stamp(), "devices": told}, indent=1), encoding="utf-8")
        _of_process["measured"] = Measured(devices)


def read(file: Path) -> Measured | None:
    """What a file holds; None where there is none, or where it was measured on other kernels than these."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found, by = content["format"], content["by"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unusable(error.strerror or type(error).__name__) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unusable("it is no file of measurements") from None
    if type(found) is not int or found > FORMAT:
        raise Unusable(f"its format is {found!r}, and this xpconv reads {FORMAT}", newer=type(found) is int)
    if by != _stamp():
        return None
    try:
        devices = {device: _entries(entries) for device, entries in content["devices"].items()}
    except (AttributeError, KeyError, TypeError):
        raise Unusable("its measurements are damaged") from None
    return Measured(devices)


def _entries(found: dict[str, Any]) -> dict[str, Entry]:
    entries = {key: Entry(**entry) for key, entry in found.items()}
    if not all(isinstance(entry.plan, str) for entry in entries.values()):
        raise TypeError("a plan is no name")
    return entries


def _read_or_told() -> tuple[Measured | None, str]:
    """What the file holds, and the line that says why it cannot be used."""
    file = None
    try:
        file = path()
        return read(file), ""
    except Unusable as unusable:
        return None, f"xpconv plans without the measurements in {file}: {unusable}"
    except RuntimeError:  # the user has no home
        return None, ""


@cache
def _stamp() -> dict[str, str]:
    """What measurements hold for beside the device: this xpconv, and the text of its kernels."""
    try:
        number = version("xpconv")
    except PackageNotFoundError:
        number = "not installed"
    digest = sha256()
    for file in sorted(kernel_dir().iterdir(), key=lambda file: file.name):
        if file.name.endswith((".cu", ".cuh")):
            text = file.read_bytes()
            digest.update(f"{file.name} {len(text)} ".encode() + text)
    return {"xpconv": number, "kernels": digest.hexdigest()[:16]}
