"""What the measurements show a person, as columns of text."""

from __future__ import annotations

from dsc.compiler.bench.machine import Machine
from dsc.compiler.bench.run import Result

COLUMNS = ("", "us", "TB/s", "TFLOP/s", "of ceiling", "reference", "compiled", "library", "error")


def ceilings(machine: Machine) -> list[str]:
    copy, matmul = machine.bytes_per_second / 1e12, machine.flops_per_second / 1e12
    fp8 = f", fp8 {machine.fp8_flops_per_second / 1e12:.0f} TFLOP/s" if machine.fp8_flops_per_second else ""
    named = f"{machine.device}, torch {machine.torch}, triton {machine.triton}"
    return [named, f"ceilings: copy {copy:.2f} TB/s, matmul {matmul:.0f} TFLOP/s{fp8}"]


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
        f"{result.bytes_per_second / 1e12:.2f}",
        f"{flops / 1e12:.0f}" if flops else "-",
        f"{result.of_ceiling:.0%}",
        *(f"{other / time:.2f}x" if other else "-" for other in others),
        verdict,
    )


def _wrong(result: Result) -> str:
    """Where it is: a result within its bound is wrong because it did not repeat."""
    assert result.worst_row is not None
    index, error = result.worst_row
    return f"WRONG {result.difference:.0e}, row {index} by {error:.0e}"
