"""Where a step's time goes on its busiest rank, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsc.compiler.planner.machine.calibration import Provenance
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.pipeline.schedule import Action
from dsc.compiler.planner.pipeline.simulate import StageTimes, pair_time
from dsc.compiler.planner.time.kernels import CLASSES, Vector, add
from dsc.compiler.planner.time.part import Pass
from dsc.compiler.planner.time.stage import StageCost

BUBBLE, SYNC, EXPOSED = "bubble", "between ranks", "exposed communication"
COMPUTE = {
    "fp8_gemm": "FP8 products",
    "fp8_grouped": "FP8 products of experts",
    "gemm": "bfloat16 products",
    "fp32_gemm": "float32 products",
    "attention": "attention",
    "memory": "memory-bound ops",
    "cast": "casts to FP8",
}


@dataclass(frozen=True)
class TimeLine:
    """One line of a step's time, on its busiest rank. Lines add up to the step."""

    name: str
    seconds: float
    provenance: Provenance
    source: str


def work_lines(
    run: Sequence[Action],
    costs: Sequence[StageCost],
    times: Sequence[StageTimes],
    warm_up: float,
    hardware: Hardware,
) -> Iterator[TimeLine]:
    """What a rank computes by class, and the communication that shows, `warm_up` seconds of it beside the run."""
    compute: Vector = (0.0,) * len(CLASSES)
    busy = warm_up
    for (kind, stage, other), count in sorted(Counter(_shape(action) for action in run).items()):
        members = _members(kind, costs[stage], costs[other])
        vector = add(one.compute for one in members)
        seconds = _seconds(kind, times[stage], times[other])
        if kind == "F&B" and times[stage].hidden + times[other].hidden > 0:
            vector = _between(vector, add(one.slowed for one in members), seconds)
        busy += count * seconds
        compute = tuple(old + count * new for old, new in zip(compute, vector, strict=True))
    forward = hardware.calibration.forward
    for name, time in zip(CLASSES, compute, strict=True):
        if time:
            yield TimeLine(COMPUTE[name], time, forward[name].provenance, forward[name].source)
    source = f"volumes from the graph; {hardware.cluster.links_source}"
    yield TimeLine(EXPOSED, busy - sum(compute), "derived", source)


def _between(compute: Vector, slowed: Vector, seconds: float) -> Vector:
    """Compute of a pair, as much slower than alone as the pair's seconds leave room for."""
    room, most = seconds - sum(compute), sum(slowed) - sum(compute)
    share = max(0.0, min(1.0, room / most)) if most else 0.0
    return tuple(a + share * (b - a) for a, b in zip(compute, slowed, strict=True))


def _shape(action: Action) -> tuple[str, int, int]:
    """What decides how long an action takes: its kind, its stage, and that of its backward."""
    return action.kind, action.stage, action.backward.stage if action.backward else action.stage


def _seconds(kind: str, forward: StageTimes, backward: StageTimes) -> float:
    return {
        "F": forward.forward,
        "B": backward.backward_input,
        "W": backward.backward_weight + backward.alone,
        "BW": backward.backward,
        "F&B": pair_time(forward, backward),
    }[kind]


def _members(kind: str, forward: StageCost, backward: StageCost) -> tuple[Pass, ...]:
    both = (backward.backward_input, backward.backward_weight)
    return {
        "F": (forward.forward,),
        "B": both[:1],
        "W": both[1:],
        "BW": both,
        "F&B": (forward.forward, *both),
    }[kind]
