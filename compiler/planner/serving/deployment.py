"""A plan for prefill or decode: how the GPUs of a deployment share the model, how many sequences a step has, how fast.

Best is what brings most tokens a second out of a GPU, and so the cheapest, among the deployments in which nobody waits
longer than asked for. Differences below what the model resolves count for nothing: then the deployment is chosen that
can be had in the smallest unit, and of sequences no more than bring something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from typing import Literal

from dsc.compiler.planner.parts.shard import share
from dsc.compiler.planner.serving.estimate import Speed
from dsc.compiler.planner.serving.expert_loads import PlacedLayer
from dsc.compiler.planner.serving.legal import emitted, servings
from dsc.compiler.planner.serving.memory import DoesNotFit, Serving, Storing
from dsc.compiler.planner.serving.problem import Option, ServingProblem
from dsc.spec.errors import DscError

RESOLUTION = 0.05
"""Of tokens a second: smaller differences are not the model's to tell."""

Binds = Literal["memory", "time", "size", "spec"]
"""`size`: it is hardly faster, and the least that can be had of it is larger."""

WAITED = {"prefill": "to the first token", "decode": "for each token"}


@dataclass(frozen=True)
class Alternative:
    """What differs in one choice."""

    change: str
    binds: Binds
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

    @property
    def meets(self) -> bool:
        """Whether it fits, and nobody waits longer than asked for."""
        return self.chosen.meets(self.problem.target)

    @cached_property
    def elsewhere(self) -> Option | None:
        """The best deployment of engines that share experts out as DeepEP does; None where it is not faster by what
        counts."""
        if self.problem.others or not self.problem.experts:
            return None
        problem = replace(self.problem, others=True)
        best = _best(problem, tuple(servings(problem)))
        here = self.chosen.speed.per_gpu if self.chosen.speed and self.meets else 0.0
        return (
            best if best.speed and best.meets(problem.target) and best.speed.per_gpu * (1 - RESOLUTION) > here else None
        )

    @cached_property
    def placed(self) -> tuple[PlacedLayer, ...]:
        """Experts by their load, layer by layer; empty where no loads are known."""
        return self.problem.placed(self.chosen.serving)


def make_serving_plan(problem: ServingProblem) -> ServingFound:
    """Raises DscError where pins contradict each other."""
    legal = tuple(servings(problem))
    best = _preferred(problem, legal)
    return ServingFound(problem, best, tuple(_alternatives(problem, best, legal)))


def _preferred(problem: ServingProblem, legal: tuple[Serving, ...]) -> Option:
    """The best of what the package does, where any of it fits; engines other than the package may do all."""
    ours = () if problem.others else tuple(serving for serving in legal if emitted(serving, problem.experts))
    best = _best(problem, ours) if ours else None
    if best and best.meets(problem.target):
        return best
    other = _best(problem, legal)
    return best if best and best.plan and not other.meets(problem.target) else other


def _best(problem: ServingProblem, legal: tuple[Serving, ...]) -> Option:
    """What has the highest bound is looked at next, until nothing can be ahead by what counts."""
    bounds = sorted(((_bound(problem, way), -way.tp, -(way.ep or 0), way) for way in legal), key=lambda b: b[:3])
    found: list[Option] = []
    most = 0.0
    while bounds and (not most or bounds[-1][0] >= most * (1 - RESOLUTION)):
        one = option(problem, bounds.pop()[-1], problem.storing)
        found.append(one)
        if one.speed is not None and one.meets(problem.target):
            most = max(most, one.speed.per_gpu)
    if meeting := [one for one in found if one.speed and one.meets(problem.target)]:
        close = [one for one in meeting if one.speed and one.speed.per_gpu >= most * (1 - RESOLUTION)]
        return min(close, key=lambda one: (_unit(one.serving), one.serving.tp))
    if fitting := [one for one in found if one.speed]:
        return min(fitting, key=lambda one: (one.speed.waited if one.speed else 0.0, _unit(one.serving)))
    return min(found, key=lambda one: (one.bytes, one.serving.tp))


def _unit(serving: Serving) -> int:
    """GPUs of the smallest deployment of this kind: groups of tensor parallelism that share experts among them."""
    return lcm(serving.tp, serving.ep or 1) if serving.slots else serving.tp


def _bound(problem: ServingProblem, serving: Serving) -> float:
    """Tokens a second of a GPU that this deployment cannot exceed: with nothing but weights beside the cache."""
    memory, storing, context = problem.memory, problem.storing, problem.context
    left = problem.capacity - sum(line.bytes for line in memory.weights(serving, storing))
    pages = share(context, storing.page) * storing.page * memory.token_bytes(serving, storing)
    sequences = left // max(1, pages + memory.window_bytes(serving, storing, context))
    return problem.speed(serving, storing, sequences).per_gpu if sequences > 0 else 0.0


def option(problem: ServingProblem, serving: Serving, storing: Storing) -> Option:
    try:
        plan = problem.memory.plan(serving, problem.request(), storing, problem.capacity)
    except DoesNotFit as error:
        return Option(serving, storing, error.lines)
    batch = _sequences(problem, serving, storing, plan.sequences)
    plan = problem.memory.plan(serving, problem.request(batch), storing, problem.capacity)
    return Option(serving, storing, plan.lines, plan, batch, problem.speed(serving, storing, batch))


def _sequences(problem: ServingProblem, serving: Serving, storing: Storing, most: int) -> int:
    """Of one step: as many as bring something, where nobody waits longer than asked for."""

    def speed(sequences: int) -> Speed:
        return problem.speed(serving, storing, sequences)

    target = problem.target
    if target is not None:
        most = _last(lambda count: speed(count).waited <= target, most)
    enough = speed(most).per_gpu * (1 - RESOLUTION)
    return most if most == 1 else 1 + _last(lambda count: speed(count).per_gpu < enough, most, none=0)


def _last(holds: Callable[[int], bool], most: int, none: int = 1) -> int:
    """The largest number up to `most` of which something holds that ceases to hold; `none` where it never does."""
    low, high = none, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _alternatives(problem: ServingProblem, best: Option, legal: tuple[Serving, ...]) -> Iterator[Alternative]:
    """Other group sizes, and one choice of what is kept changed."""
    serving, storing = best.serving, best.storing
    for one in _nearest(serving, legal):
        changes = [(name, getattr(serving, name), getattr(one, name)) for name in ("tp", "ep")]
        change = ", ".join(f"{name} {ours} -> {theirs}" for name, ours, theirs in changes if ours != theirs)
        yield _against(problem, best, change, option(problem, one, storing))
    if serving.shares_experts:
        slots = serving.slots + 1
        more = slots * (serving.ep or serving.gpus) - problem.experts
        change = f"{serving.redundant(problem.experts)} -> {more} redundant experts"
        yield _against(problem, best, change, option(problem, replace(serving, slots=slots), storing))
    if storing.rows == "plain" and problem.memory.has_fp8_rows:
        yield _against(problem, best, "cache rows in FP8", option(problem, serving, replace(storing, rows="fp8")))
    double = replace(problem, context=2 * problem.context)
    change = f"context {problem.context:,} -> {double.context:,}"
    yield _against(problem, best, change, option(double, serving, storing))


def _nearest(serving: Serving, legal: tuple[Serving, ...]) -> Iterator[Serving]:
    """Every other size of groups with experts shared as they are or nearly so, then the next ways to share experts."""
    for tp in sorted({one.tp for one in legal} - {serving.tp}):
        alike = [one for one in legal if one.tp == tp]
        yield min(alike, key=lambda one: (abs((one.ep or 0) - (serving.ep or 0)), one.ep or 0))
    if serving.slots:
        sharing = sorted((one for one in legal if one.tp == serving.tp), key=lambda one: one.ep or 0)
        place = sharing.index(serving)
        yield from (*sharing[max(0, place - 1) : place], *sharing[place + 1 : place + 2])


def _against(problem: ServingProblem, best: Option, change: str, other: Option) -> Alternative:
    if other.plan is None or other.speed is None:
        missing = other.bytes - problem.capacity
        reason = f"needs {gib(other.bytes)}, a GPU has {gib(problem.capacity)}: {gib(missing)} too much"
        return Alternative(change, "memory", reason, other)
    reason = "" if problem.others or emitted(other.serving, problem.experts) else "not emitted: "
    reason += f"{other.speed.per_gpu:,.0f} tokens/s a GPU"
    if best.speed:
        difference = round(other.speed.per_gpu / best.speed.per_gpu - 1, 3)
        reason += f", {abs(difference):.1%} {'more' if difference > 0 else 'fewer'}" if difference else ", as many"
    reason += f", {1e3 * other.speed.waited:,.1f} ms {WAITED[problem.phase]}"
    binds, why = _objection(problem, best, other)
    return Alternative(change, binds, reason + why, other)


def _objection(problem: ServingProblem, best: Option, other: Option) -> tuple[Binds, str]:
    """What speaks against another deployment that fits, and the words for it where its speed does not say it."""
    if not other.meets(problem.target):
        return "time", ", which is too long"
    here, there = (one.speed.per_gpu if one.speed else 0.0 for one in (best, other))
    if there > here and other.storing != best.storing:
        return "spec", ": precision.kv_cache says otherwise"
    if not here < there <= here / (1 - RESOLUTION):
        return "time", ""
    little, least, larger = f": under the {RESOLUTION:.0%} that count", _unit(best.serving), _unit(other.serving)
    if larger > least:
        return "size", f"{little}, and it comes in {larger} GPUs at least, not {least}"
    return "time", little


def smallest_deployment(problem: ServingProblem) -> int | None:
    """The smallest number of nodes of the same kind on which one sequence fits; None if there is none.

    Beyond one expert on a GPU and the largest group of tensor parallelism, more nodes take nothing off a GPU.
    """
    cluster = problem.hardware.cluster
    enough = max(problem.experts + problem.redundant, cluster.scale_up_domain)
    for nodes in range(problem.world // cluster.gpus_per_node + 1, share(enough, cluster.gpus_per_node) + 1):
        larger = problem.on(nodes)
        try:
            if any(fits_at_all(larger, one) for one in servings(larger)):
                return nodes
        except DscError:  # these nodes do not suit the pins
            continue
    return None


def fits_at_all(problem: ServingProblem, serving: Serving) -> bool:
    """Whether one sequence does."""
    try:
        problem.memory.plan(serving, problem.request(), problem.storing, problem.capacity)
    except DoesNotFit:
        return False
    return True


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
