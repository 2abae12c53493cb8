"""What `dsc bench` shows a person."""

from __future__ import annotations

from rich import box
from rich.table import Table

from dsc.compiler.bench.machine import Machine
from dsc.compiler.bench.run import Result
from dsc.compiler.bench.table import COLUMNS, ceilings, row, summary
from dsc.compiler.cli.console import say, show


def show_results(results: list[Result], machine: Machine) -> None:
    for line in ceilings(machine):
        say(line)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(COLUMNS[0])
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*row(result))
    show(table)
    say(summary(results))
