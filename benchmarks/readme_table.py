"""README's table of figures, made from a record of `xpconv bench`; it stands between two marks and says which record.

python -m benchmarks.readme_table benchmarks/results/bench-NAME.json    # writes README.md anew
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
README = CHECKOUT / "README.md"
BEGIN, END = "<!-- table of benchmarks: begins -->", "<!-- table of benchmarks: ends -->"


def main() -> None:
    """Put the table of the named record into the README."""
    path = Path(sys.argv[1]).resolve().relative_to(CHECKOUT)
    README.write_text(updated(README.read_text(encoding="utf-8"), path), encoding="utf-8")


def updated(readme: str, path: Path) -> str:
    """The text with the table of the record at a path of the checkout between its marks."""
    record = json.loads((CHECKOUT / path).read_text(encoding="utf-8"))
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(record, path.as_posix())}\n{END}{after}"


def table(record: dict[str, Any], path: str) -> str:
    """Markdown: where the figures are from, a line for each row, and the rivals' means."""
    rivals = list(dict.fromkeys(name for row in record["rows"] for name in row["rivals"]))
    lines = [*_source(record, path), "", *_heads(("layer", "ms", "speed", "of the limit", "method", *rivals))]
    for row in record["rows"]:
        ratios = (f"{row['rivals'][name]['ratio']:.2f}" if name in row["rivals"] else "" for name in rivals)
        cells = (_name(row), f"{row['ms']:.3g}", _speed(row), f"{100 * row['share_of_limit']:.0f} %", row["method"])
        lines.append(f"| {' | '.join((*cells, *ratios))} |")
    return "\n".join(lines)


def _source(record: dict[str, Any], path: str) -> Iterator[str]:
    machine, packages = record["machine"], record["machine"]["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    limits = "; ".join(_limits(device, told) for device, told in record["devices"].items())
    yield (
        f"Made from [{Path(path).name}]({path}), begun {record['begun'][:10]}: {machine['processor']}, "
        f"{machine['threads']} threads, {versions}. What was measured to be the limit: {limits}. Under the rivals "
        "stand their times over xpconv's: above 1 xpconv is faster."
    )


def _limits(device: str, told: dict[str, Any]) -> str:
    products = ", ".join(f"{speed:.0f} GFLOP/s in {dtype}" for dtype, speed in told["limits"]["matrix_gflops"].items())
    return f"{device} {products}, copies {told['limits']['copy_gbs']:.0f} GB/s"


def _heads(names: tuple[str, ...]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"| {' | '.join('---' for _ in names)} |"


def _name(row: dict[str, Any]) -> str:
    more = [f"N={row['batch']}"] if row["operation"] not in ("filter", "signal") else []
    more += [row[name] for name, usual in (("dtype", "float32"), ("layout", "channels_last")) if row[name] != usual]
    more += [row["device"]] if row["device"] != "cpu" else []
    return ", ".join([f"{row['network']} {row['layer']}", *more])


def _speed(row: dict[str, Any]) -> str:
    return f"{row['gflops']:.3g} GFLOP/s" if row["gflops"] and row["gflops"] < 1000 else _large(row)


def _large(row: dict[str, Any]) -> str:
    return f"{row['gflops'] / 1000:.2f} TFLOP/s" if row["gflops"] else f"{row['gbs']:.3g} GB/s"


if __name__ == "__main__":
    main()
