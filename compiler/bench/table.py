"""What the measurements show a person, as columns of text."""

from __future__ import annotations

from collections.abc import Sequence

from dsc.compiler.bench.machine import Machine
from dsc.compiler.bench.run import Result

COLUMNS = ("", "us", "TB/s", "TFLOP/s", "of ceiling", "reference", "compiled", "library", "error")


def ceilings(machine: Machine) -> list[str]:
    """What was measured on, and how to read the columns."""
    copy, matmul = _rate(machine.bytes_per_second, "B/s"), _rate(machine.flops_per_second, "FLOP/s")
    fp8 = f", fp8 {_rate(machine.fp8_flops_per_second, 'FLOP/s')}" if machine.fp8_flops_per_second else ""
    return [
        f"{machine.device}, torch {machine.torch}, triton {machine.triton}",
        f"ceilings: copy {copy}, matmul {matmul}{fp8}",
        "reference, compiled, library: how many times as long they take; error: half the square of the relative one",
    ]


def row(result: Result) -> tuple[str, ...]:
    """The fields of COLUMNS. A case that raised says what."""
    if result.error:
        return (result.case, *("-",) * 7, f"FAILED {result.error.splitlines()[0][:60]}")
    assert result.difference is not None
    verdict = f"{result.difference:.0e}" if result.correct else _wrong(result)
    time, flops = result.time, result.flops_per_second
    if time is None:
        return (result.case, *("-",) * 7, verdict)
    assert result.bytes_per_second is not None and result.of_ceiling is not None
    others = (result.reference_time, result.compiled_time, result.library_time)
    return (
        result.case,
        f"{time * 1e6:.1f}",
        _figure(result.bytes_per_second / 1e12),
        _figure(flops / 1e12) if flops else "-",
        f"{result.of_ceiling:.0%}",
        *(f"{other / time:.2f}x" if other else "-" for other in others),
        verdict,
    )


def line(fields: Sequence[str]) -> str:
    """A row as text, for a terminal that shows rows as they come."""
    name, *figures, verdict = fields
    return "  ".join((f"{name:52}", *(f"{figure:>10}" for figure in figures), verdict))


def summary(results: Sequence[Result]) -> str:
    """How many cases were right, and the names of those that were not."""
    bad = [result.case for result in results if not result.correct]
    return f"{len(results) - len(bad)} of {len(results)} cases are right" + "".join(f"\n  not {name}" for name in bad)


def _figure(x: float) -> str:
    """With three digits, or as many as stand before the point."""
    return "<0.01" if x < 0.01 else f"{x:.{0 if x >= 100 else 1 if x >= 10 else 2}f}"


def _rate(x: float, unit: str) -> str:
    """A processor's in thousands of millions, a GPU's in thousands of those."""
    return f"{_figure(x / 1e12)} T{unit}" if x >= 1e12 else f"{_figure(x / 1e9)} G{unit}"


def _wrong(result: Result) -> str:
    """Where it is: a result within its bound is wrong because it did not repeat."""
    assert result.worst_row is not None
    index, error = result.worst_row
    return f"WRONG {result.difference:.0e}, row {index} by {error:.0e}"
