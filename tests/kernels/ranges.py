"""Triton's IR of a launch, and whether an offset in it can leave 32 bits: an interval analysis over its text.

Program ids are below the grid, arguments have the values of the launch, and what is loaded is as large as is said of
its pointer. An i32 result that may not fit wraps; whatever it becomes, no address may depend on it.
"""

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import triton
from kernels.ahead import _Driver
from torch.library import CustomOpDef
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

Interval = tuple[int, int] | None
"""Least and largest value; None: anything."""
SAME = ("splat", "broadcast", "expand_dims", "reshape", "trans", "extsi", "extui", "unsplat")
RESULT = re.compile(r"^\s*(%[\w$.-]+)(?::\d+)? = \"?([\w.]+)\"?\s*(.*)$")
NAME = re.compile(r"%[\w$.-]+(?:#\d+)?")


@dataclass(frozen=True)
class Launched:
    """One launch that was not made."""

    function: str
    ttir: str
    arguments: dict[str, Any]
    grid: tuple[int, ...]


class _Stop(Exception):
    """Compilation has come as far as TTIR."""


@contextmanager
def recorded() -> Iterator[list[Launched]]:
    """Within, launches are compiled to TTIR for sm_90 and left there.

    Operators are called past their registration, so that tensors may be on the meta device.
    """
    launches: list[Launched] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        named = {**dict(zip(self.arg_names, args, strict=False)), **options}
        try:
            original(self, *args, grid=grid, warmup=True, **options)
        except _Stop as stop:
            shape = grid(named) if callable(grid) else grid
            launches.append(Launched(self.__name__, str(stop), named, (*shape, 1, 1)[:3]))

    def stop(module: Any, *_: Any) -> None:
        raise _Stop(str(module))

    def call(self: CustomOpDef, *args: Any) -> Any:
        return self._init_fn.__wrapped__(*args)  # type: ignore[attr-defined]

    original, lower, addmm, dispatch = JITFunction.run, CUDABackend.make_ttgir, torch.addmm, CustomOpDef.__call__
    triton.runtime.driver.set_active(_Driver("sm_90"))
    JITFunction.run, CUDABackend.make_ttgir = run, staticmethod(stop)
    torch.addmm, CustomOpDef.__call__ = lambda *operands, out, **options: out, call
    try:
        yield launches
    finally:
        JITFunction.run, CUDABackend.make_ttgir = original, staticmethod(lower)
        torch.addmm, CustomOpDef.__call__ = addmm, dispatch


def launches(module: ModuleType, call: Callable[[], object]) -> list[Launched]:
    """What one call of a package of kernels would launch."""
    for name, sibling in list(sys.modules.items()):
        if name.startswith(f"{module.__package__}.") and hasattr(sibling, "runs_triton"):
            sibling.runs_triton = lambda x: True
    with recorded() as found, torch.no_grad():
        call()
    return found


def rounded(launch: Launched) -> list[str]:
    """Products of which float32 operands would be rounded to TF32; those of float8 have no such choice."""
    dots = [line.strip() for line in launch.ttir.splitlines() if " = tt.dot " in line]
    return [line for line in dots if "inputPrecision = tf32" in line and not re.search(r": tensor<\w+xf8", line)]


def escaping(launch: Launched, loaded: dict[str, int]) -> list[str]:
    """The lines that make an address, or place a descriptor's tile, from an offset that may have wrapped.

    `loaded`: the largest value by pointer.
    """
    return _Analysis(launch, loaded).found


class _Analysis:
    def __init__(self, launch: Launched, loaded: dict[str, int]) -> None:
        self.known: dict[str, Interval] = {}
        self.sizes: dict[str, int] = {}
        self.open: dict[int, list[str]] = {}
        self.yielded: dict[str, Interval] = {}
        self.handed: dict[str, str] = {}
        self.added: dict[str, tuple[str, str]] = {}
        self.pointer: dict[str, str] = {}
        self.launch, self.loaded, self.found = launch, loaded, []
        for name, value in launch.arguments.items():
            if isinstance(value, int):
                self.known[f"%{name}"] = (int(value), int(value))
            self.pointer[f"%{name}"] = name
        for _ in range(2):  # what a loop hands on is known after its body
            self.found = []
            for line in launch.ttir.splitlines():
                self._line(re.sub(r"\s*loc\(.*", "", line))

    def _line(self, line: str) -> None:
        indent = len(line) - len(line.lstrip())
        if "scf.if" in line or "else" in line:
            self.open[indent + 2] = []
        elif "scf.yield" in line:
            for name, handed in zip(self.open[indent], NAME.findall(line), strict=False):
                self.yielded[name], self.handed[name] = self.known.get(handed), handed
        loop = re.search(r"scf\.for (%[\w$.]+) = (%[\w$.]+) to (%[\w$.]+) step (%[\w$.]+) ", line)
        if loop:
            first, end = self.known.get(loop[2]), self.known.get(loop[3])
            self.known[loop[1]] = (first[0], max(first[0], end[1] - 1)) if first and end else None
            carried = re.findall(r"(%[\w$.]+) = (%[\w$.#]+)[,)]", line)
            self.open[indent + 2] = [name for name, _ in carried]
            for (name, initial), kind in zip(carried, _types(line), strict=True):
                self.pointer[name] = self.pointer.get(initial, "")
                if kind.endswith(("i64", "i64>")):  # a sum in 64 bits, whatever it comes to
                    self.known[name] = self.known.get(initial) and (-(2**62), 2**62)
                elif self.yielded.get(name) and self.known.get(initial):
                    self.known[name] = _arithmetic("select", [self.known[initial], self.yielded[name]])
                else:
                    self.known[name] = self._counted(
                        name, initial, *(self.known.get(bound) for bound in loop.groups()[1:])
                    )
        match = RESULT.match(line)
        if not match:
            return
        if loop:
            names = [match[1]] if len(carried) == 1 else [f"{match[1]}#{index}" for index in range(len(carried))]
            self.known.update((result, self.known.get(name)) for result, (name, _) in zip(names, carried, strict=True))
            return
        name, op, rest = match.groups()
        operands = NAME.findall(rest)
        kind = op.removeprefix("arith.").removeprefix("tt.")
        if operands and operands[0] in self.pointer:
            self.pointer[name] = self.pointer[operands[0]]
        if kind in ("addptr", "descriptor_load"):
            if any(self.known.get(offset) is None for offset in operands[1:]):
                self.found.append(f"{self.launch.function}: {line.strip()}")
            return
        value = self._value(kind, rest, [self.known.get(operand) for operand in operands], operands)
        if kind == "addi":
            self.added[name] = (operands[0], operands[1])
        shape = re.search(r"tensor<((?:\d+x)+)[^>]*>?>?$", rest.strip())
        self.sizes[name] = math.prod(int(size) for size in shape[1].split("x")[:-1]) if shape else 1
        narrow = re.search(r"i32>?$", rest.strip()) is not None
        fits = value is not None and (not narrow or -(2**31) <= value[0] <= value[1] < 2**31)
        self.known[name] = value if fits else None

    def _counted(self, name: str, initial: str, first: Interval, end: Interval, step: Interval) -> Interval:
        """What a loop carries where each step adds to it: at most as much as all steps."""
        carried, added = self.added.get(self.handed.get(name, ""), ("", ""))
        start, each = self.known.get(initial), self.known.get(added)
        if carried != name or not (first and end and step and start and each):
            return None
        steps = max(0, -(-(end[1] - first[0]) // step[0]))
        value = start[0] + min(0, steps * each[0]), start[1] + max(0, steps * each[1])
        return value if -(2**31) <= value[0] <= value[1] < 2**31 else None

    def _value(self, kind: str, rest: str, given: list[Interval], operands: list[str]) -> Interval:
        axis = "xyz".find(rest[0]) if rest else -1
        if kind == "get_program_id":
            return 0, self.launch.grid[axis] - 1
        if kind == "get_num_programs":
            return self.launch.grid[axis], self.launch.grid[axis]
        if kind == "constant":
            number = re.match(r"(?:dense<)?(-?\d+)>? :", rest)
            return (int(number[1]), int(number[1])) if number else None
        if kind == "make_range":
            end, start = re.findall(r"(?:end|start) = (-?\d+)", rest)
            return int(start), int(end) - 1
        if kind == "load":
            largest = self.loaded.get(self.pointer.get(operands[0], ""))
            return None if largest is None else (-1, largest)
        if kind == "subi" and self.added.get(operands[0], ("", ""))[0] == operands[1]:
            return self.known.get(self.added[operands[0]][1])  # (a + b) - a
        if kind == "cmpi" or (kind in ("andi", "ori", "xori") and all(x and 0 <= x[0] <= x[1] <= 1 for x in given)):
            return 0, 1
        if kind == "select":
            given = given[1:]
        if kind in ("reduce", "histogram", "scan"):  # at most a sum over all
            summed = given[0] if given else None
            return summed and (min(0, summed[0]), max(1, summed[1]) * self.sizes.get(operands[0], 1))
        if not given or any(interval is None for interval in given):
            return given[0] if kind in SAME and given else None
        return _arithmetic(kind, given)


def _types(loop: str) -> list[str]:
    """Of what a loop carries."""
    found = re.search(r"-> \((.*)\)", loop)
    return re.findall(r"tensor<(?:[^<>]|<[^<>]*>)*>|!tt\.[\w<>, ]+?>(?=, |$)|\w+", found[1]) if found else []


def _arithmetic(kind: str, given: list[Any]) -> Interval:
    (low, high), (least, most) = given[0], given[-1]
    corners = [x * y for x in (low, high) for y in (least, most)]
    results: dict[str, Callable[[], Interval]] = {
        "addi": lambda: (low + least, high + most),
        "subi": lambda: (low - most, high - least),
        "muli": lambda: (min(corners), max(corners)),
        "minsi": lambda: (min(low, least), min(high, most)),
        "maxsi": lambda: (max(low, least), max(high, most)),
        "divsi": lambda: (min(low, 0), max(high, 0)) if least <= 0 else (min(low // least, low // most), high // least),
        "remsi": lambda: (0 if low >= 0 else 1 - most, min(high, most - 1) if low >= 0 else most - 1),
        "select": lambda: (min(low, least), max(high, most)),
    }
    if kind in SAME or kind == "trunci":
        return low, high
    return results[kind]() if kind in results else None
