"""torch and its cuDNN on the memory of CuPy's arrays, and CuPy's own filters: whom xpconv is compared with."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.common import Record, attempt

Calls = dict[str, Callable[[], Any]]

if TYPE_CHECKING:
    from xpconv.layers import Layer


def torch_of(record: Record) -> Any:
    """torch where it is of use, or in a dict why not."""
    return attempt(lambda: Torch(record.emulated))


class Torch:
    """Convolutions and pooling by torch, in both memory formats."""

    def __init__(self, emulated: bool) -> None:
        self.module = torch = import_module("torch")
        self._emulated = emulated
        if emulated:
            return
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no CUDA device")
        torch.zeros(1, device="cuda")
        torch.backends.cudnn.benchmark = True

    def of(self, array: Any) -> Any:
        """The same memory as a tensor; in an emulation a copy on the CPU."""
        bits = array.view(np.int16) if str(array.dtype) == "bfloat16" else array
        if self._emulated:
            tensor = self.module.from_numpy(np.array(bits.get()))
        else:
            tensor = self.module.as_tensor(bits, device="cuda")
        return tensor.view(self.module.bfloat16) if bits is not array else tensor

    def float32(self, tensor: Any, cupy: Any) -> Any:
        """A result as a float32 array of CuPy's, (N, C, *size) as (N, *size, C)."""
        tensor = tensor.movedim(1, -1).contiguous().float()
        return cupy.asarray(tensor.numpy() if self._emulated else tensor)

    def allow_tf32(self, allowed: bool) -> None:
        """Whether float32 may be rounded to TF32."""
        self.module.backends.cudnn.allow_tf32 = allowed
        self.module.backends.cuda.matmul.allow_tf32 = allowed

    def convolutions(self, layer: Layer, direction: str, x: Any, w: Any, gy: Any) -> Calls:
        """The direction's call by memory format, for channels-last arrays of CuPy's."""
        x, w, gy = (self.of(array) for array in (x, w, gy))
        x, gy, w = x.movedim(-1, 1), gy.movedim(-1, 1), w.permute(-1, -2, *range(layer.axes))
        as_image = layer.axes == 1  # torch has no channels-last signals, but an image of one row is the same
        wide = [tensor.unsqueeze(2) for tensor in (x, w, gy)] if as_image else [x, w, gy]
        last = self.module.channels_last_3d if layer.axes == 3 else self.module.channels_last
        return {
            "contiguous": self._convolution(layer, direction, [tensor.contiguous() for tensor in (x, w, gy)]),
            "channels_last": self._convolution(
                layer, direction, [tensor.contiguous(memory_format=last) for tensor in wide], as_image=as_image
            ),
        }

    def _convolution(
        self, layer: Layer, direction: str, tensors: list[Any], *, as_image: bool = False
    ) -> Callable[[], Any]:
        x, w, gy = tensors
        stride, padding, dilation = (
            [layer.stride] * layer.axes,
            [layer.padding] * layer.axes,
            [layer.dilation] * layer.axes,
        )
        if as_image:
            stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
        zeros, operators = [0] * len(stride), self.module.ops.aten
        if direction == "forward":
            return lambda: operators.convolution(x, w, None, stride, padding, dilation, False, zeros, layer.groups)
        index = ("input gradient", "weight gradient").index(direction)
        wanted = [index == 0, index == 1, False]
        return lambda: operators.convolution_backward(
            gy, x, w, None, stride, padding, dilation, False, zeros, layer.groups, wanted
        )[index]

    def weight_last(self, gw: Any, layer: Layer, cupy: Any) -> Any:
        """A weight's gradient (F, C / groups, *window) as a float32 array (*window, C / groups, F) of CuPy's."""
        if gw.ndim > layer.axes + 2:
            gw = gw.squeeze(2)
        gw = gw.permute(*range(2, gw.ndim), 1, 0).contiguous().float()
        return cupy.asarray(gw.numpy() if self._emulated else gw)

    def maps_last(self, y: Any, layer: Layer, cupy: Any) -> Any:
        """Feature maps as a float32 array (N, *size, C) of CuPy's."""
        return self.float32(y.squeeze(2) if y.ndim > layer.axes + 2 else y, cupy)

    def pooling(self, name: str, x: Any) -> Calls:
        """A pooling of channels-last maps by memory format."""
        functional = self.module.nn.functional
        x = self.of(x).movedim(-1, 1)
        call = {
            "max 3x3, stride 2": lambda t: functional.max_pool2d(t, 3, 2, 1),
            "max 2x2": lambda t: functional.max_pool2d(t, 2),
            "average 2x2": lambda t: functional.avg_pool2d(t, 2),
            "global average": lambda t: functional.adaptive_avg_pool2d(t, 1),
        }[name]
        first, last = x.contiguous(), x.contiguous(memory_format=self.module.channels_last)
        return {"contiguous": lambda: call(first), "channels_last": lambda: call(last)}

    def layouts(self, name: str, x: Any) -> Calls:
        """Channels-last maps copied to channels first, or back."""
        x = self.of(x)
        turned = x.movedim(-1, 1) if name == "to channels first" else x.movedim(1, -1)
        return {"contiguous": turned.contiguous}


def filters(image: Any, window: Any) -> Calls:
    """CuPy's ways to convolve an image with one window, to the image's own size; those that are there."""
    calls: Calls = {}
    found = attempt(lambda: import_module("cupyx.scipy.ndimage"))
    if not isinstance(found, dict):
        calls["ndimage.convolve"] = lambda: found.convolve(image, window, mode="constant")
    signal = attempt(lambda: import_module("cupyx.scipy.signal"))
    if not isinstance(signal, dict):
        calls["signal.convolve2d"] = lambda: signal.convolve2d(image, window, mode="same")
        calls["signal.fftconvolve"] = lambda: signal.fftconvolve(image, window, mode="same")
        calls["signal.oaconvolve"] = lambda: signal.oaconvolve(image, window, mode="same")
    return calls
