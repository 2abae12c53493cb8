"""Seconds of pipeline stages: the sums of their parts, with what sharded weights add and what F&B pairs hide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.parts.parts import EMBEDDING, Part
from dsc.compiler.planner.parts.shard import Elements, added
from dsc.compiler.planner.parts.stages import Stages
from dsc.compiler.planner.pipeline.simulate import StageTimes
from dsc.compiler.planner.time.overlap import Overlap
from dsc.compiler.planner.time.part import PartTimes, Pass, together
from dsc.compiler.planner.time.sharing import Counts, StageSharing, stage_sharing
from dsc.compiler.planner.time.traffic import Communication


class StageCost(NamedTuple):
    forward: Pass
    backward_input: Pass
    backward_weight: Pass
    times: StageTimes


class Whole(NamedTuple):
    """Seconds of a micro-batch on all ranks of a pipeline together."""

    serial: float
    """With nothing paired."""
    paired: float
    """With all of it."""
    least: tuple[float, float]
    """Of a stage that has but the lightest part: forward, and both ways. The embedding is never alone in one."""


class StageCosts:
    """Of the stages of one model on one machine. `overlap`: which pipelines hide their all-to-alls.

    Where an interleaved one does, each forward and the backward next to it are shorter by half of what their pair
    hides, except in warm-up and drain, where nothing runs beside them.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        elements: Mapping[str, Elements],
        part_times: PartTimes,
        communication: Communication,
        overlap: Overlap,
    ) -> None:
        self.overlap = overlap
        self._parts = parts
        self._elements = elements
        self._part_times = part_times
        self._communication = communication
        self._everything = _counted(part.kind for part in parts)
        self._elements_of = cache(self._elements_of_counts)
        self._times = cache(self._times_of)
        self._whole = cache(self._whole_of)
        self._counts = cache(self._counts_of)

    def costs(self, layout: Layout, stages: Stages) -> tuple[StageCost, ...]:
        return tuple(self._cost(counts, layout) for counts in self._counts(stages))

    def cost(self, kinds: Sequence[str], layout: Layout) -> StageCost:
        """A run of parts of these kinds, for one micro-batch on one rank."""
        return self._cost(_counted(kinds), layout)

    def times(self, layout: Layout, stages: Stages) -> list[StageTimes]:
        """Of each stage, without what they are made of."""
        sharing, overlaps = stage_sharing(layout), self.overlap.hides(layout)
        known: dict[Counts, StageTimes] = {}
        for counts in self._counts(stages):
            if counts not in known:
                known[counts] = self._times(counts, sharing, layout.recompute, overlaps)
        return [known[counts] for counts in self._counts(stages)]

    def whole(self, layout: Layout, exchanges: bool = True) -> Whole:
        return self._whole(stage_sharing(layout), layout.recompute, self.overlap.hides(layout), exchanges)

    def as_run(self, layout: Layout, times: list[StageTimes]) -> list[StageTimes]:
        """What the schedule is simulated with: where interleaved stages hide, half of it off each direction."""
        if not self._interleaved_hides(layout):
            return times
        return [
            replace(one, forward=one.forward - one.hidden / 2, backward_input=one.backward_input - one.hidden / 2)
            for one in times
        ]

    def warm_up(self, layout: Layout, times: list[StageTimes]) -> float:
        """What interleaved stages cannot hide: the forwards and backwards of rank 0 that have none beside them."""
        if not self._interleaved_hides(layout):
            return 0.0
        count = 2 * (layout.pp - 1) + (layout.vpp - 1) * layout.pp
        return count * sum(one.hidden for one in times) / len(times)

    def _interleaved_hides(self, layout: Layout) -> bool:
        return layout.schedule == "interleaved" and self.overlap.hides(layout)

    def _cost(self, counts: Counts, layout: Layout) -> StageCost:
        sharing = stage_sharing(layout)
        parts = [
            [
                one.times(count)
                for one in self._part_times.passes(kind, self._part_times.sharing(kind, sharing), layout.recompute)
            ]
            for kind, count in counts
        ]
        forward, backward, weight = (together(direction) for direction in zip(*parts, strict=True))
        compute = (sum(forward.compute), sum(backward.compute), sum(weight.compute))
        shown = self._sharded_weights(compute, counts, sharing)
        times = self._times(counts, sharing, layout.recompute, self.overlap.hides(layout))
        return StageCost(
            forward._replace(other=forward.other + shown[0]),
            backward._replace(other=backward.other + shown[1]),
            weight._replace(other=weight.other + shown[2]),
            times,
        )

    def _times_of(
        self, counts: Counts, sharing: StageSharing, recompute: tuple[str, ...], overlaps: bool
    ) -> StageTimes:
        """An F&B pair has all-to-alls beside compute, and the longer of both counts."""
        forward = backward = weight = slowed = exchange = other = 0.0
        compute = (0.0, 0.0, 0.0)
        for kind, count in counts:
            one = self._part_times.sums(kind, self._part_times.sharing(kind, sharing), recompute)
            forward += count * one.forward
            backward += count * one.backward_input
            weight += count * one.backward_weight
            a, b, c = one.compute
            compute = (compute[0] + count * a, compute[1] + count * b, compute[2] + count * c)
            slowed += count * one.slowed
            exchange += count * one.hidden_exchange
            other += count * one.other
        shown = self._sharded_weights(compute, counts, sharing)
        forward, backward, weight = forward + shown[0], backward + shown[1], weight + shown[2]
        serial = forward + backward + weight
        paired = max(slowed, exchange) + other + sum(shown)
        alone = 0.0 if overlaps else self._gathered_again(compute[2], counts, sharing)
        return StageTimes(forward, backward, weight, min(serial, paired) if overlaps else serial, alone)

    def _whole_of(self, sharing: StageSharing, recompute: tuple[str, ...], overlaps: bool, exchanges: bool) -> Whole:
        """No split into stages falls below: a sum of minima is no more than the minimum of the sums."""
        serial = computing = exchanging = 0.0
        forward = both = math.inf
        compute = (0.0, 0.0, 0.0)
        for kind, count in self._everything:
            one = self._part_times.sums(kind, self._part_times.sharing(kind, sharing), recompute, exchanges)
            alone = one.forward + one.backward_input + one.backward_weight
            serial += count * alone
            if kind != EMBEDDING:
                forward, both = min(forward, one.forward), min(both, alone)
            computing += count * min(alone, one.slowed + one.other)
            exchanging += count * min(alone, one.hidden_exchange + one.other)
            a, b, c = one.compute
            compute = (compute[0] + count * a, compute[1] + count * b, compute[2] + count * c)
        shown = sum(self._sharded_weights(compute, self._everything, sharing, beside=False))
        paired = max(computing, exchanging) if overlaps else serial
        return Whole(serial + shown, paired + shown, (forward, both))

    def _sharded_weights(
        self, compute: tuple[float, float, float], counts: Counts, sharing: StageSharing, beside: bool = True
    ) -> tuple[float, float, float]:
        """`beside`: with what they slow down, which is less for the whole model than for its stages together."""
        if sharing.zero < 2:
            return 0.0, 0.0, 0.0
        parts = sum(count for _, count in counts)
        return self._communication.sharded_weights(compute, self._elements_of(counts), sharing, parts, beside)

    def _gathered_again(self, computing: float, counts: Counts, sharing: StageSharing) -> float:
        """Not where pairs take turns, for what they put off reads no weight; nor of the first stage, whose backward is
        put off as a whole."""
        if sharing.zero < 3 or not sharing.splits or any(kind == EMBEDDING for kind, _ in counts):
            return 0.0
        parts = sum(count for _, count in counts)
        return self._communication.gathered_again(computing, self._elements_of(counts), sharing, parts)

    def _elements_of_counts(self, counts: Counts) -> Elements:
        return added(self._elements[kind] for kind, count in counts for _ in range(count))

    def _counts_of(self, stages: Stages) -> tuple[Counts, ...]:
        return tuple(_counted(self._parts[index].kind for index in stage) for stage in stages)


def _counted(kinds: Iterable[str]) -> Counts:
    return tuple(sorted(Counter(kinds).items()))
