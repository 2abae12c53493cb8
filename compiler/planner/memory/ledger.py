"""Bytes of every rank, line by line: what is held through the whole step, and what the pipeline holds at its fullest.

Sizes are read off the graph once for each kind of part; what a layout makes of them is arithmetic on integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import ceil
from operator import mul
from typing import NamedTuple

from dsc.compiler.graph.dim import B, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.saved import Storage
from dsc.compiler.passes.shard import SENDS
from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.memory.deepep import buffer_bytes
from dsc.compiler.planner.memory.held import is_logits
from dsc.compiler.planner.memory.lines import (
    ACTIVATIONS,
    ALLOCATOR,
    ASSUMED,
    CODES,
    COLLECTIVES,
    CONTEXT,
    CUDA,
    DEEPEP_BUFFER,
    EXPERT_BUFFER,
    EXPERT_BUFFERS,
    GATHERED,
    GRADIENTS,
    IN_TURNS,
    LOGITS,
    MASTER,
    MOMENTS,
    NCCL,
    PUT_OFF,
    RESERVE,
    SOURCES,
    TRANSFERS,
    WEIGHTS,
    WORKING,
    MemoryLine,
    Role,
)
from dsc.compiler.planner.memory.ranks import RankContent, RankContents
from dsc.compiler.planner.memory.stage import Division, StageMemory, division
from dsc.compiler.planner.parts.parts import parts_of, stream
from dsc.compiler.planner.parts.recompute import SCALED_TILE
from dsc.compiler.planner.parts.shard import Elements, share
from dsc.compiler.planner.parts.stages import Stages, split, weights
from dsc.compiler.planner.parts.widths import BYTES
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Precision

CODE = 2 * (1 + 4 / SCALED_TILE**2)
"""Bytes of the codes of a weight's number, as it is and transposed, each with its share of a block's scale."""
ON_THE_WAY = 3
"""What a rank of one stage receives ahead of its use, a hidden state and a gradient, and the gradient that it sends."""
RECEIVED = 2
"""The same of a rank of several, less what it sends."""


class Fullest(NamedTuple):
    """What a rank holds at its fullest moment, in bytes."""

    in_flight: tuple[int, ...]
    """Micro-batches of each stage."""
    activations: int
    logits: int
    put_off: int
    """Gradients that wait for a backward of weights."""
    handed_on: int
    """Hidden states that are held beside activations: what stages gave away, or received and did not keep."""
    working: int
    """For a moment."""


class MemoryModel:
    """The memory of one spec under layouts.

    `shared` is the graph where ranks share the experts out. Without it, they do as other engines': kernels that send
    tokens from buffers of their own, and products that read the rows where they arrive.
    """

    def __init__(
        self,
        spec: ModelSpec,
        graph: Graph,
        on_gpus: bool = True,
        shared: Graph | None = None,
        scale_up_domain: int = 1,
    ) -> None:
        self.spec = spec
        self._on_gpus = on_gpus
        self._buffered = shared is None
        # FSDP keeps a rank's share beside the whole weights; where it is of another type, it is the master copy.
        self._keeps_shares = shared is not None and spec.precision.parameters == "fp32"
        self.parts = parts_of(graph)
        away = () if shared is None else parts_of(shared)
        self.stages = StageMemory(self.parts, spec.workload.sequence_length, BYTES[spec.precision.parameters], away)
        self.ranks = RankContents(self.parts, copies=not self._buffered)
        self._stream_bytes = stream(graph).bytes.value({B.name: 1, S.name: spec.workload.sequence_length})
        self._widths = _state_widths(spec.precision)
        self._scale_up_domain = scale_up_domain
        self._known_held: dict[tuple[RankContent, Division], Fullest] = {}

    def split(self, layout: Layout, costs: Sequence[int] | None = None) -> Stages:
        """Parts of each stage, balanced by FLOPs unless costs are given."""
        length = self.spec.workload.sequence_length
        return split(self.parts, weights(self.parts, length) if costs is None else costs, layout.chunks)

    def fullest(self, layout: Layout, batch: int, stages: Stages, working: bool = True) -> int:
        """Bytes of the rank that needs most, or would without what lives for a moment."""
        return max(
            sum(self._amounts(layout, content, working).values())
            for content in self.ranks.heaviest(layout, batch, stages)
        )

    def ledger(self, layout: Layout, batch: int, stages: Stages) -> tuple[Role, ...]:
        """Every pipeline rank, those that hold the same together."""
        roles = []
        for content in self.ranks.of_ranks(layout, batch, stages):
            own = tuple(stages[stage] for stage in layout.stages(content.ranks[0]))
            names = tuple(tuple(self.parts[index].name for index in stage) for stage in own)
            lines = tuple(self._lines(layout, content))
            roles.append(Role(content.ranks, layout.stages(content.ranks[0]), names, lines))
        return tuple(roles)

    def _amounts(self, layout: Layout, content: RankContent, working: bool = True) -> dict[str, int]:
        """Bytes by line, activations in one."""
        width = BYTES[self.spec.precision.parameters]
        dense, experts = content.elements.dense_on(layout), content.elements.experts_on(layout)
        sharded = content.elements.dense_shard(layout, layout.duplicates)
        sharded += share(experts, layout.edp * layout.duplicates)
        kept = (dense + experts, sharded)
        amounts = {name: each * kept[layout.zero >= sharded_from] for name, each, sharded_from in self._widths}
        if layout.zero in (1, 2) and layout.world > 1 and self._keeps_shares:
            amounts[WEIGHTS] += width * sharded
        largest = content.largest.dense_on(layout) + content.largest.experts_on(layout)
        if layout.zero > 1 and _take_turns(layout) and not self._buffered:  # whole until backward has left a layer
            amounts[GRADIENTS] += BYTES[self.spec.precision.optimizer.gradients] * largest
        if layout.zero == 3:  # the part that runs, and the next one on its way; of both stages where pairs take turns
            stage = content.of_stage.dense_on(layout) + content.of_stage.experts_on(layout)
            turns = _take_turns(layout)
            amounts[GATHERED] = width * (min(4 * largest, dense + experts) if turns else min(2 * largest, stage))
        if layout.keeps_codes and not self._buffered:
            amounts[CODES] = round(CODE * (content.coded.dense_on(layout) + content.coded.experts_on(layout)))
        held = self._held(content, layout)
        amounts |= {ACTIVATIONS: held.activations, PUT_OFF: held.put_off, LOGITS: held.logits}
        amounts[WORKING] = held.working if working else 0
        amounts[TRANSFERS] = held.handed_on + self._on_the_way(content, layout)
        reserved = ceil(sum(amounts.values()) * (RESERVE.value - 1))
        return amounts | {ALLOCATOR: reserved} | self._outside(layout)

    def _held(self, content: RankContent, layout: Layout) -> Fullest:
        """At the fullest moment; once for all ZeRO stages."""
        key = (content, division(layout))
        if key not in self._known_held:
            self._known_held[key] = self._fullest(content, layout)
        return self._known_held[key]

    def _fullest(self, content: RankContent, layout: Layout) -> Fullest:
        stages = [self.stages.of(kinds, layout) for kinds in content.kinds]
        hidden = self._stream_bytes_on(layout)
        beside = [hidden * (more + (not one.keeps_input)) for more, one in zip(content.handed_on, stages, strict=True)]
        # Where pairs run from cut to cut, what waits for W stands in the place of what was kept. It may be more.
        turns = _take_turns(layout)
        waiting = [max(0, one.until_weights - one.kept) if turns else hidden + one.put_off for one in stages]
        each = [*(one.kept + more for one, more in zip(stages, beside, strict=True)), *waiting]
        moment = max(content.in_flight, key=lambda counts: sum(map(mul, counts, each)))
        counts, put_off = moment[: len(stages)], moment[len(stages) :]
        waits = any(put_off) and not turns
        return Fullest(
            counts,
            sum(count * one.activations for count, one in zip(counts, stages, strict=True)),
            sum(count * one.logits for count, one in zip(counts, stages, strict=True)),
            sum(map(mul, put_off, waiting)),
            sum(map(mul, counts, beside)),
            max(one.beside_waiting if waits else one.working for one in stages)
            + (self._rows_of_pairs(layout) if turns else 0),
        )

    def _rows_of_pairs(self, layout: Layout) -> int:
        """What both halves of a pair have sent to experts and received from others, or back; kernels of other engines
        have buffers for it."""
        if self._buffered:
            return 0
        return 2 * 2 * self.spec.moe().num_experts_per_tok * layout.etp * self._stream_bytes_on(layout)

    def _on_the_way(self, content: RankContent, layout: Layout) -> int:
        """Of a stage's last SENDS one in two is a gradient; the other is held as what was handed on."""
        if layout.pp == 1:
            return 0
        several = len(content.kinds) > 1
        return self._stream_bytes_on(layout) * (RECEIVED + SENDS // 2 * content.senders if several else ON_THE_WAY)

    def _outside(self, layout: Layout) -> dict[str, int]:
        """Bytes that PyTorch's allocator knows nothing of: on one of several GPUs, with tokens for others' experts.

        A CPU has no context of CUDA, and its libraries keep no buffers for what they send.
        """
        if not self._on_gpus:
            return {}
        outside = {CUDA: round(CONTEXT.value)}
        if layout.world > 1:
            outside[COLLECTIVES] = round(NCCL.value)
        if layout.copy > 1 and self._buffered:
            outside[EXPERT_BUFFERS] = round(EXPERT_BUFFER.value * self.spec.hidden_size * BYTES["bf16"])
        elif layout.dispatch == "deepep":
            outside[EXPERT_BUFFERS] = self._deepep_buffer(layout)
        return outside

    def _deepep_buffer(self, layout: Layout) -> int:
        tokens = layout.micro_batch * self.spec.workload.sequence_length // (layout.cp * layout.tp)
        local = min(layout.ep, self._scale_up_domain)
        return buffer_bytes(tokens, self.spec.hidden_size, self.spec.moe().num_experts_per_tok, layout.ep, local)

    def least(self, layout: Layout, zero: int) -> float:
        """Bytes that the fullest rank cannot fall below: parameters spread evenly over the ranks, no activations."""
        dense, experts = self._everything.dense_on(layout), self._everything.experts_on(layout)
        whole = layout.duplicates * (dense + experts)
        replicas = layout.dp * layout.cp
        whole_on_tensor_ranks = self._everything.replicated * (1 - 1 / layout.tp)
        sharded = (dense - whole_on_tensor_ranks) / replicas + experts / layout.edp
        state = sum(each * (sharded if zero >= sharded_from else whole) for _, each, sharded_from in self._widths)
        return RESERVE.value * state / layout.pp + sum(self._outside(layout).values())

    @cached_property
    def sharded_bytes(self) -> int:
        """Of all parameters with their state: what the ranks hold together where nothing is held twice."""
        return self._everything.total() * sum(each for _, each, _ in self._widths)

    @cached_property
    def _everything(self) -> Elements:
        return self.ranks.elements(range(len(self.parts)))

    def _stream_bytes_on(self, layout: Layout) -> int:
        """What the layers hand on of one micro-batch, on one rank."""
        return share(layout.micro_batch * self._stream_bytes, layout.cp * layout.tp)

    def _lines(self, layout: Layout, content: RankContent) -> Iterator[MemoryLine]:
        for name, size in self._amounts(layout, content).items():
            if name == ACTIVATIONS:
                yield from self._activation_lines(layout, content)
            elif name == EXPERT_BUFFERS and not self._buffered:
                yield MemoryLine(name, size, "derived", DEEPEP_BUFFER)
            elif name == PUT_OFF and size and _take_turns(layout):
                yield MemoryLine(name, size, "derived", IN_TURNS, content.names)
            elif name in ASSUMED:
                yield MemoryLine(name, size, ASSUMED[name].provenance, ASSUMED[name].source)
            elif size:
                yield MemoryLine(name, size, "derived", SOURCES[name], content.names)

    def _activation_lines(self, layout: Layout, content: RankContent) -> Iterator[MemoryLine]:
        """One line for each kind of part."""
        stages = [self.stages.of(kinds, layout) for kinds in content.kinds]
        fullest = self._held(content, layout).in_flight
        totals: dict[str, int] = {}
        for count, one in zip(fullest, stages, strict=True):
            for kind, size in one.by_kind if count else ():
                totals[kind] = totals.get(kind, 0) + count * size
        in_flight = ", ".join(
            f"{count} of stage {stage}" for count, stage in zip(fullest, layout.stages(content.ranks[0]), strict=True)
        )
        for kind, size in totals.items():
            held = self.stages.parts.on(kind, layout)
            tensors = tuple(_describe(one) for one, _ in (*held.storages, *held.shared) if not is_logits(one))
            yield MemoryLine(f"{ACTIVATIONS}{kind}", size, "derived", f"micro-batches in flight: {in_flight}", tensors)


def _take_turns(layout: Layout) -> bool:
    """Whether a forward of one stage and a backward of another run at once."""
    return layout.schedule in ("dualpipe", "dualpipe-v") and layout.copy > 1


def _state_widths(precision: Precision) -> tuple[tuple[str, int, int], ...]:
    """Lines of a parameter's state, bytes for each number, and the ZeRO stage that shards it."""
    optimizer = precision.optimizer
    master = BYTES[optimizer.master] if precision.parameters != "fp32" else 0
    return (
        (WEIGHTS, BYTES[precision.parameters], 3),
        (GRADIENTS, BYTES[optimizer.gradients], 2),
        (MASTER, master, 1),
        (MOMENTS, 2 * BYTES[optimizer.moments], 1),
    )


def _describe(storage: Storage) -> str:
    return f"{storage.place} {storage.type.shape_text()} {storage.type.dtype}"
