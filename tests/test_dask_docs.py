"""What docs/dask.md shows is what happens."""

import re
from pathlib import Path

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
