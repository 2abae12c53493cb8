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
    for one in results:
        others = (one.reference_time, one.compiled_time, one.library_time)
        table.add_row(
            one.case,
            f"{one.time * 1e6:.1f}",
            f"{one.bytes_per_second / 1e12:.2f}",
            f"{one.flops_per_second / 1e12:.0f}" if one.flops_per_second else "-",
            f"{one.of_ceiling:.0%}",
            *(f"{other / one.time:.2f}x" if other else "-" for other in others),
            f"{one.difference:.0e}" if one.correct else f"WRONG {one.difference:.0e}",
        )
    show(table)
