"""Parts of the model to pipeline stages: consecutive runs, the heaviest as light as can be."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from dsc.compiler.graph.dim import B, Dim, S
from dsc.compiler.graph.saved import Step
from dsc.compiler.planner.parts.parts import EMBEDDING, Part

Stages = tuple[tuple[int, ...], ...]
"""For each stage the positions of its parts."""


def weights(parts: Sequence[Part], sequence_length: int) -> tuple[int, ...]:
    """Forward and backward FLOPs of each part for one sequence: what a stage split balances before anyone measures."""
    sizes = {B.name: 1, S.name: sequence_length}
    known: dict[str, int] = {}
    for part in parts:
        if part.kind not in known:
            known[part.kind] = sum(
                dim.substitute(step.sizes).value(sizes) for step in part.steps for dim in _flops(step)
            )
    return tuple(known[part.kind] for part in parts)


def _flops(step: Step) -> tuple[Dim, Dim]:
    node = step.node
    return node.flops(), node.op.backward_flops(node.input_types, node.output_types)


def split(parts: Sequence[Part], costs: Sequence[int], stages: int) -> Stages:
    """The split whose heaviest stage is lightest, and of those the most even one (least sum of squares).

    Every stage has a part, and the embedding never stands alone. Exact, by dynamic programming over prefixes; of
    equal splits the one with the longer first stages.
    """
    first = next((index for index, part in enumerate(parts) if part.name != EMBEDDING), 0)
    bounds = _split(tuple(costs), stages, first + 1)
    return tuple(tuple(range(start, end)) for start, end in pairwise(bounds))


@lru_cache(maxsize=4096)
def _split(costs: tuple[int, ...], stages: int, least_first: int) -> tuple[int, ...]:
    """Where stages begin, and the end. `least_first`: parts of the first stage, at least."""
    sums = tuple(accumulate(costs, initial=0))
    return _most_even(sums, stages, least_first, _lightest(sums, stages, least_first))


def _lightest(sums: Sequence[int], stages: int, least_first: int) -> int:
    """The weight of the heaviest stage of the best split: the least that filling stages one by one gets by with."""
    low, high = max(sums[least_first], *(b - a for a, b in pairwise(sums))), sums[-1]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _stages_needed(sums, middle) <= stages else (middle + 1, high)
    return low


def _stages_needed(sums: Sequence[int], heaviest: int) -> int:
    """Of stages that weigh at most so much, each filled as far as it goes."""
    count, start = 0, 0
    while start < len(sums) - 1:
        start = bisect_right(sums, sums[start] + heaviest) - 1
        count += 1
    return count


def _most_even(sums: Sequence[int], stages: int, least_first: int, heaviest: int) -> tuple[int, ...]:
    """Of the splits whose stages weigh at most `heaviest`, the one with the least sum of squares."""
    last = len(sums) - 1
    values = {end: sums[end] ** 2 for end in range(least_first, last + 1) if sums[end] <= heaviest}
    began: list[dict[int, int]] = []  # of each later stage, where it begins by where it ends
    for left in reversed(range(stages - 1)):  # stages to come, for which parts have to be left, and not too many
        before, values = values, {}
        began.append({})
        room = sums[last] - left * heaviest
        for start, value in before.items():  # ascending: of equal splits the latest start stays
            for end in range(start + 1, last - left + 1):
                weight = sums[end] - sums[start]
                if weight > heaviest:
                    break
                if sums[end] >= room and value + weight**2 <= values.get(end, math.inf):
                    values[end] = value + weight**2
                    began[-1][end] = start
    assert last in values, f"{last} parts do not make {stages} stages"
    bounds = [last]
    for starts in reversed(began):
        bounds.append(starts[bounds[-1]])
    return (0, *reversed(bounds))
