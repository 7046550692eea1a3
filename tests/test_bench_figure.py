"""The figure of a record, for papers."""

import struct
import subprocess
import sys

import pytest

import bench_records as records

pytest.importorskip("matplotlib", reason='needs pip install "xpconv[cli]"')

from xpconv.bench import figure


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sample", ["full", "one_row", "interrupted", "two_devices", "hostile"])
def test_a_png_is_as_wide_as_two_columns_of_a_paper(sample, tmp_path):
    figure.write(getattr(records, sample)(), tmp_path / "bench.png")
    data = (tmp_path / "bench.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">I", data[16:20])[0] == round(figure.WIDTH * figure.DPI)


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a", b"\x89PNG")])
def test_the_extension_says_the_format(name, start, tmp_path):
    figure.write(records.one_row(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def svg_of(record, folder):
    figure.write(record, folder / "a.svg")
    return (folder / "a.svg").read_text(encoding="utf-8")


def test_it_names_roofs_networks_rivals_and_their_means(tmp_path):
    svg = svg_of(records.full(), tmp_path)
    roofs = ["copy 30.8 GB/s", "float32 215", "float64 107", "hollow: float64", "signal"]
    bars = ["ResNet-50  torch", "image filter  opencv", ">1.51<"]
    assert [text for text in roofs + bars if text not in svg] == []


def test_each_device_has_its_own_roofline(tmp_path):
    svg = svg_of(records.two_devices(), tmp_path)
    assert "cuda:0: NVIDIA H100" in svg
    assert "float64 53,900" in svg


def test_rows_without_rivals_are_still_drawn(tmp_path):
    assert "no rival was measured" in svg_of(records.one_row(), tmp_path)


def test_nothing_measured_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="nothing was measured that a figure could show"):
        figure.write(records.empty(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_names_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"no figure ends in \.docx; take one of .*pdf, pgf, png"):
        figure.write(records.one_row(), tmp_path / "a.docx")


def test_without_matplotlib_one_line_says_what_installs_it():
    code = """if True:
        import sys; sys.modules["matplotlib"] = None
        from pathlib import Path
        from xpconv.bench import figure
        try:
            figure.write({}, Path("a.png"))
        except ModuleNotFoundError as error:
            print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'matplotlib is not installed; pip install "xpconv[cli]"'
