"""Figures for people, never without their unit: decimal prefixes for counts and FLOPs, binary ones for memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    size: int
    name: str

    def show(self, number: int) -> str:
        """671.03 B."""
        if self.size == 1:
            return f"{number:,} {self.name}".rstrip()
        scaled = number / self.size
        digits = "<0.01" if 0 < scaled < 0.005 else f"{scaled:,.2f}"
        return f"{digits} {self.name}"


def _units(base: int, *names: str) -> tuple[Unit, ...]:
    return tuple(Unit(base**power, name) for power, name in reversed([*enumerate(names)]))


COUNTS = _units(1000, "", "k", "M", "B")
FLOPS = _units(1000, "FLOP", "kFLOP", "MFLOP", "GFLOP")
BYTES = _units(1024, "B", "KiB", "MiB", "GiB")
EXACT_BYTES = _units(1024, "B")
PLAIN = _units(1000, "")


def common_unit(units: tuple[Unit, ...], numbers: Iterable[int]) -> Unit:
    """One unit for figures that are compared: the largest that the smallest of them (zero left out) fills."""
    smallest = min((number for number in numbers if number), default=0)
    return next((unit for unit in units if unit.size <= smallest), units[-1])


def ratio(first: int, second: int) -> str:
    """0.10x: how many times the second the first is; nothing where one is zero."""
    if not first or not second:
        return ""
    times = first / second
    return f"{times:,.2f}x" if times >= 0.095 else f"{times:.2g}x"


def as_yaml(value: object) -> str:
    """A value of a spec or a plan as its file has it; a dash where a side has no such value."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
