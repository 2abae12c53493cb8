"""No plan is beaten: not by a neighbour, not by any layout that somebody else thinks of.

Random models on random machines, whose memory is made to bind. What is legal is asked of legal.py, layout by layout:
the search's own enumeration has no part in the comparison.
"""

import random
from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from dsc.compiler.driver import in_context, planned
from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.pipeline.schedule import SCHEDULES
from dsc.compiler.planner.search.emitted import choose, emitted
from dsc.compiler.planner.search.explain import climb, neighbours
from dsc.compiler.planner.search.offer import everything
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.search.search import Candidate, search
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement
from dsc.spec.placement_checks import recompute_choices

MODELS = ("tiny", "tiny-window", "deepseek-v2-lite", "llama-3.1-8b", "qwen3-30b-a3b")
KINDS = ("h100", "a100", "l40s", "rtx4090", "mi350x", "gb200")
PINS = ({}, {}, {"zero": 1}, {"tp": 1}, {"micro_batch": 2}, {"recompute": ["norms"]}, {"pp": 2})
LARGEST = 16  # of each size that an outsider tries


@cache
def graphs(name: str, length: int) -> tuple[ModelSpec, Graph, Graph, tuple[Graph, Graph]]:
    spec = load(name)
    sized = spec.workload.model_copy(update={"sequence_length": min(length, spec.max_position_embeddings)})
    spec = spec.model_copy(update={"workload": sized})
    return spec, *planned(spec), in_context(spec)


def drawn(seed: int) -> Problem:
    draw = random.Random(seed)
    spec, graph, shared, context = graphs(draw.choice(MODELS), draw.choice((512, 2048, 4096)))
    machines = hardware(Machines(kind=draw.choice(KINDS), gpus=draw.choice((1, 2, 3, 4, 6, 7, 8, 12, 16))))
    layers = draw.choice(PINS)
    world = machines.gpus
    if "pp" in layers and world % 2:
        layers = {}
    work = spec.workload.model_copy(update={"global_batch": world * draw.choice((4, 8, 32, 48))})
    spec = spec.model_copy(update={"workload": work, "placement": Placement.model_validate(layers)})
    problem = Problem(spec, graph, shared, machines, context)
    if seed % 2:
        problem = problem.elsewhere()
    needed = search(problem, emitted(problem)).smallest.bytes
    room = round(needed * draw.choice((1.0, 1.2, 2.0, 8.0)))
    cluster = machines.cluster.model_copy(update={"hbm_bytes": room})
    return replace(problem, hardware=replace(machines, cluster=cluster))


def outsiders(problem: Problem, draw: random.Random, count: int) -> list[Layout]:
    """Legal layouts, tried at random over every choice that there is."""
    spec, found = problem.spec, []
    sizes = [size for size in range(1, LARGEST + 1) if LARGEST % size == 0 or problem.world % size == 0]
    sets = [(), *((name,) for name in recompute_choices(spec))]
    pins = {name: value for name, value in spec.placement or () if value is not None}
    for _ in range(60 * count):
        pp, tp, cp, ep, etp, micro_batch = (draw.choice(sizes) for _ in range(6))
        choice = {"pp": pp, "tp": tp, "cp": cp, "ep": ep, "etp": etp, "micro_batch": micro_batch}
        schedule, vpp = draw.choice(list(product(SCHEDULES, (1, 2, 3, 4))))
        recompute = draw.choice(sets)
        values = {"vpp": vpp, "schedule": schedule, "zero": draw.randrange(4), "recompute": recompute, **choice, **pins}
        values["recompute"] = tuple(values["recompute"])
        across = values["pp"] * values["tp"] * values["cp"]
        layout = Layout(dp=max(1, problem.world // across), activations="bf16", **values)
        if not problems(layout, spec, problem.world, problem.batch):
            found.append(layout)
            if len(found) == count:
                break
    return found


def unbeaten(seed: int, count: int) -> None:
    """The package's plan on even seeds, other engines' on odd ones, who have everything on offer."""
    problem = drawn(seed)
    found = choose(problem)
    best = found.best
    assert best is not None  # what the smallest layout needs is there
    assert not found.lacks(best.layout)
    for one in neighbours(problem, best.layout, best.seconds, found.lacks):
        assert one.seconds is None or one.seconds >= best.seconds * (1 - 1e-9), (best, one)
    for layout in outsiders(problem, random.Random(seed), count):
        if not found.lacks(layout) and problem.bytes(layout) <= problem.capacity:
            assert problem.step(layout).seconds >= best.seconds * (1 - 1e-9), (best, layout)


@pytest.mark.parametrize("seed", range(6))
def test_no_plan_is_beaten(seed: int) -> None:
    unbeaten(seed, 20)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, 10))
def test_no_plan_of_three_hundred_is_beaten(first: int) -> None:
    for seed in range(first, first + 10):
        unbeaten(seed, 60)


def test_a_micro_batch_beyond_the_enumeration_is_found() -> None:
    """Short sequences: sixteen of them and more keep a GPU busier than the eight where the enumeration ends."""
    spec, graph, shared, context = graphs("tiny", 256)
    work = spec.workload.model_copy(update={"global_batch": 8 * 64})
    problem = Problem(
        spec.model_copy(update={"workload": work}), graph, shared, hardware(Machines(kind="h100")), context
    )
    found = search(problem).best
    assert found is not None and found.layout.micro_batch == 8
    best = climb(problem, found, everything(problem).lacks)
    assert best.layout.micro_batch > 8 and best.seconds < found.seconds
    around = neighbours(problem, best.layout, best.seconds, everything(problem).lacks)
    assert all(one.seconds is None or one.seconds >= best.seconds for one in around)


def test_a_pinned_choice_is_no_way_up() -> None:
    spec, graph, shared, context = graphs("tiny", 256)
    pinned = spec.model_copy(update={"placement": Placement(micro_batch=8, zero=1)})
    problem = Problem(pinned, graph, shared, hardware(Machines(kind="h100")), context)
    found = search(problem).best
    assert found is not None
    best = climb(problem, found, everything(problem).lacks)
    assert (best.layout.micro_batch, best.layout.zero) == (8, 1)
    changes = {one.change: one for one in neighbours(problem, best.layout, best.seconds, everything(problem).lacks)}
    assert changes["zero 1 -> 2"].binds == "pins"


def test_a_worse_start_is_left() -> None:
    """The climb is what moves: from a layout that one of its neighbours beats."""
    spec, graph, shared, context = graphs("tiny", 512)
    problem = Problem(spec, graph, shared, hardware(Machines(kind="h100", gpus=2)), context)
    found = search(problem).best
    assert found is not None
    worse = replace(found.layout, micro_batch=1)
    start = Candidate(worse, problem.bytes(worse), problem.step(worse).seconds)
    assert climb(problem, start, everything(problem).lacks).seconds < start.seconds
