"""A closed form that no simulation of a pipeline schedule falls below: each rank's work between its fill and its drain.

Before the first action of a rank, the stages before its own must have run forward; after its last backward, they must
run backward. 1F1B and interleaved schedules of equal stages take exactly that long, (p - 1)(F + B) / v more than the
work of one rank. The others leave gaps within, where the truth is the simulation's; weight gradients that they put off
may fill the drain, so those count on one side of it only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.pipeline.simulate import StageTimes


def pipeline_bound(layout: Layout, micro_batches: int, times: Sequence[StageTimes], transfer: float) -> float:
    """Seconds; `times` of the stages in the model's order, `transfer` from rank to rank."""
    fill = [0.0, *accumulate(stage.forward + transfer for stage in times)]
    if layout.schedule in ("1f1b", "interleaved"):
        backward = [stage.backward_input + stage.backward_weight for stage in times]
        drain = [0.0, *accumulate(time + transfer for time in backward)]
        serial = [stage.forward + time for stage, time in zip(times, backward, strict=True)]  # rank r: every pp-th
        works = (micro_batches * sum(serial[rank :: layout.pp]) for rank in range(layout.pp))
        return max(before + work + after for before, work, after in zip(fill, works, drain, strict=False))
    drain = [0.0, *accumulate(stage.backward_input + transfer for stage in times)]
    return max(
        fill[first] + max(work, work - late + drain[first])
        for first, work, late in (_rank(layout, micro_batches, times, rank) for rank in range(layout.pp))
    )


def even_bound(
    layout: Layout, micro_batches: int, serial: float, paired: float, least: tuple[float, float] = (0.0, 0.0)
) -> float:
    """Seconds that `pipeline_bound` cannot fall below, however the work of a micro-batch is split into stages.

    `serial` is that work on all ranks together, `paired` what remains of it in F&B pairs. 1F1B is shortest where each
    stage is lighter than the one before by what its rank waits longer, the others where all ranks work alike but for
    what they wait: for as many stages as stand before them, which take at least `least`, forward or both ways.
    """
    if layout.schedule == "1f1b":
        return serial / (1 - (1 - 1 / micro_batches) ** layout.pp)
    forward, both = least
    mean_place = ((layout.pp // 2 if layout.schedule == "dualpipe" else layout.pp) - 1) / 2
    waits = mean_place * (both if layout.schedule == "interleaved" else forward)
    hidden = 0.0
    if layout.schedule in ("dualpipe", "dualpipe-v"):
        depth, lane = _lane(layout, micro_batches)
        hidden = (serial - paired) * max(_pairs(depth, lane, place) for place in range(depth)) / (2 * lane)
    return micro_batches * (serial - hidden) / layout.pp + waits


def _lane(layout: Layout, micro_batches: int) -> tuple[int, int]:
    """Ranks of one direction of a DualPipe, and its micro-batches."""
    return (layout.pp // 2, micro_batches // 2) if layout.schedule == "dualpipe" else (layout.pp, micro_batches)


def _pairs(depth: int, lane: int, place: int) -> int:
    """F&B pairs of a rank."""
    return 2 * (lane - 2 * depth + place + 1) + (depth - 1 - place) - (place == depth - 1)


def _rank(layout: Layout, micro_batches: int, times: Sequence[StageTimes], rank: int) -> tuple[int, float, float]:
    """The rank's place from the nearer end of the pipeline, its work, and the most of it that may follow its last B."""
    pp = layout.pp
    place = min(rank, pp - 1 - rank) if layout.schedule == "dualpipe" else rank
    near, far = (times[stage] for stage in layout.stages(rank))
    if layout.schedule == "zbv":
        late = (place + 1) * near.backward_weight + place * far.backward_weight
        return place, micro_batches * (_serial(near) + _serial(far)), late
    depth, lane = _lane(layout, micro_batches)
    hidden = _pairs(depth, lane, place) * (near.hidden + far.hidden) / 2
    late = (place + 1) * max(near.backward_weight, far.backward_weight)
    return place, lane * (_serial(near) + _serial(far)) - hidden, late


def _serial(stage: StageTimes) -> float:
    return stage.forward + stage.backward
