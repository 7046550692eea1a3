"""Geometry of convolution and pooling as plain integers, checked once.

No arrays and no library here: what a user wrote about shapes becomes a frozen, hashable spec, or one clear
`ValueError`. Engines, layers and tests ask the spec and never compute a shape themselves.
"""

from xpconv.spec.arguments import (
    MODES,
    axes_of,
    checked_layout,
    checked_padding_mode,
    integers,
    one_of,
    padding_per_axis,
    per_axis,
    whole_number,
)
from xpconv.spec.convolution import conv_grad_input_spec, conv_grad_weight_spec, conv_spec, conv_transpose_spec
from xpconv.spec.forms import Form, check_bias
from xpconv.spec.pooling import adaptive_spec, avg_pool_grad_spec, fold_spec, global_axes, pool_spec, scatter_spec
from xpconv.spec.signal import Pairing, signal_spec
from xpconv.spec.windows import (
    AdaptiveSpec,
    Array,
    ConvSpec,
    Layout,
    Padding,
    PerAxis,
    Phase,
    PoolSpec,
    ScatterSpec,
    Sizes,
    Windows,
    in_layout,
)

__all__ = [
    "MODES",
    "AdaptiveSpec",
    "Array",
    "ConvSpec",
    "Form",
    "Layout",
    "Padding",
    "Pairing",
    "PerAxis",
    "Phase",
    "PoolSpec",
    "ScatterSpec",
    "Sizes",
    "Windows",
    "adaptive_spec",
    "avg_pool_grad_spec",
    "axes_of",
    "check_bias",
    "checked_layout",
    "checked_padding_mode",
    "conv_grad_input_spec",
    "conv_grad_weight_spec",
    "conv_spec",
    "conv_transpose_spec",
    "fold_spec",
    "global_axes",
    "in_layout",
    "integers",
    "one_of",
    "padding_per_axis",
    "per_axis",
    "pool_spec",
    "scatter_spec",
    "signal_spec",
    "whole_number",
]
