"""Whether `xpconv bench --compare` finds a slow-down of a fifth in one engine function, and none in an unchanged run.

python -m benchmarks.planted    # about ten minutes

Three runs of layers of some milliseconds beside torch and onnxruntime, each in a process of its own: one, the same
again, and one in which every convolution waits, busily, for a fifth of the time that it has taken.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 9
LAYERS = (  # of some milliseconds, which a process does not change as much as it does those of some microseconds
    "ResNet-50 3x3 64->64, 56x56", "ResNet-50 3x3 256->256, 14x14", "ResNet-50 1x1 64->256, 56x56",
    "ResNet-50 7x7 3->64, 224x224, stride 2", "ResNet-50 3x3 128->128, 56x56, stride 2", "VGG-16 3x3 128->128, 112x112",
    "VGG-16 3x3 512->512, 28x28", "dilated", "volume 3x3x3 64->128, 8x56x56", "pooling",
)  # fmt: skip
RIVALS = ("torch", "onnxruntime")
SLOWED, PLANTED = "conv", 0.2


def main() -> None:
    """Run, compare, say what was found."""
    from xpconv.bench import record
    from xpconv.bench.compare import compare

    with tempfile.TemporaryDirectory() as folder:
        runs = [measured(Path(folder) / f"{number}.json", planted) for number, planted in enumerate((0, 0, PLANTED))]
        first, again, slower = map(record.load, runs)
    for name, later in (("unchanged", again), (f"{SLOWED} slower by a fifth", slower)):
        found = compare(first, later)
        print(f"{name}: {', '.join(f'{len(found.of(kind))} {kind}' for kind in ('slower', 'faster', 'same'))}")
        print(f"  cpu {found.machines['cpu']}")
        for change in found.changes:
            print(f"  {change.verdict:6} {change.times:.3f} {change.key}")


def measured(path: Path, planted: float) -> Path:
    """Run in a process of its own; where its record lies."""
    subprocess.run([sys.executable, "-m", "benchmarks.planted", str(path), str(planted)], check=True)
    return path


def run_here(path: Path, planted: float) -> None:
    """Record a run in which the function takes so much longer."""
    from xpconv import repeats
    from xpconv.bench import machine, record, run
    from xpconv.bench.cases import cases
    from xpconv.device import devices

    again = repeats._Known.again

    def slow(self: repeats._Known, *args: Any) -> Any:
        begin = time.perf_counter()
        y = again(self, *args)
        end = begin + (1 + planted * (self._request.operation == SLOWED)) * (time.perf_counter() - begin)
        while time.perf_counter() < end:
            pass
        return y

    repeats._Known.again = slow  # type: ignore[method-assign]
    threads = machine.threads_here()
    made = record.new({}, machine.machine(threads))
    chosen = cases(LAYERS, ["float32"], [8], ["channels_last"])
    run.run(devices()[:1], chosen, run.Asked(RIVALS, ROUNDS, threads), made, lambda _: None)
    record.save(made, path)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_here(Path(sys.argv[1]), float(sys.argv[2]))
    else:
        main()
