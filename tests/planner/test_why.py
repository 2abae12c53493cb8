"""dsc plan --explain: of one choice, what every other value takes, and in which lines of the step it differs."""

from dataclasses import replace

import pytest

from dsc.compiler.planner.report.why import KEYS, TOLD, why, why_record
from dsc.spec.placement import Placement
from planner.test_plan import tiny


@pytest.mark.parametrize("key", KEYS)
def test_others_are_the_neighbours_with_another_value(key: str) -> None:
    plan, found = tiny(), why(tiny(), key)
    changed = [one for one in plan.around if getattr(one.layout, key) != getattr(plan.layout, key)]
    assert [one.neighbour for one in found.others] == changed


def test_every_neighbour_answers_for_some_key() -> None:
    told = {one.neighbour.change for key in KEYS for one in why(tiny(), key).others}
    assert told == {one.change for one in tiny().around}


def test_lines_are_where_the_seconds_go() -> None:
    """What is told of a slower neighbour is of the size of its difference, and each line is that of its own step."""
    plan, found = tiny(), why(tiny(), "recompute")
    for other in found.others:
        one = other.neighbour
        assert one.seconds is not None and 0 < len(other.differs) <= TOLD
        steps = {line.name: line.seconds for line in plan.problem.step(one.layout).lines}
        ours = {line.name: line.seconds for line in plan.time.lines}
        for name, more in other.differs:
            assert more == pytest.approx(steps[name] - ours.get(name, 0.0))
        sizes = [abs(more) for _, more in other.differs]
        assert sizes == sorted(sizes, reverse=True)
        if len(other.differs) < TOLD:  # all that is worth telling
            assert sum(more for _, more in other.differs) == pytest.approx(one.seconds - plan.time.seconds, abs=0.01)


def test_the_reason_is_the_nearest_that_fits() -> None:
    found = why(tiny(), "recompute")
    slower = [one.neighbour for one in found.others if one.neighbour.seconds is not None]
    nearest = min(slower, key=lambda one: one.seconds or 0)
    assert nearest.change in found.reason and "% more" in found.reason
    assert why(tiny(), "schedule").reason == "no other value is legal and fits"
    plan = tiny()
    halved = tuple(replace(one, seconds=plan.time.seconds / 2) for one in plan.around if one.change.startswith("pp"))
    assert why(replace(plan, around=halved), "pp").reason == "pp 1 -> 2 would take 50.0% less"
    same = tuple(replace(one, seconds=plan.time.seconds) for one in halved)
    assert why(replace(plan, around=same), "pp").reason == "pp 1 -> 2 takes as long"
    pinned = plan.problem.spec.model_copy(update={"placement": Placement(pp=1)})
    assert why(replace(plan, problem=replace(plan.problem, spec=pinned)), "pp").reason == "the spec's placement pins it"


def test_the_record_says_the_same() -> None:
    found = why(tiny(), "zero")
    said = why_record(found)
    assert (said["key"], said["value"], said["pinned"]) == ("zero", tiny().layout.zero, False)
    assert [one["change"] for one in said["others"]] == [one.neighbour.change for one in found.others]
    assert said["step_seconds"] == tiny().time.seconds and said["bytes"] == tiny().chosen.bytes
