"""A layout's shares in the graph: experts over ranks, with the collectives that bring tokens to them as ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Axis, Dim, Int, Symbol
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import CallModule
from dsc.compiler.ops.dispatch import (
    AllToAll,
    CountRows,
    ExchangeCounts,
    OrderByExpert,
    PutRows,
    ReceivedEnds,
    RecordSent,
    Splits,
    TakeRows,
    quotient,
)
from dsc.compiler.ops.elementwise import Add, Swiglu
from dsc.compiler.ops.moe import (
    EveryExpert,
    GatherRows,
    GroupedLinear,
    RecordLoad,
    ScatterSum,
    SlotSource,
    SlotWeights,
    SortByExpert,
    SplitGateUp,
    WeighSlots,
)
from dsc.compiler.ops.shape import FlattenTokens, ViewAs
from dsc.compiler.ops.slices import SlicesOfExperts
from dsc.compiler.passes.fuse.pattern import find
from dsc.compiler.passes.resize import resized

MOE = "MixtureOfExperts.forward"
EXPERT_PARALLEL = "ExpertParallel"
SPLITTING = ("ZBVZeroBubble", "DualPipeV")
"""Schedules of torch.distributed.pipelining that put off the gradients of weights."""
SENDS = 4
"""Of one of a rank's several stages, on their way at once: so far behind may a neighbour be before the rank waits."""


@dataclass(frozen=True)
class PlannedStep:
    """What the plan expects of a step, for a run to be held against."""

    seconds: float
    bytes: int
    """Of the fullest rank."""
    flops_per_token: int
    peak_flops: float
    """Of a rank, a second."""


@dataclass(frozen=True)
class Sharing:
    """How ranks share a training step, as far as code is emitted for it."""

    pp: int
    dp: int
    cp: int
    """Ranks that share each sequence."""
    tp: int
    """Ranks that share heads, widths and the vocabulary, and between them each sequence."""
    ep: int
    """Parts of a copy of the experts, by number."""
    etp: int
    """Ranks that share each part, by width. Of the dp x cp x tp ranks ep x etp have one copy of the experts."""
    zero: int
    """1: the optimizer's state is shared over dp x cp; 2: gradients too; 3: weights too.

    What a plan calls 0 is run as 1, which sends as much and holds less.
    """
    schedule: str
    """A class of torch.distributed.pipelining."""
    rank_of_stage: tuple[int, ...]
    """Once around for each of a rank's stages: always forwards, or there and back."""
    micro_batch: int
    """Sequences."""
    batch: int
    """Sequences of a step, over all ranks."""
    stages: tuple[tuple[str, ...], ...]
    """The parts of the model in each stage of the pipeline."""
    planned: PlannedStep
    recompute: tuple[str, ...] = ()
    """What backward makes again."""
    nodes: int = 1
    """Where a copy of the experts lies on several nodes of several ranks: their number. Each gets a token once."""
    machines: int = 1
    """Machines that the ranks are on."""
    machine_ranks: int = 1
    """Of each machine; the last one may have fewer."""
    on_gpus: bool = True
    """Of the machines; else ranks are processes on CPUs."""
    deepep: bool = False
    """DeepEP sends tokens to other ranks' experts."""

    @property
    def world(self) -> int:
        return self.pp * self.dp * self.cp * self.tp

    @property
    def copy(self) -> int:
        """Ranks that share one copy of the experts."""
        return self.ep * self.etp

    @property
    def splits_backward(self) -> bool:
        """Whether the schedule has a backward of inputs and one of weights."""
        return self.schedule in SPLITTING

    @property
    def keeps_codes(self) -> bool:
        """Whether FP8 codes of weights stay from one micro-batch to the next, for which ZeRO 3 has no room."""
        return self.zero < 3


class Copy(NamedTuple):
    """Ranks that share one copy of the experts."""

    parts: Dim
    """By number."""
    slices: Dim
    """Of each part, by width."""

    @property
    def ranks(self) -> Dim:
        return self.parts * self.slices


def copy_over(parts: int, slices: int) -> Copy:
    """Sizes of what a rank has are written with those of both that are more than one."""
    by_width = Symbol("ETP", size=slices) if slices > 1 else Int(1)
    return Copy(Int(1) if parts == 1 < slices else Symbol("EP", size=parts), by_width)


def sharing_experts(graph: Graph, share: Callable[[Block, Copy], Block] | None = None) -> Graph:
    """The plain graph as it is where ranks share the experts out, for however many; itself without a mixture."""
    if MOE not in graph.blocks:
        return graph
    moe = graph.blocks[MOE]
    shared = (share or share_experts)(moe, copy_over(1, 1))
    return replace(graph, blocks={**graph.blocks, MOE: replace(shared, class_name=moe.class_name, method=moe.method)})


DOC = "This rank's share of the experts: tokens are sent to the ranks whose experts they chose, and come back."


def share_experts(moe: Block, copy: Copy) -> Block:
    """The plain mixture of experts as one whose experts are shared out over ranks, its ops otherwise the same."""
    gate, *shared = (node for node in moe.nodes() if isinstance(node.op, CallModule))
    rows = find(moe, SortByExpert)[1].rows * copy.slices
    source = find(moe, SlotSource)[1]
    weights_op, flatten, gather = (find(moe, kind)[1] for kind in (SlotWeights, FlattenTokens, GatherRows))
    scatter, view = (find(moe, kind)[1] for kind in (ScatterSum, ViewAs))

    block = BlockBuilder(EXPERT_PARALLEL, class_doc=DOC)
    x = block.input("x", moe.inputs[0].type)
    chosen, weights, *losses = block.add_many([value.name for value in gate.outputs], gate.op, x)
    chosen, weights, order, sent = _slots(block, moe, copy, chosen, weights)
    received = block.add("received", ExchangeCounts(copy.ranks), sent)
    to, of = block.add_many(("to", "of"), Splits(copy.ranks), sent, received)

    block.paragraph()
    flat = block.add("flat", flatten, x)
    token = block.add("source", replace(source, top_k=source.top_k * copy.slices), order)
    h = block.add("h", gather, flat, token)
    h = block.add("h", AllToAll(rows), h, to, of)
    slot_weights = block.add("slot_weights", weights_op, weights, order, x)
    slot_weights = block.add("slot_weights", AllToAll(rows), slot_weights, to, of)
    shared_out = [block.add("shared", node.op, x) for node in shared]  # while tokens are on their way

    block.paragraph()
    h = multiply(block, moe, copy, h, slot_weights, received)
    h = block.add("h", AllToAll(rows), h, of, to)

    block.paragraph()
    out = block.add("out", scatter, h, token, flat)
    out = block.add("out", view, out, x)
    for value in shared_out:
        out = block.add("out", Add(), out, value)
    return block.finish(out, *losses)


def _slots(block: BlockBuilder, moe: Block, copy: Copy, chosen: Value, weights: Value) -> tuple[Value, ...]:
    """Of a token's experts, or of their slices: numbers, weights, their order by rank, and how many there are."""
    sort, every = find(moe, SortByExpert)[1], find(moe, EveryExpert)[1].num_experts
    sort = replace(sort, rows=sort.rows * copy.slices)
    if copy.slices != Int(1):
        if records_load(moe):
            record_load(block, moe, block.add("load", CountRows(every), chosen))
        slices = SlicesOfExperts(quotient(every, copy.parts), copy.slices)
        chosen, weights = block.add_many((chosen.name, weights.name), slices, chosen, weights)
    _, order = block.add_many(("_", "order"), sort, chosen)
    sent = block.add("sent", CountRows(every * copy.slices), chosen)
    if copy.slices == Int(1):
        record_load(block, moe, sent)
    return chosen, weights, order, sent


def begin(block: BlockBuilder, moe: Block) -> tuple[Value, Value, Value, Value, list[Value]]:
    """Of a mixture that sends tokens once: x, its tokens in a row, their experts and what these weigh; losses."""
    gate = next(node for node in moe.nodes() if isinstance(node.op, CallModule))
    x = block.input("x", moe.inputs[0].type)
    experts, weights, *losses = block.add_many([value.name for value in gate.outputs], gate.op, x)
    if records_load(moe):
        record_load(block, moe, block.add("load", CountRows(find(moe, EveryExpert)[1].num_experts), experts))
    return x, block.add("flat", find(moe, FlattenTokens)[1], x), experts, weights, losses


def records_load(moe: Block) -> bool:
    return any(isinstance(node.op, RecordLoad) for node in moe.nodes())


def record_load(block: BlockBuilder, moe: Block, sent: Value) -> None:
    """Where the plain mixture does."""
    for node in moe.nodes():
        if isinstance(node.op, RecordLoad):
            block.add_many((), RecordSent(node.op.router), sent)


def multiply(block: BlockBuilder, moe: Block, copy: Copy, h: Value, slot_weights: Value, received: Value) -> Value:
    """Received rows through this rank's experts, or its slices of them, in the order in which they came."""
    rows = find(moe, SortByExpert)[1].rows * copy.slices
    by_expert = block.add("by_expert", OrderByExpert(rows), received, h)
    ends = block.add("ends", ReceivedEnds(), received)
    h = block.add("h", TakeRows(), h, by_expert)
    h = products(block, moe, copy, h, block.add("slot_weights", TakeRows(), slot_weights, by_expert), ends)
    return block.add("h", PutRows(), h, by_expert)


def products(block: BlockBuilder, moe: Block, copy: Copy, h: Value, slot_weights: Value, ends: Value) -> Value:
    """Rows that lie expert by expert through this rank's experts, or its slices of them."""
    split, weigh = find(moe, SplitGateUp)[1], find(moe, WeighSlots)[1]
    gate_up, down = (_share(node.op, copy) for node in moe.nodes() if isinstance(node.op, GroupedLinear))
    activation = next(node.op for node in moe.nodes() if isinstance(node.op, Swiglu))
    h = block.add("h", gate_up, h, ends)
    gate_half, up = block.add_many(("gate", "up"), replace(split, width=quotient(split.width, copy.slices)), h)
    h = block.add("h", activation, gate_half, up)
    return block.add("h", down, block.add("h", weigh, h, slot_weights), ends)


def _share(op: GroupedLinear, copy: Copy) -> GroupedLinear:
    """As many experts as a rank has, as wide."""
    symbols = {symbol for size in (op.in_features, op.out_features) for symbol in size.symbols()}
    widths = {one.name: quotient(one, copy.slices) for one in symbols if one.axis is Axis.EXPERT_WIDTH}
    return replace(resized(op, widths), num_experts=quotient(op.num_experts, copy.parts))
