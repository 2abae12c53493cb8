"""What `dsc verify` shows a person."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from dsc.compiler.cli.console import say, show
from dsc.compiler.verify.verify import Check


def show_checks(checks: list[Check]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("measured", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for check in checks:
        verdict, style = ("passed", "green") if check.passed else ("FAILED", "bold red")
        table.add_row(check.name, _figure(check.measured), _figure(check.bound), Text(verdict, style))
    show(table)
    for check in checks:
        if check.error is not None:
            say(f"{check.name}: {check.error}")
    failed = sum(not check.passed for check in checks)
    say(f"{len(checks)} checks, {failed} failed")


def _figure(number: float | None) -> str:
    """Counts are whole, errors are not."""
    if number is None:
        return "-"
    return str(number) if isinstance(number, int) else f"{number:.1e}"
