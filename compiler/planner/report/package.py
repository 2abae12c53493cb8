"""The plan of a package: searched for under the spec's pins, or as its plan.yaml has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from dsc.compiler.passes.shard import Sharing
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.report.locked import LockedPlan
from dsc.compiler.planner.report.plan import Plan, alike, given_plan, make_plan, runs
from dsc.compiler.planner.report.record import placement
from dsc.compiler.planner.report.write import inner, plan_yaml
from dsc.compiler.planner.search.emitted import sharing_of
from dsc.compiler.planner.search.problem import Problem
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement


@dataclass(frozen=True)
class PackagePlan:
    """How the ranks of a package share a step."""

    spec: ModelSpec
    """With the machines and the whole placement: it says again what was planned."""
    sharing: Sharing
    text: str
    """Of plan.yaml."""


def found_plan(problem: Problem) -> Plan:
    """What `dsc plan` shows and `dsc compile` emits."""
    return make_plan(problem)


def package_plan(problem: Problem, locked: LockedPlan | None) -> PackagePlan | str:
    """Where the layout has no code, the reason. Nothing is searched where a plan is given."""
    plan = None if locked else found_plan(problem)
    layout = locked.layout if locked else plan.layout  # type: ignore[union-attr]
    sharing = sharing_of(problem, layout)
    if isinstance(sharing, str):
        return sharing
    if locked and _says(locked.text) == _says_of(problem, layout):
        text = locked.text
    else:  # it was edited, or figures of machines are better known than when it was written
        text = plan_yaml(plan or given_plan(problem, layout))
    pinned = Placement.model_validate(placement(layout))
    return PackagePlan(problem.written.model_copy(update={"placement": pinned}), sharing, text)


def _says(text: str) -> dict[str, Any]:
    """What of a plan's figures its placement decides."""
    plan = YAML(typ="safe", pure=True).load(text)
    totals = [[role["ranks"], role["total"]] for role in plan["memory"]]
    return {"stages": plan.get("stages"), "memory": totals, "seconds": (plan.get("time") or {}).get("step_seconds")}


def _says_of(problem: Problem, layout: Layout) -> dict[str, Any]:
    """The same, as it is figured now."""
    stages = problem.stages(layout)
    roles = alike(problem.of(layout).memory.ledger(layout, problem.batch, stages))
    return {
        "stages": [runs([problem.memory.parts[part].name for part in stage]) for stage in stages],
        "memory": [[list(role.ranks), role.bytes] for role in roles],
        "seconds": inner(problem.step(layout).seconds),
    }
