"""Every ratio with its bound: `python -m benchmarks [MODULE]... [--repeats 5] [--device cpu]`.

Ratios are shown as they come, and in one table at the end. Status 1 where a bound is missed.
A module of this folder takes part by having `ratios(*, repeats: int, device: str) -> Iterator[Ratio]`.
"""

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

import torch
import transformers

import benchmarks
from benchmarks.ratio import Ratio


def main() -> int:
    names = sorted(
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__"
    )
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    modules = {name: module for name, module in modules.items() if hasattr(module, "ratios")}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"of {', '.join(modules)} (default: all)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="each ratio is the median of so many (default 5)"
    )
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    unknown = set(asked.modules) - set(modules)
    if unknown:
        parser.error(f"expected modules among {', '.join(modules)}; got {', '.join(sorted(unknown))}")

    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {asked.device}, "
        f"{torch.get_num_threads()} threads{load}",
        flush=True,
    )
    found = []
    for name in asked.modules or modules:
        for ratio in modules[name].ratios(repeats=asked.repeats, device=asked.device):
            print(ratio, flush=True)
            found.append((name, ratio))
    print(f"\n{table(found)}")
    return 0 if all(ratio.holds for _, ratio in found) else 1


def table(found: Sequence[tuple[str, Ratio]]) -> str:
    """Of each ratio its median, its range over repeats, its bound and whether that holds; those with a bound first."""
    lines = [("of", "ratio", "median", "range", "bound", "")]
    for name, ratio in sorted(found, key=lambda pair: pair[1].bound is None):
        bound = "none" if ratio.bound is None else f"{ratio.sense} {ratio.bound:.3g}"
        verdict = "" if ratio.bound is None else "holds" if ratio.holds else "MISSED"
        reach = f"{min(ratio.values):.3g} to {max(ratio.values):.3g}" if len(ratio.values) > 1 else ""
        lines.append((name, ratio.name, f"{ratio.value:.3g}", reach, bound, verdict))
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in wide))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
