"""A plan for prefill or decode: how the GPUs of a deployment share the model, and how many sequences they hold.

Every group size of tensor parallelism that the model and the machines allow is tried. Best is what holds most sequences
in the whole deployment; of equal ones, the smaller group, which talks least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner.layout.layout import TRIVIAL
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.memory.lines import MemoryLine
from dsc.compiler.planner.parts.shard import share
from dsc.compiler.planner.serving.expert_loads import Loads, PlacedLayer, place_by_load
from dsc.compiler.planner.serving.memory import (
    DoesNotFit,
    Phase,
    Request,
    Rows,
    Serving,
    ServingMemory,
    ServingPlan,
    Storing,
)
from dsc.spec.errors import DscError, Finding
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement
from dsc.spec.precision import Fp8BlockLinear

UNUSED = ("pp", "cp", "etp")
"""Axes that a deployment has no use for here. Pins of micro-batches, schedule, ZeRO and recompute are training's."""


@dataclass(frozen=True)
class ServingProblem:
    """One model to serve on one cluster."""

    spec: ModelSpec
    training: Graph
    inference: Graph
    hardware: Hardware
    phase: Phase
    context: int
    """Tokens of a sequence in the cache: in decode those before the new one and itself, in prefill the whole prompt."""
    redundant: int = 0
    """Experts to be held twice, at least."""
    loads: Loads = ()
    """By which experts are placed; none where nobody measured them."""

    @property
    def world(self) -> int:
        return self.hardware.gpus

    @property
    def capacity(self) -> int:
        """Bytes of one GPU."""
        return self.hardware.cluster.hbm_bytes

    @property
    def experts(self) -> int:
        """Routed ones of a layer."""
        return self.spec.moe().n_routed_experts if "moe" in self.spec.ffn_kinds else 0

    @property
    def request(self) -> Request:
        """Decode takes a token of every sequence; prefill one whole prompt in each group."""
        if self.phase == "decode":
            return Request("decode", self.context)
        return Request("prefill", self.context, self.context, at_once=1)

    @property
    def storing(self) -> Storing:
        """Weights as the spec's products read them, the cache as it says."""
        precision = self.spec.precision
        rows: Rows = "fp8" if precision.kv_cache == "fp8" else "plain"
        return Storing(fp8_weights=isinstance(precision.linear, Fp8BlockLinear), rows=rows)

    @cached_property
    def memory(self) -> ServingMemory:
        return ServingMemory(self.spec, self.training, self.inference)


@dataclass(frozen=True)
class Option:
    """One way to share the GPUs, and what comes of it."""

    serving: Serving
    storing: Storing
    lines: tuple[MemoryLine, ...]
    """Of one GPU; where it does not fit, with a single sequence."""
    plan: ServingPlan | None
    """None where it does not fit."""

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    @property
    def sequences(self) -> int:
        """Of the whole deployment, at once."""
        return self.plan.sequences * self.serving.dp if self.plan else 0


@dataclass(frozen=True)
class Alternative:
    """What differs in one choice."""

    change: str
    binds: Literal["memory", "sequences"]
    """What speaks against it."""
    reason: str
    option: Option


@dataclass(frozen=True)
class ServingFound:
    """A deployment with the alternatives one choice away."""

    problem: ServingProblem
    chosen: Option
    """The best; where nothing fits, what needs least."""
    around: tuple[Alternative, ...]

    @property
    def fits(self) -> bool:
        return self.chosen.plan is not None

    @cached_property
    def placed(self) -> tuple[PlacedLayer, ...]:
        """Experts by their load, layer by layer; empty where no loads are known."""
        problem, serving = self.problem, self.chosen.serving
        if not problem.loads:
            return ()
        gpus_per_node = problem.hardware.cluster.gpus_per_node
        return place_by_load(problem.spec, problem.loads, serving.slots, serving.ep or serving.gpus, gpus_per_node)


def make_serving_plan(problem: ServingProblem) -> ServingFound:
    """Raises DscError where pins contradict each other."""
    found = [_option(problem, one, problem.storing) for one in servings(problem)]
    best = max(found, key=lambda one: (one.sequences, -one.bytes if one.plan is None else 0, -one.serving.tp))
    return ServingFound(problem, best, tuple(_alternatives(problem, best, found)))


def servings(problem: ServingProblem) -> Iterator[Serving]:
    """Every legal deployment that keeps to the pins, smaller groups first. Raises DscError where none does."""
    check_pins(problem)
    pins = problem.spec.placement or Placement()
    reasons = {}
    for tp in _group_sizes(problem) if pins.tp is None else (pins.tp,):
        serving = _serving(problem, tp)
        reasons[tp] = _why_not(problem, serving)
        if not reasons[tp]:
            yield serving
    if all(reasons.values()):
        raise DscError([Finding("DSC070", reason, ("placement",)) for reason in next(iter(reasons.values()))])


def check_pins(problem: ServingProblem) -> None:
    """Raises what no deployment can keep to."""
    pins, world = problem.spec.placement or Placement(), problem.world
    wrong = []
    for name in UNUSED:
        if (getattr(pins, name) or 1) > 1:
            wrong.append(f"{name} = {getattr(pins, name)}, but GPUs that serve are shared by tp, dp and ep only")
    if pins.tp and pins.dp and pins.tp * pins.dp != world:
        wrong.append(f"tp x dp = {pins.tp} x {pins.dp} = {pins.tp * pins.dp}, but there are {world} GPUs")
    for name in ("tp", "dp", "ep"):
        size = getattr(pins, name)
        if size and world % size:
            wrong.append(f"{name} = {size} does not divide {world} GPUs: {_division(world, size)}")
    if problem.redundant and not problem.experts:
        wrong.append(f"{problem.redundant} redundant experts, but the model has no experts")
    if wrong:
        raise DscError([Finding("DSC070", reason, ("placement",)) for reason in wrong])


def _group_sizes(problem: ServingProblem) -> tuple[int, ...]:
    """Tensor parallelism talks inside every layer, so NVLink joins its GPUs."""
    dp = (problem.spec.placement or Placement()).dp
    if dp is not None:
        return (problem.world // dp,)
    largest = min(problem.world, problem.hardware.cluster.scale_up_domain)
    return tuple(size for size in range(1, largest + 1) if problem.world % size == 0)


def _serving(problem: ServingProblem, tp: int) -> Serving:
    pins = problem.spec.placement or Placement()
    ep = pins.ep or problem.world
    slots = share(problem.experts + problem.redundant, ep) if problem.experts else 0
    dense_tp = 1 if problem.experts else tp  # beside experts, dense layers are few (DeepSeek-V3 report, section 3.4.1)
    return Serving(tp, problem.world // tp, slots, dense_tp=dense_tp, ep=ep)


def _why_not(problem: ServingProblem, serving: Serving) -> list[str]:
    """Sizes of the model that the group does not divide; experts are in slots, so nothing has to divide them."""
    layout = replace(TRIVIAL, tp=serving.tp, dp=serving.dp)
    workload = problem.spec.workload.model_copy(update={"sequence_length": serving.tp})  # no length is ruled out
    spec = problem.spec.model_copy(update={"workload": workload})
    return list(problems(layout, spec, problem.world, serving.dp))


def _option(problem: ServingProblem, serving: Serving, storing: Storing) -> Option:
    try:
        plan = problem.memory.plan(serving, problem.request, storing, problem.capacity)
    except DoesNotFit as error:
        return Option(serving, storing, error.lines, None)
    return Option(serving, storing, plan.lines, plan)


def _alternatives(problem: ServingProblem, best: Option, found: list[Option]) -> Iterator[Alternative]:
    """Other group sizes, and one choice of what is kept changed."""
    for one in found:
        if one.serving != best.serving:
            yield _against(problem, best, f"tp {best.serving.tp} -> {one.serving.tp}", one)
    serving = best.serving
    if problem.experts:
        slots = serving.slots + 1
        more = slots * (serving.ep or serving.gpus) - problem.experts
        change = f"{serving.redundant(problem.experts)} -> {more} redundant experts"
        yield _against(problem, best, change, _option(problem, replace(serving, slots=slots), best.storing))
    if best.storing.fp8_weights:
        change = "weights in bfloat16"
        yield _against(problem, best, change, _option(problem, serving, replace(best.storing, fp8_weights=False)))
    if best.storing.rows == "plain" and problem.memory.has_fp8_rows:
        change = "cache rows in FP8"
        yield _against(problem, best, change, _option(problem, serving, replace(best.storing, rows="fp8")))
    double = replace(problem, context=2 * problem.context)
    change = f"context {problem.context:,} -> {double.context:,}"
    yield _against(problem, best, change, _option(double, serving, best.storing))


def _against(problem: ServingProblem, best: Option, change: str, other: Option) -> Alternative:
    if other.plan is None:
        missing = other.bytes - problem.capacity
        reason = f"needs {gib(other.bytes)}, a GPU has {gib(problem.capacity)}: {gib(missing)} too much"
        return Alternative(change, "memory", reason, other)
    reason = f"{other.sequences:,} sequences at once"
    if best.sequences:
        difference = other.sequences - best.sequences
        reason += f", {abs(difference) / best.sequences:.1%} {'more' if difference >= 0 else 'fewer'}"
    return Alternative(change, "sequences", reason, other)


def smallest_deployment(problem: ServingProblem) -> int | None:
    """The smallest number of nodes of the same kind on which one sequence fits; None if there is none.

    Beyond one expert on a GPU and the largest group of tensor parallelism, more nodes take nothing off a GPU.
    """
    cluster = problem.hardware.cluster
    enough = max(problem.experts + problem.redundant, cluster.scale_up_domain)
    for nodes in range(problem.world // cluster.gpus_per_node + 1, share(enough, cluster.gpus_per_node) + 1):
        larger = replace(problem, hardware=problem.hardware.of_nodes(nodes))
        try:
            if any(_option(larger, one, larger.storing).plan for one in servings(larger)):
                return nodes
        except DscError:  # these nodes do not suit the pins
            continue
    return None


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _division(count: int, divisor: int) -> str:
    return f"{count} = {count // divisor} x {divisor} + {count % divisor}"
