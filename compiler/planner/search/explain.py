"""Why this plan: every plan one step away, and what stands against it.

The search enumerates up to certain sizes (layout/space.py). Plans one step away may lie beyond: `climb` goes there
while one of them is faster, so that what speaks against a neighbour is never that nobody looked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.layout.legal import problems
from dsc.compiler.planner.pipeline.schedule import SCHEDULES
from dsc.compiler.planner.search.offer import Lacks
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.search.search import Candidate
from dsc.spec.divisors import divisor_near
from dsc.spec.placement_checks import recompute_choices
from dsc.spec.precision import Fp8BlockLinear

TIE = 1 - 1e-9
"""Of a step's seconds: sums in another order differ by less."""


@dataclass(frozen=True)
class Neighbour:
    """A layout that differs from the plan in one choice."""

    change: str
    layout: Layout
    binds: Literal["arithmetic", "code", "memory", "pins", "time"]
    """What speaks against it."""
    reason: str
    bytes: int | None
    """Of the fullest rank; None where the layout is not legal, not the pins', or nothing that is emitted."""
    missing_bytes: int | None
    """Beyond a GPU's memory."""
    seconds: float | None
    """Of a step; None where it does not fit."""


def climb(problem: Problem, start: Candidate, lacks: Lacks) -> Candidate:
    """From a layout that fits to one that no neighbour of its own beats."""
    best = start
    while True:
        around = [one for one in neighbours(problem, best.layout, best.seconds, lacks) if one.seconds is not None]
        ahead = min(around, key=lambda one: (one.seconds, one.layout), default=None)
        if ahead is None or ahead.seconds is None or ahead.seconds >= best.seconds * TIE:
            return best
        assert ahead.bytes is not None
        best = Candidate(ahead.layout, ahead.bytes, ahead.seconds)


def neighbours(problem: Problem, plan: Layout, seconds: float, lacks: Lacks) -> tuple[Neighbour, ...]:
    """Every layout one choice away, in a fixed order. `lacks`: why the search did not have one on offer."""
    return tuple(_judge(problem, change, layout, seconds, lacks) for change, layout in _changes(problem, plan))


def largest_saving(problem: Problem, plan: Layout, around: tuple[Neighbour, ...]) -> Neighbour | None:
    """The one change that frees most memory."""
    legal = [one for one in around if one.bytes is not None and one.bytes < problem.bytes(plan)]
    return min(legal, key=lambda one: (one.bytes, one.change), default=None)


def _judge(problem: Problem, change: str, layout: Layout, seconds: float, lacks: Lacks) -> Neighbour:
    illegal = problems(layout, problem.spec, problem.world, problem.batch)
    if illegal:
        return Neighbour(change, layout, "arithmetic", illegal[0], None, None, None)
    if pinned := [name for name in pins(problem) if _differs(problem, layout, name)]:
        return Neighbour(change, layout, "pins", f"placement pins {', '.join(pinned)}", None, None, None)
    needed = problem.bytes(layout)
    missing = needed - problem.capacity
    if lacking := lacks(layout):
        reason = f"not emitted: {', '.join(lacking)}; {_elsewhere(problem, layout, seconds, missing)}"
        return Neighbour(change, layout, "code", reason, None, None, None)
    if missing > 0:
        have = _gib(problem.capacity)
        reason = f"needs {_gib(needed)}, a {problem.hardware.device} has {have}: {_gib(missing)} too much"
        return Neighbour(change, layout, "memory", reason, needed, missing, None)
    took = problem.step(layout).seconds
    return Neighbour(change, layout, "time", _compared(took, seconds), needed, None, took)


def _elsewhere(problem: Problem, layout: Layout, seconds: float, missing: int) -> str:
    """What an engine that runs this layout would reach with it."""
    if missing > 0:
        return f"elsewhere it would need {_gib(missing)} more than there are"
    return f"elsewhere {_compared(problem.step(layout).seconds, seconds)}"


def _compared(took: float, seconds: float) -> str:
    more = f"{took / seconds - 1:.1%}".lstrip("-")
    return f"{took:.2f} s a step, {more} {'less' if took < seconds * TIE else 'more'}"


def pins(problem: Problem) -> tuple[str, ...]:
    """The choices that the spec's placement leaves nobody."""
    placement = problem.spec.placement
    return () if placement is None else tuple(name for name, value in placement if value is not None)


def _differs(problem: Problem, layout: Layout, name: str) -> bool:
    pinned, found = getattr(problem.spec.placement, name), getattr(layout, name)
    return bool(tuple(sorted(pinned)) != found) if isinstance(pinned, list) else bool(pinned != found)


def _changes(problem: Problem, plan: Layout) -> Iterator[tuple[str, Layout]]:
    """The next sizes, data parallelism making up for it; each other choice on its own."""
    folded = plan.dp * plan.cp * plan.tp
    wholes = {
        "pp": plan.pp * plan.dp,
        "tp": plan.tp * plan.dp,
        "cp": plan.cp * plan.dp,
        "ep": folded // plan.etp,
        "etp": folded // plan.ep,
        "micro_batch": problem.batch // plan.dp,
    }
    for name, whole in wholes.items():
        size = getattr(plan, name)
        for other in _next_sizes(size, whole):
            yield f"{name} {size} -> {other}", _resized(plan, name, other)
    for vpp in (2 * plan.vpp, *((plan.vpp // 2,) if plan.vpp % 2 == 0 else ())):
        yield f"vpp {plan.vpp} -> {vpp}", replace(plan, vpp=vpp)
    for schedule in SCHEDULES:
        if schedule != plan.schedule:
            vpp = 1 if schedule in ("1f1b", "dualpipe") else max(2, plan.vpp) if schedule == "interleaved" else 2
            also = f", vpp {vpp}" if vpp != plan.vpp else ""
            yield f"schedule {plan.schedule} -> {schedule}{also}", replace(plan, schedule=schedule, vpp=vpp)
    for zero in (plan.zero - 1, plan.zero + 1):
        if 0 <= zero <= 3 and plan.dp * plan.cp > 1:  # else there is nobody to share with
            yield f"zero {plan.zero} -> {zero}", replace(plan, zero=zero)
    yield from _recompute_changes(problem, plan)
    if isinstance(problem.spec.precision.linear, Fp8BlockLinear):
        other_type: Literal["bf16", "fp8"] = "bf16" if plan.activations == "fp8" else "fp8"
        yield f"activations {plan.activations} -> {other_type}", replace(plan, activations=other_type)


def _next_sizes(size: int, whole: int) -> Iterator[int]:
    """Twice and half a size; where these do not divide the whole, the next that do: beside 1 of 7 stands 7."""
    if whole % (2 * size) == 0:
        yield 2 * size
    elif size < whole:
        yield next(other for other in range(size + 1, whole + 1) if whole % other == 0)
    if size % 2 == 0 and whole % (size // 2) == 0:
        yield size // 2
    elif size > 1:
        yield divisor_near(whole, size - 1)


def _resized(plan: Layout, name: str, size: int) -> Layout:
    """The layout with one size changed; ranks of data parallelism come and go with those of the others."""
    sizes: dict[str, Any] = {name: size}
    changed = replace(plan, **sizes)
    return replace(changed, dp=max(1, plan.world // (changed.pp * changed.tp * changed.cp)))


def _recompute_changes(problem: Problem, plan: Layout) -> Iterator[tuple[str, Layout]]:
    if plan.recompute:
        yield "no recompute", replace(plan, recompute=())
    for name in recompute_choices(problem.spec):
        if name in plan.recompute:
            if len(plan.recompute) > 1:
                rest = tuple(one for one in plan.recompute if one != name)
                yield f"{name} kept", replace(plan, recompute=rest)
        elif name == "full":
            yield "full recompute", replace(plan, recompute=("full",))
        elif plan.recompute != ("full",):
            yield f"{name} recomputed", replace(plan, recompute=tuple(sorted((*plan.recompute, name))))


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
