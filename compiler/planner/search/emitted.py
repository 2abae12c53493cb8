"""The layout that a package is emitted for: the planner's choice under the pins, where there is code for it."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes.shard import Sharing
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.search.search import search
from dsc.spec.model import ModelSpec

SCHEDULES = {
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zbv": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
"""By the planner's names those of torch.distributed.pipelining, which does the same actions in the same order."""


def chosen_sharing(spec: ModelSpec, graph: Graph, timed: Graph) -> Sharing | None:
    """None where the choice has no code: the package then trains on one device."""
    assert spec.cluster is not None
    problem = Problem(spec, graph, timed, hardware(spec.cluster))
    found = search(problem)
    layout = (found.best or found.smallest).layout
    if layout.world == 1 or not is_emitted(layout):
        return None
    stages = problem.stages(layout)
    ranks = {stage: rank for rank in range(layout.pp) for stage in layout.stages(rank)}
    return Sharing(
        pp=layout.pp,
        dp=layout.dp,
        ep=layout.ep,
        zero=layout.zero,
        schedule=SCHEDULES[layout.schedule],
        rank_of_stage=tuple(ranks[stage] for stage in range(len(stages))),
        micro_batch=layout.micro_batch,
        batch=problem.batch,
        stages=tuple(tuple(problem.memory.parts[part].name for part in stage) for stage in stages),
    )


def is_emitted(layout: Layout) -> bool:
    """Whether code is emitted for a layout."""
    alone = layout.tp == layout.cp == layout.etp == 1 and not layout.recompute and layout.activations == "bf16"
    zero = (1,) if layout.pp > 1 else (1, 2, 3)  # a pipeline reduces once, at its end
    return alone and layout.zero in zero and layout.schedule in SCHEDULES
