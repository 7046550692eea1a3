"""Records as `xpconv bench` writes them, for the tests of what is made from records.

The times and ratios in bench_rows.txt were measured on a CPU; those of a GPU are made up from operations and bytes.
"""

import copy
from pathlib import Path

RIVALS = ("torch", "scipy", "opencv", "onnxruntime")
CPU = {
    "description": "AMD EPYC 9B14, compiled kernels",
    "threads": 2,
    "limits": {"matrix_gflops": {"float32": 214.6, "float64": 106.9}, "copy_gbs": 30.8},
}
GPU = {
    "description": "NVIDIA H100 80GB HBM3",
    "threads": None,
    "limits": {"matrix_gflops": {"float32": 51200.0, "float64": 53900.0}, "copy_gbs": 2710.0},
}
MACHINE = {
    "processor": "AMD EPYC 9B14",
    "cores": 2,
    "threads": 2,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "load_average": [0.41, 0.62, 0.55],
    "blas": ["openblas 0.3.31 SkylakeX 2"],
    "packages": {"numpy": "2.4.6", "scipy": "1.17.1", "torch": "2.13.0", "onnxruntime": "1.32.0", "opencv": "5.0.0"},
    "variables": {"OPENBLAS_CORETYPE": "not set", "OPENBLAS_L2_SIZE": "not set", "OMP_NUM_THREADS": "not set"},
    "commit": "e3842643e17ca6a0e41ee011bca68d36b0d2eeb1",
}
HOSTILE = """</script><script>alert("1")</script> & 'all' <!-- <b>"""


def record(rows, **more):
    """A complete run with these rows; every part of it may be changed without changing another record."""
    told = {
        "format": 1, "xpconv": "0.1.0", "begun": "2026-11-28T21:40:03+00:00", "seconds": 412.3, "state": "complete",
        "asked": {
            "layers": ["all"], "dtype": ["float32", "float64"], "batch": [1, 8], "layout": ["channels_last"],
            "rivals": list(RIVALS), "rounds": 7, "cold": False, "time_limit": 540.0,
        },
        "machine": MACHINE, "devices": {"cpu": CPU}, "missing_rivals": {}, "rows": rows, "failed": {},
        "not_measured": [],
    }  # fmt: skip
    return copy.deepcopy(told | more)


def row(network, layer, operation="conv", batch=8, dtype="float32", *, operations=1.85e9, size=13e6, method="winograd",
        ms=(4.24, 4.08, 4.32), rivals=None, device="cpu", limits=CPU["limits"], left_out=None):  # fmt: skip
    """One finished row; times are a median and the ends of its spread, and so are the rivals' ratios."""
    gflops, gbs = operations and operations / ms[0] / 1e6, size / ms[0] / 1e6
    bound = "copy" if not operations or operations / size * limits["copy_gbs"] < limits["matrix_gflops"][dtype] else ""
    return {
        "key": f"{network} | {operation} | {layer} | N={batch} | {dtype} | channels_last | {device}",
        "network": network, "layer": layer, "operation": operation, "batch": batch, "dtype": dtype,
        "layout": "channels_last", "device": device, "operations": operations and round(operations),
        "bytes": round(size), "method": method, "tile": "", "workspace": None, "ms": ms[0], "ms_10_90": list(ms[1:]),
        "gflops": gflops, "gbs": gbs, "limit": bound or "matrix product",
        "share_of_limit": gbs / limits["copy_gbs"] if bound else gflops / limits["matrix_gflops"][dtype],
        "error": 7.5e-6 if method == "winograd" else 3e-7,
        "rivals": {
            name: {"ms": ms[0] * ratio[0], "ms_10_90": [ms[0] * end for end in ratio[1:]], "ratio": ratio[0],
                   "ratio_10_90": list(ratio[1:]), "error": 2e-7}
            for name, ratio in (rivals or {}).items()
        },
        "left_out": left_out or {}, "rounds": [],
    }  # fmt: skip


def measured():
    """The rows of a real run: eleven networks and pooling, four rivals, two dtypes."""
    return [_read(line) for line in Path(__file__).with_name("bench_rows.txt").read_text(encoding="utf-8").splitlines()]


def _read(line):
    network, layer, operation, batch, dtype, operations, size, method, ms, beside = line.split(" | ")
    ratios = {name: tuple(map(float, ends)) for name, *ends in (part.split() for part in beside.split("; "))}
    left_out = {} if operation == "filter" else {"scipy": "more than one channel"}
    return row(
        network, layer, operation, int(batch), dtype, operations=None if operations == "-" else float(operations),
        size=float(size), method=method, ms=tuple(map(float, ms.split())), rivals=ratios, left_out=left_out,
    )  # fmt: skip


def full():
    """All rows of the run."""
    return record(measured())


def empty():
    """Nothing measured."""
    return record([], devices={"cpu": CPU}, state="interrupted", not_measured=["LeNet-5 | 5x5 1->6, 28x28 | N=1"])


def one_row():
    """One row, and no rival to set it against."""
    return record([row("ResNet-50", "3x3 64->64, 56x56")])


def interrupted():
    """Ctrl-C after five rows; three rivals are not installed, and a variable slows NumPy's BLAS."""
    return record(
        measured()[:5],
        state="interrupted",
        machine=MACHINE | {"variables": MACHINE["variables"] | {"OPENBLAS_CORETYPE": "Haswell"}},
        missing_rivals={
            "jax": "jax is not installed: pip install jax",
            "cupyx": "cupyx needs a GPU: none answers",
            "onnxruntime": "onnxruntime is not installed: pip install onnxruntime onnx",
        },
        not_measured=[told["key"] for told in measured()[5:9]],
    )


def two_devices():
    """The rows of the run, and the same layers on a GPU, at three batches each."""
    cpu = [told for told in measured() if told["operation"] != "signal"]
    items = {(told["network"], told["layer"], told["operation"], told["dtype"]): told for told in cpu}
    rows = cpu + [_scaled(told, 64, "cpu") for told in items.values() if told["batch"] < 32]
    rows += [_scaled(told, batch, "cuda:0") for told in items.values() for batch in (1, 8, 64)]
    return record(rows, devices={"cpu": CPU, "cuda:0": GPU})


def _scaled(told, batch, device):
    """A row at another batch; on the GPU as long as a launch, and then a third of its limits."""
    items = batch / told["batch"]
    operations, size = told["operations"] and told["operations"] * items, told["bytes"] * items
    ms = told["ms"] * items
    if device != "cpu":
        ms = 0.024 + 3e3 * max((operations or 0) / 51.2e12, size / 2.71e12)
    return row(
        told["network"], told["layer"], told["operation"], batch, told["dtype"], operations=operations, size=size,
        method="implicit gemm" if device != "cpu" else told["method"], ms=(ms, 0.97 * ms, 1.04 * ms), device=device,
        limits=(GPU if device != "cpu" else CPU)["limits"],
        rivals={"torch": (1.18, 1.12, 1.22)} if device != "cpu" else {},
    )  # fmt: skip


def hostile():
    """Every text a stranger could have written holds what HTML would read as markup."""
    told = row(HOSTILE, HOSTILE, HOSTILE, rivals={HOSTILE: (0.8, 0.7, 0.9)}, method=HOSTILE,
               device=HOSTILE, left_out={"torch": HOSTILE})  # fmt: skip
    machine = MACHINE | {"processor": HOSTILE, "packages": {HOSTILE: HOSTILE}, "commit": HOSTILE}
    return record([told], machine=machine, state=HOSTILE, missing_rivals={"jax": HOSTILE},
                  not_measured=[HOSTILE], failed={HOSTILE: HOSTILE},
                  devices={HOSTILE: CPU | {"description": HOSTILE}})  # fmt: skip
