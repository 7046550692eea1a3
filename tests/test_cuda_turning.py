"""Channels-first arrays that are worth it are turned for the tensor cores, a few items at a time, and turned back."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import xpconv
from cases import first, integers, weight_first
from xpconv.cuda import hardware
from xpconv.cuda.plans.turning import turn
from xpconv.spec import conv_spec

H200 = next(known for known in hardware.KNOWN if known.name == "H200")
FIRST = partial(dict, layout="channels_first", padding=1)


def spec_of(x, w, **options):
    defaults = dict(stride=(1, 1), padding="same", dilation=(1, 1), groups=1, padding_mode="zeros", flip=True)
    return conv_spec(x, w, name="conv", axes=None, layout="channels_first", **defaults | options)[0]


def layer(batch, channels, side, filters=None):
    return (batch, channels, side, side), (filters or channels, channels, 3, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_large_layers_are_turned_and_small_ones_are_not(dtype):
    assert turn(spec_of(*layer(64, 256, 14)), dtype, H200, 1 << 27, "tf32").items == 64
    assert turn(spec_of(*layer(1, 16, 7)), dtype, H200, 1 << 26, "tf32") is None


def test_devices_whose_tf32_is_no_faster_do_not_turn_for_it():
    for name in ("GeForce RTX 3090", "L4", "GeForce RTX 5090"):
        device = next(known for known in hardware.KNOWN if known.name == name)
        assert turn(spec_of(*layer(64, 256, 14)), "float32", device, 1 << 27, "tf32") is None


def test_what_the_tensor_cores_do_not_take_is_not_turned():
    spec = spec_of(*layer(64, 256, 14))
    t4 = next(known for known in hardware.KNOWN if known.name == "Tesla T4")
    assert turn(spec, "float16", t4, 1 << 26, "highest") is None
    assert turn(spec, "float64", H200, 1 << 26, "highest") is None
    assert turn(spec_of(*layer(64, 255, 14)), "float16", H200, 1 << 26, "highest") is None
    assert turn(replace(spec, padding_mode="constant"), "float16", H200, 1 << 26, "highest") is None
    assert turn(replace(spec, layout="channels_last"), "float16", H200, 1 << 26, "highest") is None


def test_the_copies_stay_below_the_limit():
    spec = spec_of(*layer(64, 256, 56))
    item = 2 * 256 * 56 * 56 * 2
    turning = turn(spec, "float16", H200, 1 << 26, "highest")
    assert turning.items == ((1 << 25) - 2 * 9 * 256 * 256) // item  # half of it is for the convolution
    assert turning.workspace <= 1 << 25
    assert turn(spec, "float16", H200, 1 << 20, "highest") is None


@pytest.fixture
def always(monkeypatch):
    """Turn whatever can be turned, one item at a time or all."""
    from xpconv.cuda.plans import turning

    monkeypatch.setattr(turning, "_LAUNCHES", -(10**12))
    turning.turn.cache_clear()
    yield
    turning.turn.cache_clear()


@pytest.mark.parametrize("limit", [1 << 26, 220_000], ids=["together", "in parts"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_turned_convolutions_are_convolutions(cupy, always, dtype, limit):  # noqa: ARG001
    rng = np.random.default_rng(0)
    x, w = integers(rng, (3, 9, 8, 32), dtype), integers(rng, (3, 3, 32, 16), dtype)
    gy, bias = integers(rng, (3, 9, 8, 16), dtype), integers(rng, (16,), dtype)
    wide = [part.astype(np.float64) for part in (x, w, gy, bias)]
    own = [cupy.asarray(np.ascontiguousarray(part)) for part in (first(x), weight_first(w), first(gy), bias)]
    on_gpu = dict(layout="channels_first", padding=1)
    with xpconv.workspace_limit(limit):
        for _ in range(2):  # a repeated call takes the same road
            y = xpconv.conv2d(own[0], own[1], own[3], **on_gpu)
            gx = xpconv.conv_grad_input(own[2], own[1], size=(9, 8), **on_gpu)
            gw = xpconv.conv_grad_weight(own[0], own[2], window=(3, 3), **on_gpu)
        told = xpconv.explain(xpconv.conv2d, own[0], own[1], own[3], **on_gpu)
    expected = xpconv.conv2d(wide[0], wide[1], wide[3], padding=1).astype(dtype)
    np.testing.assert_array_equal(y.get(), first(expected))
    expected = xpconv.conv_grad_input(wide[2], wide[1], size=(9, 8), padding=1).astype(dtype)
    np.testing.assert_array_equal(gx.get(), first(expected))
    expected = xpconv.conv_grad_weight(wide[0], wide[2], window=(3, 3), padding=1).astype(dtype)
    np.testing.assert_array_equal(gw.get(), weight_first(expected))
    assert "tensor cores" in told.reason
    assert "turned to channels last" in told.reason
