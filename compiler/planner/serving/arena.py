"""A static arena for a step of inference: every intermediate value at a fixed offset, in memory taken once.

Values that are never alive together may lie in the same place. Offsets are found greedily, the largest value first and
into the smallest gap that holds it among those alive with it (best fit by size, Pisarchyk and Lee, arXiv 2001.03288).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.graph.types import TensorType

ALIGNMENT = 256  # bytes: what cudaMalloc gives, and enough for any vector load

Size = Callable[[TensorType], int]
"""Bytes of a value on one GPU."""


@dataclass(frozen=True)
class Interval:
    """Memory that is needed from one op to another, both included."""

    name: str
    bytes: int
    first: int
    last: int

    @property
    def aligned(self) -> int:
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT


class Life(NamedTuple):
    """A value, the op that makes it and the last that reads it."""

    storage: Storage
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    intervals: tuple[Interval, ...]
    offsets: tuple[int, ...]

    @cached_property
    def bytes(self) -> int:
        ends = (offset + one.aligned for offset, one in zip(self.offsets, self.intervals, strict=True))
        return max(ends, default=0)

    @cached_property
    def least(self) -> int:
        """What no arena can do without: the most that is alive at once."""
        return most_alive(self.intervals)


def lifetimes(steps: Sequence[Step], size: Size) -> tuple[Interval, ...]:
    """From the op that makes a value to the last that reads it."""
    return sized(lives(steps), size)


def sized(spans: Iterable[Life], size: Size) -> tuple[Interval, ...]:
    return tuple(Interval(one.storage.place, size(one.storage.type), one.first, one.last) for one in spans)


def lives(steps: Sequence[Step]) -> tuple[Life, ...]:
    """What an op keeps to itself while it runs is there for that op only. Arguments of the run belong to whoever calls,
    and what is appended to the cache lies in the cache's pages."""
    first: dict[Storage, int] = {}
    last: dict[Storage, int] = {}
    given: set[Storage] = set()
    for index, step in enumerate(steps):
        read = [one for one in step.inputs if one is not None]
        given.update(one for one in read if one not in first)
        if step.node.op.in_cache:
            given.update(one for one in step.outputs if one is not None)
        for one in (*read, *step.outputs, *step.saved):
            if one is not None and one not in given:
                first.setdefault(one, index)
                last[one] = index
    return tuple(Life(one, first[one], last[one]) for one in first)


def place(intervals: Sequence[Interval]) -> Arena:
    """Offsets such that values alive together never overlap."""
    offsets: dict[int, int] = {}
    alive: list[list[int]] = [[] for _ in range(1 + max((one.last for one in intervals), default=-1))]
    order = sorted(range(len(intervals)), key=lambda i: (-intervals[i].bytes, intervals[i].first, intervals[i].name))
    for index in order:
        one = intervals[index]
        span = range(one.first, one.last + 1)
        others = {other for step in span for other in alive[step]}
        taken = sorted((offsets[other], offsets[other] + intervals[other].aligned) for other in others)
        offsets[index] = _best_gap(taken, one.aligned)
        for step in span:
            alive[step].append(index)
    return Arena(tuple(intervals), tuple(offsets[index] for index in range(len(intervals))))


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap that holds `size` bytes, the lowest of equals; without one, behind everything."""
    free = 0  # behind all that was looked at
    best: tuple[int, int] | None = None  # (room, start)
    for start, end in taken:
        room = start - free
        if room >= size and (best is None or room < best[0]):
            best = (room, free)
        free = max(free, end)
    return free if best is None else best[1]


def most_alive(intervals: Sequence[Interval]) -> int:
    """Bytes at the fullest moment, each value rounded up to the alignment."""
    change: dict[int, int] = {}
    for one in intervals:
        change[one.first] = change.get(one.first, 0) + one.aligned
        change[one.last + 1] = change.get(one.last + 1, 0) - one.aligned
    now = most = 0
    for step in sorted(change):
        now += change[step]
        most = max(most, now)
    return most
