"""Every kernel that a plan can name."""

from __future__ import annotations

from xpconv.cuda.plans import (
    depthwise,
    layout,
    mma,
    patches,
    pooling,
    pooling_boxes,
    pooling_scatter,
    simt,
    sm90,
    stem,
)
from xpconv.cuda.steps import Kernel

_TOPICS = (simt, mma, sm90, depthwise, stem, pooling, pooling_boxes, pooling_scatter, patches, layout)


def instances(capability: tuple[int, int]) -> list[Kernel]:
    """The kernels that plans for a device of this compute capability choose from."""
    return [kernel for topic in _TOPICS for kernel in topic.instances(capability)]
