"""Faults of the kinds that people make, to be planted in the CUDA kernels one at a time.

``python tests/cuda_mutants.py [part of a name ...]`` plants them and tells which were noticed, by what, and in which
order of the threads; it ends with an error if one survives. Every fault names the test that should notice it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest

import test_cuda_conv
import test_cuda_depthwise
import test_cuda_emulator
import test_cuda_layout
import test_cuda_mma
import test_cuda_patches
import test_cuda_pooling
import test_cuda_sm90
import test_cuda_stem
from cuda_emulator import settings
from cuda_mutation import Mutant, Probe, report
from xpconv.cuda.plans import mma, simt

# --- The tests --------------------------------------------------------------------------------------------------------

LAST, FIRST = "channels_last", "channels_first"


def universal(limit: int = 1, **wanted: Any) -> Probe:
    """One instance of `conv_simt.cu`; a limit above 1 splits the sums."""
    choice = next(c for c in simt.choices() if all(getattr(c, name) == value for name, value in wanted.items()))
    return partial(test_cuda_conv.test_every_instance_computes_tiles_that_are_not_full, choice=choice, limit=limit)


def tensor_cores(operation: str, dtype: str = "bfloat16", products: int = 1) -> Probe:
    """The smallest instance of `conv_mma.cu` for an operation, whole and split."""
    ways = next(way for way, name in test_cuda_mma.OPERATIONS.items() if name == operation)
    choice = next(
        c
        for c in test_cuda_mma.CHOICES
        if (c.dtype, c.products, c.tile, c.x_along_depth, c.w_along_depth) == (dtype, products, mma.SMALL, *ways)
    )
    return partial(test_cuda_mma.test_every_instance_computes_tiles_that_are_not_full, choice=choice)


def hopper(test: Callable[..., None], **arguments: Any) -> Probe:
    """A test of `conv_sm90.cu`, which compiles by itself."""

    def probe(_cupy: Any) -> None:
        with mock.patch.object(test_cuda_sm90.DEVICE, "modules", {}):
            test(**arguments)

    return probe


def plain(test: Callable[[], None]) -> Probe:
    """A test that needs no CuPy."""
    return lambda _cupy: test()


def hopper_case(case: str) -> Probe:
    """A case of `conv_sm90.cu`, in the present order."""

    def test() -> None:
        test_cuda_sm90.test_every_case_is_the_definition(case, settings.order)

    return hopper(test)


def pooling(check: Callable[..., None], **arguments: Any) -> Probe:
    """A part of a test of the pooling kernels."""

    def probe(cupy: Any) -> None:
        with test_cuda_pooling.watched(cupy) as cuda:
            check(cuda, **arguments)

    return probe


def patched(test: Callable[..., None], **arguments: Any) -> Probe:
    """A test that changes the plans for a while."""

    def probe(cupy: Any) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(cupy, monkeypatch=monkeypatch, **arguments)

    return probe


def huge_batch(cuda: Any) -> None:
    """Items in several rows of the grid."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        test_cuda_pooling.test_a_huge_batch_takes_many_rows_of_the_grid(cuda, monkeypatch)


def windows(geometry: str, only: str, dtype: str = "float32", channels: int = 3, layout: str = LAST) -> Probe:
    """One pooling by windows."""
    check = test_cuda_pooling.check_windows
    return pooling(check, dtype=dtype, geometry=geometry, channels=channels, layout=layout, only=only)


FULL = universal(dtype="float32", tile=simt.MEDIUM, positions_inner=False)
POSITIONS = universal(dtype="float32", tile=simt.MEDIUM, positions_inner=True)
VECTORS = universal(dtype="float32", vector=4)
COMPLEX = universal(dtype="complex64", positions_inner=False)
SPLIT = universal(1 << 26, dtype="float32", tile=simt.MEDIUM, positions_inner=False)
CONVERSIONS = plain(test_cuda_emulator.test_floats_round_as_the_device_rounds_them)
SIMT_BFLOAT = universal(dtype="bfloat16")
FILLED = partial(test_cuda_conv.test_constant_padding_fills_whole_vectors, vector=4)
ENDLESS = partial(test_cuda_conv.test_infinities_do_not_meet_the_zeros_behind_the_last_term, tile=simt.MEDIUM)
ACTIVATIONS = partial(test_cuda_conv.test_activations_of_every_kind_of_number, dtype="float32")
WRAPPED = partial(test_cuda_conv.test_relu_looks_at_the_sum_that_has_wrapped, dtype="int8")
FAR_ITEMS = test_cuda_conv.test_items_may_lie_farther_apart_than_32_bits_count

CONV, GRAD_INPUT, GRAD_WEIGHT = map(tensor_cores, ("conv", "grad_input", "grad_weight"))
THREE_PRODUCTS = tensor_cores("conv", "float32", 3)
EXACT = partial(test_cuda_mma.test_three_products_of_tf32_are_as_exact_as_float32, distribution="positive", depth=576)
NEAREST = test_cuda_mma.test_tf32_rounds_to_nearest
FINITE = partial(test_cuda_mma.test_finite_numbers_stay_finite_where_rounding_would_overflow, products=1)
SPECIAL = partial(
    test_cuda_mma.test_infinities_and_nans_spread_as_in_ieee_arithmetic, dtype="float32", products=3, side="x"
)
LONG_DEPTH = partial(test_cuda_mma.test_geometries, case="136 channels", operation="conv")
WHOLE_LINES = partial(test_cuda_mma.test_sums_in_parts, operation="conv", splits=2)
PANELS = partial(test_cuda_mma.test_sizes_around_a_tile, operation="grad_weight", filters=72)
MMA_ENDLESS = partial(
    test_cuda_mma.test_infinities_do_not_meet_the_zeros_behind_the_last_term, dtype="bfloat16", products=1
)
BANDS = partial(test_cuda_mma.test_geometries, case="many filters", operation="conv")
REPEATED = partial(
    test_cuda_mma.test_padding_that_repeats_the_image, operation="conv", mode="edge", dtype="bfloat16", products=1
)
ONE_BY_ONE = partial(test_cuda_mma.test_channels_first_shapes_in_channels_last_memory, filters=5)
GELU = partial(test_cuda_mma.test_bias_and_activation, activation="gelu")

HOPPER = hopper(
    test_cuda_sm90.test_every_instance_computes_tiles_that_are_not_full, dtype="bfloat16", filters=128, splits=1
)
UNEVEN_PARTS = hopper(test_cuda_sm90.test_parts_of_a_sum_may_be_uneven_and_begin_at_any_tap, splits=2)
HOPPER_GROUPS, HOPPER_BANDS = hopper_case("groups"), hopper_case("bands of filters")
HOPPER_GRADIENT = hopper(test_cuda_sm90.test_input_gradients_take_the_weight_as_it_lies, case="3x3")
HOPPER_NAN = hopper(test_cuda_sm90.test_nan_spreads_no_further_than_its_windows)
REPACKED_SPLIT = hopper(test_cuda_sm90.test_other_weights_are_repacked, case="groups", dtype="float16", splits=2)
MULTIPLE_OF_4 = hopper(
    test_cuda_sm90.test_other_weights_are_repacked, case="filters that are a multiple of 4", dtype="float16", splits=2
)
PACKED = hopper(
    test_cuda_sm90.test_other_weights_are_repacked, case="groups, channels first", dtype="float16", splits=1
)

CHANNELS = partial(test_cuda_depthwise.test_channels_take_a_row_of_taps_in_pieces, taps=4, width=3, vector=4)
CHANNEL = partial(test_cuda_depthwise.test_channels_take_a_row_of_taps_in_pieces, taps=4, width=3, vector=1)
STEPS = partial(
    test_cuda_depthwise.test_steps_other_than_one, layout=LAST, options=dict(stride=(3, 1), dilation=(1, 3))
)
APART = partial(test_cuda_depthwise.test_steps_other_than_one, layout=FIRST, options=dict(dilation=(3, 2)))
CONSTANT = partial(test_cuda_depthwise.test_padding_wider_than_the_axis, layout=LAST, mode="constant")
SLIDE = partial(test_cuda_depthwise.test_positions_slide_over_a_row_of_taps, taps=6, height=5)
UNFILLED_BLOCK = partial(test_cuda_depthwise.test_channels_that_do_not_fill_the_last_block, channels=37, vector=1)
SLIDE_7 = partial(test_cuda_depthwise.test_positions_slide_over_a_row_of_taps, taps=7, height=5)
SMALL_PLANES = test_cuda_depthwise.test_many_small_planes_share_a_block
PIECES = test_cuda_depthwise.test_a_large_window_is_taken_in_pieces
DEPTHWISE_WEIGHT = partial(test_cuda_depthwise.test_the_weight_gradient_of_many_splits_taps_and_steps, layout=LAST)
MANY_SPLITS = test_cuda_depthwise.test_the_weight_gradient_of_more_splits_than_are_added_up_at_a_time
DEPTHWISE_WEIGHT_REPEATED = partial(
    test_cuda_depthwise.test_the_weight_gradient_of_padding_that_repeats_x, layout=LAST, mode="wrap"
)


def padded(mode: str) -> Probe:
    """Padding wider than the image, which copies it several times."""
    return partial(test_cuda_depthwise.test_padding_wider_than_the_axis, layout=FIRST, mode=mode)


def stem(layout: str = LAST, size=(23, 37), window=(7, 7), channels=3, filters=64, stride=(2, 2)) -> Probe:
    """A first layer."""
    arguments = dict(layout=layout, size=size, window=window, channels=channels, filters=filters, stride=stride)
    return partial(test_cuda_stem.test_first_layers, **arguments)


STEM = stem(size=(28, 28), window=(5, 5), channels=1, filters=6, stride=(1, 1))
STEM_SMALL = partial(test_cuda_stem.test_every_dtype, layout=LAST, dtype="float32", filters=67)
STEM_VOLUME = partial(test_cuda_stem.test_one_and_three_axes, layout=LAST, size=(5, 6, 7))
STEM_STRIDED, STEM_VGG = stem(), stem(size=(17, 19), window=(3, 3), filters=32, stride=(1, 1))
STEM_VECTORS = stem(size=(32, 32), window=(16, 16), filters=72, stride=(16, 16))
STEM_DILATED = test_cuda_stem.test_memory_too_small_for_all_filters_at_once
STEM_TANH = partial(test_cuda_stem.test_activations, layout=LAST, activation="tanh", function=np.tanh)

LAYOUT = partial(test_cuda_layout.test_channels_go_last_and_back, channels=33, size=(7, 9), dtype="float32")
LAYOUT_HALF = partial(test_cuda_layout.test_channels_go_last_and_back, channels=40, size=(13, 16), dtype="float16")
ZEROS, FEW_ZEROS = (
    partial(test_cuda_layout.test_channels_are_filled_up_with_zeros, size=size, channels=61, wanted=64, dtype="float16")
    for size in ((6, 10), (2, 3))
)
WIDE_WORDS = partial(test_cuda_layout.test_any_view_is_packed, view=lambda x: x[:, ::-1], dtype="complex128")
REVERSED = partial(test_cuda_layout.test_any_view_is_packed, view=lambda x: x[::2, 1:, ::-3], dtype="float32")
PLANES = patched(test_cuda_layout.test_the_planes_of_a_huge_array_are_all_copied)
FAR_PLANES = test_cuda_layout.test_planes_may_lie_farther_apart_than_32_bits_count

UNFOLD = partial(test_cuda_patches.test_patches_of_any_element, layout=LAST, dtype="float32")
UNFOLD_FIRST = partial(test_cuda_patches.test_patches_of_any_element, layout=FIRST, dtype="float32")
UNFILLED_VECTOR = partial(test_cuda_patches.test_patches_that_do_not_fill_the_last_vector, layout=LAST, dtype="float32")
PATCH_STEPS = partial(test_cuda_patches.test_steps_other_than_one, layout=FIRST)
FOLD = partial(test_cuda_patches.test_patches_of_any_type_are_added_up, layout=LAST, dtype="float32", channels=8)
FOLD_FIRST = partial(test_cuda_patches.test_patches_of_any_type_are_added_up, layout=FIRST, dtype="float32", channels=3)
MANY_ITEMS = patched(test_cuda_patches.test_large_batches_go_in_several_rows_of_the_grid)

RAGGED = windows("ragged", "max_pool")
DILATED, LARGE = windows("dilated", "max_pool"), windows("large", "sum_pool")
SIGNAL, WIDE = windows("signal", "sum_pool"), windows("ragged", "max_pool", channels=8)
MEANS, MEANS_DILATED = windows("ragged", "avg_pool"), windows("dilated", "avg_pool")
NORM, COMPLEX_NORM = (
    windows("ragged", "lp_pool"),
    pooling(test_cuda_pooling.test_the_norm_of_complex_numbers_neither_overflows_nor_loses_an_infinity),
)
MEANS_GRAD, DILATED_GRAD = windows("ragged", "avg_pool_grad"), windows("dilated", "avg_pool_grad")
NAN = pooling(test_cuda_pooling.test_nan_and_infinity_go_where_they_belong, dtype="float32", layout=LAST)
LOWEST = pooling(test_cuda_pooling.test_the_lowest_of_values_has_a_place_too, dtype="float32")
LOWEST_INTEGER = pooling(test_cuda_pooling.test_the_lowest_of_values_has_a_place_too, dtype="int8")
FAR = pooling(test_cuda_pooling.test_items_may_lie_farther_apart_than_32_bits_count)
MANY_ROWS = pooling(huge_batch)
BOXES = pooling(test_cuda_pooling.check_boxes, dtype="int8", case="plane", channels=8, layout=LAST)
BOXES_FIRST = pooling(test_cuda_pooling.check_boxes, dtype="int8", case="plane", channels=1, layout=FIRST)
BOX_MEANS = pooling(test_cuda_pooling.check_boxes, dtype="float32", case="plane", channels=8, layout=LAST)
ONE_EACH = pooling(test_cuda_pooling.check_boxes, dtype="float32", case="one element each", channels=8, layout=LAST)
ONE_BOX = pooling(test_cuda_pooling.check_boxes, dtype="float32", case="one box", channels=8, layout=LAST)
SLABS = pooling(test_cuda_pooling.check_whole_planes, dtype="float32", channels=8, layout=LAST, limit=1 << 20)
SCATTER = pooling(test_cuda_pooling.check_scatter, dtype="float32", channels=3, layout=LAST, limit=1 << 20)

# --- The faults -------------------------------------------------------------------------------------------------------


def of_file(file: str, *faults: tuple[Any, ...]) -> list[Mutant]:
    """The faults of one file: the right text, the wrong one, the test, and whether it is planted by every run."""
    return [Mutant(file, *fault) for fault in faults]


GEOMETRY = of_file(
    "geometry.cuh",
    ("inside = inside && (unsigned)i < (unsigned)g.size[a];", "inside = inside && i < g.size[a];", FULL),
    ("* g.stride[a] - g.before[a];", "* g.stride[a];", FULL),
    ("term.tap[a] * g.dilation[a];", "term.tap[a];", FULL),
    ("+ (unsigned)n) >> shift", ") >> shift", FULL),
    ("(Offset)term.channel * (int)g.x_strides[1];\n    bool", "(Offset)term.channel;\n    bool", POSITIONS),
    ("r < size ? r : 2 * size - 1 - r;", "r < size ? r : 2 * size - r;", padded("symmetric")),
    ("floor_modulo(i, 2 * size - 2);", "floor_modulo(i, 2 * size);", padded("reflect")),
    ("r < size ? r : 2 * size - 2 - r;", "r < size ? r : 2 * size - 1 - r;", padded("reflect")),
    ("return i < 0 ? 0 : size - 1;", "return i < 0 ? 0 : size;", padded("edge")),
    ("return r < 0 ? r + period : r;", "return r;", padded("wrap")),
    ("            if (size == 1) return 0;\n", "", padded("reflect")),
    ("return fill.element;", "return T{};", CONSTANT),
    ("(Offset)p.item * (Offset)g.x_strides[0];", "(Offset)((int)p.item * (int)g.x_strides[0]);", FAR_ITEMS),
    ("(Offset)p.item * (Offset)g.y_strides[0];", "(Offset)((int)p.item * (int)g.y_strides[0]);", FAR_ITEMS),
)

TYPES = of_file(
    "types.cuh",
    ("multiply_add(-a.im, b.im, sum.re)", "multiply_add(a.im, b.im, sum.re)", COMPLEX),
    ("multiply_add(a.im, b.re, sum.im)", "multiply_add(a.im, b.im, sum.im)", COMPLEX),
    ("return {a.re + b.re, a.im + b.im};", "return {a.re + b.re, a.im};", COMPLEX),
    ("return a * b + sum; }\nDEVICE", "return a * b; }\nDEVICE", universal(dtype="int8")),
    ("return half_to_float(value); }", "return bfloat_to_float({value.bits}); }", universal(dtype="float16")),
    ("return float_to_bfloat(value); }", "return {float_to_half(value).bits}; }", universal(dtype="bfloat16")),
    ("pack.at[i] = value;", "pack.at[i] = i ? T{} : value;", FILLED),
    ("registers[i] = pack.at[i];", "registers[i] = pack.at[0];", FULL),
)

PTX = of_file(
    "ptx.cuh",
    ("bits + 0x7fffu + (bits >> 16 & 1u)", "bits + 0x8000u", CONVERSIONS),
    ("bits + 0x7fffu + (bits >> 16 & 1u)", "bits", CONVERSIONS),
    ("(bits & 0x7fffffffu) > 0x7f800000u", "false", CONVERSIONS),
    (
        "return __uint_as_float((unsigned)value.bits << 16);",
        "return __uint_as_float((unsigned)value.bits << 15);",
        SIMT_BFLOAT,
    ),
)

EPILOGUE = of_file(
    "epilogue.cuh",
    ("Element<T>::load(bias[filter])", "Element<T>::load(bias[0])", FULL),
    ("if (bias) sum =", "sum =", LONG_DEPTH),
    ("return a < 0 ? (R)0 : a;", "return a > 0 ? a : (R)0;", ACTIVATIONS),
    ("return a < 0 ? (R)0.01 * a : a;", "return a < 0 ? (R)0.1 * a : a;", ACTIVATIONS),
    ("    if (activation >= GELU && isinf(a) && a < 0) return (R)0;\n", "", ACTIVATIONS),
    ("erf(a * (R)0.70710678118654752440)", "erf(a)", ACTIVATIONS),
    (
        "case SIGMOID: return half * (tanh(half * a) + (R)1);",
        "case SIGMOID: return half * (tanh(a) + (R)1);",
        ACTIVATIONS,
    ),
    ("default: return a * half", "default: return half", ACTIVATIONS),
    (
        "DEVICE T stored(unsigned sum, int activation) {\n    T value = Element<T>::store(sum);",
        "DEVICE T stored(unsigned sum, int activation) {\n    int value = (int)sum;",
        WRAPPED,
    ),
)

SIMT = of_file(
    "conv_simt.cu",
    ("mine = b_place(i, k, n) && tile_k + k < last_k", "mine = b_place(i, k, n)", ENDLESS),
    ("&& first_n + n < g.filters;", "&& first_n + n <= g.filters;", FULL),
    ("if (k < last_k && inside) a_next", "if (k <= last_k && inside) a_next", ENDLESS),
    ("if (k < last_k && inside) a_next", "if (k < last_k) a_next", FULL),
    ("        __syncthreads();\n    }\n\n    // Store", "    }\n\n    // Store", FULL, True),
    ("    __syncthreads();\n    int side = 0;", "    int side = 0;", FULL),
    ("            side ^= 1;\n", "", FULL),
    ("if (position >= g.positions ||", "if (position > g.positions ||", FULL),
    ("|| filter >= g.filters) continue;", ") continue;", FULL),
    ("        }\n        __syncthreads();\n    }\n}", "        }\n    }\n}", FULL),
    ("STEP_M = POSITIONS_INNER ? TILE_M : THREADS / WIDTH_K", "STEP_M = THREADS / WIDTH_K", POSITIONS),
    ("k < last_k ? padding_element<T>(g) : zero<T>()", "zero<T>()", FILLED),
    ("a_m + i * Tile::STEP_M] =", "a_m + i] =", FULL),
    ("tile_b[k * Tile::ROW_B + n + v]", "tile_b[k * Tile::ROW_B + n]", VECTORS),
    ("min(first_k + g.depth_per_split, g.depth)", "g.depth", SPLIT),
    ("(long long)split * g.groups + group", "(long long)split * g.groups", SPLIT),
    ("w += g.w_start + (long long)group * g.w_group;", "w += g.w_start;", FULL),
    ("min(first_m + a_m + i * Tile::STEP_M, g.positions - 1)", "first_m + a_m + i * Tile::STEP_M", FULL),
    ("bias, group * g.filters + filter,", "bias, filter,", FULL),
)

SUM_SPLITS = of_file(
    "sum_splits.cu",
    ("split < g.splits", "split <= g.splits", SPLIT),
    ("place < results", "place <= results", SPLIT),
    ("int split = 1;", "int split = 0;", SPLIT, True),
    ("bias, group * g.filters + filter,", "bias, filter,", SPLIT),
    ("group = (int)(row / g.positions)", "group = (int)(row / g.filters)", SPLIT),
)

MMA = of_file(
    "conv_mma.cu",
    ("copy_async_wait<AHEAD - 1>();", "copy_async_wait<AHEAD>();", CONV, True),
    ("            __syncthreads();  // the tile is there", "            // the tile is there", CONV),
    ("copy_async_wait<0>();\n    __syncthreads();", "copy_async_wait<0>();", CONV),
    ("product.put(results);\n    __syncthreads();", "product.put(results);", CONV),
    ("positions - (A_ALONG_DEPTH ? 1 : VECTOR)", "positions", CONV),
    ("bool inside = k < last_k;", "bool inside = true;", CONV),
    ("inside = (k < last_k) & (filter", "inside = (filter", MMA_ENDLESS),
    ("filter + j * FILTER_STEP < g.filters", "filter + j * FILTER_STEP <= g.filters", CONV),
    ("channel + terms >= g.channels", "channel + terms > g.channels", WHOLE_LINES),
    ("        w += terms * (Offset)g.w_strides[1];\n", "", LONG_DEPTH),
    ("        x += terms * (Offset)g.x_strides[1];\n", "", LONG_DEPTH),
    ("return (Offset)g.x_start + (Offset)group * (Offset)g.x_group;", "return (Offset)g.x_start;", CONV),
    ("(Offset)group * (Offset)g.w_group + (Offset)filter * w_step()", "(Offset)filter * w_step()", GRAD_INPUT),
    ("if (position >= g.positions || filter", "if (position > g.positions || filter", CONV),
    ("(long long)split * g.groups + group", "(long long)split", CONV),
    ("band * BAND + in_band % width}", "in_band % width}", BANDS),
    ("min(BAND, tiles_n - band * BAND)", "BAND", BANDS),
    ("stage + 1 == STAGES ? 0 : stage + 1;", "stage + 1 > STAGES ? 0 : stage + 1;", CONV),
    ("const int count = min(VECTOR, g.filters - filter);", "const int count = VECTOR;", ONE_BY_ONE),
    (" && reinterpret_cast<size_t>(to) % alignof(Pack<R, VECTOR>) == 0", "", GRAD_INPUT),
    (" && step == 1", "", ONE_BY_ONE),
    ("min(first_k + g.depth_per_split, g.depth)", "g.depth", CONV),
    ("bias, group * g.filters + filter + k,", "bias, filter + k,", GRAD_INPUT),
    ("corner_of<Offset>(position_of_origin(i), g)", "corner_of<Offset>(position + i * ORIGIN_STEP, g)", REPEATED),
    ("panel * Tile::DEPTH + line + r * LINE_STEP", "line + r * LINE_STEP", PANELS),
)

MMA_TILE = of_file(
    "mma_tile.cuh",
    (
        "chunk_place<T, true>(warp_m + lane % 16, lane / 16)",
        "chunk_place<T, true>(warp_m + lane % 16, lane / 8 % 2)",
        CONV,
    ),
    ("sums[i][j][q] = low_sums[i][j][q] = 0;", "sums[i][j][q] = 1, low_sums[i][j][q] = 0;", CONV),
    ("return isfinite(sum) ? sum + low_sums[i][j][q] : sum;", "return sum + low_sums[i][j][q];", SPECIAL),
    ("(roundable ? 0x1000u : 0u)", "0x1000u", FINITE),
    ("(roundable ? 0x1000u : 0u)", "0u", NEAREST),
    ("first_row + i * 16 + half * 8", "first_row + i * 16 + half * 4", CONV),
    ("multiply(low_sums[i][j], a, b_low[j], T());", ";", EXACT),
    (
        "float high_sum[4] = {0, 0, 0, 0};\n                multiply(high_sum, a, b[j], T());\n#pragma unroll\n"
        "                for (int q = 0; q < 4; q++) sums[i][j][q] += high_sum[q];",
        "multiply(sums[i][j], a, b[j], T());",
        EXACT,
        True,
    ),
    ("first_column = warp_n + member * 2;", "first_column = warp_n + member;", CONV),
    ("load_matrix_x4_transposed(a, further", "load_matrix_x4(a, further", GRAD_WEIGHT),
    ("(lane_place ^ (chunk % CHUNKS * CHUNK_BYTES))", "(lane_place + (chunk % CHUNKS * CHUNK_BYTES))", CONV),
    ("first[1] = b[1], second[0] = b[2]", "first[1] = b[2], second[0] = b[1]", CONV),
    ("terms + i % 2 * 4, width + i / 2 * 8", "terms + i / 2 * 4, width + i % 2 * 8", THREE_PRODUCTS),
    ("(line & 3) * 2;", "(line & 7);", THREE_PRODUCTS),
)

SM90 = of_file(
    "conv_sm90.cu",
    ("        barrier_wait(full + place.stage, place.parity);\n", "", HOPPER),
    ("            barrier_wait(empty + place.stage, place.parity ^ 1);\n", "", HOPPER),
    ("place.parity ^ 1", "place.parity", HOPPER),
    ("        parity ^= 1;\n", "", HOPPER, True),
    ("        wgmma_wait<1>();", "        wgmma_wait<2>();", HOPPER),
    ("barrier_arrive(empty + before);\n        before", "barrier_arrive(empty + place.stage);\n        before", HOPPER),
    ("    wgmma_wait<0>();\n", "", HOPPER),
    (
        "barrier_expect(full + place.stage, Tile::STAGE_BYTES)",
        "barrier_expect(full + place.stage, Tile::A_BYTES)",
        HOPPER,
    ),
    ("barrier_init(empty + stage, Tile::WARPS)", "barrier_init(empty + stage, Tile::WARPS + 1)", HOPPER),
    ("    __syncthreads();\n\n    // The register", "\n    // The register", HOPPER),
    ("        __syncwarp();\n        const int filter", "        const int filter", HOPPER),
    ("        __syncwarp();\n    }\n}", "    }\n}", HOPPER),
    ("    if (steps > 0 && gives_back) barrier_arrive(empty + before);\n", "", HOPPER),
    ("work.group * g.channels + chunk * Tile::CHUNK, at", "chunk * Tile::CHUNK, at", HOPPER_GROUPS),
    (
        "work.group * g.filters + filter + slab * Tile::CHUNK, channel",
        "filter + slab * Tile::CHUNK, channel",
        HOPPER_GROUPS,
    ),
    (
        "work.group * g.filters + filter + slab * Tile::CHUNK, channel",
        "work.group * g.filters + filter, channel",
        HOPPER,
    ),
    ("min(work.first_step + t.steps_per_split, t.steps)", "work.first_step + t.steps_per_split", UNEVEN_PARTS),
    ("tap[2] = taps % g.window[2];", "tap[2] = 0;", UNEVEN_PARTS),
    ("(long long)work.split * g.groups + work.group", "(long long)work.split", REPACKED_SPLIT),
    ("b_next = TERMS_DENSE ? a_next :", "b_next = TERMS_DENSE ? 2 * a_next :", HOPPER_GRADIENT),
    ("if (++tap[2] < g.window[2]) continue;", "if (++tap[2] <= g.window[2]) continue;", HOPPER),
    ("t.backwards[a] ? g.window[a] - 1 - tap[a] : tap[a];", "tap[a];", HOPPER),
    ("tap[a] * g.dilation[a]);", "tap[a]);", hopper_case("dilation")),
    ("* g.stride[a] - g.before[a];", "* g.stride[a];", HOPPER),
    ("(octet ^ row % 4) * 8;", "octet * 8;", HOPPER),
    ("if (position >= g.positions || count <= 0) break;", "if (count <= 0) break;", HOPPER),
    ("count >= 8 && g.filters % 4 == 0", "g.filters % 4 == 0", MULTIPLE_OF_4),
    ("bias && i < count ?", "bias ?", HOPPER),
    ("for (int i = 0; i < TILE_N / 2; i++) sums[i] = 0;", "for (int i = 0; i < TILE_N / 2; i++) sums[i] = 1;", HOPPER),
    ("Tile::TERMS * Tile::ROW_BYTES / 16;", "Tile::TERMS * Tile::ROW_BYTES / 8;", HOPPER),
    ("results[i] < least ? least : results[i]", "results[i] > least ? results[i] : least", HOPPER_NAN),
    ("band * BAND + in_band % width) * TILE_N", "in_band % width) * TILE_N", HOPPER_BANDS),
    ("    __syncthreads();\n#pragma unroll 1", "#pragma unroll 1", PACKED),
    ("= square[lane * ROW + i];", "= square[i * ROW + lane];", PACKED),
    ("if (channel < g.channels && filter < g.filters)\n", "if (channel < g.channels)\n", PACKED),
    ("row * pitch + group * g.channels + channel", "row * pitch + channel", PACKED),
)

DEPTHWISE = of_file(
    "conv_depthwise.cu",
    ("item >= g.batch) return;", "item > g.batch) return;", CHANNELS),
    ("if (vector >= vectors || lane_run", "if (lane_run", UNFILLED_BLOCK),
    ("o < min(RUN, g.out[2] - at[2]); o++", "o < RUN; o++", CHANNELS),
    ("inside && (unsigned)i < (unsigned)g.size[2]", "inside && i < g.size[2]", CHANNELS),
    ("mine.inside = i0 >= 0 && i1 >= 0;", "mine.inside = i0 >= 0;", CHANNELS),
    ("tap + WIDTH <= g.window[2]; tap", "tap < g.window[2]; tap", CHANNELS, True),
    ("multiply_add(values[o + t][v]", "multiply_add(values[o][v]", CHANNELS),
    ("group * g.w_group + of_group * g.w_strides[0];", "group * g.w_group;", CHANNEL),
    ("int at = first + tap * g.dilation[2];", "int at = first + tap;", STEPS),
    ("finished<T>(sums[v], bias, filter + v,", "finished<T>(sums[v], bias, filter,", CHANNELS),
    (
        "offset : NOWHERE;\n        }\n#pragma unroll 1\n        for (int column = thread;",
        "offset : 0;\n        }\n#pragma unroll 1\n        for (int column = thread;",
        SLIDE,
    ),
    (
        "        __syncthreads();\n#pragma unroll 1\n        for (int column = load_column; column < columns;",
        "#pragma unroll 1\n        for (int column = load_column; column < columns;",
        SLIDE,
    ),
    ("        __syncthreads();\n    };", "    };", SLIDE),
    ("gather(height, width);\n                __syncthreads();", "gather(height, width);", PIECES),
    (
        "    __syncthreads();\n#pragma unroll 1\n    for (int column = load_column;",
        "#pragma unroll 1\n    for (int column = load_column;",
        SLIDE,
        True,
    ),
    ("                for (int o = 0; o < RUN; o++) near[o] = near[o + RUN];", "                ;", SLIDE),
    ("(unsigned)(i - r) >= (unsigned)height", "i - r >= height", SLIDE),
    ("row_results[row] = out_h < g.out[1] ? offset : NOWHERE;", "row_results[row] = offset;", SLIDE),
    ("column < min(tile_w, g.out[2] - first_w);", "column < tile_w;", SLIDE_7),
    ("(first_plane + plane) % all_filters, group", "first_plane + plane, group", SLIDE),
    (
        "tap < width ? Element<T>::load(w[g.w_start + offset]) : zero<Sum>();",
        "Element<T>::load(w[g.w_start + offset]);",
        SLIDE,
    ),
    ("min(tile.piece_w, g.window[2] - tap2)", "tile.piece_w", PIECES),
    ("lane_h + r * tile.lanes_h;", "lane_h * ROWS + r;", APART),
    ("bias[filter]) : zero<Sum>();", "bias[lane_plane]) : zero<Sum>();", SMALL_PLANES),
    ("if (width - tap == 2) multiply(tap, Count<2>());", "if (width - tap == 2) multiply(tap, Count<1>());", SLIDE),
)

GRAD_WEIGHT_DEPTHWISE = of_file(
    "grad_weight_depthwise.cu",
    ("    __syncthreads();\n\n    Sum sums", "    Sum sums", DEPTHWISE_WEIGHT),
    ("if (lane < reach && lane + reach < lanes)", "if (lane < reach)", DEPTHWISE_WEIGHT),
    ("            }\n        __syncthreads();\n    }", "            }\n    }", DEPTHWISE_WEIGHT, True),
    (
        "    __syncthreads();\n#pragma unroll 1\n    for (int reach",
        "#pragma unroll 1\n    for (int reach",
        DEPTHWISE_WEIGHT,
    ),
    ("min(run_positions, g.positions - first)", "run_positions", DEPTHWISE_WEIGHT),
    ("* g.dilation[a] < g.size[a];", "* g.dilation[a] <= g.size[a];", DEPTHWISE_WEIGHT),
    ("taps = min(TAPS, all_taps - first_tap);", "taps = TAPS;", DEPTHWISE_WEIGHT),
    ("((long long)blockIdx.y * all_taps + first_tap)", "((long long)blockIdx.y + first_tap)", DEPTHWISE_WEIGHT),
    ("parts[i] = first + 8 * i < splits ?", "parts[i] = true ?", DEPTHWISE_WEIGHT),
    ("first += 8 * BATCH) {", "first += BATCH) {", MANY_SPLITS),
    ("for (int lane = 1; lane < 8; lane++)", "for (int lane = 1; lane < 7; lane++)", MANY_SPLITS),
    ("if (result >= results || threadIdx.x >= 32) return;", "if (threadIdx.x >= 32) return;", DEPTHWISE_WEIGHT),
    ("(filter - group * g.filters) * g.y_strides[1];", "0;", DEPTHWISE_WEIGHT),
    ("if (REPEATED) at = padded_source(at, g.size[a], g.padding_mode);", "", DEPTHWISE_WEIGHT_REPEATED),
    ("    lane_sums[threadIdx.x] = sum;\n    __syncthreads();", "    lane_sums[threadIdx.x] = sum;", DEPTHWISE_WEIGHT),
    (
        "for (int v = 0; v < VECTOR; v++) sums[t][v] = zero<Sum>();",
        "for (int v = 0; v < VECTOR; v++) sums[t][v] = Sum{1};",
        DEPTHWISE_WEIGHT,
    ),
)

STEM_FAULTS = of_file(
    "conv_stem.cu",
    ("if (targets[i] >= 0) weights[targets[i]]", "weights[targets[i]]", STEM),
    ("if (first_filter + f < g.filters)\n", "", STEM),
    (
        "        __syncthreads();\n#pragma unroll 1\n        for (int column = thread % 32;",
        "#pragma unroll 1\n        for (int column = thread % 32;",
        STEM,
    ),
    ("        __syncthreads();\n\n        Sum sums", "        Sum sums", STEM, True),
    ("        if (g.activation > LEAKY_RELU) __syncthreads();", "        ;", STEM_TANH),
    ("bias[min(filter, g.filters - 1)]", "bias[filter]", STEM_SMALL),
    ("if (row >= tile.height || out_h", "if (out_h", STEM_VGG),
    ("out_w >= g.out[2]) continue;", "out_w > g.out[2]) continue;", STEM_STRIDED),
    ("from += g.dilation[2];", "from++;", STEM_VOLUME),
    ("(plane * tile.rows + tap1 * g.dilation[1])", "(plane * tile.rows + tap1)", STEM_DILATED),
    ("if (filter + f < g.filters) results", "results", STEM_SMALL),
    ("if (filter < g.filters) *reinterpret_cast", "*reinterpret_cast", STEM_VECTORS),
    ("(plane - channel * g.window[0]) * g.dilation[0];", "(plane - channel * g.window[0]);", STEM_VOLUME),
    ("row < rows ? row_sources[row] : NOWHERE;", "row_sources[row];", STEM_STRIDED),
    ("(place - row * tile.width) * g.stride[2];", "(place - row * tile.width);", STEM_STRIDED),
    ("row_sources[row] = i0 >= 0 && i1 >= 0 ? offset", "row_sources[row] = i0 >= 0 ? offset", STEM),
)

LAYOUT_FAULTS = of_file(
    "layout.cu",
    ("if (first + b * stride < g.items) y[targets[b]]", "y[targets[b]]", REVERSED),
    ("inside = inside && i < g.valid[a];", "", FEW_ZEROS),
    ("long long from = plane * g.x_strides[0];", "long long from = plane;", PLANES),
    ("    __syncthreads();\n", "", LAYOUT, True),
    ("at_to + r < g.valid[7]", "at_to < g.valid[7]", ZEROS),
    ("if (at_from < g.valid[6] && at_to", "if (at_to", LAYOUT),
    ("if (at_from + c < g.extents[6] && at_to", "if (at_to", LAYOUT),
    ("tile[(c * 32 + i) * PITCH + lane]", "tile[(c * 32 + lane) * PITCH + i]", LAYOUT),
    ("column.at[r] = rows[r].at[c];", "column.at[r] = rows[c].at[r];", LAYOUT_HALF),
    ("place % g.tiles_from * 32;", "place / g.tiles_to * 32;", LAYOUT),
    (
        "from += i * g.x_strides[a];\n                    targets",
        "from += i * (int)g.x_strides[a];\n                    targets",
        FAR_PLANES,
    ),
    ("const long long stride = (long long)gridDim.x * 256;", "const long long stride = 256;", WIDE_WORDS),
)

PATCHES = of_file(
    "patches.cu",
    ("if (j > 0 && inner == length) locate", "if (j > 0 && inner > length) locate", UNFOLD, True),
    ("if (first + j < words) to[j]", "to[j]", UNFILLED_VECTOR),
    ("inner : start + inner * g.stride[2];", "inner : start + inner;", PATCH_STEPS),
    ("base += (first_item + rest) * g.x_strides[0];", "base += rest * g.x_strides[0];", MANY_ITEMS),
    ("if (a == 2 && !g.channels_inner) break;", "", UNFOLD_FIRST),
    ("(unsigned)i < (unsigned)g.size[2]) && first", "i < g.size[2]) && first", UNFOLD_FIRST),
    ("        if (reached < 0) return false;\n", "", FOLD),
    ("return i < g.out[a] && g.by_stride", "return i <= g.out[a] && g.by_stride", FOLD),
    ("return i < g.out[a] && g.by_stride[a].remainder(reached, i) == 0;", "return i < g.out[a];", PATCH_STEPS),
    ("next_digit(rest, g.by_channels) * VECTOR;", "next_digit(rest, g.by_channels);", FOLD),
    ("+ tap * g.patches_strides[5 + a];", ";", FOLD),
    ("if (index >= vectors) return;", "if (index > vectors) return;", FOLD),
    ("from[0] + from[1] + from[2]", "from[1] + from[2]", PATCH_STEPS),
    ("sums[v] = zero<Sum>();", "sums[v] = Sum{1};", FOLD),
    ("if (!g.channels_inner) channel = next", "if (!g.channels_inner) rest = next", FOLD_FIRST),
)

POOL = of_file(
    "pool.cu",
    ("(unsigned)(tap2 - o * g.stride[2]) >= (unsigned)g.window[2]", "tap2 - o * g.stride[2] >= g.window[2]", RAGGED),
    ("if (k >= g.out[2]) break;", "if (k > g.out[2]) break;", RAGGED),
    ("if (tap2 + b < taps2.stop) copy", "copy", RAGGED),
    ("if (tap2 + b < taps2.stop) merge", "merge", LARGE, True),
    ("(OUTPUTS - 1) * g.stride[2] + g.window[2];", "OUTPUTS - 1 + g.window[2];", SIGNAL),
    ("row + tap2 * g.dilation[2] * g.plane[2]", "row + tap2 * g.plane[2]", DILATED),
    ("step2 = g.dilation[2] * g.x_strides[4];", "step2 = g.x_strides[4];", DILATED),
    ("states[o][v] = Policy::start();", "states[o][v] = typename Policy::State{};", LOWEST),
)

POOL_HEADER = of_file(
    "pool.cuh",
    ("best = value > best || is_nan(value) ? value : best;", "best = value > best ? value : best;", NAN, True),
    ("value > state.best || (is_nan(value)", "value >= state.best || (is_nan(value)", RAGGED),
    ("(is_nan(value) && !is_nan(state.best))) state", "is_nan(value)) state", NAN),
    ("state.at < 0 || value > state.best", "value > state.best", LOWEST),
    ("(same && other.at < state.at)", "same", BOXES),
    ("__uint_as_float(0xff800000u);", "__uint_as_float(0xff7fffffu);", LOWEST),
    ("T(-1) < T(0) ? (T)((T)1 << (8 * sizeof(T) - 1)) : (T)0;", "(T)0;", LOWEST_INTEGER),
    ("g.size[axis] + (padded ? g.after[axis] : 0);", "g.size[axis] + g.after[axis];", MEANS),
    ("g.size[axis] + (padded ? g.after[axis] : 0);", "g.size[axis];", MEANS),
    (
        "start >= low ? 0 : ceil_quotient(low - start, dilation);",
        "start >= low ? 0 : (low - start) / dilation;",
        DILATED,
    ),
    ("(n + divisor - 1) / divisor;", "n / divisor;", MEANS_DILATED),
    ("g.division == DIVIDE_BY_NUMBER ? (R)g.number : (R)count", "(R)count", MEANS),
    ("return large * sqrt((R)1 + ratio * ratio);", "return sqrt(re * re + im * im);", COMPLEX_NORM),
    ("    if (isinf(re) || isinf(im)) return (R)__uint_as_float(0x7f800000u);\n", "", COMPLEX_NORM),
    (" && place.item < g.batch;", ";", MANY_ROWS),
    ("return number < g.threads &&", "return number <= g.threads &&", MANY_ROWS),
    ("return place.item * strides[0] +", "return place.item * (int)strides[0] +", FAR),
    ("(Value)(1 / g.power)", "(Value)g.power", NORM),
    ("(g.channels_inner ? digit[0] : digit[3]) * VECTOR", "(g.channels_inner ? digit[0] : digit[3])", WIDE),
    (
        "const int faster = g.channels_inner ? digit[1] : digit[0], slower",
        "const int faster = digit[0], slower",
        RAGGED,
    ),
)

POOL_AVERAGE_GRAD = of_file(
    "pool_average_grad.cu",
    (
        "farthest > 0 ? ceil_quotient(farthest, g.stride[axis]) : 0;",
        "farthest > 0 ? farthest / g.stride[axis] : 0;",
        MEANS_GRAD,
    ),
    ("readers.position / g.stride[axis] + 1)", "readers.position / g.stride[axis])", MEANS_GRAD, True),
    ("return dilation == 1 || (position", "return true || (position", DILATED_GRAD),
    ("            count = now;\n", "", MEANS_GRAD),
    ("store(total[v] + rest);", "store(rest);", MEANS_GRAD),
    ("k + b < axis2.windows.stop && axis2", "axis2", MEANS_GRAD),
    ("min(g.out[axis], readers.position", "max(g.out[axis], readers.position", MEANS_GRAD),
    ("counted_taps(i, 0, g) * counted_taps(j, 1, g) : 1;", "counted_taps(i, 0, g) : 1;", MEANS_GRAD),
    ("                alike[v] = zero<Sum>();\n", "", MEANS_GRAD),
)

POOL_BOXES = of_file(
    "pool_boxes.cu",
    ("        __syncthreads();\n", "", BOXES, True),
    ("if (lane >= half && lane < 2 * half)", "if (lane >= half)", BOXES),
    ("if (!valid || lane > 0) return;", "if (!valid) return;", BOXES),
    ("box_bound(i + 1, axis, !g.disjoint, g)", "box_bound(i + 1, axis, false, g)", BOXES),
    ("box_bound(i + 1, axis, !g.disjoint, g)", "box_bound(i + 1, axis, true, g)", SLABS),
    ("if (k + b * g.lanes < box[2].stop) copy", "copy", BOXES_FIRST),
    ("if (here >= box[2].stop) continue;", "if (here > box[2].stop) continue;", ONE_EACH),
    ("+ (up ? out - 1 : 0);", ";", BOX_MEANS),
    ("step = g.lanes * g.x_strides[4];", "step = g.x_strides[4];", SLABS),
    ("half = g.lanes / 2; half > 0;", "half = g.lanes / 2; half > 1;", BOXES),
    ("box[0].length() * box[1].length() * box[2].length()", "box[1].length() * box[2].length()", ONE_BOX),
    ("g.channels_inner ? thread / width : thread % g.lanes;", "thread % g.lanes;", BOXES),
)

POOL_SCATTER = of_file(
    "pool_scatter.cu",
    (
        "        if (first) slab[element] = sum;\n    }\n    __syncwarp();",
        "        if (first) slab[element] = sum;\n    }",
        SCATTER,
        True,
    ),
    ("range[1] >= first_place;", "range[1] > first_place;", SCATTER),
    ("same >> lane == 1u", "(same & ((1u << lane) - 1)) == 0", SCATTER),
    ("unsigned rest = same & (same - 1);", "unsigned rest = same;", SCATTER),
    ("place >= 0 && place < places;", "place < places;", SCATTER),
    ("if (channel < g.channels)\n", "", SCATTER),
    ("distance = 16;", "distance = 8;", SCATTER),
    ("stop = min(start + CHUNK, g.outputs);\n", "stop = start + CHUNK;\n", SCATTER),
    ("output - mine.turn < stop;", "output < stop;", SCATTER),
    ("const bool first = element >= 0 && (same", "const bool first = (same", SCATTER),
    ("(group + __ffs((int)todo) - 1) * CHUNK", "(group + __ffs((int)todo)) * CHUNK", SCATTER),
    ("mine.valid = mine.channel < g.channels;", "mine.valid = true;", SCATTER),
    (
        "number >= (long long)g.batch * g.tiles * g.slabs) return;",
        "number > (long long)g.batch * g.tiles * g.slabs) return;",
        SCATTER,
    ),
    ("stop = min((chunk + 1) * CHUNK, g.outputs);", "stop = chunk * CHUNK + 32;", SCATTER),
)

MUTANTS = [
    *GEOMETRY, *TYPES, *PTX, *EPILOGUE, *SIMT, *SUM_SPLITS, *MMA, *MMA_TILE, *SM90, *DEPTHWISE, *GRAD_WEIGHT_DEPTHWISE,
    *STEM_FAULTS, *LAYOUT_FAULTS, *PATCHES, *POOL, *POOL_HEADER, *POOL_AVERAGE_GRAD, *POOL_BOXES, *POOL_SCATTER,
]  # fmt: skip


def main(wanted: list[str]) -> int:
    """Plant every fault whose name holds one of the words, or all; the number of survivors."""
    return report([mutant for mutant in MUTANTS if not wanted or any(word in str(mutant) for word in wanted)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
