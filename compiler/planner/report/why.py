"""Why a plan has a value: what each other value of this choice would take, and in which lines it differs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.report.plan import Plan
from dsc.compiler.planner.report.record import placement
from dsc.compiler.planner.search.explain import Neighbour
from dsc.spec.placement import Placement

KEYS = tuple(field.name for field in fields(Layout))
TOLD = 3  # lines of a step that a neighbour differs in most
LEAST = 5e-4
"""Of a step's seconds: what differs by less is not told."""


@dataclass(frozen=True)
class Other:
    """Another value of the choice, all else the same; or what comes with it."""

    neighbour: Neighbour
    differs: tuple[tuple[str, float], ...]
    """Lines of the step with the seconds that they take more, the largest first; none where it is not legal."""


@dataclass(frozen=True)
class Why:
    plan: Plan
    key: str
    pinned: bool
    others: tuple[Other, ...]

    @property
    def value(self) -> Any:
        return placement(self.plan.layout).get(self.key, getattr(self.plan.layout, self.key))

    @property
    def reason(self) -> str:
        """Of the value, in a sentence."""
        if self.pinned:
            return "the spec's placement pins it"
        slower = [one.neighbour for one in self.others if one.neighbour.seconds is not None]
        if not self.plan.fits:
            return "no layout fits: this one needs least memory"
        if not slower:
            return "no other value is legal and fits"
        nearest = min(slower, key=lambda one: (one.seconds, one.change))
        assert nearest.seconds is not None
        more = nearest.seconds / self.plan.time.seconds - 1
        if abs(more) < LEAST:
            return f"{nearest.change} takes as long"
        if more < 0:
            return f"{nearest.change} would take {-more:.1%} less"
        return f"of the others that fit, {nearest.change} comes nearest: {more:.1%} more"


def why(plan: Plan, key: str) -> Why:
    """What stands around a plan, as far as it is another value of `key`: a name of the spec's `placement`."""
    pins = plan.problem.spec.placement or Placement()
    around = [one for one in plan.around if getattr(one.layout, key) != getattr(plan.layout, key)]
    return Why(plan, key, getattr(pins, key) is not None, tuple(Other(one, _differs(plan, one)) for one in around))


def _differs(plan: Plan, other: Neighbour) -> tuple[tuple[str, float], ...]:
    if other.seconds is None:
        return ()
    ours = {line.name: line.seconds for line in plan.time.lines}
    theirs = {line.name: line.seconds for line in plan.problem.step(other.layout).lines}
    changes = [(name, theirs.get(name, 0.0) - ours.get(name, 0.0)) for name in {**ours, **theirs}]
    told = [one for one in changes if abs(one[1]) >= LEAST * plan.time.seconds]
    return tuple(sorted(told, key=lambda one: (-abs(one[1]), one[0]))[:TOLD])


def why_record(found: Why) -> dict[str, Any]:
    """For --json."""
    return {
        "key": found.key,
        "value": found.value,
        "pinned": found.pinned,
        "reason": found.reason,
        "bytes": found.plan.chosen.bytes,
        "step_seconds": found.plan.time.seconds,
        "others": [
            {
                "change": one.neighbour.change,
                "binds": one.neighbour.binds,
                "reason": one.neighbour.reason,
                "bytes": one.neighbour.bytes,
                "step_seconds": one.neighbour.seconds,
                "lines": dict(one.differs),
            }
            for one in found.others
        ],
    }
