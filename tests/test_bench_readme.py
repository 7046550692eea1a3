"""README's table of benchmarks is what the script makes of the record that it names."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks import readme_table

RECORD = {
    "begun": "2026-11-28T21:40:03+00:00",
    "machine": {"processor": "chip", "threads": 2, "packages": {"numpy": "2.4"}},
    "devices": {"cpu": {"limits": {"matrix_gflops": {"float32": 400.0}, "copy_gbs": 21.4}}},
    "rows": [
        {"network": "net", "layer": "3x3", "operation": "conv", "batch": 8, "dtype": "float32",
         "layout": "channels_last", "device": "cpu", "ms": 4.312, "gflops": 1429.2, "gbs": 3.0,
         "share_of_limit": 2.04, "method": "winograd", "rivals": {"torch": {"ratio": 1.414}}},
        {"network": "pooling", "layer": "max", "operation": "max pool", "batch": 1, "dtype": "float64",
         "layout": "channels_first", "device": "cuda:0", "ms": 0.5, "gflops": None, "gbs": 31.25, "share_of_limit": 0.5,
         "method": "direct", "rivals": {"onnxruntime": {"ratio": 0.9}}},
    ],
}  # fmt: skip


def test_the_table_has_a_line_for_each_row_and_says_which_record():
    text = readme_table.table(RECORD, "benchmarks/results/a.json")
    assert "[a.json](benchmarks/results/a.json), begun 2026-11-28: chip, 2 threads, numpy 2.4" in text
    assert "cpu 400 GFLOP/s in float32, copies 21 GB/s" in text
    assert text.splitlines()[2:] == [
        "| layer | ms | speed | of the limit | method | torch | onnxruntime |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| net 3x3, N=8 | 4.31 | 1.43 TFLOP/s | 204 % | winograd | 1.41 |  |",
        "| pooling max, N=1, float64, channels_first, cuda:0 | 0.5 | 31.2 GB/s | 50 % | direct |  | 0.90 |",
    ]


def test_only_what_is_between_the_marks_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_table, "CHECKOUT", tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(RECORD))
    before, after = f"a\n{readme_table.BEGIN}\n", f"{readme_table.END}\nb\n"
    once = readme_table.updated(f"{before}old\n{after}", Path("a.json"))
    assert once.startswith(before)
    assert once.endswith(after)
    assert "old" not in once
    assert readme_table.updated(once, Path("a.json")) == once


def test_the_readmes_table_is_what_the_script_makes():
    readme = readme_table.README.read_text(encoding="utf-8")
    assert readme.count(readme_table.BEGIN) == readme.count(readme_table.END) == 1
    block = readme.partition(readme_table.BEGIN)[2].partition(readme_table.END)[0]
    if not block.strip():
        return  # no record stands in it yet
    (path,) = re.findall(r"^Made from \[[^]]+\]\(([^)]+)\)", block.strip())
    assert readme_table.updated(readme, Path(path)) == readme
