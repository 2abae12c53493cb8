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
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine import collectives
from dsc.compiler.planner.machine.calibration import Provenance
from dsc.compiler.planner.machine.collectives import FP8, Experts, Group
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.parts.parts import EMBEDDING, HEAD, parts_of
from dsc.compiler.planner.parts.shard import Elements, elements
from dsc.compiler.planner.parts.stages import Stages
from dsc.compiler.planner.pipeline.schedule import Action, actions
from dsc.compiler.planner.pipeline.simulate import StageTimes, Timeline, pair_time, simulate
from dsc.compiler.planner.time.bounds import even_bound, pipeline_bound
from dsc.compiler.planner.time.roofline import (
    CLASSES,
    Kernels,
    OpCost,
    Seconds,
    Share,
    Vector,
    add,
    kernels,
    on_rank,
    op_costs,
    scaled,
)
from dsc.compiler.stats import compute_stats
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

PAIRING = ("dualpipe", "dualpipe-v")  # schedules that hide expert all-to-alls in F&B pairs of their own
BYTES = {"bf16": 2, "fp32": 4, "none": 0}


class Pass(NamedTuple):
    """A part, or a stage of parts, in one direction: one micro-batch on one rank, in seconds."""

    compute: Vector
    """By class of op."""
    slowed: Vector
    """The same in an F&B pair, whose all-to-alls take their multiprocessors from parts that have any."""
    exchange: float = 0.0
    """Expert all-to-alls with nothing beside them."""
    hidden_exchange: float = 0.0
    """The same beside compute, on their share of the multiprocessors."""
    other: float = 0.0
    """Exposed time of tensor, context and data parallelism's collectives, which no pair hides."""

    @property
    def seconds(self) -> float:
        return sum(self.compute) + self.exchange + self.other


class Computing(NamedTuple):
    """Of one part: forward, backward of its input with what is recomputed, backward of its weights."""

    vectors: tuple[Vector, Vector, Vector]
    """By class of op."""
    seconds: tuple[float, float, float]
    shared: float
    """Of all three, what communication can take multiprocessors from."""


class Traffic(NamedTuple):
    """Communication of one part, forward, in seconds."""

    exchange: float
    """Expert all-to-alls with nothing beside them."""
    hidden: float
    """The same beside compute."""
    times_in_backward: int
    """How often that happens again in backward."""
    forward_other: float
    """What no pair hides."""
    backward_other: float
    slower: float
    """What uneven routing makes of all times."""


class Sums(NamedTuple):
    """Seconds of one part, added up: what times of stages are made of."""

    forward: float
    backward_input: float
    backward_weight: float
    compute: tuple[float, float, float]
    """Of each pass."""
    slowed: float
    hidden_exchange: float
    other: float


class StageCost(NamedTuple):
    forward: Pass
    backward_input: Pass
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
        self._routed = frozenset(kind for kind, ops in self._ops.items() if any(op.routed for op in ops))
        self._left = 1 - hardware.calibration.communication_share.value  # of the multiprocessors, in an F&B pair
        self._kernels = lru_cache(maxsize=None)(self._kernels_of)
        self._compute = lru_cache(maxsize=None)(self._compute_of)
        self._computing = lru_cache(maxsize=None)(self._computing_of)
        self._exchange = lru_cache(maxsize=None)(self._exchange_of)
        self._sums = lru_cache(maxsize=None)(self._sums_of)
        self._elements_of = lru_cache(maxsize=None)(self._elements_of_parts)
        self._times = lru_cache(maxsize=None)(self._times_of)
        self._whole = lru_cache(maxsize=None)(self._whole_of)
        self._everything = tuple(sorted(Counter(part.kind for part in self.parts).items()))
        self._counts = lru_cache(maxsize=None)(self._counts_of)
        self._tails = lru_cache(maxsize=None)(self._longest_tails)
        self._of_ranks = lru_cache(maxsize=None)(self._of_ranks_held)

    def weights(self, layout: Layout) -> tuple[int, ...]:
        """Nanoseconds of each part, forward and backward: what a split into stages should balance."""
        times = {kind: self.stage((kind,), layout).times for kind in dict.fromkeys(part.kind for part in self.parts)}
        return tuple(round(1e9 * times[part.kind].overlapped) for part in self.parts)

    def bound(self, layout: Layout, stages: Stages, global_batch: int) -> float:
        """Seconds that `step` cannot fall below."""
        alone = self.times(layout, stages)
        times = self._run(layout, alone)
        pipeline = pipeline_bound(layout, layout.micro_batches(global_batch), times, self.transfer(layout))
        pipeline += self._warm_up(layout, alone)
        return pipeline * (1 + self._sync(layout)) + sum(self.tails(layout, stages).values())

    def step(self, layout: Layout, stages: Stages, global_batch: int) -> StepTime:
        """The schedule simulated, action by action."""
        costs = self.stages(layout, stages)
        schedule = actions(layout.schedule, layout.pp, layout.vpp, layout.micro_batches(global_batch))
        times = self._run(layout, [cost.times for cost in costs])
        timeline = simulate(schedule, times, self.transfer(layout))
        busiest = max(range(layout.pp), key=timeline.busy.__getitem__)
        alone = self._warm_up(layout, [cost.times for cost in costs])
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
        return tuple(self._stage(counts, layout) for counts in self._counts(stages))

    def stage(self, kinds: tuple[str, ...], layout: Layout) -> StageCost:
        """A run of parts of these kinds, for one micro-batch on one rank."""
        return self._stage(tuple(sorted(Counter(kinds).items())), layout)

    def times(self, layout: Layout, stages: Stages) -> list[StageTimes]:
        """Of each stage, without what they are made of."""
        grid, overlaps = self._grid(layout), layout.schedule in self._hiding
        known: dict[Counts, StageTimes] = {}
        for counts in self._counts(stages):
            if counts not in known:
                known[counts] = self._times(counts, grid, layout.recompute, overlaps)
        return [known[counts] for counts in self._counts(stages)]

    def floor(self, layout: Layout, global_batch: int) -> float:
        """Seconds that `bound` cannot fall below, however the model is split into stages: the pipeline's alone."""
        serial, paired = self._whole_of_layout(layout)
        return even_bound(layout, layout.micro_batches(global_batch), serial, paired) * (1 + self._sync(layout))

    def least(self, layout: Layout, global_batch: int, exchanges: bool = True) -> float:
        """The same at the best that any pipeline schedule can do that pairs what this one does.

        Without exchanges: at the best that any sharing of the experts can do, which then exchange nothing either.
        """
        if not exchanges and self._experts is not None:
            layout = replace(layout, ep=self._experts.count, etp=layout.tp)
        _, paired = self._whole_of_layout(layout, exchanges)
        return paired * layout.micro_batches(global_batch) / layout.pp

    def _whole_of_layout(self, layout: Layout, exchanges: bool = True) -> tuple[float, float]:
        pairs = layout.schedule in self._hiding
        return self._whole(self._grid(layout), layout.recompute, pairs, exchanges)

    def _whole_of(
        self, grid: _Grid, recompute: tuple[str, ...], overlaps: bool, exchanges: bool
    ) -> tuple[float, float]:
        """Seconds of a micro-batch on all ranks of a pipeline together: with nothing paired, and all of it.

        No split into stages falls below: a sum of minima is no more than the minimum of the sums.
        """
        serial = computing = exchanging = 0.0
        compute = [0.0, 0.0, 0.0]
        for kind, count in self._everything:
            one = self._sums(kind, self._sharing(kind, grid), recompute, exchanges)
            alone = one.forward + one.backward_input + one.backward_weight
            serial += count * alone
            computing += count * min(alone, one.slowed + one.other)
            exchanging += count * min(alone, one.hidden_exchange + one.other)
            compute = [old + count * new for old, new in zip(compute, one.compute, strict=True)]
        shown = sum(self._sharded_weights(compute, self._everything, grid))
        return serial + shown, (max(computing, exchanging) if overlaps else serial) + shown

    def _counts_of(self, stages: Stages) -> tuple[Counts, ...]:
        return tuple(tuple(sorted(Counter(self.parts[index].kind for index in stage).items())) for stage in stages)

    def _grid(self, layout: Layout) -> _Grid:
        ranks = (layout.dp * layout.cp, layout.edp) if layout.zero > 1 else (1, 1)
        sharded = layout.zero if layout.zero > 1 else 0
        sharing = Sharing(layout.micro_batch, layout.tp, layout.cp, layout.ep, layout.etp)
        return _Grid(sharing, *ranks, sharded)

    def _run(self, layout: Layout, times: list[StageTimes]) -> list[StageTimes]:
        """What the schedule is simulated with: where interleaved stages hide, half of it off each direction."""
        if layout.schedule in PAIRING or layout.schedule not in self._hiding:
            return times
        return [
            replace(one, forward=one.forward - one.hidden / 2, backward_input=one.backward_input - one.hidden / 2)
            for one in times
        ]

    def _warm_up(self, layout: Layout, times: list[StageTimes]) -> float:
        """What interleaved stages cannot hide: the forwards and backwards of rank 0 that have none beside them."""
        if layout.schedule in PAIRING or layout.schedule not in self._hiding:
            return 0.0
        count = 2 * (layout.pp - 1) + (layout.vpp - 1) * layout.pp
        return count * sum(one.hidden for one in times) / len(times)

    def _stage(self, counts: Counts, layout: Layout) -> StageCost:
        grid = self._grid(layout)
        parts = [
            [_times(one, count) for one in self._passes(kind, self._sharing(kind, grid), layout.recompute)]
            for kind, count in counts
        ]
        passes = [_together(direction) for direction in zip(*parts, strict=True)]
        shown = self._sharded_weights(tuple(sum(one.compute) for one in passes), counts, grid)
        passes = [one._replace(other=one.other + more) for one, more in zip(passes, shown, strict=True)]
        times = self._times(counts, grid, layout.recompute, layout.schedule in self._hiding)
        return StageCost(passes[0], passes[1], passes[2], times)

    def _times_of(self, counts: Counts, grid: _Grid, recompute: tuple[str, ...], overlaps: bool) -> StageTimes:
        """An F&B pair has all-to-alls beside compute, and the longer of both counts."""
        forward = backward = weight = slowed = exchange = other = 0.0
        compute = (0.0, 0.0, 0.0)
        for kind, count in counts:
            one = self._sums(kind, self._sharing(kind, grid), recompute)
            forward += count * one.forward
            backward += count * one.backward_input
            weight += count * one.backward_weight
            a, b, c = one.compute
            compute = (compute[0] + count * a, compute[1] + count * b, compute[2] + count * c)
            slowed += count * one.slowed
            exchange += count * one.hidden_exchange
            other += count * one.other
        shown = self._sharded_weights(compute, counts, grid)
        forward, backward, weight = forward + shown[0], backward + shown[1], weight + shown[2]
        serial = forward + backward + weight
        paired = max(slowed, exchange) + other + sum(shown)
        return StageTimes(forward, backward, weight, overlapped=min(serial, paired) if overlaps else serial)

    def _sharing(self, kind: str, grid: _Grid) -> Sharing:
        """What has no experts is the same whatever shares them."""
        return grid.sharing if kind in self._routed else grid.sharing._replace(ep=1, etp=1)

    def _sums_of(self, kind: str, sharing: Sharing, recompute: tuple[str, ...], exchanges: bool = True) -> Sums:
        work, traffic = self._of_part(kind, sharing, recompute, exchanges)
        forward, backward, weight = (traffic.slower * seconds for seconds in work.seconds)
        slowed = forward + backward + weight
        if traffic.exchange:
            slowed += traffic.slower * work.shared * (1 / self._left - 1)
        again = traffic.times_in_backward
        return Sums(
            forward + traffic.slower * (traffic.exchange + traffic.forward_other),
            backward + traffic.slower * (again * traffic.exchange + traffic.backward_other),
            weight,
            (forward, backward, weight),
            slowed,
            traffic.slower * (1 + again) * traffic.hidden,
            traffic.slower * (traffic.forward_other + traffic.backward_other),
        )

    def _elements_of_parts(self, counts: Counts) -> Elements:
        return sum((self._elements[kind] for kind, count in counts for _ in range(count)), Elements())

    def _of_part(
        self, kind: str, sharing: Sharing, recompute: tuple[str, ...], exchanges: bool = True
    ) -> tuple[Computing, Traffic]:
        share = Share(sharing.cp * sharing.tp, sharing.tp, sharing.ep * sharing.etp)
        work = self._computing(kind, sharing.micro_batch, share, recompute)
        return work, self._traffic_of(kind, sharing, share, "full" in recompute, exchanges)

    def _passes(self, kind: str, sharing: Sharing, recompute: tuple[str, ...]) -> tuple[Pass, Pass, Pass]:
        """One part: forward, backward of its input with what is recomputed, backward of its weights."""
        work, traffic = self._of_part(kind, sharing, recompute)
        left = self._left if traffic.exchange else 1.0

        def a_pass(vector: Vector, exchanges: int, other: float) -> Pass:
            slowed = tuple(t if name in UNSHARED else t / left for name, t in zip(CLASSES, vector, strict=True))
            exchange, hidden = exchanges * traffic.exchange, exchanges * traffic.hidden
            return _times(Pass(vector, slowed, exchange, hidden, other), traffic.slower)

        forward, backward, weight = work.vectors
        return (
            a_pass(forward, 1, traffic.forward_other),
            a_pass(backward, traffic.times_in_backward, traffic.backward_other),
            a_pass(weight, 0, 0.0),
        )

    def _computing_of(self, kind: str, micro_batch: int, share: Share, recompute: tuple[str, ...]) -> Computing:
        compute = self._compute(kind, micro_batch, share)
        again = compute.recompute(recompute)
        vectors = (compute.forward, add((compute.input_gradient, again)), compute.weight_gradient)
        shared = sum(t for vector in vectors for name, t in zip(CLASSES, vector, strict=True) if name not in UNSHARED)
        forward, backward, weight = (sum(vector) for vector in vectors)
        return Computing(vectors, (forward, backward, weight), shared)

    def _traffic_of(self, kind: str, sharing: Sharing, share: Share, full: bool, exchanges: bool) -> Traffic:
        ops = self._ops[kind]
        exchange, hidden = self._exchange(sharing) if exchanges and kind in self._routed else (0.0, 0.0)
        tensor = self._tensor_parallel(kind, ops, sharing)
        context = self._context_parallel(ops, sharing, self._compute(kind, sharing.micro_batch, share))
        twice = 2 if full else 1  # forward's communication runs again with forward
        return Traffic(
            exchange,
            hidden,
            twice,
            tensor + context[0],
            twice * tensor + tensor / 2 + context[1] + (twice - 1) * context[0],
            self.hardware.calibration.imbalance.value if exchange else 1.0,
        )

    def _compute_of(self, kind: str, micro_batch: int, share: Share) -> Seconds:
        return on_rank(self._kernels(kind, micro_batch), self.hardware, share)

    def _kernels_of(self, kind: str, micro_batch: int) -> Kernels:
        return kernels(self._ops[kind], self.hardware, micro_batch, self.spec.workload.sequence_length)

    # Communication within a stage.

    def _rows(self, grid: Sharing) -> float:
        """Tokens of a micro-batch on one rank."""
        return grid.micro_batch * self.spec.workload.sequence_length / (grid.cp * grid.tp)

    def _exchange_of(self, grid: Sharing) -> tuple[float, float]:
        """Dispatch and combine of a layer, alone and beside compute; backward mirrors them, dispatch in FP8 as well."""
        if self._experts is None:
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

    def _tensor_parallel(self, kind: str, ops: tuple[OpCost, ...], grid: Sharing) -> float:
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

    def _context_parallel(self, ops: tuple[OpCost, ...], grid: Sharing, compute: Seconds) -> tuple[float, float]:
        """Keys and values around a ring beside attention, forward and backward (with their gradients): what shows.

        A rank attends to what it has while the next arrives, so nothing arrives beside the last of cp equal steps
        (ring attention, arXiv 2310.01889, section 3).
        """
        if grid.cp == 1:
            return 0.0, 0.0
        length = self.spec.workload.sequence_length
        total = sum(op.key_value_bytes.at(grid.micro_batch, length) for op in ops) / grid.tp
        ring = collectives.all_gather(total, Group(grid.cp, grid.tp), self.hardware) if total else 0.0
        attention, beside = CLASSES.index("attention"), (grid.cp - 1) / grid.cp
        return (
            max(0.0, ring - beside * compute.forward[attention]),
            max(0.0, 2 * ring - beside * compute.input_gradient[attention]),
        )

    def _sharded_weights(self, compute: Sequence[float], counts: Counts, grid: _Grid) -> tuple[float, float, float]:
        """ZeRO-2 reduces gradients in every micro-batch, ZeRO-3 gathers weights too: what compute does not hide.

        Seconds more of each pass, whose compute takes so long.
        """
        if grid.zero < 2:
            return 0.0, 0.0, 0.0
        held = self._elements_of(counts)
        gradients = self._across_data(held, BYTES[self.spec.precision.optimizer.gradients], grid)
        weights = self._across_data(held, self._width, grid) if grid.zero == 3 else 0.0
        forward, backward, weight = compute
        return max(0.0, weights - forward), max(0.0, weights - backward), max(0.0, gradients - weight)

    def _across_data(self, held: Elements, width: int, grid: _Grid) -> float:
        """One all-gather, or reduce-scatter, of dense weights and of experts across the ranks that share them."""
        experts = grid.sharing.ep * grid.sharing.etp
        dense_bytes = width * (held.tensor / grid.sharing.tp + held.replicated)
        expert_bytes = width * held.expert / experts
        dense_group, expert_group = Group(grid.dense_ranks, grid.sharing.tp), Group(grid.expert_ranks, experts)
        return collectives.all_gather(dense_bytes, dense_group, self.hardware) + collectives.all_gather(
            expert_bytes, expert_group, self.hardware
        )

    def transfer(self, layout: Layout) -> float:
        """Seconds that a micro-batch's hidden state takes to the next pipeline rank."""
        tokens = layout.micro_batch * self.spec.workload.sequence_length / (layout.cp * layout.tp)
        stride = layout.dp * layout.cp * layout.tp
        return collectives.send(tokens * self.spec.hidden_size * self._width, stride, self.hardware)

    # After the pipeline.

    def tails(self, layout: Layout, stages: Stages) -> dict[str, float]:
        """Seconds of what follows the last backward, on the pipeline rank where it takes longest."""
        if layout.recompute or layout.activations != "bf16" or layout.micro_batch > 1:  # which tell nothing here
            layout = replace(layout, micro_batch=1, recompute=(), activations="bf16")
        return self._tails(layout, stages)

    def _longest_tails(self, layout: Layout, stages: Stages) -> dict[str, float]:
        held = self._of_ranks(stages, tuple(map(layout.stages, range(layout.pp))))
        return max((self._tails_of(layout, one) for one in held), key=lambda tails: sum(tails.values()))

    def _of_ranks_held(self, stages: Stages, ranks: tuple[tuple[int, ...], ...]) -> tuple[Elements, ...]:
        """Parameters that the pipeline ranks hold, each amount once."""
        held = [
            sum((self._elements[self.parts[index].kind] for stage in rank for index in stages[stage]), Elements())
            for rank in ranks
        ]
        return tuple(dict.fromkeys(held))

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
        compute = [0.0] * len(CLASSES)
        busy = alone
        for (kind, stage, other), count in sorted(Counter(_shape(action) for action in run).items()):
            members = _members(kind, costs[stage], costs[other])
            vector = add(one.compute for one in members)
            seconds = _seconds(kind, times[stage], times[other])
            if kind == "F&B":
                vector = _between(vector, add(one.slowed for one in members), seconds)
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


Counts = tuple[tuple[str, int], ...]
"""How many parts of each kind a stage has."""


class Sharing(NamedTuple):
    """What of a layout the times of a part depend on."""

    micro_batch: int
    tp: int
    cp: int
    ep: int
    etp: int


class _Grid(NamedTuple):
    """The same of a stage, whose weights may be sharded."""

    sharing: Sharing
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
    return Pass(
        scaled(one.compute, factor),
        scaled(one.slowed, factor),
        one.exchange * factor,
        one.hidden_exchange * factor,
        one.other * factor,
    )


def _together(passes: Sequence[Pass]) -> Pass:
    return Pass(
        add(one.compute for one in passes),
        add(one.slowed for one in passes),
        sum(one.exchange for one in passes),
        sum(one.hidden_exchange for one in passes),
        sum(one.other for one in passes),
    )


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
