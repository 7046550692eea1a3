"""Picture filters: the named kernels against SciPy, kernels that cannot be read, and pictures of every kind."""

import warnings

import numpy as np
import pytest
from scipy import ndimage

from xpconv.filters import Filter, apply_filter, named_filter


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def rounded(values, like):
    return np.clip(np.rint(values), 0, np.iinfo(like.dtype).max).astype(like.dtype)


# -- the named kernels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7])
def test_box_is_the_mean_of_a_square(size):
    grey = noise(12, 15)
    expected = rounded(ndimage.uniform_filter(grey.astype(float), size, mode="reflect"), grey)
    assert np.array_equal(apply_filter(grey[..., None], named_filter("box", size))[..., 0], expected)


@pytest.mark.parametrize("size", [3, 5, 9])
def test_gaussian_is_the_bell_curve_cut_at_three_deviations(size):
    grey = noise(12, 15)
    smooth = ndimage.gaussian_filter(grey.astype(float), size / 6, radius=size // 2, mode="reflect")
    assert np.array_equal(apply_filter(grey[..., None], named_filter("gaussian", size))[..., 0], rounded(smooth, grey))


def test_gaussian_and_box_have_a_default_size():
    assert named_filter("gaussian").kernels.shape == (1, 5, 5)
    assert named_filter("box").kernels.shape == (1, 3, 3)


def test_sobel_is_half_the_length_of_the_gradient():
    grey = noise(12, 15)
    along = [ndimage.sobel(grey.astype(float), axis, mode="reflect") for axis in (0, 1)]
    expected = rounded(np.hypot(*along) / 2, grey)
    assert np.array_equal(apply_filter(grey[..., None], named_filter("sobel"))[..., 0], expected)


def test_laplacian_shows_zero_as_mid_grey():
    grey = noise(12, 15)
    expected = rounded(ndimage.laplace(grey.astype(float), mode="reflect") + 127.5, grey)
    assert np.array_equal(apply_filter(grey[..., None], named_filter("laplacian"))[..., 0], expected)


def test_sharpen_takes_the_laplacian_away():
    grey = noise(12, 15)
    expected = rounded(grey - ndimage.laplace(grey.astype(float), mode="reflect"), grey)
    assert np.array_equal(apply_filter(grey[..., None], named_filter("sharpen"))[..., 0], expected)


def test_emboss_lights_a_bright_block_from_the_upper_left():
    block = np.zeros((9, 9, 1), np.uint8)
    block[3:6, 3:6] = 100
    lit = apply_filter(block, named_filter("emboss"))[..., 0]
    assert lit[2, 2] > 128 > lit[6, 6]
    assert lit[0, 0] == lit[4, 4] == 128  # plain surfaces are mid-grey


@pytest.mark.parametrize("name", ["sobel", "gaussian", "sharpen", "box"])
def test_a_plain_picture_is_left_plain_to_its_border(name):
    plain = np.full((6, 7, 3), 77, np.uint8)
    assert (apply_filter(plain, named_filter(name)) == (0 if name == "sobel" else 77)).all()


# -- pictures --------------------------------------------------------------------------------------------------------


def test_the_kernel_is_flipped_as_in_mathematics():
    kernel = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]]) / 50
    grey = noise(9, 11)
    expected = rounded(ndimage.convolve(grey.astype(float), kernel, mode="mirror"), grey)
    filtered = apply_filter(grey[..., None], Filter("mine", kernel[None]), padding_mode="reflect")
    assert np.array_equal(filtered[..., 0], expected)


def test_each_channel_is_filtered_by_itself():
    colour = noise(8, 9, 3)
    together = apply_filter(colour, named_filter("sobel"))
    apart = [apply_filter(colour[..., n : n + 1], named_filter("sobel")) for n in range(3)]
    assert np.array_equal(together, np.concatenate(apart, axis=-1))


def test_sixteen_bits_stay_sixteen_bits():
    grey = noise(9, 11, dtype=np.uint16)
    expected = rounded(ndimage.uniform_filter(grey.astype(float), 3, mode="reflect"), grey)
    assert np.array_equal(apply_filter(grey[..., None], named_filter("box"))[..., 0], expected)


def test_floats_are_neither_rounded_nor_cut_off():
    values = np.random.default_rng(0).standard_normal((9, 11)).astype(np.float32)
    expected = values - ndimage.laplace(values, mode="reflect")
    filtered = apply_filter(values[..., None], named_filter("sharpen"))
    assert filtered.dtype == np.float32
    np.testing.assert_allclose(filtered[..., 0], expected, rtol=1e-5, atol=1e-5)


def test_what_leaves_the_range_is_cut_off():
    dark_and_bright = np.array([[[0], [0], [255], [255]]], np.uint8)
    assert apply_filter(dark_and_bright, named_filter("sharpen"))[..., 0].tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize(
    ("padding_mode", "scipys"), [("symmetric", "reflect"), ("edge", "nearest"), ("wrap", "wrap"), ("zeros", "constant")]
)
def test_the_padding_mode_says_what_lies_beyond_the_border(padding_mode, scipys):
    grey = noise(6, 7)
    expected = rounded(ndimage.uniform_filter(grey.astype(float), 5, mode=scipys), grey)
    filtered = apply_filter(grey[..., None], named_filter("box", 5), padding_mode=padding_mode)
    assert np.array_equal(filtered[..., 0], expected)


# -- kernels from a literal or a file ----------------------------------------------------------------------------------


def test_a_literal_is_a_list_of_rows():
    assert named_filter(" [[0, 0.5], [-1, 2]]").kernels.tolist() == [[[0.0, 0.5], [-1.0, 2.0]]]


def test_a_file_holds_one_kernel(tmp_path):
    np.save(tmp_path / "k.npy", np.arange(6).reshape(2, 3))
    assert named_filter(str(tmp_path / "k.npy")).kernels.tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_an_unknown_name_lists_the_known_ones():
    known = "box, emboss, gaussian, laplacian, sharpen, sobel"
    with pytest.raises(
        ValueError, match=rf"^no kernel is called 'blur'; there are {known}, a file ending in .npy, and "
    ):
        named_filter("blur")


@pytest.mark.parametrize("size", [0, 4, -3])
def test_a_size_without_a_centre_is_refused(size):
    with pytest.raises(ValueError, match=rf"^--size must be odd and at least 1, .* got {size}$"):
        named_filter("box", size)


@pytest.mark.parametrize("text", ["sobel", "[[1]]", "k.npy"])
def test_a_size_for_a_kernel_that_has_one_is_refused(text):
    with pytest.raises(
        ValueError, match=r"^--size 5 belongs to the kernels gaussian and box, .* has a size of its own$"
    ):
        named_filter(text, 5)


@pytest.mark.parametrize("text", ["[[1, 2], [3]]", "[[1, 2", "[[a]]", "[[1], [__import__('os')]]", "[" * 5000])
def test_a_literal_that_is_no_list_of_rows_is_refused(text):
    with pytest.raises(ValueError, match="is no list of equally long rows of numbers"):
        named_filter(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1, 0, -1]", r"must have two axes and at least one value, it has shape \(3,\)"),
        ("[[]]", r"must have two axes and at least one value, it has shape \(1, 0\)"),
        ("[[[1]]]", r"must have two axes and at least one value, it has shape \(1, 1, 1\)"),
        ("[['a']]", "must hold real numbers, it holds <U1"),
        ("[[1j]]", "must hold real numbers, it holds complex128"),
        ("[[1e999, 1]]", "holds NaN or infinity"),
    ],
)
def test_a_literal_that_is_no_kernel_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        named_filter(text)


@pytest.mark.parametrize("text", ["[[1e39]]", "[[1e38, -1e38]]", "[[-1e30]]", "[[1e308, 1e308]]"])
def test_a_kernel_too_large_for_float32_is_refused_without_a_warning(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            ValueError, match=r"^the kernel .* is too large for sums in float32: .*, the limit is 1e\+30$"
        ):
            named_filter(text)


def test_the_largest_kernel_gives_the_brightest_and_the_darkest_without_a_warning():
    bright = np.full((5, 6, 1), 0xFFFF, np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (apply_filter(bright, named_filter("[[9e29]]")) == 0xFFFF).all()
        assert (apply_filter(bright, named_filter("[[-4e29, -4e29]]")) == 0).all()


def test_a_file_with_nan_is_refused(tmp_path):
    np.save(tmp_path / "k.npy", np.array([[np.nan]]))
    with pytest.raises(ValueError, match=r"^the kernel .*k\.npy holds NaN or infinity$"):
        named_filter(str(tmp_path / "k.npy"))


def test_a_pickled_file_is_never_unpickled(tmp_path):
    np.save(tmp_path / "k.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"holds no plain array that NumPy can read \(Object arrays cannot be loaded"):
        named_filter(str(tmp_path / "k.npy"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 an archive", b"\x80\x04N.", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    (tmp_path / "k.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"k\.npy holds no plain array that NumPy can read"):
        named_filter(str(tmp_path / "k.npy"))


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        named_filter(str(tmp_path / "k.npy"))
