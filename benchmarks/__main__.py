"""Every ratio with its bound: `python -m benchmarks [MODULE]... [--repeats 5] [--device cpu]`.

Status 1 where a bound is missed.
A module of this folder takes part by having `ratios(*, repeats: int, device: str) -> Iterator[Ratio]`.
"""

import argparse
import importlib
import os
import pkgutil
import sys

import torch
import transformers

import benchmarks


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
    missed = 0
    for name in asked.modules or modules:
        for ratio in modules[name].ratios(repeats=asked.repeats, device=asked.device):
            print(ratio, flush=True)
            missed += not ratio.holds
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
