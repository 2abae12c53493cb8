"""What `dsc bench` shows a person."""

from __future__ import annotations

from rich import box
from rich.table import Table

from dsc.compiler.bench.machine import Machine
from dsc.compiler.bench.run import Result
from dsc.compiler.cli.console import say, show


def show_results(results: list[Result], machine: Machine) -> None:
    copy, matmul = machine.bytes_per_second / 1e12, machine.flops_per_second / 1e12
    say(f"{machine.device}, torch {machine.torch}, triton {machine.triton}")
    say(f"ceilings: copy {copy:.2f} TB/s, matmul {matmul:.0f} TFLOP/s")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("us", "TB/s", "TFLOP/s", "of ceiling", "reference", "compiled", "library", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        others = (result.reference_time, result.compiled_time, result.library_time)
        table.add_row(
            result.case,
            f"{result.time * 1e6:.1f}",
            f"{result.bytes_per_second / 1e12:.2f}",
            f"{result.flops_per_second / 1e12:.0f}" if result.flops_per_second else "-",
            f"{result.of_ceiling:.0%}",
            *(f"{other / result.time:.2f}x" if other else "-" for other in others),
            f"{result.difference:.0e}" if result.correct else f"WRONG {result.difference:.0e}",
        )
    show(table)
