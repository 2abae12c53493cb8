"""Which ways there are to share the GPUs of a deployment: tensor parallelism of attention, and who shares experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsc.compiler.planner.layout.layout import TRIVIAL
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.layout.pins import group_problems
from dsc.compiler.planner.parts.shard import share
from dsc.compiler.planner.serving.memory import Serving
from dsc.compiler.planner.serving.problem import ServingProblem
from dsc.spec.errors import DscError, Finding
from dsc.spec.placement import Placement

UNUSED = ("pp", "cp", "etp")
"""Axes that a deployment has no use for here. Pins of micro-batches, schedule, ZeRO and recompute are training's."""

MOST_REDUNDANT = 4
"""One redundant expert for so many routed ones, at most: DeepSeek-V3's decode has 64 for 256 (report, 3.4.2)."""


def pins_of(problem: ServingProblem) -> Placement:
    """Where a spec says how ranks serve, what its package does; otherwise its placement."""
    serving = problem.spec.serving
    if serving is not None:
        return Placement(tp=serving.tp, ep=serving.ep)
    return problem.spec.placement or Placement()


def _key(problem: ServingProblem) -> tuple[str]:
    return ("placement",) if problem.spec.serving is None else ("serving",)


def servings(problem: ServingProblem) -> Iterator[Serving]:
    """Every legal deployment that keeps to the pins, smaller groups first. Raises DscError where none does."""
    check_pins(problem)
    pins = pins_of(problem)
    reasons = {}
    for tp in _group_sizes(problem) if pins.tp is None else (pins.tp,):
        reasons[tp] = _why_not(problem, tp)
        if not reasons[tp]:
            yield from (_serving(problem, tp, ep) for ep in _expert_groups(problem, tp))
    if all(reasons.values()):
        raise DscError([Finding("DSC070", reason, _key(problem)) for reason in next(iter(reasons.values()))])


def emitted(serving: Serving, experts: int) -> bool:
    """Whether the package serves so: ranks that share experts are whole groups of those that divide layers."""
    return not experts or (serving.ep or serving.gpus) % serving.tp == 0


def check_pins(problem: ServingProblem) -> None:
    """Raises what no deployment can keep to."""
    pins, world = pins_of(problem), problem.world
    wrong = []
    for name in UNUSED:
        if (getattr(pins, name) or 1) > 1:
            wrong.append(f"{name} = {getattr(pins, name)}, but GPUs that serve are shared by tp, dp and ep only")
    wrong += group_problems(pins, world)
    if problem.redundant and not problem.experts:
        wrong.append(f"{problem.redundant} redundant experts, but the model has no experts")
    if wrong:
        raise DscError([Finding("DSC070", reason, _key(problem)) for reason in wrong])


def _group_sizes(problem: ServingProblem) -> tuple[int, ...]:
    """Tensor parallelism talks inside every layer, so NVLink joins its GPUs."""
    dp = pins_of(problem).dp
    if dp is not None:
        return (problem.world // dp,)
    largest = min(problem.world, problem.hardware.cluster.scale_up_domain)
    return tuple(size for size in range(1, largest + 1) if problem.world % size == 0)


def _expert_groups(problem: ServingProblem, tp: int) -> tuple[int, ...]:
    """How many GPUs may share the experts: whole groups of tensor parallelism, parts of a node or whole nodes, and no
    more than have a use."""
    pinned, world = pins_of(problem).ep, problem.world
    if pinned or not problem.experts:
        return (pinned or world,)
    wanted = problem.experts + problem.redundant
    most = wanted + problem.experts // MOST_REDUNDANT
    node = problem.hardware.cluster.gpus_per_node
    sizes = [size for size in range(tp, world + 1, tp) if world % size == 0 and 0 in (size % node, node % size)]
    return tuple(size for size in sizes if size * share(wanted, size) <= most) or (world,)


def _serving(problem: ServingProblem, tp: int, ep: int) -> Serving:
    own = problem.spec.serving.redundant_experts if problem.spec.serving is not None else 0
    slots = share(problem.experts + max(own, problem.redundant), ep) if problem.experts else 0
    divides = problem.spec.serving is not None or not problem.experts  # a package divides dense layers too
    dense_tp = tp if divides else 1  # beside experts they are few (DeepSeek-V3 report, section 3.4.1)
    return Serving(tp, problem.world // tp, slots, dense_tp=dense_tp, ep=ep)


def _why_not(problem: ServingProblem, tp: int) -> list[str]:
    """Sizes of the model that the group does not divide; experts are in slots, so nothing has to divide them."""
    dp = problem.world // tp
    layout = replace(TRIVIAL, tp=tp, dp=dp)
    workload = problem.spec.workload.model_copy(update={"sequence_length": tp})  # no length is ruled out
    training = problem.spec.training.model_copy(update={"batch_ramp": None})
    spec = problem.spec.model_copy(update={"workload": workload, "training": training})
    return list(problems(layout, spec, problem.world, dp))
