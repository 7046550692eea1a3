"""Comparisons with other libraries and their records; `python -m benchmarks.NAME` in a checkout, never shipped."""
