"""Filters from file to file: one clear line for each thing that goes wrong, and nothing left that looks complete."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

for library in ("typer", "PIL", "dask", "zarr", "tifffile", "distributed"):
    pytest.importorskip(library, reason='needs pip install "xpconv[cli,dask]"')

import dask.array as da  # noqa: E402
import tifffile  # noqa: E402
import zarr  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from xpconv.cli import app  # noqa: E402
from xpconv.filters import named_filter  # noqa: E402
from xpconv.outofcore import filtering, formats, schedulers, streaming  # noqa: E402
from xpconv.outofcore.journal import Part  # noqa: E402


@pytest.fixture(autouse=True)
def scan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", np.ones((64, 64), np.float32))
    return tmp_path


def refused(status, *arguments, kernel="box"):
    """The one line on stderr of a call that leaves with `status` and writes nothing."""
    before = shown()
    result = CliRunner().invoke(app, ["filter", "--kernel", kernel, *map(str, arguments)])
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert shown() == before
    return result.stderr.rstrip().removeprefix("xpconv: ")


def shown():
    """The files here that are not hidden."""
    return sorted(path.name for path in Path().iterdir() if not path.name.startswith("."))


# -- input -------------------------------------------------------------------------------------------------------------


def test_objects_and_wide_integers_are_refused():
    np.save("o.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    assert "o.npy cannot be read as an array in parts: Array can't be memory-mapped: Python obj" in refused(
        1, "o.npy", "-o", "out.npy"
    )
    for dtype in ("int64", "complex64", "bool"):
        np.save("x.npy", np.zeros((5, 5), dtype))
        assert refused(2, "x.npy", "-o", "out.npy") == (
            f"x.npy holds {dtype}; filters take integers of up to 32 bits, and floats of 16, 32 or 64"
        )


def test_chunks_of_unknown_sizes_are_refused():
    unknown = da.ones((6, 4), chunks=3)[da.arange(6, chunks=3) > 2]
    with pytest.raises(ValueError, match=r"^the result has chunks of unknown sizes; call its compute_chunk_sizes\(\)"):
        streaming.stream(unknown, None, None, None, None)


def test_files_that_are_cut_short_are_refused(scan):
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)
    tifffile.imwrite("plain.tif", pixels)
    tifffile.imwrite("packed.tif", pixels, tile=(64, 64), compression="zlib")
    for name in ("scan.npy", "plain.tif", "packed.tif"):
        whole = (scan / name).read_bytes()
        (scan / f"cut-{name}").write_bytes(whole[: len(whole) * 2 // 3])
        said = refused(1, f"cut-{name}", "-o", "out.npy")
        assert f"cut-{name} cannot be read as an array in parts: " in said


def test_stores_that_are_half_written_are_refused(scan):
    (scan / "empty.zarr").mkdir()
    assert refused(1, "empty.zarr", "-o", "out.npy").endswith("it is no folder that holds a zarr.json or .zarray")
    (scan / "half.zarr").mkdir()
    (scan / "half.zarr" / "zarr.json").write_text('{"zarr_form')
    assert "half.zarr cannot be read as an array in parts: " in refused(1, "half.zarr", "-o", "out.npy")
    zarr.open_group("group.zarr", mode="w").create_array("level0", shape=(4, 4), dtype="f4")
    assert refused(1, "group.zarr", "-o", "out.npy").endswith("give the path of one of its arrays: level0")
    assert refused(1, "none.npy", "-o", "out.npy") == "none.npy does not exist"


def test_axes_must_be_the_kernels():
    np.save("stack.npy", np.ones((2, 4, 5, 3)))
    assert "stack.npy has shape (2, 4, 5, 3); a kernel of 2 axes filters arrays of 2 axes" in refused(
        2, "stack.npy", "-o", "out.npy"
    )
    tifffile.imwrite("stack.tif", np.ones((5, 20, 30), np.uint8), photometric="minisblack")
    assert "stack.tif has shape (5, 20, 30) and axes QYX" in refused(2, "stack.tif", "-o", "out.npy")


# -- output ------------------------------------------------------------------------------------------------------------


def test_targets_that_cannot_be_written_are_refused_beforehand(scan):
    assert refused(1, "scan.npy", "-o", "none/out.npy") == "none/out.npy cannot be written: there is no folder none"
    (scan / "folder.zarr").mkdir()
    assert refused(1, "scan.npy", "-o", "folder.zarr") == "folder.zarr cannot be written: it is a folder"
    assert refused(2, "scan.npy", "-o", "out.png").startswith("out.png cannot be written in parts")
    np.save("volume.npy", np.ones((4, 5, 6)))
    np.save("kernel.npy", np.ones((3, 3, 3)))
    assert "a TIFF holds an image" in refused(2, "volume.npy", "-o", "out.tif", kernel="kernel.npy")


def interrupted(scan):
    """An unfinished result of two chunks of four."""
    job, count = filtering.job(scan / "scan.npy", scan / "out.npy", named_filter("box"), "symmetric", [32]), []

    def advance():
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt

    with schedulers.runner("threads") as runner, pytest.raises(KeyboardInterrupt):
        filtering.run(job, runner, restart=False, begins=lambda _: None, advance=advance)
    return Part(scan / "out.npy").folder


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("request.json", b"{", r"request.json is damaged; --restart begins anew"),
        ("journal.txt", b"what\n", r"journal.txt is damaged; --restart begins anew"),
        ("array.npy", b"", r"array.npy is damaged"),
    ],
)
def test_an_unfinished_result_that_is_damaged_needs_restart(scan, name, damage, complaint):
    folder = interrupted(scan)
    (folder / name).write_bytes(damage)
    assert complaint in refused(1, "scan.npy", "-o", "out.npy", "--chunks", 32)
    again = ["filter", "scan.npy", "-k", "box", "-o", "out.npy", "--chunks", "32", "--restart"]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_processes_do_not_write_one_result(scan):
    with Part(scan / "out.npy").locked():
        assert refused(1, "scan.npy", "-o", "out.npy") == "another process writes out.npy now"


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--chunks", "0"], "--chunks must be a whole number of at least 1, got '0'"),
        (["--chunks", "8,8,8"], "--chunks must be one size or 2, one for each axis of the kernel, got 3"),
        (["--scheduler", "fast"], "--scheduler must be threads, processes, or an address such as tcp://"),
        (["--scheduler", "foo://a:1"], "--scheduler foo://a:1: unknown address scheme 'foo'"),
        (["--device", "cuda"], "--device cuda is for pictures; arrays are filtered chunk by chunk on the CPU"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, complaint):
    assert refused(2, "scan.npy", "-o", "out.npy", *options).startswith(complaint)


def test_the_chunks_of_a_tiff_are_of_whole_tiles():
    assert refused(2, "scan.npy", "-o", "out.tif", "--chunks", 40).endswith("must be a multiple of 16, got 40")


def test_a_cluster_that_does_not_answer_is_told_of(monkeypatch):
    monkeypatch.setattr(schedulers, "_PATIENCE", 1)
    said = refused(1, "scan.npy", "-o", "out.npy", "--scheduler", "tcp://127.0.0.1:9")
    assert said == "no Dask scheduler answers at tcp://127.0.0.1:9 within 1 seconds"


@pytest.mark.parametrize("library", ["dask", "zarr", "tifffile"])
def test_a_missing_library_is_told_with_what_installs_it(monkeypatch, library):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == library else find_spec(name))
    said = refused(1, "scan.npy", "-o", "out.tif")
    assert said == f'{library} is not installed, which arrays on disk need: pip install "xpconv[dask]"'
