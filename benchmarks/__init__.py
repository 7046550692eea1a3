"""Comparisons with other libraries and their records; `python -m benchmarks.NAME` in a checkout, never shipped."""

import os

os.environ.setdefault("XPCONV_COMPILE", "wait")  # what is timed is kernels, not what answers until they are compiled
