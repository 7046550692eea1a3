"""The command line: what it prints, what it writes, and one line for each thing that goes wrong."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for library in ("typer", "rich", "matplotlib", "PIL", "sklearn"):
    pytest.importorskip(library, reason='needs pip install "xpconv[cli]"')

from PIL import Image  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from xpconv import __main__ as entry  # noqa: E402
from xpconv import cli, demo, figures  # noqa: E402
from xpconv import device as module  # noqa: E402
from xpconv.cli import app, confusion_table, filter_command, tune_command  # noqa: E402
from xpconv.device import DeviceInfo  # noqa: E402


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments):
    """What a call prints, without the colours that some terminals are given."""
    return re.sub(r"\x1b\[[0-9;]*m", "", run(*arguments).stdout)


def refused(status, *arguments):
    """The one line on stderr of a call that leaves with `status` and prints nothing else."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.rstrip()


def python_m_xpconv(*arguments, stdout=subprocess.PIPE):
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-m", "xpconv", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch):
    monkeypatch.delenv("XPCONV_DEVICE", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def photo(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (12, 15, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def _no_gpu(monkeypatch):
    missing = DeviceInfo(
        "cuda", "NVIDIA GPU", available=False, reason='CuPy is not installed; pip install "xpconv[cuda12]"'
    )
    monkeypatch.setattr(module, "_cuda_devices", lambda: [missing])


# -- the program -----------------------------------------------------------------------------------------------------


def test_python_m_xpconv_is_the_same_program():
    done = python_m_xpconv("devices")
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stdout
    assert python_m_xpconv("--version").stdout.startswith("xpconv")


def test_the_help_shows_the_commands_and_their_examples():
    assert all(command in printed("--help") for command in ("devices", "filter", "bench", "demo"))
    assert "xpconv devices" in printed("devices", "--help")
    assert "xpconv filter photo.jpg --kernel sobel -o edges.png" in printed("filter", "--help")
    assert '--kernel "[[0, -1, 0], [-1, 5, -1], [0, -1, 0]]"' in printed("filter", "--help")
    assert "xpconv demo --output pictures --seed 1" in printed("demo", "--help")


def test_a_missing_library_is_one_line_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(entry, "find_spec", lambda name: None if name == "typer" else object())
    with pytest.raises(SystemExit) as left:
        entry.main()
    assert left.value.code == 'xpconv\'s command line needs more: pip install "xpconv[cli]"'


# -- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_gpu")
def test_devices_says_what_can_compute_what_cannot_and_why():
    output = printed("devices")
    assert re.search(r"cpu .* yes", output)
    assert re.search(r"cuda .* no", output)
    assert output.endswith('cuda: CuPy is not installed; pip install "xpconv[cuda12]"\nauto takes cpu\n')


def test_devices_looks_for_the_devices_once(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "devices", lambda: calls.append(1) or [DeviceInfo("cpu", "a processor")])
    assert run("devices").exit_code == 0
    assert len(calls) == 1


def test_devices_names_a_wrong_variable(monkeypatch):
    monkeypatch.setenv("XPCONV_DEVICE", "gpu")
    result = run("devices")
    assert result.exit_code == 2
    assert result.stderr.startswith('xpconv: XPCONV_DEVICE must be "auto", "cpu", "cuda" or "cuda:N"')


# -- filter ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["sobel", "gaussian", "sharpen", "emboss", "laplacian", "box", "[[0, 1], [-1, 0]]"])
def test_filter_writes_a_picture_of_the_same_size(photo, kernel):
    output = photo.with_name("out.png")
    result = run("filter", photo, "--kernel", kernel, "-o", output)
    assert result.exit_code == 0, result.output
    assert Image.open(output).size == Image.open(photo).size
    assert result.stdout == f"{output}: {photo} convolved with {kernel}\n"


def test_filter_takes_size_and_padding_mode(photo):
    output = photo.with_name("out.png")
    assert run("filter", photo, "-k", "box", "--size", 5, "--padding-mode", "zeros", "-o", output).exit_code == 0
    before, after = (np.asarray(Image.open(path)).astype(int) for path in (photo, output))
    assert abs(before[:3, :3].sum(axis=(0, 1)) / 25 - after[0, 0]).max() <= 0.5


def test_filter_keeps_alpha(photo):
    values = np.random.default_rng(0).integers(0, 255, (12, 15, 4), np.uint8)
    Image.fromarray(values).save(photo)
    run("filter", photo, "-k", "sobel", "-o", photo)
    assert np.array_equal(np.asarray(Image.open(photo))[..., 3], values[..., 3])


def test_filter_reads_a_kernel_from_a_file(photo):
    np.save(photo.with_name("k.npy"), np.array([[1.0]]))
    output = photo.with_name("out.png")
    run("filter", photo, "-k", photo.with_name("k.npy"), "-o", output)
    assert np.array_equal(np.asarray(Image.open(output)), np.asarray(Image.open(photo)))


def test_filter_may_write_over_its_input(photo):
    before = photo.read_bytes()
    assert run("filter", photo, "-k", "box", "-o", photo).exit_code == 0
    assert photo.read_bytes() != before


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        ("blur", "no kernel is called 'blur'; there are box, emboss"),
        ("[1, 2]", "the kernel [1, 2] must have two axes and at least one value, it has shape (2,)"),
        ("[[1, 2], [3]]", "the kernel '[[1, 2], [3]]' is no list of equally long rows of numbers"),
        ("[[1e999]]", "the kernel [[1e999]] holds NaN or infinity"),
    ],
)
def test_a_wrong_kernel_is_one_line_and_writes_nothing(photo, kernel, complaint):
    assert refused(2, "filter", photo, "-k", kernel, "-o", photo.with_name("out.png")).startswith(
        f"xpconv: {complaint}"
    )
    assert not photo.with_name("out.png").exists()


def test_a_pickled_kernel_is_one_line(photo):
    np.save(photo.with_name("k.npy"), np.array([[{}]], dtype=object), allow_pickle=True)
    line = refused(2, "filter", photo, "-k", photo.with_name("k.npy"), "-o", photo.with_name("out.png"))
    assert "k.npy holds no plain array that NumPy can read (Object arrays cannot be loaded" in line


def test_a_missing_kernel_file_is_one_line(photo):
    line = refused(1, "filter", photo, "-k", "none.npy", "-o", photo.with_name("out.png"))
    assert line == "xpconv: none.npy: No such file or directory"


def test_a_size_for_sobel_is_one_line(photo):
    line = refused(2, "filter", photo, "-k", "sobel", "--size", 5, "-o", photo.with_name("out.png"))
    assert line == "xpconv: --size 5 belongs to the kernels gaussian and box, sobel has a size of its own"


def test_an_unreadable_picture_is_one_line(photo):
    photo.write_bytes(b"not a picture")
    line = refused(1, "filter", photo, "-k", "sobel", "-o", photo.with_name("out.png"))
    assert line == f"xpconv: {photo} cannot be read as a picture: its format is unknown"


def test_a_missing_picture_is_one_line(tmp_path):
    line = refused(1, "filter", tmp_path / "none.png", "-k", "sobel", "-o", tmp_path / "out.png")
    assert line == f"xpconv: {tmp_path / 'none.png'} does not exist"


def test_an_unknown_extension_is_one_line(photo):
    line = refused(2, "filter", photo, "-k", "sobel", "-o", photo.with_name("out.xyz"))
    assert line == f"xpconv: {photo.with_name('out.xyz')}: no picture format is written as '.xyz'; take .png"


def test_a_missing_folder_is_one_line(photo):
    output = photo.with_name("none") / "out.png"
    line = refused(1, "filter", photo, "-k", "sobel", "-o", output)
    assert line == f"xpconv: {output} cannot be written: there is no folder {output.parent}"


def test_a_folder_as_output_is_one_line(photo):
    line = refused(1, "filter", photo, "-k", "sobel", "-o", f"{photo.parent}/")
    assert line == f"xpconv: {photo.parent} cannot be written: it is a folder"


@pytest.mark.parametrize("output", ["out.xyz", "none/out.png"])
def test_the_output_is_looked_at_before_the_work(tmp_path, output):
    line = refused(
        2 if output == "out.xyz" else 1, "filter", tmp_path / "none.png", "-k", "box", "-o", tmp_path / output
    )
    assert line.startswith(f"xpconv: {tmp_path / output}")


def test_depth_that_pillow_loses_is_said_beside_the_result(photo, monkeypatch):
    read = filter_command.read_picture
    monkeypatch.setattr(filter_command, "read_picture", lambda path: dataclasses.replace(read(path), depth_lost=True))
    result = run("filter", photo, "-k", "box", "-o", photo.with_name("out.png"))
    assert result.exit_code == 0
    assert result.stderr == f"xpconv: {photo} holds 16-bit colour, of which Pillow reads the upper 8 bits\n"
    assert result.stdout == f"{photo.with_name('out.png')}: {photo} convolved with box\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["devices", "filter"])
def test_a_full_disk_behind_stdout_is_one_line(photo, command):
    arguments = [photo, "-k", "box", "-o", photo.with_name("out.png")] if command == "filter" else []
    with Path("/dev/full").open("w") as full:
        done = python_m_xpconv(command, *map(str, arguments), stdout=full)
    assert done.returncode == 1
    assert done.stderr == "xpconv: No space left on device\n"


def test_an_output_that_cannot_be_written_is_one_line_and_leaves_no_half_file(photo, monkeypatch):
    def fail_midway(_, part, **__):
        Path(part).write_bytes(b"half of it")
        raise PermissionError(13, "Permission denied", str(part))

    monkeypatch.setattr(Image.Image, "save", fail_midway)
    line = refused(1, "filter", photo, "-k", "sobel", "-o", photo.with_name("out.png"))
    assert line == f"xpconv: {photo.with_name('out.png')} cannot be written: Permission denied"
    assert list(photo.parent.iterdir()) == [photo]


@pytest.mark.usefixtures("_no_gpu")
def test_a_device_that_cannot_be_had_is_one_line_with_the_command_that_brings_it(photo):
    line = refused(1, "filter", photo, "-k", "sobel", "--device", "cuda", "-o", photo.with_name("out.png"))
    reason = 'CuPy is not installed; pip install "xpconv[cuda12]"'
    assert line == f"xpconv: device='cuda' cannot be had: {reason}"


def test_a_device_that_does_not_exist_is_one_line(photo):
    line = refused(2, "filter", photo, "-k", "sobel", "--device", "gpu", "-o", photo.with_name("out.png"))
    assert line == """xpconv: device must be "auto", "cpu", "cuda" or "cuda:N" with N from 0, got 'gpu'"""


# -- bench -----------------------------------------------------------------------------------------------------------

WORDS = "conv2d x=1,5,6,16 w=3,3,16,20 padding=1 dtype=float64"


@pytest.fixture
def quick(cupy, tmp_path, monkeypatch):  # noqa: ARG001  it is found where `xpconv.cuda` imports it
    """A clock that finds every later alternative faster, and a cache of the test's own."""
    from xpconv.cuda import measuring, tuning

    class Clock:
        def __init__(self):
            self.calls = 0

        def __call__(self, _, run):
            run()
            self.calls += 1
            return 1 / self.calls

    monkeypatch.setattr(measuring, "EventClock", Clock)
    monkeypatch.setenv("XPCONV_CACHE_DIR", str(tmp_path / "cache"))
    tuning.forget()
    yield tmp_path / "cache" / tuning.FILE
    tuning.forget()


def test_bench_times_a_layer_and_its_gradients_and_keeps_the_winners(quick):
    output = printed("bench", "--tune", WORDS)
    for direction in ("forward", "input gradient", "weight gradient"):
        assert re.search(rf"{direction} .* µs .* µs .*conv_simt<double", output)
    assert output.endswith(f"3 convolutions measured, kept in {quick}\n")
    assert quick.read_text().count('"plan"') == 3


def test_bench_tells_what_it_leaves_out_and_why(quick, monkeypatch):
    from xpconv.cuda import measuring

    monkeypatch.setattr(measuring, "_same", lambda *_: False)
    result = run("bench", "--tune", WORDS)
    assert result.exit_code == 0
    assert "is left out: its result is not that of the plan that is taken without measuring" in result.stderr
    few = run("bench", "--tune", "conv2d x=1,5,5,3 w=3,3,3,2 dtype=int16")
    assert few.stdout.count("not measured: one kernel") == 3
    assert few.stdout.endswith(f"0 convolutions measured, kept in {quick}\n")


def test_bench_keeps_what_is_measured_before_ctrl_c(quick, monkeypatch):
    from xpconv.cuda import measuring

    measure = measuring.measure

    def interrupted(direction, *rest):
        if direction == "weight gradient":
            raise KeyboardInterrupt
        return measure(direction, *rest)

    monkeypatch.setattr(measuring, "measure", interrupted)
    result = run("bench", "--tune", WORDS)
    assert result.exit_code == 130
    assert result.stdout.endswith(f"interrupted; 2 convolutions measured, kept in {quick}\n")
    assert quick.read_text().count('"plan"') == 2


def test_bench_looks_at_the_folder_before_the_measuring(quick, monkeypatch):
    monkeypatch.setattr(tune_command, "tune_layers", refuse_to_work)
    quick.parent.write_text("a file")
    assert refused(1, "bench", "--tune", WORDS).endswith(f"{quick.parent}: File exists")


@pytest.mark.usefixtures("quick")
def test_bench_takes_named_layers(monkeypatch):
    asked = []
    monkeypatch.setattr(tune_command, "tune_layers", lambda cases, _: asked.extend(cases) or True)
    assert run("bench", "--tune").exit_code == 0
    assert {case.name.partition(" ")[0] for case in asked} == {
        "ResNet-50", "VGG-16", "depthwise", "audio", "volume", "LeNet", "dilated", "grouped",
    }  # fmt: skip
    assert {(case.spec.batch, case.dtype, case.precision) for case in asked} == {(8, "float32", "highest")}
    asked.clear()
    given = ["--layers", "vgg-16", "--layers", "volume 3x3x3 32->32, 32x32x32", "--batch", 2, "--precision", "tf32"]
    assert run("bench", "--tune", *given).exit_code == 0
    assert (len(asked), asked[-1].name, asked[-1].spec.batch) == (
        7,
        "volume 3x3x3 32->32, 32x32x32, N=2, float32 in TF32",
        2,
    )
    assert {case.precision for case in asked} == {"tf32"}


@pytest.mark.usefixtures("_no_gpu")
def test_bench_says_why_there_is_no_gpu():
    line = refused(1, "bench", "--tune")
    assert line == """xpconv: device='cuda' cannot be had: CuPy is not installed; pip install "xpconv[cuda12]\""""
    assert refused(2, "bench", "--tune", "--device", "cpu").startswith("xpconv: --tune times CUDA kernels")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["conv4d x=1"], "'conv4d' is no function to measure"),
        (["conv2d x=1,5,5,2"], "w is missing; give its shape, as in w=8,56,56,64"),
        (["conv2d x=1,5,5,2 w=3,3,2,2 stripe=2"], "'stripe=2' is no argument here; there are x=, w=, stride="),
        (["conv2d x=1 5"], "'5' is no argument here"),
        (["conv2d x=1,5 x=1"], "'x=1': x is given twice"),
        (["conv2d x=1,5,5,2 w=3,3,2,a"], "w=3,3,2,a is no list of integers"),
        (["conv2d x=1,0,5,2 w=3,3,2,2"], "x=1,0,5,2 is no shape to measure on"),
        (["conv2d x=1,5,5,3 w=3,3,2,2"], "x has 3 channels but w reads 2"),
        (["conv2d x=1,5,5,2 w=3,3,2,2 stride=1,2,3"], "stride has 3 entries but there are 2 spatial axes"),
        (["conv2d x=1,5,5,2 w=3,3,2,2 stride=0"], "stride must be at least 1"),
        (["conv2d x=1,5,5,2 w=3,3,2,2 padding=some"], "padding='some' is unknown"),
        (["conv2d x=1,5,5,2 w=3,3,2,2 groups=1,2"], "groups must be an integer"),
        (["conv2d x=1,5,5,2 w=3,3,2,2 dtype=float"], "dtype='float' is unknown"),
        (["conv2d x=1,5,5,2 w=9,9,2,2"], "the window does not fit: spatial axis 0 is 5 long"),
        ([WORDS, "--dtype", "float32"], f"--dtype float32 contradicts float64 in {WORDS!r}"),
        ([WORDS, "--batch", 4], f"--batch is for layers by name, and {WORDS!r} is a layer in words"),
        (["--layers", "AlexNet"], "no layer is called 'AlexNet'; there are ResNet-50, VGG-16"),
        (["--dtype", "half"], "--dtype='half' is unknown"),
        (["--layers", "pooling"], "--tune times convolutions, and 'pooling' is none; without --tune bench measures it"),
        (["--batch", "1,8"], "--tune takes one --batch, got 1, 8"),
        (["--batch", "0"], "--batch must be a whole number of at least 1, got '0'"),
    ],
)
def test_a_wrong_layer_is_one_line_that_names_the_part(arguments, complaint):
    assert refused(2, "bench", "--tune", *arguments).startswith(f"xpconv: {complaint}")


# -- demo ------------------------------------------------------------------------------------------------------------


def test_demo_trains_saves_pictures_and_ends_with_the_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "train_digits", functools.partial(demo.train_digits, epochs=1))
    result = run("demo", "--output", tmp_path / "new" / "folder", "--device", "cpu", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("device: cpu, ")
    assert "(asked for)" in result.stdout
    accuracy = re.fullmatch(r"held-out accuracy: (\d+\.\d\d) %", result.stdout.splitlines()[-1])
    assert float(accuracy[1]) > 20  # of ten digits, after one epoch
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == [
        "feature-maps.png",
        "hardest-digits.png",
        "learned-kernels.png",
        "photograph-china.png",
        "photograph-flower.png",
        "training.png",
    ]
    for name in names:
        Image.open(tmp_path / "new" / "folder" / name).verify()


def test_a_demo_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    result = run("demo", "-o", tmp_path / "taken", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr == f"xpconv: {tmp_path / 'taken'}: File exists\n"


@pytest.mark.parametrize("name", ["training.png", "photograph-flower.png"])
def test_a_folder_in_the_place_of_a_picture_is_one_line_before_the_training(tmp_path, monkeypatch, name):
    monkeypatch.setattr(demo, "train_digits", refuse_to_work)
    monkeypatch.setattr(demo, "apply_filter", refuse_to_work)
    (tmp_path / name).mkdir()
    result = run("demo", "-o", tmp_path, "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr == f"xpconv: {tmp_path / name} cannot be written: it is a folder\n"


def test_a_demo_folder_that_may_not_be_written_is_one_line_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "train_digits", refuse_to_work)
    monkeypatch.setattr(demo, "apply_filter", refuse_to_work)
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    result = run("demo", "-o", tmp_path, "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.endswith(".png cannot be written: its folder is not writable\n")


def refuse_to_work(*_, **__):
    raise AssertionError("worked before the folder was looked at")


def test_read_digits_looks_at_the_folder_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "train_digits", refuse_to_work)
    (tmp_path / "training.png").mkdir()
    with pytest.raises(IsADirectoryError):
        demo.read_digits(tmp_path, device="cpu")


def test_the_demo_computes_where_it_was_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "backend", lambda device: ("namespace", f"place of {device}"))
    trained_with, filtered_on = {}, set()

    def train(**given):
        trained_with.update(given)
        raise InterruptedError

    def apply(pixels, _, *, device):
        filtered_on.add(device)
        return pixels

    monkeypatch.setattr(demo, "train_digits", train)
    monkeypatch.setattr(demo, "apply_filter", apply)
    monkeypatch.setattr(figures, "save", lambda _, path: path)
    assert run("demo", "-o", tmp_path, "--device", "cpu", "--seed", 7).exit_code == 1
    assert trained_with == {"xp": "namespace", "device": "place of cpu", "seed": 7, "progress": True}
    assert filtered_on == {"cpu"}


@pytest.mark.usefixtures("_no_gpu")
def test_the_demo_begins_with_the_device_and_a_short_reason(tmp_path):
    (tmp_path / "training.png").mkdir()
    assert re.fullmatch(r"device: cpu, .* \(no CUDA: CuPy is not installed\)\n", printed("demo", "-o", tmp_path))


def test_the_confusion_table_has_a_row_for_what_it_is_and_a_column_for_what_it_was_read_as():
    counts = np.zeros((10, 10), int)
    counts[3, 8], counts[4, 4] = 5, 7
    table = confusion_table(counts)
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == [str(digit) for digit in range(10)]
    assert columns[1 + 8] == ["", "", "", "[bold red]5[/bold red]", *[""] * 6]
    assert columns[1 + 4] == ["", "", "", "", "[green]7[/green]", *[""] * 5]
    assert sum(cell != "" for column in columns[1:] for cell in column) == 2


def test_tiles_are_laid_out_from_the_upper_left_row_by_row():
    board = figures._mosaic(np.arange(1, 7).reshape(3, 1, 2), columns=2)
    gap = np.nan
    np.testing.assert_array_equal(board, [[1, 2, gap, 3, 4], [gap] * 5, [5, 6, gap, gap, gap]])


def test_the_confusion_matrix_counts_each_reading():
    counts = demo.confusion_matrix(np.array([3, 3, 8, 8]), np.array([3, 8, 8, 8]))
    assert (counts[3, 3], counts[3, 8], counts[8, 8], counts.sum()) == (1, 1, 2, 4)
