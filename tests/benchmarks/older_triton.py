"""What every kernel takes under another Triton than the pinned one, beside what was accepted for that. No GPU needed.

    pip install --no-deps --target FOLDER triton==3.6.0
    python tests/benchmarks/older_triton.py FOLDER [KERNEL ...] [--arch sm_90]

One line for each launch of the ahead-of-time lane that spills otherwise or takes another step of eight registers; then
how many there are, and how many spill. Accepted figures are those of tests/kernels/aot/budgets; a launch that does not
compile ends the run.
"""

import argparse
import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
COLUMNS = ("case", "function", "registers accepted", "now", "spilled accepted", "now")


def compare(name: str, arch: str) -> tuple[int, int]:
    """Prints the rows of a kernel; its launches, and those of them that spill."""
    from kernels.aot.test_kernels import compiled
    from kernels.budgets import FOLDER, differences, recorded

    from dsc.compiler.bench.case import never_read
    from dsc.compiler.kernels.registry import KERNELS

    accepted = json.loads((FOLDER / f"{name}.json").read_text())[arch]
    shown, count, spilling = set(), 0, 0
    with never_read():
        for _, case, launches in compiled(KERNELS[name], arch):
            for launch, known in zip(launches, accepted[case], strict=True):
                count, spilling = count + 1, spilling + bool(launch.spilled)
                row = (launch.function, known["registers"], launch.registers, known["spilled"], launch.spilled)
                differs = differences(recorded(launch), {key: known[key] for key in ("registers", "spilled")})
                if differs and row not in shown:
                    print("| " + " | ".join(map(str, (case, *row))) + " |", flush=True)
                    shown.add(row)
    return count, spilling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where that Triton was installed")
    parser.add_argument("kernels", nargs="*", help="some of them; all by default")
    parser.add_argument("--arch", default="sm_90")
    options = parser.parse_args()
    sys.path[:0] = [str(options.folder.resolve()), str(TESTS)]
    import triton
    from kernels.aot.test_kernels import TAKEN

    print(f"Triton {triton.__version__}, {options.arch}\n\n| " + " | ".join(COLUMNS) + " |\n" + "| --- " * 6 + "|")
    names = options.kernels or [name for name, arch in TAKEN if arch == options.arch]
    totals = [compare(name, options.arch) for name in names]
    launches, spilling = (sum(column) for column in zip(*totals, strict=True))
    print(f"\n{launches} launches, {spilling} of them spill")


if __name__ == "__main__":
    main()
