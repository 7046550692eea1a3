"""What docs/dask.md shows is what happens."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

PAGE = (Path(__file__).parents[1] / "docs" / "dask.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_run_and_print_what_they_show(block, capsys):
    if "import xarray" in block:
        pytest.importorskip("xarray", reason="xarray is not installed")
    exec(compile(block, "docs/dask.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    for shown in re.findall(r"print\(.*\)  # ((?:True|\d).*)$", block, flags=re.MULTILINE):
        assert shown in printed


def test_the_commands_run(tmp_path, monkeypatch):
    for library in ("typer", "zarr", "tifffile"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    import zarr
    from typer.testing import CliRunner

    from xpconv.cli import app

    monkeypatch.chdir(tmp_path)
    zarr.create_array("scan.zarr", shape=(700, 600), chunks=(256, 256), dtype="f4")[:] = np.eye(700, 600)
    commands = re.findall(r"^xpconv (.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command.replace("--scheduler processes", "--scheduler threads")))
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edges.tif", "scan.zarr", "sharp.npy", "soft.zarr"]
