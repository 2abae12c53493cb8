"""What Triton compiles each kernel to, read from its SASS: the loop of the products, registers, spills. No GPU needed.

    python tests/benchmarks/sass.py fp8_gemm fp8_grouped_gemm --only "4096 x 7168 x 16384|experts" [--root CHECKOUT]

One row for each function and tile: of the loop with most matrix instructions, how many of them, waits for them, waits
for copies, barriers, loads by width in bits, and everything else; then what the whole function takes. `--root` reads
another checkout, such as an older commit: a table before and after is two runs.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)(.*)")
LABEL = re.compile(r"^(\.L_x_\d+):")
MATRIX = ("HMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA")
COLUMNS = "case function tile matrix waits copies barriers loads loop all registers spilled shared"


def loop_of(sass: str) -> list[str]:
    """The opcodes of the smallest loop with most matrix instructions; of all the function where no loop has any."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for line in sass.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := INSTRUCTION.match(line):
            opcodes.append(found[1])
            target = re.search(r"\.L_x_\d+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append(opcodes[labels[target[0]] :])
    matrix = [loop for loop in loops if products(loop)]
    innermost = [loop for loop in matrix if not any(contains(loop, other) for other in matrix)]
    return max(innermost, key=products, default=opcodes)


def contains(loop: list[str], other: list[str]) -> bool:
    return len(other) < len(loop) and any(loop[i : i + len(other)] == other for i in range(len(loop)))


def products(opcodes: list[str]) -> int:
    return sum(opcode.split(".")[0] in MATRIX for opcode in opcodes)


def width(opcode: str) -> str:
    found = re.search(r"\.(64|128)\b", opcode)
    return found[1] if found else "32"


def row_of(sass: str, usage: str, shared: int) -> tuple[Any, ...]:
    loop = loop_of(sass)
    families = Counter(opcode.split(".")[0] for opcode in loop)
    copies = sum(opcode.startswith(("DEPBAR", "SYNCS.PHASECHK")) for opcode in loop)
    loads = Counter(f"{op.split('.')[0]}.{width(op)}" for op in loop if op.startswith(("LDG.", "LDGSTS", "UTMALDG")))
    registers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert registers is not None, usage
    matrix = " ".join(f"{families[family]} {family}" for family in MATRIX if families[family])
    return (
        matrix,
        sum(opcode.startswith("WARPGROUP.DEPBAR") for opcode in loop),
        copies,
        sum(opcode.startswith("BAR.SYNC") for opcode in loop),
        " ".join(f"{count} {load}" for load, count in sorted(loads.items())),
        len(loop),
        sum(bool(INSTRUCTION.match(line)) for line in sass.splitlines()),
        int(registers[1]),
        int(registers[2]),
        shared,
    )


def rows(kernel_name: str, only: str, arch: str) -> dict[tuple[str, ...], tuple[Any, ...]]:
    from kernels import ahead
    from kernels.aot.test_kernels import CASES, keys
    from kernels.lab import dims, kernels

    from dsc.compiler.bench.case import never_read
    from dsc.compiler.bench.sizes import SIZES
    from dsc.compiler.kernels.registry import KERNELS

    found: dict[tuple[str, ...], tuple[Any, ...]] = {}

    def statistics(name: str, kernel: Any, arguments: dict[str, Any]) -> Any:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            usage = ahead._tool("cuobjdump", "--dump-resource-usage", file.name)
            sass = ahead._tool("nvdisasm", "-c", file.name)
        numbers = [f"{key}={value}" for key, value in arguments.items() if key in TILE]
        found[case.name, name, " ".join(numbers)] = row_of(sass, usage, kernel.metadata.shared)

    ahead._statistics = statistics
    probe = next(probe for probe in KERNELS[kernel_name].probes if probe.everywhere)
    (module,) = kernels((kernel_name,), probe.model, arch, **keys(probe))
    sizes = SIZES[kernel_name](dims(probe.model, **keys(probe)))
    with never_read():
        for case in import_module(f"{CASES}.{kernel_name}").cases(module, sizes, probe.tokens, "cpu"):
            if re.search(only, case.name):
                ahead.compile_launches(module, case.run, arch)
    return found


TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "ROWS", "num_warps", "num_stages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="+")
    parser.add_argument("--only", default="", help="a regular expression for the names of cases")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="the checkout that is read")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) / "dsc"
    folder.mkdir()
    for part in ("compiler", "spec", "templates"):
        (folder / part).symlink_to(options.root.resolve() / part)
    sys.path[:0] = [str(folder.parent), str(options.root.resolve() / "tests")]
    print("| " + " | ".join(COLUMNS.split()) + " |\n" + "| --- " * len(COLUMNS.split()) + "|")
    for name in options.kernels:
        for labels, numbers in rows(name, options.only, options.arch).items():
            print("| " + " | ".join(map(str, (*labels, *numbers))) + " |", flush=True)


if __name__ == "__main__":
    main()
