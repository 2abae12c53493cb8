"""A plan as a whole: what it chose is what it says, and deployments are chosen by what they hold."""

from dataclasses import replace
from functools import cache

import pytest
from ruamel.yaml import YAML

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.driver import served
from dsc.compiler.planner.memory.lines import MemoryLine, Role
from dsc.compiler.planner.report.difference import plan_changes, read_plan
from dsc.compiler.planner.report.plan import Plan, alike, choices, make_plan, memory, ranks_text, runs
from dsc.compiler.planner.report.record import record
from dsc.compiler.planner.report.serving_record import serving_record
from dsc.compiler.planner.report.write import plan_yaml, serving_yaml
from dsc.compiler.planner.serving.deployment import (
    ServingFound,
    make_serving_plan,
    smallest_deployment,
)
from dsc.compiler.planner.serving.legal import emitted as emitted_serving
from dsc.compiler.planner.serving.legal import servings
from dsc.compiler.planner.serving.problem import ServingProblem
from dsc.spec.cluster import Machines
from dsc.spec.errors import DscError
from dsc.spec.placement import Placement
from dsc.spec.serving import Serving
from planner.machines import emitted, machine, model


@cache
def tiny() -> Plan:
    return make_plan(emitted("tiny", "cpu", 4))


@cache
def serving(name: str, kind: str, nodes: int, phase: str = "decode") -> ServingProblem:
    spec = model(name)[0].model_copy(update={"cluster": Machines(kind=kind, nodes=nodes)})
    context = spec.workload.sequence_length
    return ServingProblem(spec, build_graph(spec), served(spec), machine(kind, nodes), phase, context)  # type: ignore[arg-type]


@cache
def llama() -> ServingFound:
    return make_serving_plan(serving("llama-3.1-8b", "h100", 1))


def test_the_plan_says_what_the_search_found() -> None:
    plan, facts = tiny(), record(tiny())
    assert facts["fits"] and plan.chosen == plan.found.best
    assert facts["time"]["step_seconds"] == plan.chosen.seconds == plan.problem.step(plan.layout).seconds
    assert max(role["total"] for role in facts["memory"]) == plan.chosen.bytes == plan.problem.bytes(plan.layout)
    assert sorted(rank for role in facts["memory"] for rank in role["ranks"]) == list(range(plan.layout.pp))
    parts = [part for stage in facts["stages"] for part in stage]
    assert parts == [part.name for part in plan.problem.memory.parts]


def test_neighbours_are_not_better_unless_they_cannot_be() -> None:
    """A single change of what was chosen that is legal, fits and is faster would have been chosen."""
    plan = tiny()
    for one in plan.around:
        if one.binds == "time":
            assert one.seconds is not None and one.seconds >= plan.time.seconds * (1 - 1e-9), one.change


def test_the_largest_saving_saves_most() -> None:
    plan = tiny()
    assert plan.saving is not None and plan.saving.bytes is not None
    assert plan.saving.bytes == min(one.bytes for one in plan.around if one.bytes is not None)


def test_without_a_faster_layout_nothing_is_missing() -> None:
    plan = replace(tiny(), found=replace(tiny().found, faster=None))
    assert choices(plan) == [] and record(plan)["sensitivity"] is None
    other = replace(tiny().chosen, layout=replace(tiny().layout, recompute=("norms",), zero=0))
    same = replace(tiny(), found=replace(tiny().found, faster=replace(other, seconds=plan.time.seconds * 0.997)))
    assert choices(same) == [] and record(same)["sensitivity"] is None  # nobody could tell
    other = replace(other, seconds=plan.time.seconds * 0.9)
    faster = replace(tiny(), found=replace(tiny().found, faster=other))
    assert "recompute nothing -> norms" in choices(faster)
    assert record(faster)["sensitivity"]["missing_bytes"] == other.bytes - plan.problem.capacity


def test_roles_that_need_as_much_are_one() -> None:
    def role(rank: int, size: int, source: str) -> Role:
        lines = (
            MemoryLine("weights", 10, "derived", "parameters"),
            MemoryLine("activations of x", size, "derived", source),
        )
        return Role((rank,), (rank,), (("x",),), lines)

    first, second, third = role(0, 5, "2 of stage 0"), role(1, 7, "1 of stage 1"), role(2, 5, "3 of stage 2")
    merged = alike((first, second, third))
    assert [one.ranks for one in merged] == [(0, 2), (1,)]
    assert [line.source for line in merged[0].lines] == ["parameters", "2 of stage 0, on rank 0"]
    assert merged[1] == second


def test_sums_of_a_role_are_its_lines() -> None:
    for role in tiny().roles:
        sums = memory(role, 123)
        assert sums["capacity"] == 123 and sums["total"] == role.bytes
        assert sum(size for name, size in sums.items() if name not in ("total", "capacity")) == role.bytes


def test_texts() -> None:
    assert ranks_text([3]) == "rank 3"
    assert ranks_text([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
    assert runs(["embedding", "layers.0", "layers.1", "layers.2", "mtp.0", "head"]) == [
        "embedding",
        "layers.0-2",
        "mtp.0",
        "head",
    ]


# Deployments.


def test_what_brings_most_tokens_out_of_a_gpu_is_chosen() -> None:
    """Llama 8B on eight H100: whatever the group, no other one that is emitted brings more than the model can tell."""
    found = llama()
    options = [one.option for one in found.around if one.change.startswith("tp ")]
    assert len(options) == 3  # of 1, 2, 4 and 8
    assert found.chosen.speed is not None
    ours = [option for option in options if emitted_serving(option.serving, 0)]
    assert all(option.speed and option.speed.per_gpu * 0.95 <= found.chosen.speed.per_gpu for option in ours)
    others = [other.reason for other in found.around if not emitted_serving(other.option.serving, 0)]
    assert all(reason.startswith(("not emitted: ", "needs ")) for reason in others)
    assert found.chosen.plan is not None
    assert found.chosen.sequences == found.chosen.plan.sequences * found.chosen.serving.dp


def test_where_nothing_fits_what_needs_least_is_shown() -> None:
    problem = serving("llama-3.1-405b", "h100", 1)
    found = make_serving_plan(problem)
    assert not found.fits and found.chosen.serving.tp == 8
    assert all(found.chosen.bytes < one.option.bytes for one in found.around if one.change.startswith("tp "))
    assert serving_record(found)["sequences"] == {"of_a_group": 0, "of_all": 0}


@pytest.mark.parametrize(
    ("pins", "sizes"),
    [
        (Placement(), [(1, 8), (2, 4), (4, 2), (8, 1)]),
        (Placement(tp=2), [(2, 4)]),
        (Placement(dp=2), [(4, 2)]),
        (Placement(tp=1, dp=8, pp=1, micro_batch=4, zero=3), [(1, 8)]),  # what is training's says nothing here
    ],
)
def test_groups_keep_to_the_pins(pins: Placement, sizes: list[tuple[int, int]]) -> None:
    problem = serving("llama-3.1-8b", "h100", 1)
    pinned = replace(problem, spec=problem.spec.model_copy(update={"placement": pins}))
    assert [(one.tp, one.dp) for one in servings(pinned)] == sizes


def test_experts_share_as_many_gpus_as_is_pinned() -> None:
    """64 experts on 8 GPUs are 8 on each; on groups of 4, 16; 8 more in all make 9, with as many redundant."""
    problem = serving("deepseek-v2-lite", "h200", 1)
    free = [(one.slots, one.ep, one.redundant(64)) for one in servings(problem) if one.tp == 1]
    assert free == [(64, 1, 0), (32, 2, 0), (16, 4, 0), (8, 8, 0)]
    pinned = replace(problem, spec=problem.spec.model_copy(update={"placement": Placement(ep=4)}))
    (four, *_) = servings(pinned)
    assert (four.slots, four.ep, four.redundant(64)) == (16, 4, 0)
    more = [(one.slots, one.redundant(64)) for one in servings(replace(problem, redundant=1)) if one.tp == 1]
    assert more == [(65, 1), (33, 2), (17, 4), (9, 8)]


def test_a_spec_that_says_how_it_is_served_pins_that() -> None:
    """What its package does: texts on each rank, experts on so many. Its placement is training's then."""
    problem = serving("deepseek-v2-lite", "h200", 1)
    said = {"serving": Serving(ep=4), "placement": Placement(ep=8, tp=2)}
    (only,) = servings(replace(problem, spec=problem.spec.model_copy(update=said)))
    assert (only.tp, only.dp, only.slots, only.ep) == (1, 8, 16, 4)
    said["serving"] = Serving(ep=8, tp=2, redundant_experts=8)
    (only,) = servings(replace(problem, spec=problem.spec.model_copy(update=said)))
    assert (only.tp, only.dp, only.slots, only.ep, only.dense_tp) == (2, 4, 9, 8, 2)
    with pytest.raises(DscError) as raised:
        list(servings(replace(problem, spec=problem.spec.model_copy(update={"serving": Serving(ep=16)}))))
    assert raised.value.findings[0].key == ("serving",)


def test_redundant_experts_need_experts() -> None:
    with pytest.raises(DscError) as raised:
        make_serving_plan(replace(serving("llama-3.1-8b", "h100", 1), redundant=4))
    assert raised.value.findings[0].message == "4 redundant experts, but the model has no experts"


def test_a_group_that_does_not_divide_the_model_is_an_error_with_the_division() -> None:
    problem = serving("minicpm3-4b", "h100", 1)  # 40 heads
    pinned = replace(
        problem,
        spec=problem.spec.model_copy(update={"placement": Placement(tp=3)}),
        hardware=problem.hardware.of_nodes(3),
    )
    with pytest.raises(DscError) as raised:
        list(servings(pinned))
    assert raised.value.findings[0].message == "tp = 3 does not divide 40 attention heads: 40 = 13 x 3 + 1"


def test_the_smallest_deployment_fits_and_the_next_smaller_does_not() -> None:
    problem = serving("deepseek-v3", "h800", 1)
    nodes = smallest_deployment(problem)
    assert nodes == 2  # experts are codes of a byte, also where rows come from other ranks
    larger = replace(problem, hardware=problem.hardware.of_nodes(nodes))
    assert make_serving_plan(larger).fits and not make_serving_plan(problem).fits


# Files.


@pytest.mark.parametrize("text", [lambda: plan_yaml(tiny()), lambda: serving_yaml(llama())])
def test_a_file_is_read_back_and_differs_from_itself_in_nothing(text, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "plan.yaml").write_text(text())
    plan = read_plan(str(tmp_path / "plan.yaml"))
    assert plan is not None and plan == YAML(typ="safe", pure=True).load(text())
    assert not any(plan_changes(plan, plan).values())


def test_other_files_are_no_plans(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "spec.yaml").write_text("name: tiny\n")
    assert read_plan(str(tmp_path / "spec.yaml")) is None
    assert read_plan(str(tmp_path)) is None and read_plan("tiny") is None
