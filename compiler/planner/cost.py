"""Seconds of a training step under a layout: compute, communication, the pipeline, and what comes after it.

A step is the pipeline's schedule, simulated with the times of its stages, then gradients across data parallelism, the
optimizer, and parameters back. A stage's times are the sums of its parts'. Communication inside a stage adds to its
compute, except in an F&B pair of DualPipe, where expert all-to-alls run beside compute and the longer of both counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner import collectives
from dsc.compiler.planner.bounds import pipeline_bound
from dsc.compiler.planner.calibration import Provenance
from dsc.compiler.planner.collectives import FP8, Experts, Group
from dsc.compiler.planner.hardware import Hardware
from dsc.compiler.planner.layout import Layout
from dsc.compiler.planner.parts import EMBEDDING, HEAD, parts_of
from dsc.compiler.planner.roofline import CLASSES, OpCost, Seconds, Share, Vector, add, op_costs, scaled, seconds
from dsc.compiler.planner.schedule import Action, actions
from dsc.compiler.planner.shard import Elements, elements
from dsc.compiler.planner.simulate import StageTimes, Timeline, pair_time, simulate
from dsc.compiler.planner.stages import Stages
from dsc.compiler.stats import compute_stats
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

PAIRING = ("dualpipe", "dualpipe-v")  # schedules that hide expert all-to-alls in F&B pairs of their own
BYTES = {"bf16": 2, "fp32": 4, "none": 0}


class Pass(NamedTuple):
    """A part, or a stage of parts, in one direction: one micro-batch on one rank, in seconds."""

    compute: Vector
    """By class of op."""
    exchange: float = 0.0
    """Expert all-to-alls with nothing beside them."""
    hidden_exchange: float = 0.0
    """The same beside compute, on their share of the multiprocessors."""
    other: float = 0.0
    """Exposed time of tensor, context and data parallelism's collectives, which no pair hides."""

    @property
    def seconds(self) -> float:
        return sum(self.compute) + self.exchange + self.other


class StageCost(NamedTuple):
    forward: Pass
    backward_input: Pass
    """With what is recomputed."""
    backward_weight: Pass
    times: StageTimes


@dataclass(frozen=True)
class Line:
    """One line of a step's time, on its busiest rank. Lines add up to the step."""

    name: str
    seconds: float
    provenance: Provenance
    source: str


@dataclass(frozen=True)
class StepTime:
    seconds: float
    lines: tuple[Line, ...]
    bubble_fraction: float
    """Of the step, what the busiest rank waits: the schedule's bubble and the calibrated loss between ranks."""
    mfu: float
    """FLOPs of the main model, causal, over the bfloat16 peak of all GPUs."""
    gpu_hours_per_trillion_tokens: float
    uncertainty: float
    """Relative, either way."""
    timeline: Timeline


class CostModel:
    """Times of layouts for one model on one machine.

    `bound` is a closed form that never exceeds `step`, and equals it for 1F1B and interleaved pipelines of equal stages
    (bounds.py). A search takes candidates in the order of their bounds and simulates until the next bound is above the
    best step so far: exact, and few are simulated. What a part costs is computed once for each micro-batch and division
    of it; all else is arithmetic on those numbers.

    `interleaved_hides`: whether interleaved schedules run the all-to-alls of a forward beside the backward next to it,
    as Megatron-Core can (overlap_moe_expert_parallel_comm). Then each of the two is shorter by half of what their pair
    hides, except in warm-up and drain, where nothing runs beside them.
    """

    def __init__(self, spec: ModelSpec, graph: Graph, hardware: Hardware, interleaved_hides: bool = False) -> None:
        self._hiding = (*PAIRING, "interleaved") if interleaved_hides else PAIRING
        self.spec = spec
        self.hardware = hardware
        self.parts = parts_of(graph)
        fp8 = isinstance(spec.precision.linear, Fp8BlockLinear)
        if fp8:
            hardware.peak("fp8_gemm")  # refuses a machine without
        self._dispatch_bytes = FP8 if fp8 else BYTES[spec.precision.parameters]
        self._width = BYTES[spec.precision.parameters]
        self._ops = op_costs(self.parts, fp8)
        self._elements = {part.kind: elements(part.parameters.values()) for part in self.parts}
        self._flops_per_token = compute_stats(spec, graph).flops_per_token.training
        moe = spec.ffn.moe
        self._experts = (
            Experts(moe.n_routed_experts, moe.num_experts_per_tok, moe.router.n_group, moe.router.topk_group)
            if moe
            else None
        )
        self._compute = lru_cache(maxsize=None)(self._compute_of)
        self._stage = lru_cache(maxsize=None)(self._stage_of)
        self._stages = lru_cache(maxsize=None)(self._stages_of)
        self._of_ranks = lru_cache(maxsize=None)(self._of_ranks_held)

    def weights(self, layout: Layout) -> tuple[int, ...]:
        """Nanoseconds of each part, forward and backward: what a split into stages should balance."""
        times = {kind: self.stage((kind,), layout).times for kind in dict.fromkeys(part.kind for part in self.parts)}
        return tuple(round(1e9 * times[part.kind].overlapped) for part in self.parts)

    def bound(self, layout: Layout, stages: Stages, global_batch: int) -> float:
        """Seconds that `step` cannot fall below."""
        costs = self.stages(layout, stages)
        times = self._run(layout, costs)
        pipeline = pipeline_bound(layout, layout.micro_batches(global_batch), times, self.transfer(layout))
        pipeline += self._warm_up(layout, costs)
        return pipeline * (1 + self._sync(layout)) + sum(self.tails(layout, stages).values())

    def step(self, layout: Layout, stages: Stages, global_batch: int) -> StepTime:
        """The schedule simulated, action by action."""
        costs = self.stages(layout, stages)
        schedule = actions(layout.schedule, layout.pp, layout.vpp, layout.micro_batches(global_batch))
        times = self._run(layout, costs)
        timeline = simulate(schedule, times, self.transfer(layout))
        busiest = max(range(layout.pp), key=timeline.busy.__getitem__)
        alone = self._warm_up(layout, costs)
        lines = (
            *self._work(schedule[busiest], costs, times, alone),
            *self._waits(layout, timeline, alone),
            *self._tail_lines(layout, stages),
        )
        total = sum(line.seconds for line in lines)
        waits = sum(line.seconds for line in lines if line.name in (BUBBLE, SYNC))
        tokens = global_batch * self.spec.workload.sequence_length
        gpus = layout.world
        return StepTime(
            seconds=total,
            lines=lines,
            bubble_fraction=waits / total,
            mfu=self._flops_per_token * tokens / (total * gpus * self.hardware.cluster.bf16_flops),
            gpu_hours_per_trillion_tokens=total * gpus / tokens * 1e12 / 3600,
            uncertainty=self.hardware.calibration.uncertainty.value,
            timeline=timeline,
        )

    # Stages.

    def stages(self, layout: Layout, stages: Stages) -> tuple[StageCost, ...]:
        return self._stages(stages, self._grid(layout), layout.recompute, layout.schedule in self._hiding)

    def _stages_of(
        self, stages: Stages, grid: _Grid, recompute: tuple[str, ...], overlaps: bool
    ) -> tuple[StageCost, ...]:
        counted = (tuple(sorted(Counter(self.parts[index].kind for index in stage).items())) for stage in stages)
        return tuple(self._stage(counts, grid, recompute, overlaps) for counts in counted)

    def _grid(self, layout: Layout) -> _Grid:
        ranks = (layout.dp * layout.cp, layout.edp) if layout.zero > 1 else (1, 1)
        sharded = layout.zero if layout.zero > 1 else 0
        return _Grid(layout.micro_batch, layout.tp, layout.cp, layout.ep, layout.etp, *ranks, sharded)

    def _run(self, layout: Layout, costs: Sequence[StageCost]) -> list[StageTimes]:
        """What the schedule is simulated with: where interleaved stages hide, half of it off each direction."""
        times = [cost.times for cost in costs]
        if layout.schedule in PAIRING or layout.schedule not in self._hiding:
            return times
        return [
            replace(one, forward=one.forward - one.hidden / 2, backward_input=one.backward_input - one.hidden / 2)
            for one in times
        ]

    def _warm_up(self, layout: Layout, costs: Sequence[StageCost]) -> float:
        """What interleaved stages cannot hide: the forwards and backwards of rank 0 that have none beside them."""
        if layout.schedule in PAIRING or layout.schedule not in self._hiding:
            return 0.0
        count = 2 * (layout.pp - 1) + (layout.vpp - 1) * layout.pp
        return count * sum(cost.times.hidden for cost in costs) / len(costs)

    def stage(self, kinds: tuple[str, ...], layout: Layout) -> StageCost:
        """A run of parts of these kinds, for one micro-batch on one rank."""
        counts = tuple(sorted(Counter(kinds).items()))
        return self._stage(counts, self._grid(layout), layout.recompute, layout.schedule in self._hiding)

    def _stage_of(
        self, counts: tuple[tuple[str, int], ...], grid: _Grid, recompute: tuple[str, ...], overlaps: bool
    ) -> StageCost:
        parts = [[_times(one, count) for one in self._passes(kind, grid, recompute)] for kind, count in counts]
        passes = [_together(direction) for direction in zip(*parts, strict=True)]
        held = sum((self._elements[kind] for kind, count in counts for _ in range(count)), Elements())
        passes = self._with_sharded_weights(passes, held, grid)
        serial = sum(one.seconds for one in passes)
        times = StageTimes(
            forward=passes[0].seconds,
            backward_input=passes[1].seconds,
            backward_weight=passes[2].seconds,
            overlapped=min(serial, self._overlapped(passes)) if overlaps else serial,
        )
        return StageCost(passes[0], passes[1], passes[2], times)

    def _passes(self, kind: str, grid: _Grid, recompute: tuple[str, ...]) -> tuple[Pass, Pass, Pass]:
        """Forward, input gradient, weight gradient of one part."""
        compute = self._compute(kind, grid.micro_batch, Share(grid.cp * grid.tp, grid.tp, grid.ep * grid.etp))
        again = compute.recompute(recompute)
        ops = self._ops[kind]
        exchange, hidden = self._exchange(ops, grid)
        tensor, context = self._tensor_parallel(kind, ops, grid), self._context_parallel(ops, grid, compute)
        twice = 2 if "full" in recompute else 1  # forward's communication runs again with forward
        slower = self.hardware.calibration.imbalance.value if exchange else 1.0
        return (
            _times(Pass(compute.forward, exchange, hidden, tensor + context[0]), slower),
            _times(
                Pass(
                    add((compute.input_gradient, again)),
                    twice * exchange,
                    twice * hidden,
                    twice * tensor + tensor / 2 + context[1] + (twice - 1) * context[0],
                ),
                slower,
            ),
            _times(Pass(compute.weight_gradient), slower),
        )

    def _compute_of(self, kind: str, micro_batch: int, share: Share) -> Seconds:
        return seconds(self._ops[kind], self.hardware, micro_batch, self.spec.workload.sequence_length, share)

    def _overlapped(self, passes: Sequence[Pass]) -> float:
        """A forward and a full backward as one F&B pair: all-to-alls beside compute, the longer of both counts."""
        left = 1 - self.hardware.calibration.communication_share.value
        compute = add(one.compute for one in passes)
        beside = sum(time if name in UNSHARED else time / left for name, time in zip(CLASSES, compute, strict=True))
        return max(beside, sum(one.hidden_exchange for one in passes)) + sum(one.other for one in passes)

    # Communication within a stage.

    def _rows(self, grid: _Grid) -> float:
        """Tokens of a micro-batch on one rank."""
        return grid.micro_batch * self.spec.workload.sequence_length / (grid.cp * grid.tp)

    def _exchange(self, ops: tuple[OpCost, ...], grid: _Grid) -> tuple[float, float]:
        """Dispatch and combine of a part, alone and beside compute; backward's mirror them, dispatch in FP8 as well."""
        if self._experts is None or not any(op.routed for op in ops):
            return 0.0, 0.0
        calibration, hidden = self.hardware.calibration, self.spec.hidden_size
        group, rows = Group(grid.ep, grid.etp), self._rows(grid)
        alone = beside = 0.0
        ways = ((self._dispatch_bytes, calibration.overlapped_dispatch), (self._width, calibration.overlapped_combine))
        for width, reached in ways:
            volume = collectives.expert_all_to_all(rows, hidden, width, self._experts, group, self.hardware)
            alone += volume.seconds(self.hardware)
            beside += volume.seconds(self.hardware, reached.value)
            if grid.etp > 1:  # ranks that share an expert's width all read all its rows
                total = rows * self._experts.top_k * hidden * width * grid.etp
                gathered = collectives.all_gather(total, Group(grid.etp), self.hardware)
                alone, beside = alone + gathered, beside + gathered
        return alone, beside

    def _tensor_parallel(self, kind: str, ops: tuple[OpCost, ...], grid: _Grid) -> float:
        """All-gather and reduce-scatter around attention and around a feed-forward (arXiv 2205.05198); forward's."""
        if grid.tp == 1:
            return 0.0
        total = self._rows(grid) * grid.tp * self.spec.hidden_size * self._width
        one = collectives.all_gather(total, Group(grid.tp), self.hardware)
        if kind in (EMBEDDING, HEAD):
            return one
        attends = any(op.op_class == "attention" for op in ops)
        widens = any(".mlp." in op.name and op.weights and not op.routed and op.op_class != "fp32_gemm" for op in ops)
        return 2 * one * (attends + widens)

    def _context_parallel(self, ops: tuple[OpCost, ...], grid: _Grid, compute: Seconds) -> tuple[float, float]:
        """Keys and values around a ring beside attention, forward and backward (with their gradients): what shows."""
        if grid.cp == 1:
            return 0.0, 0.0
        length = self.spec.workload.sequence_length
        total = sum(op.key_value_bytes.at(grid.micro_batch, length) for op in ops) / grid.tp
        ring = collectives.all_gather(total, Group(grid.cp, grid.tp), self.hardware) if total else 0.0
        attention = CLASSES.index("attention")
        return max(0.0, ring - compute.forward[attention]), max(0.0, 2 * ring - compute.input_gradient[attention])

    def _with_sharded_weights(self, passes: Sequence[Pass], held: Elements, grid: _Grid) -> list[Pass]:
        """ZeRO-2 reduces gradients in every micro-batch, ZeRO-3 gathers weights too: what compute does not hide."""
        if grid.zero < 2:
            return list(passes)
        gradients = self._across_data(held, BYTES[self.spec.precision.optimizer.gradients], grid)
        weights = self._across_data(held, self._width, grid) if grid.zero == 3 else 0.0
        forward, backward, weight = passes
        shown = (
            max(0.0, weights - sum(forward.compute)),
            max(0.0, weights - sum(backward.compute)),
            max(0.0, gradients - sum(weight.compute)),
        )
        return [one._replace(other=one.other + more) for one, more in zip(passes, shown, strict=True)]

    def _across_data(self, held: Elements, width: int, grid: _Grid) -> float:
        """One all-gather, or reduce-scatter, of dense weights and of experts across the ranks that share them."""
        dense = width * (held.tensor / grid.tp + held.replicated)
        experts = width * held.expert / (grid.ep * grid.etp)
        return collectives.all_gather(dense, Group(grid.dense_ranks, grid.tp), self.hardware) + collectives.all_gather(
            experts, Group(grid.expert_ranks, grid.ep * grid.etp), self.hardware
        )

    def transfer(self, layout: Layout) -> float:
        """Seconds that a micro-batch's hidden state takes to the next pipeline rank."""
        tokens = layout.micro_batch * self.spec.workload.sequence_length / (layout.cp * layout.tp)
        stride = layout.dp * layout.cp * layout.tp
        return collectives.send(tokens * self.spec.hidden_size * self._width, stride, self.hardware)

    # After the pipeline.

    def tails(self, layout: Layout, stages: Stages) -> dict[str, float]:
        """Seconds of what follows the last backward, on the pipeline rank where it takes longest."""
        held = dict.fromkeys(self._of_ranks(stages, tuple(map(layout.stages, range(layout.pp)))))
        return max((self._tails_of(layout, one) for one in held), key=lambda tails: sum(tails.values()))

    def _of_ranks_held(self, stages: Stages, ranks: tuple[tuple[int, ...], ...]) -> tuple[Elements, ...]:
        """Parameters that each pipeline rank holds."""
        return tuple(
            sum((self._elements[self.parts[index].kind] for stage in rank for index in stages[stage]), Elements())
            for rank in ranks
        )

    def _tails_of(self, layout: Layout, held: Elements) -> dict[str, float]:
        precision = self.spec.precision.optimizer
        gradient = BYTES[precision.gradients]
        data = (layout.dp * layout.cp * layout.duplicates, layout.edp * layout.duplicates)
        grid = self._grid(layout)._replace(dense_ranks=data[0], expert_ranks=data[1])
        shards = data if layout.zero else (1, 1)
        owned = held.dense_on(layout) / shards[0] + held.experts_on(layout) / shards[1]
        # gradient read; master copy and both moments read and written; parameter written
        touched = gradient + 2 * BYTES[precision.master] + 4 * BYTES[precision.moments] + self._width
        memory = self.hardware.cluster.hbm_bandwidth * self.hardware.calibration.forward["memory"].value
        reduce = 0.0 if layout.zero >= 2 else self._across_data(held, gradient, grid)
        gather = 0.0 if layout.zero == 3 else self._across_data(held, self._width if layout.zero else gradient, grid)
        return {REDUCE: reduce, UPDATE: owned * touched / memory, GATHER: gather}

    # The ledger.

    def _sync(self, layout: Layout) -> float:
        """Ranks of a pipeline lose time to each other; one rank alone does not."""
        return self.hardware.calibration.sync.value if layout.pp > 1 else 0.0

    def _work(
        self, run: Sequence[Action], costs: Sequence[StageCost], times: Sequence[StageTimes], alone: float
    ) -> list[Line]:
        """What the rank computes by class, and the communication that shows."""
        left = 1 - self.hardware.calibration.communication_share.value
        compute = [0.0] * len(CLASSES)
        busy = alone
        for (kind, stage, other), count in sorted(Counter(_shape(action) for action in run).items()):
            vector = add(one.compute for one in _members(kind, costs[stage], costs[other]))
            seconds = _seconds(kind, times[stage], times[other])
            if kind == "F&B":
                slowed = tuple(t if name in UNSHARED else t / left for name, t in zip(CLASSES, vector, strict=True))
                vector = slowed if sum(slowed) <= seconds else vector
            busy += count * seconds
            compute = [old + count * new for old, new in zip(compute, vector, strict=True)]
        forward = self.hardware.calibration.forward
        lines = [
            Line(COMPUTE[name], time, forward[name].provenance, forward[name].source)
            for name, time in zip(CLASSES, compute, strict=True)
            if time
        ]
        source = f"volumes from the graph; {self.hardware.cluster.links_source}"
        return [*lines, Line(EXPOSED, busy - sum(compute), "derived", source)]

    def _waits(self, layout: Layout, timeline: Timeline, alone: float) -> tuple[Line, Line]:
        sync = self.hardware.calibration.sync
        return (
            Line(BUBBLE, timeline.bubble, "derived", f"simulated schedule {layout.schedule}"),
            Line(SYNC, (timeline.step + alone) * self._sync(layout), sync.provenance, sync.source),
        )

    def _tail_lines(self, layout: Layout, stages: Stages) -> list[Line]:
        source = "bytes of the parameters that one rank holds, over the links and the memory"
        return [Line(name, time, "derived", source) for name, time in self.tails(layout, stages).items()]


class _Grid(NamedTuple):
    """What of a layout the times of a stage depend on."""

    micro_batch: int
    tp: int
    cp: int
    ep: int
    etp: int
    dense_ranks: int
    """Ranks that share a dense parameter."""
    expert_ranks: int
    zero: int


UNSHARED = ("cast", "memory")  # classes that wait for memory: fewer multiprocessors do not slow them down

BUBBLE, SYNC, EXPOSED = "bubble", "between ranks", "exposed communication"
REDUCE, UPDATE, GATHER = "gradients across data parallelism", "optimizer", "parameters across data parallelism"
COMPUTE = {
    "fp8_gemm": "FP8 products",
    "fp8_grouped": "FP8 products of experts",
    "gemm": "bfloat16 products",
    "fp32_gemm": "float32 products",
    "attention": "attention",
    "memory": "memory-bound ops",
    "cast": "casts to FP8",
}


def _times(one: Pass, factor: float) -> Pass:
    return Pass(scaled(one.compute, factor), one.exchange * factor, one.hidden_exchange * factor, one.other * factor)


def _together(passes: Sequence[Pass]) -> Pass:
    return Pass(
        add(one.compute for one in passes),
        sum(one.exchange for one in passes),
        sum(one.hidden_exchange for one in passes),
        sum(one.other for one in passes),
    )


def _shape(action: Action) -> tuple[str, int, int]:
    """What decides how long an action takes: its kind, its stage, and that of its backward."""
    return action.kind, action.stage, action.backward.stage if action.backward else action.stage


def _seconds(kind: str, forward: StageTimes, backward: StageTimes) -> float:
    return {
        "F": forward.forward,
        "B": backward.backward_input,
        "W": backward.backward_weight,
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
