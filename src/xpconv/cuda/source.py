"""Where the CUDA sources are, and their text with our headers pasted in.

CuPy's on-disk cache of compiled kernels is keyed by the text that it is given, not by what that text includes: with
our headers left to `#include`, an edited header would keep serving the old binary.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

_INCLUDE = re.compile(r'#include "([\w.]+)"')


def kernel_dir() -> Traversable:
    """Folder of the CUDA sources: in the package once installed, at the top of the checkout otherwise."""
    installed = files("xpconv") / "kernels"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "kernels"


@lru_cache(maxsize=64)
def text(file: str) -> str:
    """The text of one file of `kernels/`, every header pasted in once, with marks that keep line numbers true."""
    return _pasted(file, set())


def _pasted(file: str, seen: set[str]) -> str:
    if file in seen:
        return ""
    seen.add(file)
    lines = [f'#line 1 "kernels/{file}"']
    for number, line in enumerate((kernel_dir() / file).read_text(encoding="utf-8").splitlines(), start=1):
        include = _INCLUDE.fullmatch(line)
        included = _pasted(include[1], seen) if include else ""
        if included:
            lines += [included, f'#line {number + 1} "kernels/{file}"']
        else:
            lines.append("" if include else line)
    return "\n".join(lines)
