"""What `dsc plan --explain KEY` shows a person."""

from __future__ import annotations

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import show, tell
from dsc.compiler.planner.report.plan import where
from dsc.compiler.planner.report.why import Other, Why

GIB = 2**30


def show_why(found: Why) -> None:
    plan = found.plan
    value = " + ".join(found.value) or "nothing" if isinstance(found.value, list) else found.value
    have = f"{plan.chosen.bytes / GIB:.2f} of {plan.problem.capacity / GIB:.2f} GiB"
    tell(f"{found.key} {value}, of {plan.problem.spec.name} on {where(plan.problem.hardware)}: {found.reason}")
    tell(f"with it a step takes {plan.time.seconds:.3f} s, and the fullest {plan.problem.hardware.device} {have}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("instead", "GiB", "seconds", "binds", "because"):
        table.add_column(column, justify="right" if column in ("GiB", "seconds") else "left")
    for other in found.others:
        table.add_row(*_row(other, plan.time.seconds))
    show(table)


def _row(other: Other, seconds: float) -> tuple[str, ...]:
    """The reason of what is slower is where the time goes; of all else, what its line says."""
    one = other.neighbour
    size = "" if one.bytes is None else f"{one.bytes / GIB:.2f}"
    if one.seconds is None:
        return one.change, size, "", one.binds, one.reason
    more = round(one.seconds / seconds - 1, 3) + 0.0  # which has no sign where it is nothing
    lines = ", ".join(f"{name} {change:+.3f} s" for name, change in other.differs)
    return one.change, size, f"{one.seconds:.3f}", one.binds, f"{more:+.1%}{': ' if lines else ''}{lines}"
