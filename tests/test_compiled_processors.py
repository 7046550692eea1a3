"""Kernels for other processors than this one: run, where this one has their instructions, or at least compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xpconv

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from llvmlite import binding

from xpconv.cpu import processors
from xpconv.cpu.compiled import processor

FAMILIES = "direct", "plane", "channelwise", "winograd", "gradients"
FEATURES = binding.get_host_cpu_features()

CALLS = """
import os
import sys
import numpy as np
import xpconv

rng, dtype = np.random.default_rng(0), sys.argv[1]

def some(*shape):
    return rng.integers(-3, 4, shape)

CALLS = [
    (xpconv.corr2d, (some(2, 20, 20, 32), some(5, 5, 32, 48), some(48)), dict(padding=2, activation="relu")),
    (xpconv.corr2d, (some(1, 3, 40, 40), some(6, 3, 5, 5)), dict(layout="channels_first", method="direct")),
    (xpconv.corr2d, (some(2, 32, 32, 64), some(3, 3, 4, 64)), dict(groups=16, stride=2)),
    (xpconv.conv2d, (some(2, 30, 30, 36), some(3, 3, 1, 36)), dict(groups=36, padding=1)),
    (xpconv.conv2d, (some(3, 24, 26, 30), some(24, 1, 5, 4)), dict(groups=24, layout="channels_first")),
    (xpconv.conv2d, (some(200, 211), some(7, 5)), dict(padding="same", method="direct")),
    (xpconv.conv2d, (some(34, 211), some(9, 3)), dict(padding="same", method="direct")),
    (xpconv.conv1d, (some(20_011), some(31)), dict(padding="same", method="direct")),
    (xpconv.corr2d, (some(2, 40, 40, 64), some(3, 3, 64, 64), some(64)), dict(padding=1, method="winograd")),
    (xpconv.corr1d, (some(2, 900, 64), some(9, 64, 64)), dict(method="winograd")),
    (xpconv.max_pool2d, (some(2, 40, 40, 37), 3), dict(stride=2, padding=1)),
    (xpconv.avg_pool2d, (some(2, 40, 40, 37), 2), {}),
    (xpconv.global_avg_pool, (some(2, 40, 40, 37),), {}),
    (xpconv.corr_grad_input, (some(2, 20, 20, 48), some(3, 3, 32, 48)), dict(size=41, stride=2)),
    (xpconv.corr_grad_weight, (some(2, 41, 41, 32), some(2, 20, 20, 48)), dict(window=3, stride=2)),
    (xpconv.corr_grad_weight, (some(8, 30, 30, 64), some(8, 28, 28, 64)), dict(window=3)),
]

def floats(given):
    return [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in given]
"""

RUN = """
assert (machine().vector_bytes, machine().registers) == (32, 16)
for function, given, options in CALLS:
    plan = xpconv.explain(function, *floats(given), **options)
    assert plan.tile.startswith("compiled") or "grad_input" in function.__name__, (function, options, plan)
    result = function(*floats(given), **options)
    exact = {name: option for name, option in options.items() if name != "method"}  # integers, by NumPy
    right = function(*given, **exact)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, right, atol=(3e-5 if dtype == "float32" else 1e-12) * np.abs(right).max())
"""

COMPILE = """
from llvmlite import binding
from xpconv.cpu.compiled import processor
for what in ("target", "asmprinter"):
    setattr(binding, f"initialize_native_{what}", getattr(binding, f"initialize_all_{what}s"))
binding.get_process_triple = lambda: "aarch64-unknown-linux-gnu"
processor.machine = lambda: processor.Machine("generic", "", 16, 32)
from xpconv.cpu.compiled import build

class Unlinked:
    def __init__(self, name, code, kernels):
        assert code[:4] == b"\\x7fELF" and code[18] == 183, name  # AArch64
        print(name)

build.Library = Unlinked
for function, given, options in CALLS:
    xpconv.explain(function, *floats(given), **options)
"""


def in_a_new_process(code, dtype, folder, **variables):
    """What the code prints; it must end well and say nothing else."""
    source = str(Path(xpconv.__file__).parents[1])
    variables |= {"XPCONV_CACHE_DIR": str(folder), "XPCONV_COMPILE": "wait", "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", CALLS + code, dtype], capture_output=True, text=True, timeout=120,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(not (FEATURES.get("avx2") and FEATURES.get("fma")), reason="this processor has no AVX2")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_for_avx2_agree_with_exact_sums(dtype, tmp_path):
    machine = "from xpconv.cpu.compiled.processor import machine"
    in_a_new_process(machine + RUN, dtype, tmp_path, XPCONV_CPU="x86-64-v3")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_compile_for_an_arm(dtype, tmp_path):
    try:
        binding.initialize_all_targets()
        binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM knows no AArch64")
    made = in_a_new_process(COMPILE, dtype, tmp_path).split()
    kinds = {name.partition("-")[0] for name in made}
    assert kinds == {"threads", "jobs", "weights", "finite", "kept", "turn", *FAMILIES}
    assert f"winograd-gradient-{dtype}" in {name.rpartition("-")[0] for name in made}


def test_a_processor_that_this_one_cannot_stand_for_is_refused(monkeypatch):
    monkeypatch.setenv("XPCONV_CPU", "i386")
    with pytest.raises(ValueError, match=r"XPCONV_CPU is 'i386'; kernels can be limited to .* here"):
        processor.machine.__wrapped__()


@pytest.mark.parametrize(("size", "nbytes"), [
    ("1024K", 1 << 20), ("2M", 1 << 21), ("4096K", 1 << 21), ("256K", 1 << 19), ("what?", 1 << 19), (None, 1 << 19),
])  # fmt: skip
def test_the_level_2_cache_is_what_the_system_tells(size, nbytes, tmp_path, monkeypatch):
    for index, (level, of_level) in enumerate([("1", "48K"), ("2", size), ("3", "32M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        if of_level is not None:
            (folder / "size").write_text(f"{of_level}\n")
    monkeypatch.setattr(processors, "Path", lambda _: tmp_path)
    assert processors.level_2_bytes.__wrapped__() == nbytes


@pytest.mark.skipif(not FEATURES.get("avx2"), reason="this processor has no AVX2")
@pytest.mark.parametrize("asked", ["", "x86-64-v3"])
@pytest.mark.parametrize(("host", "loses_track"), [("znver4", True), ("emeraldrapids", False)])
def test_who_is_asked_early_for_rows_that_are_read_in_turn(host, loses_track, asked, monkeypatch):
    monkeypatch.setenv("XPCONV_CPU", asked)
    monkeypatch.setattr(processor.binding, "get_host_cpu_name", lambda: host)
    assert processor.machine.__wrapped__().loses_track == loses_track
