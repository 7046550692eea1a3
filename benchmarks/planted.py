"""Whether `xpconv bench --compare` finds a slow-down of a fifth in one engine function, and none in an unchanged run.

python -m benchmarks.planted [RIVAL ...]    # about two minutes

Three runs of small layers, each in a process of its own: one, the same again, and one in which max pooling waits,
busily, for a fifth of the time that it has taken.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from typing import Any

ROUNDS = 9
LAYERS = ("LeNet", "ResNet-50 3x3 64->64, 56x56", "depthwise 3x3 of 144 maps, 56x56", "pooling")
PLANTED = 0.2


def main() -> None:
    """Run, compare, say what was found."""
    from xpconv.bench.compare import compare

    rivals = sys.argv[1:] or ["torch"]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        first, again, slower = (pool.apply(record, (rivals, planted)) for planted in (0.0, 0.0, PLANTED))
    for name, later in (("unchanged", again), ("max pooling slower by a fifth", slower)):
        found = compare(first, later)
        print(f"{name}: {', '.join(f'{len(found.of(kind))} {kind}' for kind in ('slower', 'faster', 'same'))}")
        print(f"  cpu {found.machines['cpu']}")
        for change in found.changes:
            if change.verdict != "same" or "max pool" in change.key:
                print(f"  {change.verdict:6} {change.times:.3f} {change.key}")


def record(rivals: list[str], planted: float) -> dict[str, Any]:
    """The record of a run in which max pooling takes so much longer."""
    from xpconv import repeats
    from xpconv.bench import machine, record, run
    from xpconv.bench.cases import cases
    from xpconv.device import devices
    from xpconv.engines import numpy as engine

    pool = engine.max_pool

    def slow(*args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        y = pool(*args, **options)
        end = begin + (1 + planted) * (time.perf_counter() - begin)
        while time.perf_counter() < end:
            pass
        return y

    engine.max_pool = slow
    repeats._Known.again = lambda *_: NotImplemented  # type: ignore[method-assign]  # which pass the function by
    threads = machine.threads_here()
    made = record.new({}, machine.machine(threads))
    chosen = cases(LAYERS, ["float32"], [8], ["channels_last"])
    run.run(devices()[:1], chosen, run.Asked(rivals, ROUNDS, threads), made, lambda _: None)
    return made


if __name__ == "__main__":
    main()
