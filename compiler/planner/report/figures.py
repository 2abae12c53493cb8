"""Figures as text, the same in the terminal, on the page and in its pictures."""

from __future__ import annotations

GIB, MIB = 2**30, 2**20


def fixed(value: float, digits: int) -> str:
    """1,234.50; what rounds to nothing has no sign."""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def percent(share: float) -> str:
    """12.1%."""
    return f"{fixed(100 * share, 1)}%"


def gib(count: float) -> str:
    """Bytes in GiB, the unit left out."""
    return fixed(count / GIB, 2)


def size(count: float) -> str:
    """32.68 MiB."""
    scale, unit = unit_of(count)
    return f"{fixed(count / scale, 2)} {unit}"


def unit_of(largest: float) -> tuple[int, str]:
    """Bytes of the unit that suits the largest of some sizes, and its name."""
    return (GIB, "GiB") if largest >= GIB else (MIB, "MiB")
