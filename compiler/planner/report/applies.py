"""Which of the plans one step away are worth a line: not those that say what a model has no experts or stages for."""

from __future__ import annotations

from collections.abc import Sequence

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.search.explain import Neighbour
from dsc.spec.model import ModelSpec


def worth_a_line(around: Sequence[Neighbour], plan: Layout, spec: ModelSpec) -> tuple[Neighbour, ...]:
    """Less the choices that the model does not have, and those that follow from another one."""
    return tuple(one for one in around if one.binds != "arithmetic" or _applies(one.layout, plan, spec))


def _applies(other: Layout, plan: Layout, spec: ModelSpec) -> bool:
    if not has_experts(spec) and (other.ep, other.etp) != (plan.ep, plan.etp):
        return False
    if other.schedule != plan.schedule:
        return plan.pp > 1  # one rank has nothing to schedule
    return other.vpp == plan.vpp or plan.schedule == "interleaved"  # any other schedule says how many stages


def has_experts(spec: ModelSpec) -> bool:
    return "moe" in spec.ffn_kinds
