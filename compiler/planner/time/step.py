"""Seconds of a training step under a layout: compute, communication, the pipeline, and what comes after it.

A step is the pipeline's schedule, simulated with the times of its stages, then gradients across data parallelism, the
optimizer, and parameters back. A stage's times are the sums of its parts'. Communication inside a stage adds to its
compute, except in an F&B pair of DualPipe, where expert all-to-alls run beside compute and the longer of both counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from dsc.compiler.facts.stats import compute_stats
from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes.turns import cycles
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.parts.parts import BACKBONE, parts_of, stream
from dsc.compiler.planner.parts.shard import elements
from dsc.compiler.planner.parts.stages import Stages
from dsc.compiler.planner.parts.tensor import sent
from dsc.compiler.planner.pipeline.schedule import actions
from dsc.compiler.planner.pipeline.simulate import StageTimes, Timeline, simulate
from dsc.compiler.planner.time.bounds import even_bound, pipeline_bound
from dsc.compiler.planner.time.lines import BUBBLE, SYNC, TimeLine, work_lines
from dsc.compiler.planner.time.ops import op_costs
from dsc.compiler.planner.time.overlap import OtherEngines, Overlap
from dsc.compiler.planner.time.part import PartTimes
from dsc.compiler.planner.time.stage import StageCosts
from dsc.compiler.planner.time.tail import Tail
from dsc.compiler.planner.time.terms import terms_of
from dsc.compiler.planner.time.traffic import Communication
from dsc.spec.model import ModelSpec

MANY = 8
"""Micro-batches for each pipeline rank from which a step is not simulated to its end."""
STEADY = (2, 4)
"""The same between which a schedule has come to run at its rate."""


@dataclass(frozen=True)
class StepTime:
    seconds: float
    lines: tuple[TimeLine, ...]
    bubble_fraction: float
    """Of the step, what the busiest rank waits: the schedule's bubble and the calibrated loss between ranks."""
    mfu: float
    """FLOPs of the main model, causal, over the bfloat16 peak of all GPUs."""
    gpu_hours_per_trillion_tokens: float
    uncertainty: float
    """Relative, either way."""


class CostModel:
    """Times of layouts for one model on one machine.

    `bound` is a closed form that never exceeds `step`, and equals it for 1F1B and interleaved pipelines of equal stages
    (bounds.py). A search takes candidates in the order of their bounds and simulates until the next bound is above the
    best step so far: exact, and few are simulated. What a part costs is computed once for each micro-batch and division
    of it; all else is arithmetic on those numbers.

    `graph` is the training graph as it is emitted; `shared` the same where ranks share the experts out.
    """

    def __init__(
        self,
        spec: ModelSpec,
        graph: Graph,
        hardware: Hardware,
        shared: Graph | None = None,
        others: OtherEngines | None = None,
    ) -> None:
        self.spec = spec
        self.hardware = hardware
        self.parts = parts_of(graph)
        if others and others.fp8_products:
            hardware.peak("fp8_gemm")  # refuses a machine without
        self.ops = op_costs(self.parts, others)
        self.away = op_costs(parts_of(shared), others) if shared is not None else self.ops
        kinds = {part.kind: part for part in self.parts}
        held = {kind: elements(part.parameters.values()) for kind, part in kinds.items()}
        tensor = {kind: tuple(map(terms_of, sent(part.steps))) for kind, part in kinds.items()}
        shown = {kind: some for kind, some in tensor.items() if any(tensor.values())}
        self.communication = Communication(spec, stream(graph), hardware, others, shown)
        part_times = PartTimes(
            self.ops, self.away, self.communication, hardware, spec.workload.sequence_length, keeps_codes=others is None
        )
        self.overlap = Overlap(cycles(graph.blocks[BACKBONE]), others)
        self.stages = StageCosts(self.parts, held, part_times, self.communication, self.overlap)
        self.tail = Tail(self.parts, held, self.communication, hardware, spec.precision, others is None)
        self._flops_per_token = cache(lambda: compute_stats(spec, graph).flops_per_token.training)

    def weights(self, layout: Layout) -> tuple[int, ...]:
        """Nanoseconds of each part, forward and backward: what a split into stages should balance."""
        kinds = dict.fromkeys(part.kind for part in self.parts)
        times = {kind: self.stages.cost((kind,), layout).times for kind in kinds}
        return tuple(round(1e9 * times[part.kind].overlapped) for part in self.parts)

    def bound(self, layout: Layout, stages: Stages, global_batch: int) -> float:
        """Seconds that `step` cannot fall below."""
        alone = self.stages.times(layout, stages)
        times, transfer = self.stages.as_run(layout, alone), self.communication.transfer(layout)
        pipeline = pipeline_bound(layout, layout.micro_batches(global_batch), times, transfer)
        pipeline += self.stages.warm_up(layout, alone)
        return pipeline * (1 + self._sync(layout)) + sum(self.tail.longest(layout, stages, alone).values())

    def floor(self, layout: Layout, global_batch: int) -> float:
        """Seconds that the pipeline cannot fall below in `bound`, however the model is split into stages."""
        serial, paired, (forward, both) = self.stages.whole(layout)
        if layout.schedule == "interleaved" and self.overlap.hides(layout):
            both = 0.0  # how short a pair of stages is there depends on what they hide
        pipeline = even_bound(layout, layout.micro_batches(global_batch), serial, paired, (forward, both))
        return pipeline * (1 + self._sync(layout))

    def least(self, layout: Layout, global_batch: int, exchanges: bool = True) -> float:
        """The same at the best that any pipeline schedule can do that pairs what this one does, and any smaller
        micro-batch: weights, the shortest kernels and latencies are as much for fewer tokens.

        Without exchanges: at the best that any sharing of the experts can do, which then exchange nothing either.
        """
        experts, ways = self.communication.experts, [layout]
        if not exchanges and experts is not None:
            ways = [replace(layout, ep=1, etp=1), replace(layout, ep=experts.count, etp=layout.tp)]
        paired = min(self.stages.whole(one, exchanges).paired for one in ways)
        return paired * (global_batch / (layout.dp * layout.micro_batch)) / layout.pp

    def step(self, layout: Layout, stages: Stages, global_batch: int) -> StepTime:
        """Of many micro-batches a few for each rank are simulated, and every line goes on at its rate.

        Once all ranks are busy, micro-batches follow each other at a constant rate, that of the slowest rank. A rank
        that is the slowest but has not shown it by then is in the bound.
        """
        count, pp = layout.micro_batches(global_batch), layout.pp
        if count <= MANY * pp:
            whole = self.timeline(layout, stages, count)
            return self._summed(layout, self._lines(layout, stages, whole, _busiest(whole)), global_batch)
        begun, going = (self.timeline(layout, stages, some * pp) for some in STEADY)
        rank = _busiest(going)
        few, more = (self._lines(layout, stages, one, rank) for one in (begun, going))
        ahead = (count / pp - STEADY[1]) / (STEADY[1] - STEADY[0])
        lines = tuple(
            replace(b, seconds=b.seconds + ahead * (b.seconds - a.seconds)) for a, b in zip(few, more, strict=True)
        )
        late = max(0.0, self.bound(layout, stages, global_batch) - sum(line.seconds for line in lines))
        lines = tuple(replace(line, seconds=line.seconds + late) if line.name == BUBBLE else line for line in lines)
        return self._summed(layout, lines, global_batch)

    def timeline(self, layout: Layout, stages: Stages, micro_batches: int) -> Timeline:
        """A step of so many micro-batches, simulated action by action."""
        times = self.stages.as_run(layout, self.stages.times(layout, stages))
        schedule = actions(layout.schedule, layout.pp, layout.vpp, micro_batches)
        return simulate(schedule, times, self.communication.transfer(layout))

    def _lines(self, layout: Layout, stages: Stages, timeline: Timeline, rank: int) -> tuple[TimeLine, ...]:
        """Where the time goes on a rank."""
        costs = self.stages.costs(layout, stages)
        alone = [cost.times for cost in costs]
        times, warm_up = self.stages.as_run(layout, alone), self.stages.warm_up(layout, alone)
        return (
            *work_lines(timeline.actions[rank], costs, times, warm_up, self.hardware),
            *self._waits(layout, timeline.step - timeline.busy[rank], timeline.step + warm_up),
            *self._tail_lines(layout, stages, alone),
        )

    def _summed(self, layout: Layout, lines: tuple[TimeLine, ...], global_batch: int) -> StepTime:
        total = sum(line.seconds for line in lines)
        waits = sum(line.seconds for line in lines if line.name in (BUBBLE, SYNC))
        tokens = global_batch * self.spec.workload.sequence_length
        gpus = layout.world
        return StepTime(
            seconds=total,
            lines=lines,
            bubble_fraction=waits / total,
            mfu=self._flops_per_token() * tokens / (total * gpus * self.hardware.cluster.bf16_flops),
            gpu_hours_per_trillion_tokens=total * gpus / tokens * 1e12 / 3600,
            uncertainty=sum(line.seconds * self._band(line) for line in lines) / total,
        )

    def _band(self, line: TimeLine) -> float:
        """As if the errors of all lines went the same way."""
        calibration = self.hardware.calibration
        return (calibration.of_assumed if line.provenance == "assumed" else calibration.uncertainty).value

    def _sync(self, layout: Layout) -> float:
        """Ranks of a pipeline lose time to each other; one rank alone does not."""
        return self.hardware.calibration.sync.value if layout.pp > 1 else 0.0

    def _waits(self, layout: Layout, idle: float, pipeline: float) -> tuple[TimeLine, TimeLine]:
        sync = self.hardware.calibration.sync
        return (
            TimeLine(BUBBLE, idle, "derived", f"simulated schedule {layout.schedule}"),
            TimeLine(SYNC, pipeline * self._sync(layout), sync.provenance, sync.source),
        )

    def _tail_lines(self, layout: Layout, stages: Stages, times: list[StageTimes]) -> Iterator[TimeLine]:
        source = "bytes of the parameters that one rank holds, over the links and the memory"
        for name, time in self.tail.longest(layout, stages, times).items():
            yield TimeLine(name, time, "derived", source)


def _busiest(timeline: Timeline) -> int:
    """The pipeline rank that works most."""
    return max(range(len(timeline.busy)), key=timeline.busy.__getitem__)
