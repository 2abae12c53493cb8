"""How many nodes a model needs at least."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from dsc.compiler.planner.layout.space import families, variants
from dsc.compiler.planner.search.problem import Problem

MOST_NODES = 4096


def smallest_cluster(problem: Problem) -> int | None:
    """The smallest number of nodes of the same kind on which some layout fits; None if there is none."""
    per_node = problem.hardware.cluster.gpus_per_node
    enough = ceil(problem.memory.sharded_bytes / max(1, problem.capacity))  # GPUs, for parameters and nothing else
    start = max(problem.world // per_node, ceil(enough / per_node) - 1) + 1
    return next((nodes for nodes in range(start, MOST_NODES + 1) if _fits(problem.on(nodes))), None)


def _fits(problem: Problem) -> bool:
    """Whether any layout does, of those that shard and recompute most and have the smallest micro-batch."""
    legal = families(problem.spec, problem.world, problem.batch, problem.hardware.cluster.scale_up_domain)
    if not legal:
        return False
    micro_batch = min(one.micro_batch for one in legal)
    grids = [grid for family in legal if family.micro_batch == micro_batch for grid in family.grids()]
    last = list(variants(grids[0], problem.spec))[-1]
    for grid in grids:
        if problem.memory.least(grid, last.zero) <= problem.capacity:
            most = replace(grid, zero=last.zero, recompute=last.recompute, activations=last.activations)
            if problem.bytes(most) <= problem.capacity:
                return True
    return False
