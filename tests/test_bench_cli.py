"""`xpconv bench` and `xpconv explain`: what they print and write, and one line for each thing that goes wrong."""

from __future__ import annotations

import json
import re
import sys
from types import ModuleType

import pytest

for library in ("typer", "rich", "matplotlib", "PIL", "sklearn"):
    pytest.importorskip(library, reason='needs pip install "xpconv[cli]"')

from typer.testing import CliRunner  # noqa: E402

from xpconv import device as devices_module  # noqa: E402
from xpconv.bench import limits, record, row, run  # noqa: E402
from xpconv.bench.table import of_comparison, of_record  # noqa: E402
from xpconv.cli import app, bench_command  # noqa: E402
from xpconv.device import DeviceInfo  # noqa: E402

WORDS = "conv2d x=1,5,6,4 w=3,3,4,2 padding=1 dtype=float64"
QUICK = (WORDS, "--device", "cpu", "--rivals", "none", "--rounds", 3)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Without rests, and with limits that nobody measured."""
    known = {"matrix_gflops": dict.fromkeys(("float32", "float64"), 100.0), "copy_gbs": 10.0}
    monkeypatch.setattr(limits, "measured", lambda *_: known)
    asked = run.Asked
    monkeypatch.setattr(run, "Asked", lambda *args, **how: asked(*args, **how, rest=0.0, batch=1e-5))
    monkeypatch.setenv("COLUMNS", "160")
    missing = DeviceInfo("cuda", "NVIDIA GPU", available=False, reason="CuPy is not installed")
    monkeypatch.setattr(devices_module, "_cuda_devices", lambda: [missing])


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(status, *arguments, monkeypatch):
    """The one line of a call that leaves with `status` before anything is measured."""
    monkeypatch.setattr(run, "run", None)
    result = call("bench", *arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.rstrip()


def test_bench_measures_a_layer_in_words_shows_and_saves_it(tmp_path):
    result = call("bench", *QUICK, "--save", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    saved = record.load(tmp_path / "a.json")
    assert re.search(rf"conv2d x=1,5,6,4.* {saved['rows'][0]['method']}", result.stdout)
    assert "float64, channels_last" in result.stdout
    assert re.search(r"complete after \d+ s, 1 rows", result.stdout)
    assert saved["state"] == "complete"
    assert saved["asked"]["rounds"] == 3
    assert saved["asked"]["rivals"] == []
    assert saved["rows"][0]["dtype"] == "float64"
    assert {"processor", "packages", "variables"} <= set(saved["machine"])


def test_bench_takes_options_repeated_and_with_commas(tmp_path):
    result = call("bench", "--layers", "LeNet", "--device", "cpu", "--rivals", "none", "--rounds", 1, "--batch", "1,2",
                  "--dtype", "float32", "--dtype", "float64", "--layout", "channels_first",
                  "--save", tmp_path / "a.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = record.load(tmp_path / "a.json")["rows"]
    assert {(row["batch"], row["dtype"], row["layout"]) for row in rows} == {
        (n, dtype, "channels_first") for n in (1, 2) for dtype in ("float32", "float64")
    }


def test_bench_compares_with_an_earlier_run(tmp_path):
    assert call("bench", *QUICK, "--save", tmp_path / "a.json").exit_code == 0
    made = record.load(tmp_path / "a.json")
    made["rows"][0]["rounds"] = [{"xpconv": 1e-9}] * 3
    record.save(made, tmp_path / "fast.json")
    result = call("bench", *QUICK, "--compare", tmp_path / "fast.json")
    assert result.exit_code == 0, result.output
    assert "1 slower, 0 faster, 0 same" in result.stdout


def test_ctrl_c_leaves_with_130_and_what_was_measured(tmp_path, monkeypatch):
    measure = row.Row.measure

    def interrupted(self, *args, **how):
        measure(self, *args, **how)
        if self.case.batch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(row.Row, "measure", interrupted)
    result = call("bench", "--layers", "LeNet", "--batch", "1,2,3", "--rivals", "none", "--rounds", 1,
                  "--save", tmp_path / "a.json")  # fmt: skip
    assert result.exit_code == 130
    assert "interrupted after" in result.stdout
    saved = record.load(tmp_path / "a.json")
    assert saved["state"] == "interrupted"
    assert [row["batch"] for row in saved["rows"]] == [1, 2]
    assert len(saved["not_measured"]) == 4


def test_every_finished_row_is_saved_at_once(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    measure = row.Row.measure

    def killed(self, *args, **how):
        if self.case.batch == 2:
            raise Killed
        measure(self, *args, **how)

    monkeypatch.setattr(row.Row, "measure", killed)
    with pytest.raises(Killed):
        call("bench", "--layers", "LeNet", "--batch", "1,2", "--rivals", "none", "--rounds", 1,
             "--save", tmp_path / "a.json")  # fmt: skip
    saved = record.load(tmp_path / "a.json")
    assert [row["batch"] for row in saved["rows"]] == [1]
    assert saved["state"] == "interrupted"


def test_a_disk_that_fills_up_is_told_after_the_table(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "a.json")

    monkeypatch.setattr(record, "save", full)
    result = call("bench", *QUICK, "--save", tmp_path / "a.json")
    assert result.exit_code == 1
    assert "complete after" in result.stdout
    assert result.stderr == "xpconv: a.json: No space left on device\n"


def test_pictures_are_written_from_the_record_and_the_comparison(tmp_path, monkeypatch):
    written = []
    for name in ("page", "figure"):
        module = ModuleType(f"xpconv.bench.{name}")
        module.write = lambda *args, name=name: written.append((name, *args))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    html, png = tmp_path / "a.html", tmp_path / "a.png"
    assert call("bench", *QUICK, "--html", html, "--png", png).exit_code == 0
    (page, made, path, compared), (figure, _, picture) = written
    assert (page, path, compared, figure, picture) == ("page", html, None, "figure", png)
    assert json.loads(json.dumps(made))["rows"]


def test_a_row_that_fails_is_told_and_alone_leaves_with_1(monkeypatch):
    monkeypatch.setattr(row, "right", lambda *_: False)
    result = call("bench", *QUICK)
    assert result.exit_code == 1
    assert "failed: in words | conv2d" in result.stdout
    assert result.stderr.startswith("xpconv: nothing could be measured: RuntimeError: xpconv: error")


@pytest.mark.parametrize(
    ("status", "arguments", "complaint"),
    [
        (2, ["--layers", "AlexNet"], "no layer is called 'AlexNet'; there are ResNet-50, VGG-16"),
        (2, ["conv2d x=1,5,5,2"], "w is missing; give its shape, as in w=8,56,56,64"),
        (2, ["conv2d x=1,5,5,2 w=3,3,2,2 padding=1 padding_mode=wrap"], "bench measures zero padding"),
        (2, ["--dtype", "int8"], "--dtype='int8' is unknown"),
        (2, ["conv2d x=1,5,5,2 w=3,3,2,2 dtype=int8"], "dtype='int8' is unknown"),
        (2, ["--batch", "0"], "--batch must be a whole number of at least 1, got '0'"),
        (2, ["--layout", "last"], "layout='last' is unknown"),
        (2, ["--device", "gpu"], 'device must be "auto", "cpu", "cuda" or "cuda:N"'),
        (1, ["--device", "cuda"], "device='cuda' cannot be had: CuPy is not installed"),
        (2, ["--rivals", "tensorflow"], "--rivals='tensorflow' is unknown"),
        (1, ["--rivals", "scipy,cupyx"], "--rivals cupyx: cupyx is not installed: pip install"),
        (1, ["--dtype", "bfloat16"], "bfloat16 needs NumPy to have it: pip install ml-dtypes"),
        (2, ["--precision", "tf32"], "--precision is for --tune"),
        (1, ["--save", "nowhere/a.json"], "nowhere/a.json cannot be written: there is no folder nowhere"),
        (1, ["--html", "nowhere/a.html"], "nowhere/a.html cannot be written: there is no folder nowhere"),
        (1, ["--png", "nowhere/a.png"], "nowhere/a.png cannot be written: there is no folder nowhere"),
        (1, ["--compare", "nothing.json"], "nothing.json: No such file or directory"),
    ],
)
def test_what_cannot_be_measured_is_one_line_before_anything_is(tmp_path, monkeypatch, status, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    for absent in ("cupyx", "ml_dtypes"):
        monkeypatch.setitem(sys.modules, absent, None)
    assert refused(status, *arguments, monkeypatch=monkeypatch).startswith(f"xpconv: {complaint}")


def test_a_malformed_record_is_one_line_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "old.json").write_text("{}")
    line = refused(2, "--compare", tmp_path / "old.json", monkeypatch=monkeypatch)
    assert line.startswith(f"xpconv: {tmp_path / 'old.json'} is no record of xpconv bench")


def test_a_record_that_would_replace_what_it_is_compared_with_is_read_first(tmp_path):
    path = tmp_path / "a.json"
    assert call("bench", *QUICK, "--save", path).exit_code == 0
    result = call("bench", *QUICK, "--save", path, "--compare", path)
    assert result.exit_code == 0
    assert "compared with the run of" in result.stdout


# --- Tables -----------------------------------------------------------------------------------------------------------


def text_of(parts, width):
    from rich.console import Console

    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        bench_command.show(parts, console)
    return captured.get()


def made_up():
    one = {
        "key": "a", "network": "net", "layer": "3x3", "batch": 8, "dtype": "float32", "layout": "channels_last",
        "device": "cpu", "method": "winograd", "ms": 1.234, "ms_10_90": [1.2, 1.3], "gflops": 1100.0, "gbs": 9.0,
        "limit": "matrix product", "share_of_limit": 2.05, "rounds": [{"xpconv": 1.0}] * 3,
        "rivals": {"torch": {"ratio": 2.0}, "onnxruntime": {"ratio": 0.5}},
    }  # fmt: skip
    other = one | {"key": "b", "batch": 1, "gflops": None, "limit": "copy", "share_of_limit": 0.5, "rivals": {}}
    there = {"description": "chip", "limits": {"matrix_gflops": {"float32": 500.0}, "copy_gbs": 20.0}}
    return record.new({}, {"cores": 2, "load_average": [1.7, 1, 1]}) | {
        "devices": {"cpu": there}, "rows": [one, other], "missing_rivals": {"jax": "jax is not installed: pip"},
        "failed": {"c": "MemoryError"}, "not_measured": ["d"], "state": "stopped by the time limit",
    }  # fmt: skip


@pytest.mark.parametrize("width", [80, 160])
def test_a_table_shows_speed_share_ratio_and_method_at_any_width(width):
    text = text_of(of_record(made_up(), width), width)
    for word in ("net 3x3, N=8", "1.23", "1,100", "205 %", "winograd", "9.00 GB/s", "50 % c", "torch", "2.00", "0.50"):
        assert word in re.sub(r"\s+", " ", text) or word in text
    assert max(map(len, text.splitlines()[4:-8])) <= width
    assert "matrix products 500 GFLOP/s in float32; copies 20.0 GB/s" in text
    assert "torch takes 2.00 times as long as xpconv, geometric mean of 1 row" in text
    for line in ("without jax: jax is not installed", "failed: c: MemoryError", "stopped by the time limit after 0 s",
                 "not measured: d", "1.7 threads of other work ran on the 2 cores"):  # fmt: skip
        assert line in text


def test_a_table_of_changes_names_slower_rows_and_methods():
    from xpconv.bench.compare import Change, Comparison, Machine

    change = Change("net | 3x3", 1.0, 2.0, 2.0, "slower", "winograd", "direct")
    compared = Comparison("yesterday", {"cpu": Machine(1.1, 0.02, "3 times of rivals")}, (change,), ("gone",), ())
    text = text_of(of_comparison(compared), 120)
    for word in ("yesterday", "1.1 times as long", "2.0 %", "winograd, now direct", "slower", "1 slower, 0 faster"):
        assert word in text
    assert "1 in the earlier run alone" in text


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_prints_the_plan_its_limit_and_what_was_not_taken():
    result = call("explain", "conv2d x=8,56,56,64 w=3,3,64,128 padding=1 dtype=float32", "--device", "cpu")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "conv on the numpy engine"
    assert any(line.startswith("  operations  3,699,376,128") for line in lines)
    assert "  limit       matrix product: 37 ms at the 100 GFLOP/s of cpu" in lines
    assert re.search(r"^  expected    [\d.]+ [mµ]s$", result.stdout, re.MULTILINE)
    rejected = re.findall(r"^  not (\w+): (.+)$", result.stdout, re.MULTILINE)
    assert len(rejected) == 3
    assert all(re.search(r"times the expected time", why) for _, why in rejected)


def test_explain_needs_no_memory_for_the_arrays():
    result = call("explain", "conv2d x=64,4096,4096,16 w=3,3,16,16 padding=1", "--device", "cpu")  # 64 GiB each
    assert result.exit_code == 0, result.output


def test_explain_says_what_integers_cannot_be_computed_by_and_is_one_line_for_errors():
    result = call("explain", "conv2d x=1,9,9,2 w=3,3,2,2 dtype=int32", "--device", "cpu")
    assert "not winograd: rounds, which integers cannot bear" in result.stdout
    assert "copy:" in result.stdout
    result = call("explain", "conv9d x=1", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.startswith("xpconv: 'conv9d' is no function to measure")
