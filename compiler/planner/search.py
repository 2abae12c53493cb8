"""The fastest layout that fits: exact, over every legal one.

Every layout has two bounds that no simulation falls below: its work spread evenly over its ranks, which layouts that
share the tensors alike have in common, and the pipeline's closed form. What has the least bound is looked at next, and
simulated if it fits; the search ends when nothing has a bound below the best step. So nothing is passed over that could
have been better.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner.cost import PAIRING, CostModel, StepTime
from dsc.compiler.planner.hardware import Hardware
from dsc.compiler.planner.layout import Layout, check_pins, global_batch, grids, variants
from dsc.compiler.planner.ledger import BYTES, Memory
from dsc.compiler.planner.stages import Stages
from dsc.spec.model import ModelSpec

# A part's weight in the split into stages, relative to the heaviest: so coarse, many layouts split alike.
WEIGHT_STEPS = 64


@dataclass(frozen=True)
class Problem:
    """One model to train on one cluster."""

    spec: ModelSpec
    graph: Graph
    """Whose tensors fill the memory: that of the emitted model."""
    timed: Graph
    """Whose ops take the time: the same with the experts' steps apart."""
    hardware: Hardware

    @property
    def world(self) -> int:
        return self.hardware.gpus

    @property
    def capacity(self) -> int:
        """Bytes of one GPU."""
        return self.hardware.cluster.hbm_bytes

    @cached_property
    def batch(self) -> int:
        """Sequences of one step."""
        return global_batch(self.spec, self.world)

    @cached_property
    def cost(self) -> CostModel:
        return CostModel(self.spec, self.timed, self.hardware)

    @cached_property
    def memory(self) -> Memory:
        return Memory(self.spec, self.graph)

    @cached_property
    def _weights(self) -> dict[Layout, tuple[int, ...]]:
        return {}

    def stages(self, layout: Layout) -> Stages:
        """Parts of each stage, balanced by their time."""
        alike = replace(layout, pp=1, vpp=1, schedule="1f1b", dp=1, zero=0, recompute=(), activations="bf16")
        if alike not in self._weights:
            exact = self.cost.weights(alike)
            self._weights[alike] = tuple(max(1, round(WEIGHT_STEPS * one / max(exact))) for one in exact)
        return self.memory.split(layout, self._weights[alike])

    def bytes(self, layout: Layout) -> int:
        """Of the fullest rank."""
        return self.memory.fullest(layout, self.batch, self.stages(layout))

    def bound(self, layout: Layout) -> float:
        return self.cost.bound(layout, self.stages(layout), self.batch)

    def step(self, layout: Layout) -> StepTime:
        return self.cost.step(layout, self.stages(layout), self.batch)


@dataclass(frozen=True)
class Candidate:
    layout: Layout
    bytes: int
    """Of the fullest rank."""
    seconds: float
    """Of a step; a bound from below where it was not simulated."""


@dataclass(frozen=True)
class Found:
    """What a search comes to."""

    best: Candidate | None
    """None where nothing fits."""
    smallest: Candidate
    """The layout that needs least memory, of those looked at."""
    faster: Candidate | None
    """The layout faster than the best that lacks least memory."""
    legal: int
    """Ways to share the GPUs; each has its variants of ZeRO, recompute and activation type."""
    simulated: int


def search(problem: Problem) -> Found:
    """Raises DscError where the spec's pins contradict each other."""
    largest_tp = problem.hardware.cluster.scale_up_domain
    check_pins(problem.spec, problem.world, problem.batch, largest_tp)
    spread = Spread(problem)
    every = [
        (spread.seconds(grid), GRID, grid) for grid in grids(problem.spec, problem.world, problem.batch, largest_tp)
    ]
    legal = len(every)
    state = _Search(problem, every)
    best = state.run()
    return Found(best, state.smallest(), state.faster(best), legal, state.simulated)


class Spread:
    """The first bound: a layout's work and its parameters, spread evenly over its ranks."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.elements = problem.memory.elements(range(len(problem.memory.parts)))
        self.kinds = tuple(part.kind for part in problem.memory.parts)
        self._known: dict[tuple[int, ...], float] = {}

    def seconds(self, grid: Layout) -> float:
        """At the best that overlapping can do, nothing recomputed; ZeRO only as far as the parameters need it."""
        return self._work(grid) * grid.micro_batches(self.problem.batch) / grid.pp

    def _work(self, grid: Layout) -> float:
        """Seconds of one micro-batch on one rank that holds the whole model."""
        zero = 0 if self.parameter_bytes(grid, 2) <= self.problem.capacity else 3
        sharing = grid.dp if zero else 0  # where parameters come from all that share them
        key = (grid.schedule in PAIRING, grid.micro_batch, grid.tp, grid.cp, grid.ep, grid.etp, sharing)
        if key not in self._known:
            self._known[key] = self.problem.cost.stage(self.kinds, replace(grid, zero=zero)).times.overlapped
        return self._known[key]

    def parameter_bytes(self, grid: Layout, zero: int) -> float:
        """What parameters take on the average rank with a ZeRO stage: weights and gradients."""
        dense, experts = self.elements.dense_on(grid), self.elements.experts_on(grid)
        whole, sharded = dense + experts, dense / (grid.dp * grid.cp) + experts / grid.edp
        precision = self.problem.spec.precision
        weights, gradients = BYTES[precision.parameters], BYTES[precision.optimizer.gradients]
        return (weights * (whole if zero < 3 else sharded) + gradients * (whole if zero < 2 else sharded)) / grid.pp


# What stands in the queue, of equal seconds in this order: what was simulated by its step, a layout by its second
# bound, and a sharing of the GPUs, all variants of it, by its first.
SIMULATED, VARIANT, GRID = range(3)


class _Search:
    """Best first: what has the least bound is looked at next, so the first simulated layout to come up is the best."""

    def __init__(self, problem: Problem, grids: list[tuple[float, int, Layout]]) -> None:
        self.problem = problem
        self.queue = grids
        self.simulated = 0
        self.too_large: dict[Layout, int] = {}
        self.sizes: dict[Layout, int] = {}
        self.sets = tuple(dict.fromkeys(one.recompute for one in variants(grids[0][2], problem.spec)))
        heapq.heapify(self.queue)

    def run(self) -> Candidate | None:
        while self.queue:
            seconds, what, layout = heapq.heappop(self.queue)
            if what == SIMULATED:
                return Candidate(layout, self.bytes(layout), seconds)
            if what == GRID:
                self._open(layout)
            elif self.bytes(layout) <= self.problem.capacity:
                self.simulated += 1
                heapq.heappush(self.queue, (self.problem.step(layout).seconds, SIMULATED, layout))
            else:
                self.too_large[layout] = self.bytes(layout)
                for more in self._recompute_more(layout) if self._can_fit(layout) else ():
                    heapq.heappush(self.queue, (self.problem.bound(more), VARIANT, more))
        return None

    def bytes(self, layout: Layout) -> int:
        if layout not in self.sizes:
            self.sizes[layout] = self.problem.bytes(layout)
        return self.sizes[layout]

    def _open(self, grid: Layout) -> None:
        """The variants that recompute least, of each ZeRO stage and activation type, if any variant can fit."""
        every = [one for one in variants(grid, self.problem.spec) if one.recompute == self.sets[0]]
        if self._can_fit(every[-1]):
            bounds = {one.zero: self.problem.bound(one) for one in every if one.activations == every[0].activations}
            for layout in every:  # what activations are kept as costs no time
                heapq.heappush(self.queue, (bounds[layout.zero], VARIANT, layout))

    def _can_fit(self, layout: Layout) -> bool:
        """Whether the layout does that recomputes everything, but is the same otherwise."""
        return self.bytes(replace(layout, recompute=self.sets[-1])) <= self.problem.capacity

    def _recompute_more(self, layout: Layout) -> Iterator[Layout]:
        """Layouts that recompute one thing more, which is never faster; each set comes from one other only."""
        for chosen in self.sets:
            grows = chosen[:-1] == layout.recompute and chosen != ("full",)
            if chosen != layout.recompute and (grows or (chosen == ("full",) and not layout.recompute)):
                yield replace(layout, recompute=chosen)

    def smallest(self) -> Candidate:
        """What needs least memory, of all that was looked at."""
        layout = min(self.sizes, key=lambda one: (self.sizes[one], one))
        return Candidate(layout, self.sizes[layout], self.problem.step(layout).seconds)

    def faster(self, best: Candidate | None) -> Candidate | None:
        """Of the layouts that would beat the best, the one that lacks least memory."""
        for layout, needed in sorted(self.too_large.items(), key=lambda item: (item[1], item[0])):
            seconds = self.problem.step(layout).seconds
            if best is None or seconds < best.seconds:
                return Candidate(layout, needed, seconds)
        return None
