"""The plan that `dsc plan` was asked for, as whatever it may be shown or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsc.compiler.cli.console import console, print_json, tell
from dsc.compiler.cli.plan_tables import show_plan, show_trivial
from dsc.compiler.cli.why_table import show_why
from dsc.compiler.driver import build, problem_of
from dsc.compiler.planner.machine.hardware import Hardware, hardware
from dsc.compiler.planner.report.engines import ENGINES
from dsc.compiler.planner.report.package import found_plan
from dsc.compiler.planner.report.pictures.trace import chrome_trace
from dsc.compiler.planner.report.plan import Plan
from dsc.compiler.planner.report.record import record
from dsc.compiler.planner.report.trivial import trivial_plan, trivial_record
from dsc.compiler.planner.report.why import why, why_record
from dsc.compiler.planner.report.write import plan_yaml
from dsc.compiler.planner.search.capacity import smallest_cluster
from dsc.compiler.planner.serving.deployment import gib
from dsc.spec.cluster import Machines, is_file
from dsc.spec.errors import DscError, Finding
from dsc.spec.loader import load_machine
from dsc.spec.model import ModelSpec

NAME_ONE = "name one in the spec, `cluster: {kind: h800, nodes: 256}`, or with --cluster h800 --nodes 256"


@dataclass(frozen=True)
class Planned:
    """A plan, as whatever it may be asked for."""

    record: dict[str, Any]
    yaml: Callable[[], str]
    report: Callable[[], str] | None
    trace: Callable[[], str] | None
    show: Callable[[], None]
    refused: Callable[[], str] | None
    """What to say where nothing fits, or is as fast as was asked for."""
    why: Callable[[str, bool], None] | None = None
    """Of a key: what speaks for its value; as JSON, or for a person."""
    told: Callable[[str], str] | None = None
    """The layout in the words of another engine."""


def nowhere(spec: ModelSpec, as_json: bool) -> None:
    plan = trivial_plan(spec, build(spec).training)
    if as_json:
        print_json(trivial_record(plan))
    else:
        show_trivial(plan)
        tell(f"whether it fits, how fast, and on how many: {NAME_ONE}")


def placed(spec: ModelSpec, kind: str | None, nodes: int | None, gpus: int | None = None) -> tuple[ModelSpec, Hardware]:
    """The spec on its cluster, or on another: the name of a kind, or a file that describes one."""
    if kind is not None:
        machine = load_machine(Path(kind)) if is_file(kind) else None
        machines = Machines(kind=machine.name if machine else kind, machine=machine)
    elif spec.cluster is not None:
        machines = spec.cluster
    else:
        raise DscError([Finding("DSC065", f"{spec.name} names no cluster to plan for", ("cluster",), NAME_ONE)])
    if nodes or gpus:
        machines = machines.model_copy(update={"nodes": nodes, "gpus": gpus})
    return spec.model_copy(update={"cluster": machines}), hardware(machines)


def training(spec: ModelSpec) -> Planned:
    with console(stderr=True).status("planning"):
        plan = found_plan(problem_of(spec))
    return Planned(
        record(plan),
        lambda: plan_yaml(plan),
        lambda: _page(plan),
        lambda: chrome_trace(plan.timeline, f"a training step of {spec.name}"),
        lambda: show_plan(plan),
        None if plan.fits else lambda: _too_small(plan),
        lambda key, as_json: print_json(why_record(why(plan, key))) if as_json else show_why(why(plan, key)),
        lambda engine: ENGINES[engine](plan),
    )


def _page(plan: Plan) -> str:
    from dsc.compiler.planner.report.page import plan_html  # and jinja2, which few ask for

    return plan_html(plan)


def _too_small(plan: Plan) -> str:
    problem = plan.problem
    return refusal("", plan.chosen.bytes, problem.capacity, problem.hardware, smallest_cluster(problem))


def refusal(what: str, needed: int, capacity: int, machines: Hardware, nodes: int | None) -> str:
    kind = machines.cluster.name
    enough = (
        f"no number of {kind} nodes would do"
        if nodes is None
        else f"{nodes} nodes of {kind} would do, {machines.devices(machines.of_nodes(nodes).gpus)}"
    )
    return (
        f"does not fit: a {machines.device} needs at least {gib(needed)}{what}, {gib(needed - capacity)} more than it "
        f"has; {enough}"
    )
