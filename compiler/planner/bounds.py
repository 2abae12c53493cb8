"""A closed form that no simulation of a pipeline schedule falls below: each rank's work between its fill and its drain.

Before the first action of a rank, the stages before its own must have run forward; after its last backward, they must
run backward. 1F1B and interleaved schedules of equal stages take exactly that long, (p - 1)(F + B) / v more than the
work of one rank. The others leave gaps within, where the truth is the simulation's; weight gradients that they put off
may fill the drain, so those count on one side of it only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from dsc.compiler.planner.layout import Layout
from dsc.compiler.planner.simulate import StageTimes


def pipeline_bound(layout: Layout, micro_batches: int, times: Sequence[StageTimes], transfer: float) -> float:
    """Seconds; `times` of the stages in the model's order, `transfer` from rank to rank."""
    fill = [0.0, *accumulate(stage.forward + transfer for stage in times)]
    if layout.schedule in ("1f1b", "interleaved"):
        drain = [0.0, *accumulate(stage.backward + transfer for stage in times)]
        return max(
            fill[rank] + micro_batches * sum(_serial(times[stage]) for stage in layout.stages(rank)) + drain[rank]
            for rank in range(layout.pp)
        )
    drain = [0.0, *accumulate(stage.backward_input + transfer for stage in times)]
    return max(
        fill[first] + max(work, work - late + drain[first])
        for first, work, late in (_rank(layout, micro_batches, times, rank) for rank in range(layout.pp))
    )


def _rank(layout: Layout, micro_batches: int, times: Sequence[StageTimes], rank: int) -> tuple[int, float, float]:
    """The rank's place from the nearer end of the pipeline, its work, and the most of it that may follow its last B."""
    pp = layout.pp
    place = min(rank, pp - 1 - rank) if layout.schedule == "dualpipe" else rank
    near, far = (times[stage] for stage in layout.stages(rank))
    if layout.schedule == "zbv":
        late = (place + 1) * near.backward_weight + place * far.backward_weight
        return place, micro_batches * (_serial(near) + _serial(far)), late
    depth, lane = (pp // 2, micro_batches // 2) if layout.schedule == "dualpipe" else (pp, micro_batches)
    pairs = 2 * (lane - 2 * depth + place + 1) + (depth - 1 - place) - (place == depth - 1)
    hidden = pairs * (near.hidden + far.hidden) / 2
    late = (place + 1) * max(near.backward_weight, far.backward_weight)
    return place, lane * (_serial(near) + _serial(far)) - hidden, late


def _serial(stage: StageTimes) -> float:
    return stage.forward + stage.backward
