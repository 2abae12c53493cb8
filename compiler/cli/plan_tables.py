"""What `dsc plan` shows a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import give_verdict, say, show, tell
from dsc.compiler.planner.memory.lines import Role
from dsc.compiler.planner.report.applies import has_experts
from dsc.compiler.planner.report.figures import fixed, percent
from dsc.compiler.planner.report.plan import (
    Plan,
    choices,
    memory,
    ranks_text,
    said_groups,
    searched_text,
    where,
)
from dsc.compiler.planner.report.record import placement
from dsc.compiler.planner.report.trivial import TrivialPlan
from dsc.compiler.planner.search.explain import Neighbour
from dsc.compiler.planner.search.search import Candidate
from dsc.compiler.planner.serving.deployment import Alternative

GIB = 2**30
MOST_ROLES = 8
INDENT = "  "


def show_plan(plan: Plan) -> None:
    layout, time, problem = plan.layout, plan.time, plan.problem
    what = f"{problem.spec.name}, training on {where(problem.hardware)}"
    give_verdict("fits" if plan.fits else "does not fit", plan.fits, what)
    sizes = " x ".join(f"{name} {getattr(layout, name)}" for name in ("pp", "dp", "cp", "tp"))
    experts = f"; experts: ep {layout.ep} x etp {layout.etp} x edp {layout.edp}" if has_experts(problem.spec) else ""
    tell(f"{sizes}{experts}", INDENT)
    tokens = f"{layout.micro_batch} x {problem.spec.workload.sequence_length:,} tokens"
    tell(
        f"{f'schedule {layout.schedule}, stages: {layout.chunks}, ' if layout.pp > 1 else ''}"
        f"micro-batches: {layout.micro_batches(problem.batch):,} of {tokens}; ZeRO {layout.zero}; "
        f"recompute {', '.join(layout.recompute) or 'nothing'}; activations kept in {layout.activations}",
        INDENT,
    )
    for line in plan.not_emitted:
        tell(f"not emitted: {line}", INDENT)
    show(_memory(plan))
    if len(plan.roles) > MOST_ROLES:
        tell(f"the fullest, the first and the last of {len(plan.roles)} kinds of ranks; -o and --json have all of them")
    show(_time(plan))
    tell(
        f"step {time.seconds:.2f} s (+-{time.uncertainty:.0%}), bubble {time.bubble_fraction:.1%}, MFU {time.mfu:.1%}, "
        f"{time.gpu_hours_per_trillion_tokens:,.0f} {problem.hardware.device} hours per trillion tokens"
    )
    show(rejected(plan.shown))
    if plan.saving is not None and plan.saving.bytes is not None:
        freed = plan.chosen.bytes - plan.saving.bytes
        say(f"frees most memory: {plan.saving.change}, {freed / GIB:.1f} GiB")
    if plan.faster is not None and plan.fits:
        faster = plan.faster
        missing = (faster.bytes - problem.capacity) / GIB
        device, less = problem.hardware.device, 1 - faster.seconds / time.seconds
        better = f"{faster.seconds:.2f} s, {less:.1%} less: {', '.join(choices(plan))}"
        tell(f"with {missing:.1f} GiB more a {device}, a step would take {better}")
    if plan.elsewhere is not None:
        tell(_elsewhere(plan.elsewhere))
    say(searched_text(plan.found))


def _elsewhere(there: Candidate) -> str:
    """What other engines would reach, by the choices that differ from one GPU's."""
    choices = ((name, value) for name, value in placement(there.layout).items() if value not in (1, []))
    shown = ", ".join(f"{name} {' + '.join(value) if isinstance(value, list) else value}" for name, value in choices)
    return f"other engines, which run more than is emitted: {there.seconds:.2f} s a step with {shown}"


def show_trivial(plan: TrivialPlan) -> None:
    length = plan.spec.workload.sequence_length
    tell(f"{plan.spec.name}, training on one device that holds all of it, a sequence of {length:,} tokens at a time")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("of the device", "GiB", "", ""):
        table.add_column(column, justify="right" if column == "GiB" else "left")
    for line in plan.role.lines:
        table.add_row(line.name, f"{line.bytes / GIB:.2f}", line.provenance, line.source)
    table.add_section()
    table.add_row("total", f"{plan.role.bytes / GIB:.2f}", style="bold")
    show(table)


def _memory(plan: Plan) -> Table:
    roles = shown_roles(plan.roles)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"GiB of one {plan.problem.hardware.device}")
    for role in roles:
        table.add_column(ranks_text(role.ranks), justify="right", no_wrap=True)
    columns = [memory(role, plan.problem.capacity) for role in roles]
    for name in said_groups(roles):
        table.add_row(name, *(f"{column[name] / GIB:.2f}" for column in columns))
    table.add_section()
    table.add_row("total", *(f"{column['total'] / GIB:.2f}" for column in columns), style="bold")
    table.add_row("capacity", *(f"{column['capacity'] / GIB:.2f}" for column in columns))
    return table


def shown_roles(roles: Sequence[Role]) -> list[Role]:
    """All, or of too many for a line the first, the fullest and the last."""
    if len(roles) <= MOST_ROLES:
        return list(roles)
    fullest = max(range(len(roles)), key=lambda index: roles[index].bytes)
    return [roles[index] for index in sorted({0, fullest, len(roles) - 1})]


def _time(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("of a step, busiest rank", "seconds", "share", ""):
        table.add_column(column, justify="right" if column in ("seconds", "share") else "left")
    for line in plan.lines:
        share = line.seconds / plan.time.seconds
        table.add_row(line.name, fixed(line.seconds, 3), percent(share), line.provenance)
    return table


def rejected(around: Sequence[Neighbour | Alternative]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("one choice away", "binds", "because"):
        table.add_column(column)
    for choice in around:
        table.add_row(choice.change, choice.binds, choice.reason)
    return table
