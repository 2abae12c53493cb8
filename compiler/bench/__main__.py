"""`python -m dsc.compiler.bench`: `dsc bench` where there are torch and triton alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dsc.compiler.bench.machine import measure_machine
from dsc.compiler.bench.run import subjects
from dsc.compiler.bench.session import Sitting, run
from dsc.compiler.bench.table import COLUMNS, ceilings, line, row, summary


def main(arguments: list[str] | None = None) -> int:
    """0 where every result is right, 1 where one is not or raised, 2 where there is nothing to measure on."""
    parser = argparse.ArgumentParser(prog="python -m dsc.compiler.bench", description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--tokens", type=int, action="append", help="rows of the inputs; may be given again")
    parser.add_argument("--check", type=int, action="append", default=[], help="rows at which results are only checked")
    parser.add_argument("--kernel", action="append", help="only this one; may be given again")
    parser.add_argument("--experts", type=int, help="routed experts on this GPU: of an expert-parallel shard")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave torch.compile out")
    parser.add_argument("-o", "--output", type=Path, help="append results here; what stands there is not run again")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU that torch can use; --device cpu runs the references", file=sys.stderr)
        return 2
    found = subjects(given.package, given.experts)
    kernels = [kernel for name, kernel in found.items() if name in (given.kernel or found)]
    if not kernels:
        print(f"{given.package} has none of these kernels", file=sys.stderr)
        return 2
    machine = measure_machine(given.device)
    name = given.package.resolve().name
    sitting = Sitting(name, given.device, given.tokens or (4096,), given.check, given.compiled, given.output)
    print(*ceilings(machine), line(COLUMNS), sep="\n")
    results = []
    for result in run(kernels, machine, sitting):
        print(line(row(result)), flush=True)
        results.append(result)
    print(summary(results))
    return 0 if all(result.correct for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
