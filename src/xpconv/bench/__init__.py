"""Benchmarks of devices: what runs here, how fast, how near the limit, and beside which rivals."""
