"""The layout that a package is emitted for: the planner's choice under the pins, where there is code for it."""

from __future__ import annotations

from collections.abc import Iterator

from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes.shard import MOE, PlannedStep, Sharing
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.layout.pins import check_pins
from dsc.compiler.planner.layout.space import LayoutFamily, recompute_sets
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.search.search import Found, search
from dsc.spec.model import ModelSpec

SCHEDULES = {
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zbv": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
"""By the planner's names those of torch.distributed.pipelining, which does the same actions in the same order."""

EMITTED: dict[str, object] = {"tp": 1, "cp": 1, "etp": 1, "zero": 1, "activations": "bf16"}
"""What the choice keeps to where the spec leaves it open."""

ELEMENTWISE = ("norms", "swiglu")
"""What drops results that products read: where they read FP8, they keep codes of their own, which nothing drops."""


def emitted_search(problem: Problem) -> Found:
    """Among the layouts that there is code for, under the pins of a spec that has some."""
    pins = problem.spec.placement
    assert pins is not None
    check_pins(problem.spec, problem.world, problem.batch, problem.hardware.cluster.scale_up_domain)
    free = {name: value for name, value in EMITTED.items() if getattr(pins, name) is None}
    sets = emitted_sets(problem.spec, problem.timed) if pins.recompute is None else None
    pinned = problem.pinned(pins.model_copy(update=free))
    return search(pinned, emitted_families(pinned) if pins.schedule is None else None, sets)


def sharing_of(problem: Problem, layout: Layout) -> Sharing | str:
    """Where a layout has no code, the reason."""
    if reason := next(missing(layout, problem.graph, problem.timed), None):
        return f"there is no code yet for {reason}"
    stages = problem.stages(layout)
    ranks = {stage: rank for rank in range(layout.pp) for stage in layout.stages(rank)}
    return Sharing(
        pp=layout.pp,
        dp=layout.dp,
        cp=layout.cp,
        ep=layout.ep,
        zero=max(layout.zero, 1),
        schedule=SCHEDULES[layout.schedule],
        rank_of_stage=tuple(ranks[stage] for stage in range(len(stages))),
        micro_batch=layout.micro_batch,
        batch=problem.batch,
        stages=tuple(tuple(problem.memory.parts[part].name for part in stage) for stage in stages),
        planned=planned(problem, layout),
        recompute=layout.recompute,
        nodes=nodes(layout, problem.hardware),
        machines=problem.hardware.nodes,
        machine_ranks=problem.hardware.cluster.gpus_per_node,
        on_gpus=problem.hardware.is_gpu,
    )


def nodes(layout: Layout, hardware: Hardware) -> int:
    """Scale-up domains of several ranks that one copy of the experts fills; 1 where each token goes there directly."""
    local = hardware.cluster.scale_up_domain
    return layout.ep // local if local > 1 and layout.ep % local == 0 else 1


def planned(problem: Problem, layout: Layout) -> PlannedStep:
    """What the plan expects of a step of this layout."""
    roles = problem.of(layout).memory.ledger(layout, problem.batch, problem.stages(layout))
    return PlannedStep(
        seconds=problem.step(layout).seconds,
        bytes=max(role.bytes for role in roles),
        flops_per_token=compute_stats(problem.spec, problem.timed).flops_per_token.training,
        peak_flops=problem.hardware.cluster.bf16_flops,
    )


def emitted_families(problem: Problem) -> Iterator[LayoutFamily]:
    """All that is legal, less the schedules that there is no code for."""
    legal = check_pins(problem.spec, problem.world, problem.batch, problem.hardware.cluster.scale_up_domain)
    for family in legal:
        if pipelines := tuple(one for one in family.pipelines if one.schedule in SCHEDULES):
            yield family._replace(pipelines=pipelines)


def emitted_sets(spec: ModelSpec, timed: Graph) -> tuple[tuple[str, ...], ...]:
    """What there is code to recompute, the smallest set first."""
    without = frozenset(ELEMENTWISE if _keeps_codes(timed) else ())
    return tuple(chosen for chosen in recompute_sets(spec) if without.isdisjoint(chosen))


def _keeps_codes(timed: Graph) -> bool:
    return any(node.op.saves_codes for block in timed.blocks.values() for node in block.nodes())


def missing(layout: Layout, graph: Graph, timed: Graph) -> Iterator[str]:
    """What of a layout there is no code for."""
    yield from (f"{name} {getattr(layout, name)}" for name in ("tp", "etp") if getattr(layout, name) > 1)
    if _keeps_codes(timed) and (elementwise := [name for name in ELEMENTWISE if name in layout.recompute]):
        yield f"recompute {', '.join(elementwise)} of products in FP8, which keep codes"
    if layout.activations != "bf16":
        yield f"activations {layout.activations}"
    if layout.schedule not in SCHEDULES:
        yield f"schedule {layout.schedule}"
    if layout.pp > 1 and layout.zero > 1:
        yield f"zero {layout.zero} under a pipeline, which reduces gradients once, after its last micro-batch"
    if layout.ep > 1 and MOE not in graph.blocks:
        yield f"ep {layout.ep} for several kinds of mixtures of experts"
