"""How many nodes a model needs at least."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.planner.layout import grids, variants
from dsc.compiler.planner.search import Problem, Spread

MOST_NODES = 4096


def smallest_cluster(problem: Problem) -> int | None:
    """The smallest number of nodes of the same kind on which some layout fits; None if there is none."""
    start = problem.hardware.nodes + 1
    return next((nodes for nodes in range(start, MOST_NODES + 1) if _fits(problem, nodes)), None)


def _fits(problem: Problem, nodes: int) -> bool:
    """Whether any layout does, of those that shard and recompute most."""
    larger = Problem(problem.spec, problem.graph, problem.timed, replace(problem.hardware, nodes=nodes))
    spread = Spread(larger)
    for grid in grids(larger.spec, larger.world, larger.batch, larger.hardware.cluster.scale_up_domain):
        last = tuple(variants(grid, larger.spec))[-1]
        if spread.parameter_bytes(last, last.zero) <= larger.capacity and larger.bytes(last) <= larger.capacity:
            return True
    return False
