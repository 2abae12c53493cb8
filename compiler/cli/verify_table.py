"""What `dsc verify` shows a person."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from dsc.compiler.cli.console import give_verdict, say, show
from dsc.compiler.verify.verify import Check


def show_checks(checks: list[Check]) -> None:
    failed = sum(not check.passed for check in checks)
    if failed:
        give_verdict("FAILED", False, f"{failed} of {len(checks)} checks")
    else:
        give_verdict("passed", True, f"{len(checks)} checks")
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


def _figure(number: float | None) -> str:
    """Counts are whole, errors are not."""
    if number is None:
        return "-"
    return str(number) if isinstance(number, int) else f"{number:.1e}"
