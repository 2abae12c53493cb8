"""A plan as one page of HTML that needs nothing else: tables, pictures, and where every figure comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.memory.lines import MemoryLine, Role
from dsc.compiler.planner.report.applies import has_experts
from dsc.compiler.planner.report.figures import fixed, gib, percent, size
from dsc.compiler.planner.report.pictures.arena_svg import arena_svg
from dsc.compiler.planner.report.pictures.memory_svg import Panel, memory_svg
from dsc.compiler.planner.report.pictures.schedule_svg import schedule_svg
from dsc.compiler.planner.report.plan import (
    MEMORY,
    Plan,
    choices,
    memory,
    ranks_text,
    runs,
    said_groups,
    searched_text,
    where,
)
from dsc.compiler.planner.report.record import record
from dsc.compiler.planner.report.serving_record import serving_record, speed_text
from dsc.compiler.planner.serving.deployment import WAITED, ServingFound
from dsc.compiler.planner.time.lines import BUBBLE
from dsc.compiler.planner.time.step import StepTime
from dsc.spec.model import ModelSpec

TENSORS = 6  # of a ledger's line that are named; the others are counted
COMING_AND_GOING = ("activations", "logits")  # with every micro-batch; all else stays through the step


@dataclass(frozen=True)
class Ledger:
    title: str
    lines: tuple[MemoryLine, ...]

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)


def plan_html(plan: Plan) -> str:
    problem = plan.problem
    return _page(
        "report/plan.html.jinja",
        title=f"{problem.spec.name}: training on {where(problem.hardware)}",
        plan=plan,
        device=problem.hardware.device,
        facts=record(plan),
        groups=said_groups(plan.roles),
        experts=has_experts(problem.spec),
        searched=searched_text(plan.found),
        columns=[(ranks_text(role.ranks), memory(role, problem.capacity)) for role in plan.roles],
        ledgers=[Ledger(ranks_text(role.ranks), role.lines) for role in plan.roles],
        schedule=schedule_picture(plan),
        memory=memory_picture(plan),
        differences=choices(plan),
        stages=[runs(stage) for stage in record(plan)["stages"]],
        known=_known(problem.spec, problem.graph, problem.hardware),
    )


def serving_html(found: ServingFound) -> str:
    problem, plan = found.problem, found.chosen.plan
    return _page(
        "report/serving.html.jinja",
        title=f"{problem.spec.name}: {problem.phase} on {where(problem.hardware)}",
        found=found,
        device=problem.hardware.device,
        facts=serving_record(found),
        ledgers=[Ledger(f"each {problem.hardware.device}", found.chosen.lines)],
        waited=WAITED[problem.phase],
        said=speed_text(found),
        arena=arena_svg(plan.arena, f"one step of {problem.phase}, op by op") if plan else None,
        known=_known(problem.spec, problem.training, problem.hardware),
    )


def memory_picture(plan: Plan) -> str:
    """What stays on pipeline ranks that hold alike, and on it the activations over the simulated step."""
    problem, layout = plan.problem, plan.layout
    stages = problem.stages(layout)
    kinds = (tuple(problem.memory.parts[part].kind for part in stage) for stage in stages)
    held = [problem.of(layout).memory.stages.of(one, layout).kept for one in kinds]
    panels = [Panel(ranks_text(role.ranks), role.ranks[0], _static(role, problem.capacity)) for role in plan.roles]
    title = f"memory of one {problem.hardware.device} over the schedule"
    return memory_svg(plan.timeline, panels, held, problem.capacity, title)


def schedule_picture(plan: Plan) -> str:
    """Every action of a step, and in words what a step has besides."""
    title = f"{plan.layout.schedule}: the schedule of a step"
    return schedule_svg(plan.timeline, title, beside_the_schedule(plan.time))


def beside_the_schedule(time: StepTime) -> str:
    """What the step has besides, for its picture: the lines after the schedule's bubble, and the sum of all."""
    names = [line.name for line in time.lines]
    besides = time.lines[names.index(BUBBLE) + 1 :]
    told = ", ".join(f"{line.name} {fixed(line.seconds, 2)} s" for line in besides if fixed(line.seconds, 2) != "0.00")
    if not told:
        return ""
    return f"; not drawn: {told}, with which a step takes {fixed(time.seconds, 2)} s"


def _static(role: Role, capacity: int) -> dict[str, int]:
    sums = memory(role, capacity)
    return {name: sums[name] for name in MEMORY if name not in COMING_AND_GOING}


def _known(spec: ModelSpec, graph: Graph, machines: Hardware) -> list[tuple[str, str, str]]:
    """What the plan rests on: name, figure, source."""
    stats, cluster = compute_stats(spec, graph), machines.cluster
    graph_says = "derived from the graph"
    return [
        ("parameters", f"{stats.parameters.total:,}", graph_says),
        ("active for one token", f"{stats.parameters.active:,}", graph_says),
        ("training FLOPs per token", f"{stats.flops_per_token.training:,}", f"{graph_says}, causal"),
        (f"memory of one {machines.device}", f"{gib(cluster.hbm_bytes)} GiB", cluster.source),
        ("memory bandwidth", f"{cluster.hbm_bandwidth / 1e12:g} TB/s", cluster.source),
        ("bfloat16 peak, dense", f"{cluster.bf16_flops / 1e12:,g} TFLOPS", cluster.source),
        (
            f"NVLink or its like, among {machines.devices(cluster.scale_up_domain)}",
            f"{cluster.scale_up_bandwidth / 1e9:g} GB/s, {cluster.scale_up_achieved / 1e9:g} achieved",
            cluster.links_source,
        ),
        (
            f"network of one {machines.device}",
            f"{cluster.nic_bandwidth / 1e9:g} GB/s, {cluster.nic_achieved / 1e9:g} achieved",
            cluster.links_source,
        ),
    ]


def _page(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("dsc.templates", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    environment.filters.update(gib=gib, fixed=fixed, percent=percent, size=size)
    return environment.get_template(template).render(tensors=TENSORS, **values)
