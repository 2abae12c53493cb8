"""A plan speaks of what is emitted: its graph, its layouts, its overlap, its types; and of what is not, in a line."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from dsc.compiler.driver import build, planned
from dsc.compiler.graph.block import Block
from dsc.compiler.ops.recompute import LetGo
from dsc.compiler.passes.shard import EXPERT_PARALLEL, MOE
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.collectives import FP8
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.memory.ranks import most_held
from dsc.compiler.planner.parts.parts import parts_of
from dsc.compiler.planner.pipeline.schedule import SCHEDULES, actions, fullest_moments, why_not
from dsc.compiler.planner.report.plan import make_plan
from dsc.compiler.planner.search import emitted as search_emitted
from dsc.compiler.planner.search.emitted import choose, missing, not_emitted, sharing_of
from dsc.compiler.planner.search.emitted import emitted as offered
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.time.ops import op_costs
from dsc.spec.cluster import Machines
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from planner.machines import V3_PLAN, emitted


def spec_of(name: str, cluster: dict[str, Any], placement: dict[str, Any] | None, **changes: Any) -> ModelSpec:
    data = load(name).model_dump(mode="json") | {"cluster": cluster, "placement": placement}
    for section, values in changes.items():
        data[section] = data[section] | values
    return ModelSpec.model_validate(data)


def problem_of(spec: ModelSpec) -> Problem:
    assert spec.cluster is not None
    return Problem(spec, *planned(spec), hardware(spec.cluster))


def lines(block: Block) -> list[tuple[str, list[str]]]:
    """Kinds of ops and names of their results, in order."""
    return [(node.op.kind, [value.name for value in node.outputs]) for node in block.nodes()]


# The graph.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("deepseek-v3", "h800"),
        ("deepseek-v3", "a100"),
        ("mixtral-8x7b", "h100"),
        ("tiny-window", "b200"),
        ("tiny", "cpu"),
    ],
)
def test_the_graph_that_is_timed_is_the_graph_that_is_emitted(name: str, kind: str) -> None:
    spec = spec_of(name, {"kind": kind}, None)
    timed, emitted_graph = planned(spec)[0], build(spec).training
    assert timed.blocks.keys() == emitted_graph.blocks.keys()
    for key, block in emitted_graph.blocks.items():
        ops = [node.op for node in block.nodes() if not isinstance(node.op, LetGo)]  # a name given up takes no time
        assert [node.op for node in timed.blocks[key].nodes()] == ops, key


def test_shared_experts_are_timed_as_the_step_has_them() -> None:
    spec = spec_of("tiny", {"kind": "h100", "gpus": 4}, {"pp": 1, "ep": 4, "recompute": []})
    program, (_, shared) = build(spec), planned(spec)
    assert program.step.sharing is not None and program.step.sharing.ep == 4
    assert lines(shared.blocks[MOE]) == lines(program.step.graph.blocks[f"{EXPERT_PARALLEL}.forward"])


ALONE, CONTEXT, TENSOR, BOTH = (False, False), (True, False), (False, True), (True, True)


@pytest.mark.parametrize("documents", ["joined", "apart"])
@pytest.mark.parametrize("name", ["deepseek-v2-lite", "llama-3.1-8b"])
def test_there_is_code_for_whatever_is_on_offer(name: str, documents: str) -> None:
    problem = problem_of(spec_of(name, {"kind": "h100", "gpus": 16}, None, training={"documents": documents}))
    offer = search_emitted.emitted(problem)
    grids = [grid for family in offer.families for grid in family.grids()]
    assert {(grid.cp > 1, grid.tp > 1) for grid in grids} == {ALONE, CONTEXT, TENSOR, BOTH}
    for grid in grids:
        for zero in offer.zeros(grid):
            for recompute in offer.recompute:
                assert not offer.lacks(replace(grid, zero=zero, recompute=recompute)), grid


def test_what_is_sent_is_charged_to_the_links_as_wide_as_it_is() -> None:
    """Over nodes a token goes once to each; in bfloat16, where DeepSeek's engine dispatches in FP8."""
    problem = emitted("deepseek-v3", "h800", 256)
    ours, theirs = (
        one.cost.stages.cost(("MoeLayer.forward",), V3_PLAN).forward.exchange for one in (problem, problem.elsewhere())
    )
    assert ours / theirs == pytest.approx((2 + 2) / (FP8 + 2), rel=0.01)
    assert not any(op.name.endswith("all_to_all") for op in op_costs(parts_of(problem.shared))["MoeLayer.forward"])


def test_without_nodes_to_fill_a_row_goes_to_each_expert() -> None:
    problem = emitted("qwen3-30b-a3b", "l40s")
    layout = Layout(1, 1, "1f1b", 1, 1, 8, 1, 8, 1, 1, (), "bf16")
    alone = problem.hardware.cluster.model_copy(update={"scale_up_domain": 3})
    times = [
        replace(one, hardware=replace(one.hardware, cluster=alone)).cost.stages.cost(("MoeLayer.forward",), layout)
        for one in (problem, problem.elsewhere())
    ]
    assert times[0].forward.exchange > 1.2 * times[1].forward.exchange > 0


# The choice.


@pytest.mark.parametrize(
    ("name", "kind", "nodes"),
    [("tiny", "cpu", 4), ("deepseek-v2-lite", "h100", 2), ("llama-3.1-8b", "a100", 1), ("mixtral-8x7b", "h100", 4)],
)
def test_a_search_chooses_what_is_emitted(name: str, kind: str, nodes: int) -> None:
    problem = emitted(name, kind, nodes)
    found = choose(problem)
    assert found.best is not None and not list(missing(found.best.layout, problem.graph))
    there = make_plan(problem).elsewhere
    assert there is None or (there.seconds < found.best.seconds and list(missing(there.layout, problem.graph)))


@pytest.mark.parametrize("pin", [{"schedule": "dualpipe", "pp": 2}, {"activations": "fp8", "pp": 2}])
def test_a_pin_that_is_not_emitted_is_planned_and_said(pin: dict[str, Any]) -> None:
    problem = problem_of(spec_of("llama-3.1-8b", {"kind": "h100", "gpus": 8}, pin))
    plan = make_plan(problem)
    for name, value in pin.items():
        chosen = getattr(plan.layout, name)
        assert chosen == (tuple(value) if isinstance(value, list) else value)
    (said,) = plan.not_emitted
    assert said.endswith("the package trains on one GPU instead") and said.split()[0] in pin
    shared = sharing_of(problem, plan.layout)
    assert isinstance(shared, str) and said.startswith(shared.removeprefix("there is no code yet for "))


@pytest.mark.parametrize(
    ("pin", "schedules", "zeros"),
    [
        ({"zero": 3, "pp": 2}, {"1f1b", "interleaved", "zbv", "dualpipe-v"}, {3}),
        ({"zero": 2, "pp": 4}, {"1f1b", "interleaved", "zbv", "dualpipe-v"}, {2}),
        ({"schedule": "zbv", "pp": 2}, {"zbv"}, {1, 2, 3}),
        ({"schedule": "1f1b", "pp": 2}, {"1f1b"}, {1, 2, 3}),
    ],
)
def test_gradients_and_weights_are_shared_in_every_pipeline(
    pin: dict[str, Any], schedules: set[str], zeros: set[int]
) -> None:
    problem = problem_of(spec_of("llama-3.1-8b", {"kind": "h100", "gpus": 8}, pin))
    offer = offered(problem)
    piped = [grid for family in offer.families for grid in family.grids() if grid.dp * grid.cp > 1]
    assert {grid.schedule for grid in piped} == schedules
    assert {zero for grid in piped for zero in offer.zeros(grid)} == zeros
    found = choose(problem)
    best = found.best or found.smallest
    assert not list(missing(best.layout, problem.graph))
    assert not offer.lacks(replace(best.layout, schedule="zbv", vpp=2, zero=3))


def test_a_neighbour_that_is_not_emitted_is_told_for_comparison_only() -> None:
    plan = make_plan(emitted("mixtral-8x7b", "h100", 4))
    other = next(one for one in plan.around if one.change == f"schedule {plan.layout.schedule} -> dualpipe, vpp 1")
    assert (other.binds, other.bytes, other.seconds) == ("code", None, None)
    assert other.reason.startswith("not emitted: schedule dualpipe; elsewhere ")


@pytest.mark.parametrize("placement", [{}, {"zero": 1}, {"pp": 2}])
def test_compile_emits_the_layout_of_the_plan(placement: dict[str, Any]) -> None:
    """Where the climb leads beyond the enumeration too: sixteen short sequences and more."""
    cluster = {"kind": "h100", "gpus": 8}
    spec = spec_of("tiny", cluster, placement, workload={"sequence_length": 256, "global_batch": 512})
    sharing, problem = build(spec).step.sharing, problem_of(spec)
    layout = make_plan(problem).layout
    assert sharing is not None
    assert (sharing.pp, sharing.dp, sharing.ep) == (layout.pp, layout.dp, layout.ep)
    assert (sharing.micro_batch, sharing.recompute) == (layout.micro_batch, layout.recompute)
    assert sharing.zero == max(1, layout.zero)
    if not placement:
        assert layout.micro_batch > 8


# Overlap.

BESIDE: list[dict[str, Any]] = [{}, {"recompute": ["norms", "swiglu"]}]
PAIRS = {"pp": 2, "schedule": "dualpipe-v", "ep": 2, "recompute": []}


@pytest.mark.parametrize("change", [*BESIDE, {"recompute": ["full"]}, {"ep": 1}, {"schedule": "zbv"}])
def test_overlap_is_credited_where_compile_emits_it(change: dict[str, Any]) -> None:
    spec = spec_of("tiny", {"kind": "cpu", "nodes": 4}, PAIRS | change)
    program, problem = build(spec), problem_of(spec)
    layout = make_plan(problem).layout
    turns = program.step.turns is not None
    assert problem.cost.overlap.hides(layout) == turns == (change in BESIDE)
    said = [line for line in not_emitted(problem, layout) if line.startswith("overlap: ")]
    assert bool(said) == (change.get("recompute") == ["full"])


def test_layers_in_a_cycle_are_not_credited_with_overlap() -> None:
    cost = emitted("tiny", "cpu", 4).cost
    layout = Layout(2, 2, "dualpipe-v", 1, 1, 2, 1, 2, 1, 1, (), "bf16")
    assert cost.overlap.hides(layout) and not replace(cost.overlap, cycles=True).hides(layout)
    assert emitted("tiny-window", "cpu", 4).cost.overlap.cycles


def test_a_pair_that_hides_nothing_takes_as_long_as_its_halves() -> None:
    cost = emitted("tiny", "cpu", 4).cost
    layout = Layout(2, 2, "dualpipe-v", 1, 1, 2, 1, 2, 1, 1, ("full",), "bf16")
    times = cost.stages.cost(("MoeLayer.forward",), layout).times
    assert times.hidden == pytest.approx(0, abs=1e-12)


# Types of the training state.


def test_narrow_state_is_planned_as_wide_as_it_is_kept() -> None:
    cluster = {"kind": "h100", "gpus": 8}
    layout = Layout(1, 1, "1f1b", 1, 1, 1, 1, 8, 1, 1, (), "bf16")
    state = {"gradients": "bf16", "master": "none", "moments": "fp32"}
    narrow, wide = (
        problem_of(spec_of("llama-3.1-8b", cluster, None, precision={"optimizer": one}))
        for one in (state, {"gradients": "fp32", "master": "fp32", "moments": "fp32"})
    )
    assert narrow.bytes(layout) == wide.bytes(layout)
    assert narrow.step(layout).seconds == wide.step(layout).seconds
    said = [line.split(":")[0] for line in not_emitted(narrow, layout)]
    assert said == ["precision.optimizer.master", "precision.optimizer.gradients"]
    assert not not_emitted(wide, layout)
    assert narrow.elsewhere().bytes(layout) < narrow.bytes(layout), "another engine may keep them narrow"


# How much is held.


@cache
def held(schedule: Any, pp: int, vpp: int, micro_batches: int) -> tuple[Any, ...]:
    return tuple(map(fullest_moments, actions(schedule, pp, vpp, micro_batches)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_micro_batches_a_rank_are_as_many_as_are_ever_held(schedule: Any) -> None:
    tried = 0
    for pp in (2, 3, 4, 6):
        for vpp in (1, 2, 3):
            if why_not(schedule, pp, vpp, 2 * pp) is None:
                assert held(schedule, pp, vpp, 2 * pp) == held(schedule, pp, vpp, 6 * pp)
                for rank in range(pp):
                    assert most_held(schedule, pp, vpp, 6 * pp, rank) == held(schedule, pp, vpp, 6 * pp)[rank]
                tried += 1
    assert tried


# How sure it is.


def test_a_step_is_as_uncertain_as_its_lines_are_assumed() -> None:
    machines = hardware(Machines(kind="h100"))
    assumed, measured = machines.calibration.of_assumed.value, machines.calibration.uncertainty.value
    step = make_plan(emitted("llama-3.1-8b", "h100")).time
    share = sum(line.seconds for line in step.lines if line.provenance == "assumed") / step.seconds
    assert share > 0.5 and step.uncertainty == pytest.approx(share * assumed + (1 - share) * measured)
