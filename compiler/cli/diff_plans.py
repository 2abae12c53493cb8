"""What differs between two plans, for `dsc diff`."""

from __future__ import annotations

import re
from dataclasses import asdict

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import give_verdict, print_json, show
from dsc.compiler.cli.units import as_yaml
from dsc.compiler.facts.diff import Changed
from dsc.compiler.planner.report.difference import PlanFile, plan_changes

HASH = re.compile("[0-9a-f]{64}")


def diff_plans(names: tuple[str, str], plans: tuple[PlanFile, PlanFile], as_json: bool) -> bool:
    changes = plan_changes(*plans)
    if as_json:
        print_json({section: [asdict(change) for change in found] for section, found in changes.items()})
    elif any(changes.values()):
        _show_plans(names, changes)
    else:
        give_verdict("same", True, f"{names[0]} and {names[1]} are one plan")
    return any(changes.values())


def _show_plans(names: tuple[str, str], changes: dict[str, list[Changed]]) -> None:
    """Sources are left to --json: their figures are in the table."""
    amounts = ", ".join(f"{len(found)} of {section}" for section, found in changes.items() if found)
    give_verdict("different", False, f"entries differ, {amounts}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in (*names, "change"):
        table.add_column(name, justify="right" if name == "change" else "left", overflow="fold")
    for section, found in changes.items():
        table.add_section()
        for change in found:
            if not change.name.endswith(": source"):
                table.add_row(
                    change.name, *(_amount(value, section) for value in (change.first, change.second)), _change(change)
                )
    show(table)


def _amount(value: object, section: str) -> str:
    if section == "memory" and isinstance(value, int):
        return f"{value / 2**30:,.2f} GiB"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    text = as_yaml(value)
    return f"{text[:12]}..." if HASH.fullmatch(text) else text


def _change(change: Changed) -> str:
    """+12.5%."""
    amounts = [value for value in (change.first, change.second) if isinstance(value, int | float)]
    if len(amounts) < 2 or isinstance(change.first, bool) or not amounts[0]:
        return ""
    return f"{amounts[1] / amounts[0] - 1:+.1%}"
