"""Filters from file to file: the numbers of the whole array within memory, and interruptions that cost nothing."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

for library in ("typer", "PIL", "dask", "zarr", "tifffile"):
    pytest.importorskip(library, reason='needs pip install "xpconv[cli,dask]"')

import dask  # noqa: E402
import dask.local  # noqa: E402
import tifffile  # noqa: E402
import zarr  # noqa: E402

from xpconv.filters import Filter, apply_filter, named_filter  # noqa: E402
from xpconv.outofcore import filtering, schedulers, targets  # noqa: E402
from xpconv.outofcore.journal import Part  # noqa: E402

HERE = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def values(*shape, dtype=np.float32):
    drawn = np.random.default_rng(0).integers(0, 200, shape)
    return drawn.astype(dtype)


def put(path, array, **how):
    """An array in the file that its name says."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack", **how)
    else:
        zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=(32,) * array.ndim)[:] = array
    return path


def got(path):
    if path.suffix == ".npy":
        return np.load(path)
    return tifffile.imread(path) if path.suffix == ".tif" else zarr.open_array(path, mode="r")[:]


def content(path):
    """Every byte of a file, or of the files of a folder by their names."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path.read_bytes()


def filtered(path, output, chosen, *, padding_mode="symmetric", chunks=None, restart=False, stop_after=None):
    """Filter a file by threads; how many chunks were finished before, and how many were written now."""
    job, told = filtering.job(path, output, chosen, padding_mode, chunks), []

    def advance():
        told.append(1)
        if len(told) == stop_after:
            raise KeyboardInterrupt

    before = []
    with schedulers.runner("threads") as runner:
        filtering.run(job, runner, restart=restart, begins=before.append, advance=advance)
    return before[0], len(told)


def xpconv_filter(*arguments, **how):
    command = [sys.executable, "-m", "xpconv", "filter", *map(str, arguments)]
    return subprocess.run(command, env=HERE, capture_output=True, text=True, check=False, **how)


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["out.npy", "out.zarr", "out.tif"])
@pytest.mark.parametrize("read", ["in.npy", "in.zarr", "in.tif"])
def test_every_format_gives_the_numbers_of_the_whole_array(tmp_path, read, written):
    x = values(100, 150)
    filtered(put(tmp_path / read, x), tmp_path / written, named_filter("gaussian", 7), chunks=[48])
    np.testing.assert_allclose(
        got(tmp_path / written), apply_filter(x[..., None], named_filter("gaussian", 7))[..., 0], rtol=1e-5
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([read, written])


@pytest.mark.parametrize("padding_mode", ["symmetric", "reflect", "edge", "wrap", "zeros"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float64"])
def test_depth_and_padding_are_those_of_pictures(tmp_path, dtype, padding_mode):
    x, chosen = values(70, 90, 3, dtype=dtype), named_filter("sobel")
    filtered(put(tmp_path / "in.npy", x), tmp_path / "out.npy", chosen, padding_mode=padding_mode, chunks=[32, 64])
    expected = apply_filter(x, chosen, padding_mode=padding_mode)
    assert got(tmp_path / "out.npy").dtype == x.dtype
    np.testing.assert_allclose(got(tmp_path / "out.npy"), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"tile": (32, 48)}, {"compression": "zlib"}, {"bigtiff": True}])
@pytest.mark.parametrize("chunks", [None, [64], [16, 48]])
def test_colours_go_from_tiff_to_tiff(tmp_path, how, chunks):
    x = values(100, 130, 3, dtype=np.uint8)
    filtered(put(tmp_path / "in.tif", x, **how), tmp_path / "out.tif", named_filter("sharpen"), chunks=chunks)
    assert np.array_equal(got(tmp_path / "out.tif"), apply_filter(x, named_filter("sharpen")))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages.first.is_tiled
        assert file.pages.first.photometric == tifffile.PHOTOMETRIC.RGB


@pytest.mark.filterwarnings("ignore:.*rechunk x to")
@pytest.mark.parametrize("shape", [(50,), (12, 20, 16), (12, 20, 16, 2)])
def test_a_kernel_of_n_axes_filters_n_axes_and_channels(tmp_path, shape):
    axes = min(len(shape), 3)
    x, chosen = values(*shape), Filter("mine", values(1, *(3,) * axes) / 100)
    filtered(put(tmp_path / "in.npy", x), tmp_path / "out.npy", chosen, chunks=[9])
    expected = apply_filter(x if len(shape) > axes else x[..., None], chosen).reshape(shape)
    np.testing.assert_allclose(got(tmp_path / "out.npy"), expected, rtol=1e-5)


def test_processes_give_the_bytes_of_threads(tmp_path):
    path = put(tmp_path / "in.npy", values(100, 150))
    filtered(path, tmp_path / "threads.npy", named_filter("box"), chunks=[50])
    done = xpconv_filter(
        "in.npy", "-k", "box", "-o", "processes.npy", "--chunks", 50, "--scheduler", "processes", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert content(tmp_path / "threads.npy") == content(tmp_path / "processes.npy")


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["out.npy", "out.zarr", "out.tif"])
def test_an_interrupted_result_goes_on_without_redoing_what_is_finished(tmp_path, written):
    path, output, chosen = put(tmp_path / "in.npy", values(128, 160)), tmp_path / written, named_filter("gaussian", 7)
    with pytest.raises(KeyboardInterrupt):
        filtered(path, output, chosen, chunks=[32], stop_after=7)
    assert not output.exists()
    assert filtered(path, output, chosen, chunks=[32]) == (7, 13)
    (tmp_path / "whole").mkdir()
    filtered(path, tmp_path / "whole" / written, chosen, chunks=[32])
    assert content(output) == content(tmp_path / "whole" / written)
    assert not Part(output).folder.exists()


def test_nobody_computes_after_an_interruption():
    began, ended = [], []

    def compute(number):
        began.append(number)
        time.sleep(0.3 * (began[0] != number))  # all others while the first is done
        ended.append(number)

    def interrupt(_):
        raise KeyboardInterrupt

    with schedulers.runner("threads") as runner, pytest.raises(KeyboardInterrupt):
        runner([dask.delayed(compute)(number) for number in range(20)], interrupt)
    assert 1 <= len(began) == len(ended) < 20


@pytest.mark.parametrize("interrupted", [0, 7, 19])
def test_an_interruption_comes_where_no_lock_is_held(monkeypatch, interrupted):
    waiting, done, get, before = [], [], dask.local.queue_get, signal.getsignal(signal.SIGINT)

    def compute(number):
        if number == interrupted:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.05)
        return number

    def watched(queue):
        waiting.append("begun")
        found = get(queue)  # an interruption here may leave the queue's lock held for good
        waiting.append("ended")
        return found

    monkeypatch.setattr(dask.local, "queue_get", watched)
    with schedulers.runner("threads") as runner, pytest.raises(KeyboardInterrupt):
        runner([dask.delayed(compute)(number) for number in range(20)], done.append)
    assert waiting.count("begun") == waiting.count("ended") == len(done) >= 1  # what has ended is told of
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_compute_with_the_context_of_who_runs_them():
    told = []
    with schedulers.runner("threads") as runner, np.errstate(over="call"):
        runner([dask.delayed(lambda: told.append(np.geterr()["over"]))() for _ in range(3)], lambda _: None)
    assert told == ["call"] * 3


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize(
    ("written", "number", "scheduler"),
    [
        ("out.npy", 9, "threads"), ("out.zarr", 9, "threads"), ("out.tif", 9, "threads"), ("out.zarr", 2, "threads"),
        ("out.npy", 2, "processes"),
    ],
)  # fmt: skip
def test_a_process_that_is_killed_is_gone_on_with(tmp_path, written, number, scheduler):
    put(tmp_path / "in.npy", values(448, 448))
    arguments = ["in.npy", "-k", "gaussian", "--size", 5, "-o", written, "--chunks", 32]
    command = [sys.executable, "-m", "xpconv", "filter", *map(str, arguments), "--scheduler", scheduler]
    how = {"cwd": tmp_path, "start_new_session": True, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    how["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
    part = Part(tmp_path / written)
    with subprocess.Popen(command, env=HERE, text=True, **how) as process:
        while len(part.finished()) < 5:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        os.killpg(process.pid, number)  # as a terminal does with Ctrl-C
        process.wait(30)
        said = process.stderr.read()
    assert not (tmp_path / written).exists()
    finished = len(part.finished())
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said == (
            f"xpconv: interrupted; {finished} of 196 chunks are finished, and the same command goes on from there\n"
        )
    done = xpconv_filter(*arguments, "--scheduler", scheduler, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{finished} of 196 chunks were finished before\n")
    (tmp_path / "whole").mkdir()
    filtered(tmp_path / "in.npy", tmp_path / "whole" / written, named_filter("gaussian", 5), chunks=[32])
    assert content(tmp_path / written) == content(tmp_path / "whole" / written)


def test_a_line_of_the_journal_that_was_cut_short_does_not_count(tmp_path):
    path, output, chosen = put(tmp_path / "in.npy", values(64, 64)), tmp_path / "out.npy", named_filter("box")
    with pytest.raises(KeyboardInterrupt):
        filtered(path, output, chosen, chunks=[32], stop_after=2)
    journal = Part(output).folder / "journal.txt"
    journal.write_bytes(journal.read_bytes()[:-1])
    assert filtered(path, output, chosen, chunks=[32]) == (1, 3)
    filtered(path, tmp_path / "whole.npy", chosen, chunks=[32])
    assert content(output) == content(tmp_path / "whole.npy")


def test_another_request_needs_restart(tmp_path):
    path, output = put(tmp_path / "in.npy", values(64, 64)), tmp_path / "out.npy"
    with pytest.raises(KeyboardInterrupt):
        filtered(path, output, named_filter("box"), chunks=[32], stop_after=2)
    with pytest.raises(ValueError, match=r"2 chunks of another request \(the kernel changed\); --restart throws them"):
        filtered(path, output, named_filter("gaussian"), chunks=[32])
    put(path, values(64, 64) + 1)
    with pytest.raises(ValueError, match=r"\(the input changed\)"):
        filtered(path, output, named_filter("box"), chunks=[32])
    assert filtered(path, output, named_filter("box"), chunks=[32], restart=True) == (0, 4)


def test_what_stood_there_is_replaced_only_by_the_whole(tmp_path):
    path, output = put(tmp_path / "in.npy", values(64, 64)), put(tmp_path / "out.zarr", values(3, 3))
    with pytest.raises(KeyboardInterrupt):
        filtered(path, output, named_filter("box"), chunks=[32], stop_after=3)
    assert np.array_equal(got(output), values(3, 3))
    filtered(path, output, named_filter("box"), chunks=[32])
    assert got(output).shape == (64, 64)


def test_a_chunk_is_noted_when_its_data_is_written(tmp_path, monkeypatch):
    path, output = put(tmp_path / "in.npy", values(64, 64)), tmp_path / "out.npy"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(targets._Npy, "write", full)
    with pytest.raises(OSError, match="No space left"):
        filtered(path, output, named_filter("box"), chunks=[32])
    assert Part(output).finished() == set()
    assert not output.exists()


# -- memory ------------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from xpconv.cli import app
import dask, dask.array, xpconv.outofcore.filtering, xpconv.engines.dask
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with dask.config.set(num_workers=2):
        app(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere other units")
def test_memory_is_bounded_by_the_chunks_and_not_by_the_array(tmp_path):
    whole = 6000 * 6000 * 4
    np.lib.format.open_memmap(tmp_path / "in.npy", mode="w+", dtype=np.float32, shape=(6000, 6000))
    arguments = ["filter", "in.npy", "-k", "gaussian", "--size", "21", "-o", "out.npy", "--chunks", "512"]
    command = [sys.executable, "-c", PEAK, *arguments]
    done = subprocess.run(command, env=HERE, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < whole
