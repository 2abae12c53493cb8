"""What `dsc plan` shows a person."""

from __future__ import annotations

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import say, show
from dsc.compiler.planner.plan import MEMORY, Plan, memory

GIB = 2**30


def show_plan(plan: Plan) -> None:
    layout, time, problem = plan.layout, plan.time, plan.problem
    machines = problem.hardware
    say(f"{problem.spec.name} on {machines.nodes} nodes of {machines.cluster.name}, {problem.world} GPUs")
    sizes = " x ".join(f"{name} {getattr(layout, name)}" for name in ("pp", "dp", "cp", "tp"))
    say(f"  {sizes}; experts: ep {layout.ep} x etp {layout.etp} x edp {layout.edp}")
    say(
        f"  schedule {layout.schedule}, {layout.chunks} stages, {layout.micro_batches(problem.batch)} micro-batches of "
        f"{layout.micro_batch} x {problem.spec.workload.sequence_length} tokens; ZeRO {layout.zero}; "
        f"recompute {', '.join(layout.recompute) or 'nothing'}; activations kept in {layout.activations}"
    )
    show(_memory(plan))
    show(_time(plan))
    say(
        f"step {time.seconds:.2f} s (+-{time.uncertainty:.0%}), bubble {time.bubble_fraction:.1%}, MFU {time.mfu:.1%}, "
        f"{time.gpu_hours_per_trillion_tokens:,.0f} GPU hours per trillion tokens"
    )
    show(_rejected(plan))
    if plan.saving is not None and plan.saving.bytes is not None:
        freed = plan.chosen.bytes - plan.saving.bytes
        say(f"frees most memory: {plan.saving.change}, {freed / GIB:.1f} GiB")
    if plan.found.faster is not None and plan.fits:
        faster = plan.found.faster
        missing = (faster.bytes - problem.capacity) / GIB
        say(f"with {missing:.1f} GiB more a GPU, a step would take {faster.seconds:.2f} s: {_choices(plan)}")
    say(f"{plan.found.legal:,} ways to share the GPUs are legal, {plan.found.simulated} were simulated")


def _choices(plan: Plan) -> str:
    """Where the faster layout differs."""
    faster = plan.found.faster
    assert faster is not None
    ours, theirs = vars(plan.layout), vars(faster.layout)
    return ", ".join(
        f"{name} {_value(ours[name])} -> {_value(theirs[name])}" for name in ours if ours[name] != theirs[name]
    )


def _value(value: object) -> str:
    return " + ".join(value) or "nothing" if isinstance(value, tuple) else str(value)


def _memory(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("GiB of one GPU")
    for role in plan.roles:
        table.add_column(_ranks(role.ranks), justify="right", no_wrap=True)
    columns = [memory(role, plan.problem.capacity) for role in plan.roles]
    for name in MEMORY:
        table.add_row(name, *(f"{column[name] / GIB:.2f}" for column in columns))
    table.add_section()
    table.add_row("total", *(f"{column['total'] / GIB:.2f}" for column in columns), style="bold")
    table.add_row("capacity", *(f"{column['capacity'] / GIB:.2f}" for column in columns))
    return table


def _ranks(ranks: tuple[int, ...]) -> str:
    """rank 0, ranks 1-14, ranks 3, 5."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {', '.join(str(rank) for rank in ranks)}"


def _time(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("of a step, busiest rank", "seconds", "share", ""):
        table.add_column(column, justify="right" if column in ("seconds", "share") else "left")
    for line in plan.time.lines:
        share = line.seconds / plan.time.seconds
        table.add_row(line.name, f"{line.seconds:.3f}", f"{share:.1%}", line.provenance)
    return table


def _rejected(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("one choice away", "binds", "because"):
        table.add_column(column)
    for one in plan.around:
        table.add_row(one.change, one.binds, one.reason)
    return table
