"""The layout that a package is emitted for: the planner's choice under the pins, where there is code for it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from functools import cache

from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.fused.fp8 import Fp8RoutedAndSharedExperts, Fp8RoutedExperts
from dsc.compiler.passes.shard import MOE, PlannedStep, Sharing
from dsc.compiler.passes.state import wide_state
from dsc.compiler.passes.turns import why_one_by_one
from dsc.compiler.planner.layout.layout import TRIVIAL, Layout
from dsc.compiler.planner.layout.legal import choice_problems
from dsc.compiler.planner.layout.space import LayoutFamily, families, recompute_sets
from dsc.compiler.planner.machine.collectives import hops
from dsc.compiler.planner.search.explain import climb
from dsc.compiler.planner.search.offer import Offer, everything
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.search.search import Found, search
from dsc.spec.placement import Placement

SCHEDULES = {
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zbv": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
"""By the planner's names those of torch.distributed.pipelining, which does the same actions in the same order."""

EMITTED: dict[str, object] = {"activations": "bf16"}
"""What the choice keeps to where the spec leaves it open."""


def choose(problem: Problem) -> Found:
    """The plan: the fastest layout that fits of those that the package runs, one that no neighbour of its own beats.

    Of what is pinned although the package does not run it, `not_emitted` says so.
    """
    found = search(problem, emitted(problem))
    return found if found.best is None else replace(found, best=climb(problem, found.best, found.lacks))


def sharing_of(problem: Problem, layout: Layout) -> Sharing | str:
    """Where a layout has no code, the reason."""
    if reason := next(missing(layout, problem.graph), None):
        return f"there is no code yet for {reason}"
    stages = problem.stages(layout)
    ranks = {stage: rank for rank in range(layout.pp) for stage in layout.stages(rank)}
    return Sharing(
        pp=layout.pp,
        dp=layout.dp,
        cp=layout.cp,
        tp=layout.tp,
        ep=layout.ep,
        etp=layout.etp,
        zero=max(layout.zero, 1),
        schedule=SCHEDULES[layout.schedule],
        rank_of_stage=tuple(ranks[stage] for stage in range(len(stages))),
        micro_batch=layout.micro_batch,
        batch=problem.batch,
        stages=tuple(tuple(problem.memory.parts[part].name for part in stage) for stage in stages),
        planned=planned(problem, layout),
        recompute=layout.recompute,
        nodes=hops(layout.ep, layout.etp, problem.hardware) if layout.dispatch == "all_to_all" else 1,
        deepep=layout.dispatch == "deepep",
        machines=problem.hardware.nodes,
        machine_ranks=problem.hardware.cluster.gpus_per_node,
        on_gpus=problem.hardware.is_gpu,
    )


def planned(problem: Problem, layout: Layout) -> PlannedStep:
    """What the plan expects of a step of this layout."""
    roles = problem.of(layout).memory.ledger(layout, problem.batch, problem.stages(layout))
    return PlannedStep(
        seconds=problem.step(layout).seconds,
        bytes=max(role.bytes for role in roles),
        flops_per_token=compute_stats(problem.spec, problem.graph).flops_per_token.training,
        peak_flops=problem.hardware.cluster.bf16_flops,
    )


def emitted(problem: Problem) -> Offer:
    """What the package runs, and what is pinned; all that is legal where it is another engine, or there is no such.

    Raises DscError where the spec's pins contradict each other.
    """
    pins = problem.spec.placement or Placement()
    if problem.others is not None:
        return everything(problem)
    free = {name: value for name, value in EMITTED.items() if getattr(pins, name) is None}
    spec = problem.spec.model_copy(update={"placement": pins.model_copy(update=free)})
    every = families(spec, problem.world, problem.batch, problem.hardware.cluster.scale_up_domain)
    scheduled = every if pins.schedule else _scheduled(every, SCHEDULES)
    whole = cache(lambda etp: not _cuts_blocks(etp, problem.graph))
    some = tuple(family for family in scheduled if whole(family.etp))
    if not some or any(choice_problems(replace(TRIVIAL, recompute=tuple(sorted(pins.recompute or ()))), spec)):
        return everything(problem)
    pinned = {name for name, value in pins if value is not None}

    def lacks(layout: Layout) -> tuple[str, ...]:
        return tuple(text for text in missing(layout, problem.graph) if not _choices(text) <= pinned)

    return Offer(
        some,
        _zeros if pins.zero is None else lambda grid: (pins.zero or 0,),
        recompute_sets(spec) if pins.recompute is None else (tuple(sorted(pins.recompute)),),
        (pins.activations or "bf16",),
        lacks,
    )


def _zeros(grid: Layout) -> tuple[int, ...]:
    """The trainer shards the optimizer's state wherever several ranks have it."""
    return (0,) if grid.dp * grid.cp == 1 else (1, 2, 3)


def _scheduled(every: Iterable[LayoutFamily], schedules: Container[str]) -> Iterator[LayoutFamily]:
    """With only such pipelines, and one of a single rank."""
    for family in every:
        if pipelines := tuple(one for one in family.pipelines if one.schedule in schedules):
            yield family._replace(pipelines=pipelines)


def _choices(text: str) -> set[str]:
    """That a reason of `missing` speaks of."""
    return Placement.model_fields.keys() & text.split()


def not_emitted(problem: Problem, layout: Layout) -> tuple[str, ...]:
    """What of a plan the package does not do, a line each: of its layout, and of the types of the training state."""
    uncut = why_one_by_one(layout.recompute, problem.cost.overlap.cycles)
    alone = layout.schedule == "dualpipe-v" and layout.copy > 1 and uncut
    return (
        *(
            f"{text}: the package trains on one {problem.hardware.device} instead"
            for text in missing(layout, problem.graph)
        ),
        *((f"overlap: the halves of a pair run one after the other, for nothing cuts {uncut} yet",) if alone else ()),
        *(f"{text}, and so it is planned" for text in (*_wide_products(problem, layout), *wide_state(problem.spec))),
    )


def _wide_products(problem: Problem, layout: Layout) -> Iterator[str]:
    """What the spec wants in FP8 and the graph has in bfloat16."""
    asked, graph = problem.spec.precision.fp8_products(), problem.shared if layout.copy > 1 else problem.graph
    ops = [node.op for block in graph.blocks.values() for node in block.nodes() if not node.op.in_fp8]
    wide = {name for op in ops for one in op.holders() if (name := one.product) in asked}
    if wide:
        yield f"precision.linear.products: {', '.join(sorted(filter(None, wide)))} run in bfloat16"


def _cuts_blocks(etp: int, graph: Graph) -> bool:
    """Whether a slice of an expert's width has a part of a block that shares a scale."""
    ops = [node.op for block in graph.blocks.values() for node in block.nodes()]
    experts = (op for op in ops if isinstance(op, Fp8RoutedExperts | Fp8RoutedAndSharedExperts))
    return any(op.down.in_features.value() % (etp * op.block.value()) for op in experts)


def missing(layout: Layout, graph: Graph) -> Iterator[str]:
    """What of a layout there is no code for, each beginning with the choice that it is."""
    if _cuts_blocks(layout.etp, graph):
        yield f"etp {layout.etp} of experts whose width is not so many times the blocks of FP8"
    if layout.activations != "bf16":
        yield f"activations {layout.activations}"
    if layout.schedule not in SCHEDULES:
        yield f"schedule {layout.schedule}"
    if layout.dispatch == "deepep" and layout.schedule == "dualpipe-v":
        yield "schedule dualpipe-v with dispatch deepep, whose all-to-alls no pair is cut at"
    if layout.dispatch == "deepep" and "full" in layout.recompute:
        yield "recompute full with dispatch deepep, for rows that are sent again come in another order"
    if layout.copy > 1 and MOE not in graph.blocks:
        chosen = f"ep {layout.ep}" if layout.ep > 1 else f"etp {layout.etp}"
        yield f"{chosen} for several kinds of mixtures of experts"
