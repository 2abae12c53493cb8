"""The search: exact against brute force, blind to order, and what it says of DeepSeek-V3 on 2048 H800."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsc.compiler.driver import in_context, planned
from dsc.compiler.planner.layout.layout import TRIVIAL, Layout
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.layout.space import LayoutFamily, families, variants
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.memory.lines import ACTIVATIONS, GRADIENTS, MASTER, MOMENTS, WEIGHTS
from dsc.compiler.planner.search.capacity import smallest_cluster
from dsc.compiler.planner.search.emitted import emitted
from dsc.compiler.planner.search.explain import largest_saving, neighbours
from dsc.compiler.planner.search.offer import everything
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.search.search import Candidate, Found, search
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.placement import Placement
from planner.machines import V3_BATCH, V3_PLAN, machine


@cache
def problem_of(name: str, kind: str, nodes: int, pins: str = "") -> Problem:
    """`pins` as "tp=1 zero=1"."""
    spec = load(name)
    chosen = {
        key: value if key == "schedule" else int(value) for key, value in (one.split("=") for one in pins.split())
    }
    placement = Placement.model_validate(chosen) if chosen else None
    spec = spec.model_copy(update={"cluster": Machines(kind=kind, nodes=nodes), "placement": placement})
    return Problem(spec, *planned(spec), machine(kind, nodes), in_context(spec))


def with_memory(problem: Problem, bytes: int) -> Problem:
    cluster = problem.hardware.cluster.model_copy(update={"hbm_bytes": bytes})
    return replace(problem, hardware=replace(problem.hardware, cluster=cluster))


def families_of(problem: Problem) -> tuple[LayoutFamily, ...]:
    return families(problem.spec, problem.world, problem.batch, problem.hardware.cluster.scale_up_domain)


def layouts_of(problem: Problem) -> list[Layout]:
    grids = (grid for family in families_of(problem) for grid in family.grids())
    return [layout for grid in grids for layout in variants(grid, problem.spec)]


# Exactness.

SMALL = [
    ("tiny", "h100", "tp=1 cp=1 micro_batch=1"),
    ("tiny", "h100", "zero=1 pp=2 micro_batch=1"),
    ("deepseek-v2-lite", "h100", "tp=1 cp=1 zero=1 micro_batch=1"),
    ("deepseek-v2-lite", "h100", "schedule=dualpipe-v micro_batch=1 etp=1 zero=1"),
]


@cache
def scores(name: str, kind: str, pins: str) -> dict[Layout, tuple[int, float]]:
    """Bytes and seconds of every legal layout: brute force."""
    problem = problem_of(name, kind, 1, pins)
    return {layout: (problem.bytes(layout), problem.step(layout).seconds) for layout in layouts_of(problem)}


@pytest.mark.parametrize("small", SMALL, ids=lambda one: f"{one[0]} {one[2]}")
@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.6, 1.0])
def test_the_search_is_brute_force_by_another_way(small: tuple[str, str, str], share: float) -> None:
    """With memory for so large a share of all legal layouts."""
    scored = scores(*small)
    assert len(scored) > 100
    limit = sorted(size for size, _ in scored.values())[round(share * (len(scored) - 1))]
    fastest = min((seconds, layout, size) for layout, (size, seconds) in scored.items() if size <= limit)
    found = search(with_memory(problem_of(small[0], small[1], 1, small[2]), limit))
    assert found.best == Candidate(fastest[1], fastest[2], fastest[0])
    if found.faster is not None:
        size, seconds = scored[found.faster.layout]
        assert (found.faster.bytes, found.faster.seconds) == (size, seconds)
        assert size > limit and seconds < found.best.seconds


@pytest.mark.parametrize("small", SMALL[:2], ids=lambda one: one[2])
def test_where_nothing_fits_the_least_is_named(small: tuple[str, str, str]) -> None:
    """Of all that recomputes what it can."""
    problem = problem_of(small[0], small[1], 1, small[2])
    least = min(size for layout, (size, _) in scores(*small).items() if layout.recompute == ("full",))
    smallest = min(size for size, _ in scores(*small).values())
    found = search(with_memory(problem, smallest - 1))
    assert found.best is None
    assert smallest <= found.smallest.bytes <= least


def test_the_smallest_cluster_fits_and_the_next_smaller_does_not() -> None:
    small = with_memory(problem_of("deepseek-v2-lite", "h100", 1), 9 * 2**30)
    nodes = smallest_cluster(small)
    assert nodes is not None and nodes > 2
    clusters = [small.on(count) for count in (1, nodes - 1, nodes)]
    found = [search(one, emitted(one)) for one in clusters]
    assert [one.best is not None for one in found] == [False, False, True]
    assert found[0].smallest.bytes > found[1].smallest.bytes > small.capacity
    assert smallest_cluster(with_memory(small, 1)) is None


# DeepSeek-V3 on 2048 H800.


@cache
def v3() -> Problem:
    """As DeepSeek's own engine trains it."""
    problem = problem_of("deepseek-v3", "h800", 256).elsewhere()
    assert problem.batch == V3_BATCH
    return problem


@cache
def v3_found() -> Found:
    return search(v3())


def best(found: Found) -> Candidate:
    assert found.best is not None
    return found.best


def test_the_published_plan_fits_and_is_within_three_percent_of_the_best() -> None:
    """PP16, EP64, ZeRO-1, no TP, DualPipe, with the recomputation of the report (arXiv 2412.19437, 3.1 to 3.3)."""
    bytes, seconds = v3().bytes(V3_PLAN), v3().step(V3_PLAN).seconds
    fastest = best(v3_found())
    print(f"published {seconds:.2f} s, {bytes / 2**30:.1f} of {v3().capacity / 2**30:.1f} GiB; "
          f"best {fastest.seconds:.2f} s, {fastest.bytes / 2**30:.1f} GiB: {fastest.layout}")  # fmt: skip
    assert bytes <= v3().capacity
    assert fastest.seconds <= seconds <= 1.03 * fastest.seconds


def published(layout: Layout) -> bool:
    return layout.pp == 16 and layout.ep == 64


def others(every: Iterable[LayoutFamily]) -> tuple[LayoutFamily, ...]:
    """Without every layout of PP16 and EP64."""
    kept = (
        family._replace(pipelines=tuple(one for one in family.pipelines if one.pp != 16)) if family.ep == 64 else family
        for family in every
    )
    return tuple(family for family in kept if family.pipelines)


def test_without_the_published_plan_no_other_score_changes() -> None:
    """Nothing in the search is calibrated on it."""
    known, fresh = v3(), replace(v3())
    rest = others(families_of(known))
    found = search(fresh, replace(everything(fresh), families=rest))
    assert found.legal < v3_found().legal
    grids = [grid for family in rest for grid in family.grids()][::401]
    assert len(grids) > 100 and not any(map(published, grids))
    for grid in grids:
        layout = list(variants(grid, known.spec))[-1]
        assert fresh.bytes(layout) == known.bytes(layout)
        assert fresh.bound(layout) == known.bound(layout)
    for grid in grids[::12]:
        assert fresh.step(grid).seconds == known.step(grid).seconds
    assert not published(best(v3_found()).layout) and found.best == v3_found().best


def test_the_answer_is_the_same_again_and_in_another_order() -> None:
    again = replace(v3())
    backwards = tuple(one._replace(pipelines=one.pipelines[::-1]) for one in reversed(families_of(v3())))
    found = search(again, replace(everything(again), families=backwards))
    assert found.best == v3_found().best
    assert (found.faster, found.legal) == (v3_found().faster, v3_found().legal)
    assert search(v3()) == v3_found()


@pytest.mark.parametrize(
    "gpus, sizes, changes",
    [
        (8, {"dp": 4, "tp": 2}, ("pp 1 -> 2", "tp 2 -> 4", "tp 2 -> 1", "cp 1 -> 2", "ep 1 -> 2")),
        (7, {"pp": 7}, ("pp 7 -> 1",)),
        (15, {"pp": 3, "dp": 5}, ("pp 3 -> 5", "pp 3 -> 1", "tp 1 -> 5", "cp 1 -> 5", "ep 1 -> 5")),
        (12, {"dp": 6, "tp": 2}, ("pp 1 -> 2", "tp 2 -> 4", "tp 2 -> 1", "cp 1 -> 2", "ep 1 -> 2")),
        (12, {"dp": 3, "pp": 4}, ("pp 4 -> 6", "pp 4 -> 2", "tp 1 -> 3", "cp 1 -> 3", "ep 1 -> 3")),
    ],
)
def test_neighbours_are_sizes_that_the_ranks_can_have(gpus: int, sizes: dict[str, int], changes: Sequence[str]) -> None:
    """Twice and half where they divide, else the next that do; ZeRO only where there are ranks to share with."""
    spec = load("deepseek-v2-lite").model_copy(update={"cluster": Machines(kind="h100", gpus=gpus)})
    problem = Problem(spec, *planned(spec), hardware(spec.cluster), in_context(spec))
    plan = replace(TRIVIAL, **sizes)
    found = [one.change for one in neighbours(problem, plan, 1.0, everything(problem).lacks)]
    assert tuple(one for one in found if one.split()[0] in ("pp", "tp", "cp", "ep")) == changes
    assert any(one.startswith("zero") for one in found) == (plan.dp > 1)


def test_every_neighbour_says_what_speaks_against_it() -> None:
    plan = best(v3_found())
    around = neighbours(v3(), plan.layout, plan.seconds, everything(v3()).lacks)
    assert {one.binds for one in around} == {"arithmetic", "memory", "time"}
    assert len({one.change for one in around}) == len(around) > 15
    for one in around:
        if one.binds == "arithmetic":
            assert one.reason in problems(one.layout, v3().spec, 2048, V3_BATCH)
        elif one.binds == "memory":
            assert one.bytes == v3().bytes(one.layout)
            assert one.missing_bytes == one.bytes - v3().capacity > 0
            assert f"{one.missing_bytes / 2**30:.1f} GiB too much" in one.reason
        else:
            assert one.seconds is not None and one.seconds >= plan.seconds  # the search left nothing better
            assert f"{one.seconds:.2f} s a step, {one.seconds / plan.seconds - 1:.1%} more" == one.reason
    saving = largest_saving(v3(), plan.layout, around)
    assert saving is not None and saving.bytes == min(one.bytes for one in around if one.bytes is not None)


def test_the_next_better_plan_lacks_memory_and_nothing_else() -> None:
    plan, faster = best(v3_found()), v3_found().faster
    assert faster is not None
    assert faster.bytes > v3().capacity and faster.seconds < plan.seconds
    assert best(search(with_memory(v3(), faster.bytes))).seconds <= faster.seconds


# Properties.

NAMES = ["deepseek-v3", "mixtral-8x7b", "llama-3.1-405b"]
STATE = (WEIGHTS, GRADIENTS, MASTER, MOMENTS)


@cache
def sampled(name: str) -> tuple[Layout, ...]:
    return tuple(grid for family in families_of(problem_of(name, "h800", 8)) for grid in family.grids())


def held(problem: Problem, layout: Layout, batch: int, only: tuple[str, ...]) -> int:
    """Bytes of such lines on the fullest rank."""
    roles = problem.memory.ledger(layout, batch, problem.stages(layout))
    return max(sum(line.bytes for line in role.lines if line.name.startswith(only)) for role in roles)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_more_ranks_never_need_more_memory_each(name: str, data: st.DataObject) -> None:
    """Twice the data parallelism, and the sequences for it: no line grows. A deeper pipeline holds fewer parameters."""
    problem = problem_of(name, "h800", 8)
    grid = data.draw(st.sampled_from(sampled(name)))
    layout = data.draw(st.sampled_from(list(variants(grid, problem.spec))))
    wider = replace(layout, dp=2 * layout.dp)
    stages = problem.stages(layout)
    before = problem.memory.fullest(layout, problem.batch, stages)
    assert problem.memory.fullest(wider, 2 * problem.batch, stages) <= before or layout.world == 1
    deeper = replace(layout, pp=2 * layout.pp)
    if not problems(deeper, problem.spec, deeper.world, problem.batch):
        assert held(problem, deeper, problem.batch, STATE) <= held(problem, layout, problem.batch, STATE)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_recomputing_more_never_keeps_more(name: str, data: st.DataObject) -> None:
    problem = problem_of(name, "h800", 8)
    grid = data.draw(st.sampled_from(sampled(name)))
    every = [one for one in variants(grid, problem.spec) if one.zero == 1]
    less, more = data.draw(st.sampled_from(every)), data.draw(st.sampled_from(every))
    more = replace(more, activations=less.activations)
    if set(less.recompute) <= set(more.recompute) or more.recompute == ("full",):
        bytes = [held(problem, one, problem.batch, (ACTIVATIONS,)) for one in (less, more)]
        assert bytes[1] <= bytes[0]
        assert problem.bound(less) <= problem.bound(more) * (1 + 1e-12)
