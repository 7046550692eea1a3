"""Pictures on disk: every kind keeps its kind, and no file is left half written."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason='needs pip install "xpconv[cli]"')

from xpconv.files import written_whole  # noqa: E402
from xpconv.pictures import Picture, check_output, read_picture, write_picture  # noqa: E402


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def saved(folder, values, mode=None, name="picture.png", **options):
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(folder / name, **options)
    return folder / name


# -- reading ---------------------------------------------------------------------------------------------------------


def test_grey_has_one_channel(tmp_path):
    values = noise(4, 5)
    picture = read_picture(saved(tmp_path, values))
    assert np.array_equal(picture.pixels, values[..., None])
    assert picture.alpha is None


def test_colour_has_three(tmp_path):
    values = noise(4, 5, 3)
    assert np.array_equal(read_picture(saved(tmp_path, values)).pixels, values)


def test_alpha_is_kept_apart(tmp_path):
    values = noise(4, 5, 4)
    picture = read_picture(saved(tmp_path, values))
    assert np.array_equal(picture.pixels, values[..., :3])
    assert np.array_equal(picture.alpha, values[..., 3])


def test_grey_with_alpha_stays_grey(tmp_path):
    picture = read_picture(saved(tmp_path, noise(4, 5, 4), "LA"))
    assert picture.pixels.shape == (4, 5, 1)
    assert picture.alpha.shape == (4, 5)


def test_a_palette_becomes_its_colours(tmp_path):
    path = saved(tmp_path, noise(4, 5, 3), "P")
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(read_picture(path).pixels, expected)


def test_a_palette_with_a_transparent_colour_has_alpha(tmp_path):
    path = saved(tmp_path, noise(4, 5), "P", transparency=0)
    assert read_picture(path).alpha is not None


def test_colour_with_one_transparent_colour_has_alpha(tmp_path):
    values = noise(4, 5, 3)
    path = saved(tmp_path, values, transparency=tuple(values[1, 2].tolist()))
    alpha = read_picture(path).alpha
    assert alpha[1, 2] == 0
    assert alpha[0, 0] == 255


def test_black_and_white_becomes_grey(tmp_path):
    picture = read_picture(saved(tmp_path, noise(4, 5) > 99))
    assert set(np.unique(picture.pixels)) == {0, 255}
    assert picture.pixels.shape == (4, 5, 1)


@pytest.mark.parametrize("name", ["picture.png", "picture.tiff"])
def test_sixteen_bit_grey_keeps_its_bits(tmp_path, name):
    values = noise(4, 5, dtype=np.uint16)
    picture = read_picture(saved(tmp_path, values, name=name))
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels[..., 0], values)
    assert not picture.depth_lost


def test_integers_beyond_sixteen_bits_are_refused(tmp_path):
    path = saved(tmp_path, np.array([[70_000]], np.int32), name="picture.tiff")
    with pytest.raises(OSError, match="cannot be read as a picture: its 32-bit integers do not fit 16 bits"):
        read_picture(path)


def test_floats_stay_floats(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    assert np.array_equal(read_picture(saved(tmp_path, values, name="picture.tiff")).pixels[..., 0], values)


def test_other_colour_spaces_become_rgb(tmp_path):
    path = saved(tmp_path, noise(8, 8, 3), "CMYK", name="picture.jpg")
    assert read_picture(path).pixels.shape == (8, 8, 3)


def test_a_profile_of_cmyk_is_not_kept_for_rgb(tmp_path):
    path = saved(tmp_path, noise(8, 8, 3), "CMYK", name="picture.jpg", icc_profile=b"of four inks")
    assert Image.open(path).info["icc_profile"] == b"of four inks"
    assert read_picture(path).colour_profile is None


def test_sixteen_bit_colour_admits_what_pillow_loses(tmp_path):
    (tmp_path / "deep.png").write_bytes(sixteen_bit_colour_png(noise(4, 5, 3, dtype=np.uint16)))
    picture = read_picture(tmp_path / "deep.png")
    assert picture.depth_lost
    assert picture.pixels.dtype == np.uint8


def sixteen_bit_colour_png(values):
    """What Pillow reads and cannot write: https://www.w3.org/TR/png-3/#5DataRep"""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_header(width, height, bits=16)
    return header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_header(width, height, *, bits):
    """The beginning of a PNG in colour."""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_picture_is_turned_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: a quarter turn clockwise to be seen upright
    path = saved(tmp_path, noise(8, 16, 3), name="picture.jpg", exif=turned)
    assert read_picture(path).pixels.shape == (16, 8, 3)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(OSError, match=r"^.*picture\.png cannot be read as a picture: .+$"):
        read_picture(tmp_path / "picture.png")


def test_a_picture_cut_short_is_refused(tmp_path):
    path = saved(tmp_path, noise(64, 64, 3))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(OSError, match=r"^.*picture\.png cannot be read as a picture: .+$"):
        read_picture(path)


def test_a_picture_beyond_pillows_limit_is_refused_in_one_line(tmp_path):
    (tmp_path / "picture.png").write_bytes(png_header(60_000, 60_000, bits=8) + png_chunk(b"IDAT", b""))
    with pytest.raises(OSError, match=r"^.*picture\.png cannot be read as a picture: .*3600000000 pixels.*$"):
        read_picture(tmp_path / "picture.png")


def test_a_picture_that_pillow_only_warns_of_is_read_without_a_word(tmp_path, monkeypatch):
    path = saved(tmp_path, noise(4, 5))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(path).pixels.shape == (4, 5, 1)


def test_a_missing_picture_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist$"):
        read_picture(tmp_path / "none.png")


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (4, 5, 4)])
def test_what_was_read_can_be_written_and_read_again(tmp_path, shape):
    picture = read_picture(saved(tmp_path, noise(*shape)))
    write_picture(tmp_path / "again.png", picture)
    again = read_picture(tmp_path / "again.png")
    assert np.array_equal(again.pixels, picture.pixels)
    assert (again.alpha is None) == (len(shape) == 2 or shape[2] == 3)


def test_sixteen_bits_are_written_as_sixteen(tmp_path):
    values = noise(4, 5, 1, dtype=np.uint16)
    write_picture(tmp_path / "deep.png", Picture(values))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep.png")), values[..., 0])


def test_the_colour_profile_goes_along(tmp_path):
    path = saved(tmp_path, noise(4, 5, 3), icc_profile=b"as the camera saw it")
    write_picture(tmp_path / "again.png", read_picture(path))
    assert Image.open(tmp_path / "again.png").info["icc_profile"] == b"as the camera saw it"


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.npy"])
def test_an_extension_of_no_picture_format_is_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"no picture format is written (as '\.[a-z]+'|without an extension); take \.png$"
    ):
        write_picture(tmp_path / name, Picture(noise(4, 5, 3)))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot be written: there is no folder .*none$"):
        write_picture(tmp_path / "none" / "picture.png", Picture(noise(4, 5, 3)))


def test_a_folder_in_the_pictures_place_is_refused(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"picture\.png cannot be written: it is a folder$"):
        write_picture(tmp_path / "picture.png", Picture(noise(4, 5, 3)))


def test_a_folder_without_extension_is_said_to_be_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder cannot be written: it is a folder$"):
        check_output(tmp_path / "folder")


def test_a_folder_that_may_not_be_written_is_found_out_before_the_work(tmp_path, monkeypatch):
    check_output(tmp_path / "picture.png")
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)  # who may do anything may write anywhere
    with pytest.raises(PermissionError, match=r"picture\.png cannot be written: its folder is not writable$"):
        check_output(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("pixels", "alpha", "name", "way_out"),
    [
        (noise(4, 5, 3), noise(4, 5), "picture.jpg", r"cannot write mode RGBA as JPEG; a \.png can$"),
        (noise(4, 5, 1, dtype=np.uint16), None, "picture.jpg", r"cannot write mode I;16 as JPEG; a \.png can$"),
        (np.ones((4, 5, 1), np.float32), None, "picture.png", r"cannot write mode F as PNG; a \.tiff can$"),
    ],
)
def test_a_format_that_cannot_hold_the_picture_is_refused_with_one_that_can(tmp_path, pixels, alpha, name, way_out):
    with pytest.raises(OSError, match=way_out):
        write_picture(tmp_path / name, Picture(pixels, alpha))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_midway_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = saved(tmp_path, noise(4, 5))
    before = path.read_bytes()

    def fail_midway(_, part, **__):
        Path(part).write_bytes(b"\x89PNG half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail_midway)
    with pytest.raises(OSError, match=r"picture\.png cannot be written: No space left on device$"):
        write_picture(path, Picture(noise(4, 5, 3)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path):
    def write_half():
        with written_whole(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_names_the_path_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as raised, written_whole(Path("none/a.txt")) as part:
        part.write_text("nowhere")
    assert str(raised.value) == "[Errno 2] No such file or directory: 'none/a.txt'"


def test_an_error_about_another_file_is_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="another"), written_whole(tmp_path / "a.txt"):
        (tmp_path / "another").read_bytes()


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("a.txt")
    with written_whole(tmp_path / "link.txt") as part:
        part.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()
