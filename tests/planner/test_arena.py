"""The static arena: values alive together never overlap, and nothing is overwritten before its last reader."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsc.compiler.driver import build
from dsc.compiler.graph.saved import trace
from dsc.compiler.ops.cache import CacheAppend
from dsc.compiler.planner.serving.arena import ALIGNMENT, Interval, lifetimes, place
from dsc.spec.loader import load


@st.composite
def intervals(draw):
    def one(index):
        first = draw(st.integers(0, 20))
        return Interval(f"v{index}", draw(st.integers(0, 5000)), first, first + draw(st.integers(0, 8)))

    return [one(index) for index in range(draw(st.integers(0, 25)))]


def overlaps(arena):
    """Pairs that lie on the same byte at the same time, found by a sweep over time."""
    placed = list(zip(arena.intervals, arena.offsets, strict=True))
    found = []
    for step in range(1 + max((one.last for one in arena.intervals), default=-1)):
        alive = [(offset, one.bytes, one.name) for one, offset in placed if one.first <= step <= one.last and one.bytes]
        for (start, size, name), (following, _, other) in pairwise(sorted(alive)):
            if start + size > following:
                found.append((step, name, other))
    return found


@given(intervals())
def test_values_alive_together_never_overlap(values):
    arena = place(values)
    assert overlaps(arena) == []
    assert all(offset % ALIGNMENT == 0 for offset in arena.offsets)


@given(intervals())
def test_the_arena_is_between_what_lives_and_what_is(values):
    arena = place(values)
    assert arena.least <= arena.bytes <= sum(one.aligned for one in values)
    assert arena.least == max((sum(v.aligned for v in values if v.first <= t <= v.last) for t in range(30)), default=0)


@given(intervals(), st.randoms())
def test_the_order_of_the_values_changes_nothing(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    where = dict(zip(values, place(values).offsets, strict=True))
    assert where == dict(zip(shuffled, place(shuffled).offsets, strict=True))


def test_a_value_goes_into_the_smallest_gap_that_holds_it():
    """When `wide` and `narrow` are gone, they leave gaps of 3072 and 2304 bytes; the last value needs 2048."""
    early = [Interval("a", 4096, 0, 9), Interval("wide", 3072, 0, 4), Interval("b", 2560, 0, 9)]
    later = [Interval("narrow", 2304, 0, 4), Interval("c", 2100, 0, 9), Interval("late", 2048, 5, 9)]
    arena = place([*early, *later])
    assert arena.offsets == (0, 4096, 7168, 9728, 12032, 9728)


# On graphs, by replaying the step: each op finds its operands where and as they were written.


def replay(steps, values, arena):
    """What an op reads that something else has written over."""
    where = {one.name: (offset, offset + one.bytes) for one, offset in zip(values, arena.offsets, strict=True)}
    written = {}  # name of the owner by place
    spoilt = []
    for step in steps:
        for one in step.inputs:
            if one is not None and one.place in where and written.get(one.place) is not True:
                spoilt.append((step.path + step.node.id, one.place))
        for one in (*step.outputs, *step.saved):
            if one is None or one.place not in where or written.get(one.place):
                continue
            start, end = where[one.place]
            for other in written:
                low, high = where[other]
                if low < end and start < high:
                    written[other] = False
            written[one.place] = True
        written = {name: intact for name, intact in written.items() if intact}
    return spoilt


@pytest.mark.parametrize("name", ["tiny", "deepseek-v2-lite", "llama-3.1-8b"])
def test_no_value_is_overwritten_before_its_last_reader(name):
    steps = trace(build(load(name)).inference, "Model.forward")
    values = lifetimes(steps, lambda type: type.bytes.value({"B": 3, "S": 2, "C": 70}))
    arena = place(values)
    assert replay(steps, values, arena) == []
    assert overlaps(arena) == []
    made = {one.place for step in steps for one in step.outputs if one is not None}
    cached = {one.place for step in steps if isinstance(step.node.op, CacheAppend) for one in step.outputs if one}
    absorbed = name == "deepseek-v2-lite"  # has kernels: its rows go straight into pages, and no op returns them
    assert bool(cached) != absorbed and {one.name for one in values} >= made - cached


def test_a_lifetime_cut_short_is_noticed():
    """The replay catches a value whose last reader was forgotten."""
    steps = trace(build(load("tiny")).inference, "Model.forward")
    values = lifetimes(steps, lambda type: type.bytes.value({"B": 3, "S": 2, "C": 70}))
    cut = [Interval(one.name, one.bytes, one.first, one.first) for one in values]
    assert replay(steps, cut, place(cut))


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-8b"])
def test_real_decode_steps_waste_nothing(name):
    """The arena is as small as what is alive at the fullest moment."""
    steps = trace(build(load(name)).inference, "Model.forward")
    arena = place(lifetimes(steps, lambda type: type.bytes.value({"B": 88, "S": 1, "C": 4989})))
    assert arena.bytes == arena.least
