"""The fastest layout that fits: exact, over every one on offer.

Every layout has bounds that no simulation falls below: its work spread evenly over its ranks, which layouts that share
the tensors alike have in common, and the pipeline's closed form. What has the least bound is looked at next, and
simulated if it fits; the search ends when nothing has a bound below the best step. So nothing is passed over that could
have been better, and of equals the first by name is found.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.layout.space import LayoutFamily
from dsc.compiler.planner.search.garbage import nothing_collected
from dsc.compiler.planner.search.offer import Lacks, Offer, everything
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.time.sharing import PAIRING


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
    """The layout that needs least memory, of those looked at; where nothing fits, of all that recompute everything."""
    faster: Candidate | None
    """The layout faster than the best that lacks least memory."""
    legal: int
    """Ways to share the GPUs; each has its variants of ZeRO, recompute and activation type."""
    simulated: int
    lacks: Lacks = field(default=lambda layout: (), compare=False, repr=False)
    """Why a layout was not on offer."""


def search(problem: Problem, offer: Offer | None = None) -> Found:
    """Among what is on offer, or all that is legal. Raises DscError where the spec's pins contradict each other."""
    run = _Search(problem, offer or everything(problem))
    with nothing_collected():
        best = run.best()
        smallest, faster = run.smallest(best), run.faster(best)
    return Found(
        best, smallest, faster, sum(len(one.pipelines) for one in run.families), run.simulated, run.offer.lacks
    )


def fastest(problem: Problem, below: float = math.inf) -> Candidate | None:
    """The best of all that is legal, alone; None where no step is shorter than so many seconds."""
    with nothing_collected():
        return _Search(problem, everything(problem)).best(below)


# What stands in the queue, of equal seconds in this order: families that divide tokens alike, by their work spread
# evenly over all ranks with nothing exchanged; those of them that divide experts alike, by all the work of the largest
# micro-batch, which takes least for a token; a family by its own; one sharing of the GPUs by the same in its pipeline
# and with the ZeRO stage that it needs; the same with each ZeRO stage by what follows the pipeline, too; a layout by
# its pipeline's bound; what was simulated by its step.
TOKENS, EXPERTS, FAMILY, GRID, SHARDED, VARIANT, SIMULATED = range(7)
Alike = tuple[LayoutFamily, ...]
Entry = tuple[Alike, ...] | Alike | LayoutFamily | Layout

# Bounds are sums in another order than a simulation's: so much lower, no layout of equal time comes too late.
ROUNDING = 1 - 1e-9


class _Search:
    """Best first: what has the least bound is looked at next, so the first simulated layout to come up is the best."""

    def __init__(self, problem: Problem, offer: Offer) -> None:
        self.problem = problem
        self.offer = offer
        self.families = offer.families
        self.simulated = 0
        self.too_large: dict[Layout, int] = {}
        self.sizes: dict[Layout, int] = {}
        self.kept: dict[Layout, int] = {}
        self.sets = offer.recompute
        self.types = offer.activations
        self.queue: list[tuple[float, int, Entry]] = []

    def best(self, below: float = math.inf) -> Candidate | None:
        groups: dict[tuple[int, int], dict[tuple[int, int], list[LayoutFamily]]] = {}
        for family in self.families:
            group = groups.setdefault((family.tp, family.cp), {})
            group.setdefault((family.ep, family.etp), []).append(family)
        for group in groups.values():
            alike = tuple(map(tuple, group.values()))
            every = tuple(family for some in alike for family in some)
            self._push(self._least(every, exchanges=False), TOKENS, alike)
        while self.queue:
            seconds, what, found = heapq.heappop(self.queue)
            if seconds >= below:
                return None
            if what == SIMULATED:
                assert isinstance(found, Layout)
                return Candidate(found, self.bytes(found), seconds)
            self._look_into(what, found, seconds)
        return None

    def _look_into(self, what: int, found: Any, seconds: float) -> None:
        """Puts back what it consists of, each with a bound of its own."""
        if what == TOKENS:
            for alike in found:
                self._push(max(seconds, self._least(alike)), EXPERTS, alike)
        elif what == EXPERTS:
            for family in found:
                self._push(max(seconds, self._least((family,))), FAMILY, family)
        elif what == FAMILY:
            for grid in found.grids():
                self._classify(grid, seconds)
        elif what == GRID:
            self._open(found, seconds)
        elif what == SHARDED:
            self._push(self.problem.bound(found), VARIANT, found)
        else:
            self._try(found)

    def _least(self, some: Alike, exchanges: bool = True) -> float:
        """Of their largest micro-batch, and of pipelines one that pairs, where there is any."""
        largest = max(some, key=lambda family: family.micro_batch)
        pipelines = (one for family in some for one in family.pipelines if one.schedule in PAIRING)
        grid = largest.grid(next(pipelines, largest.pipelines[0]))
        return self.problem.of(grid).cost.least(grid, self.problem.batch, exchanges)

    def _push(self, seconds: float, what: int, found: Entry) -> None:
        heapq.heappush(self.queue, (seconds * ROUNDING if what != SIMULATED else seconds, what, found))

    def _zeros(self, grid: Layout) -> tuple[int, ...]:
        """ZeRO stages with which the parameters fit, spread evenly."""
        zeros = self.offer.zeros(grid)
        for index, zero in enumerate(zeros):  # the more is sharded, the less is left
            if self.problem.memory.least(grid, zero) <= self.problem.capacity:
                return zeros[index:]
        return ()

    def _classify(self, grid: Layout, seconds: float) -> None:
        """A sharing of the GPUs waits for what its schedule and its least ZeRO stage take at least."""
        zeros = self._zeros(grid)
        if zeros:
            least = grid if zeros[0] <= 1 else replace(grid, zero=zeros[0])  # of which 0 and 1 take as long
            floor = self.problem.of(grid).cost.floor(least, self.problem.batch)
            self._push(max(seconds, floor), GRID, grid)

    def _open(self, grid: Layout, seconds: float) -> None:
        """The variants that recompute least, of each ZeRO stage."""
        cost = self.problem.of(grid).cost
        for zero in self._zeros(grid):
            layout = replace(grid, zero=zero, recompute=self.sets[0], activations=self.types[0])
            floor = cost.floor(layout, self.problem.batch) + cost.tail.least(layout)
            self._push(max(seconds, floor), SHARDED, layout)

    def _try(self, layout: Layout) -> None:
        """What activations are kept as costs no time: the first type that fits. Else what recomputes more."""
        for activations in self.types:
            one = replace(layout, activations=activations)
            if self.bytes(one) <= self.problem.capacity:
                self.simulated += 1
                self._push(self.problem.step(one).seconds, SIMULATED, one)
                return
            self.too_large[one] = self.bytes(one)
        for more in self._recompute_more(layout) if self._can_fit(layout) else ():
            self._push(self.problem.bound(more), VARIANT, more)

    def bytes(self, layout: Layout) -> int:
        if layout not in self.sizes:
            self.sizes[layout] = self.problem.bytes(layout)
        return self.sizes[layout]

    def _can_fit(self, layout: Layout) -> bool:
        """Whether recomputing more may help: nothing keeps less than what recomputes everything."""
        most = replace(layout, recompute=self.sets[-1], activations=self.types[-1])
        if most not in self.kept:
            self.kept[most] = self.problem.kept_bytes(most)
        return self.kept[most] <= self.problem.capacity

    def _recompute_more(self, layout: Layout) -> Iterator[Layout]:
        """Layouts that recompute one thing more, which is never faster; each set comes from one other only."""
        for chosen in self.sets:
            grows = chosen[:-1] == layout.recompute and chosen != ("full",)
            if chosen != layout.recompute and (grows or (chosen == ("full",) and not layout.recompute)):
                yield replace(layout, recompute=chosen)

    def smallest(self, best: Candidate | None) -> Candidate:
        """What needs least memory: of all that was looked at, and where nothing fits of all that recompute all."""
        if best is None:
            self._look_for_smallest()
        layout = min(self.sizes, key=lambda one: (self.sizes[one], one))
        seconds = self.problem.bound(layout) if best else self.problem.step(layout).seconds
        return Candidate(layout, self.sizes[layout], seconds)

    def _look_for_smallest(self) -> None:
        """In the order of what parameters take at least, until that alone is more than the smallest takes."""
        micro_batch = min(family.micro_batch for family in self.families)
        grids = (grid for family in self.families if family.micro_batch == micro_batch for grid in family.grids())
        least = self.problem.memory.least
        bounds = sorted((least(grid, zero), zero, grid) for grid in grids for zero in self.offer.zeros(grid))
        smallest = math.inf
        for bound, zero, grid in bounds:
            if bound > smallest:
                break
            most = replace(grid, zero=zero, recompute=self.sets[-1], activations=self.types[-1])
            smallest = min(smallest, self.bytes(most))

    def faster(self, best: Candidate | None) -> Candidate | None:
        """Of the layouts that would beat the best, the one that lacks least memory."""
        for layout, needed in sorted(self.too_large.items(), key=lambda item: (item[1], item[0])):
            if best is None or self.problem.bound(layout) < best.seconds:
                seconds = self.problem.step(layout).seconds
                if best is None or seconds < best.seconds:
                    return Candidate(layout, needed, seconds)
        return None
