"""xpconv on Dask arrays: memory, speed, scaling, the size of graphs, and a model of many workers.

In a checkout `import dask` finds the library, and not this package, because only the folder above is on the path: the
scripts of `benchmarks/` are run with `python -m benchmarks.NAME`.
"""
