"""How many nodes a model needs at least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.search.emitted import emitted
from dsc.compiler.planner.search.problem import Problem
from dsc.spec.errors import DscError

MOST_NODES = 4096
FEW = 128
HOLDING_LEAST = ("1f1b", "zbv")
"""Schedules: interleaved stages hold more micro-batches than 1f1b's, a DualPipe more than zbv."""
ENDLESS = 2**20
"""Data parallelism that leaves nothing of what it shards."""


def smallest_cluster(problem: Problem) -> int | None:
    """A number of nodes of the same kind on which some layout fits, of the next FEW the smallest; None without one."""
    per_node = problem.hardware.cluster.gpus_per_node
    enough = ceil(problem.memory.sharded_bytes / max(1, problem.capacity))  # GPUs, for parameters and nothing else
    start = max(problem.world // per_node, ceil(enough / per_node) - 1) + 1
    hopeless: set[Layout] = set()
    return next((nodes for nodes in _counts(start) if _fits(problem.on(nodes), hopeless)), None)


def _counts(start: int) -> Iterator[int]:
    """Each of the next few, then those in steps of a sixteenth, which round numbers are among."""
    nodes = start
    while nodes <= MOST_NODES:
        yield nodes
        step = 1 << max(0, nodes.bit_length() - 5) if nodes >= start + FEW else 1
        nodes = (nodes // step + 1) * step


def _fits(problem: Problem, hopeless: set[Layout]) -> bool:
    """Whether any layout does, of those that shard and recompute most and have the smallest micro-batch.

    `hopeless`: those that no data parallelism helps, which are looked at once.
    """
    for layout in _smallest(problem):
        endless = replace(layout, dp=ENDLESS)
        if endless in hopeless or problem.memory.least(layout, layout.zero) > problem.capacity:
            continue
        batch = layout.micro_batches(problem.batch) * ENDLESS * layout.micro_batch
        if problem.memory.fullest(endless, batch, problem.stages(layout)) > problem.capacity:
            hopeless.add(endless)
        elif problem.bytes(layout) <= problem.capacity:
            return True
    return False


def _smallest(problem: Problem) -> Iterator[Layout]:
    try:
        offer = emitted(problem)
    except DscError:  # no layout on so many
        return
    micro_batch = min(family.micro_batch for family in offer.families)
    pins = problem.spec.placement
    schedules = HOLDING_LEAST if pins is None or pins.schedule is None else (pins.schedule,)
    for family in offer.families:
        for grid in family.grids() if family.micro_batch == micro_batch else ():
            if grid.schedule not in schedules:
                continue
            zero, recompute = offer.zeros(grid)[-1], offer.recompute[-1]
            yield replace(grid, zero=zero, recompute=recompute, activations=offer.activations[-1])
