"""The graph that serves on several ranks: experts shared out over them, and a step that may have nothing to do.

A rank schedules texts of its own, and its tokens travel to the experts that they chose. So every rank walks through
every layer in every step, if need be with no tokens at all.
"""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Dim, Int
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.call import CallModule
from dsc.compiler.ops.copies import DealToCopies, ExpertCopies, NoLoads
from dsc.compiler.ops.dispatch import CountRows, OrderByExpert, PutRows, ReceivedEnds, Splits, TakeRows
from dsc.compiler.ops.elementwise import Add, Swiglu
from dsc.compiler.ops.exchange import SendRows, TradeCounts
from dsc.compiler.ops.moe import (
    EveryExpert,
    GatherRows,
    GroupedLinear,
    ScatterSum,
    SlotSource,
    SlotWeights,
    SortByExpert,
    SplitGateUp,
    WeighSlots,
)
from dsc.compiler.ops.paged import (
    AttendAnyGroups,
    AttendAnyGroupsEitherWay,
    AttendGroups,
    AttendGroupsEitherWay,
)
from dsc.compiler.ops.shape import FlattenTokens, ViewAs
from dsc.compiler.passes.fuse.pattern import find

OF_ANY: dict[type[Op], type[AttendGroups]] = {
    AttendGroups: AttendAnyGroups,
    AttendGroupsEitherWay: AttendAnyGroupsEitherWay,
}


def share_served_experts(graph: Graph, ranks: int, redundant: int = 0) -> Graph:
    """Every mixture of experts with equally many of its experts on each rank, `redundant` copies of some included."""
    size = graph.constants.dim("SERVING_RANKS", ranks, "serving.ep")
    more = graph.constants.dim("REDUNDANT_EXPERTS", redundant, "serving.redundant_experts") if redundant else Int(0)
    return graph.map(lambda block: _shared(block, size, more) if _is_mixture(block) else block)


def may_idle(graph: Graph) -> Graph:
    """Attention of a batch that may hold no group of texts."""
    return graph.map(lambda block: block.with_nodes(_idling(node) for node in block.nodes()))


def _idling(node: Node) -> Node:
    kind = OF_ANY.get(type(node.op))
    return node if kind is None else replace(node, op=kind(**vars(node.op)))


def _is_mixture(block: Block) -> bool:
    return any(isinstance(node.op, EveryExpert) for node in block.nodes())


def _shared(moe: Block, ranks: Dim, redundant: Dim) -> Block:
    """Copies of tokens go to their experts' ranks and come back; what they weigh in the sum stays at home."""
    gate, *beside = (node for node in moe.nodes() if isinstance(node.op, CallModule))
    sort = find(moe, SortByExpert)[1]
    source_op, weights_op, flatten, gather, split, weigh, scatter, view = (
        find(moe, kind)[1]
        for kind in (SlotSource, SlotWeights, FlattenTokens, GatherRows, SplitGateUp, WeighSlots, ScatterSum, ViewAs)
    )
    experts = find(moe, EveryExpert)[1].num_experts
    slots = experts + redundant
    gate_up, down = (
        replace(node.op, num_experts=slots // ranks) for node in moe.nodes() if isinstance(node.op, GroupedLinear)
    )
    activation = next(node.op for node in moe.nodes() if isinstance(node.op, Swiglu))

    block = BlockBuilder(moe.class_name, class_doc=moe.class_doc)
    x = block.input("x", moe.inputs[0].type)
    chosen, weights, *losses = block.add_many([value.name for value in gate.outputs], gate.op, x)
    if redundant != Int(0):
        chosen = _dealt(block, chosen, experts, redundant)
    _, order = block.add_many(("_", "order"), sort, chosen)
    sent = block.add("sent", CountRows(slots), chosen)
    received = block.add("received", TradeCounts(ranks), sent)
    to, of = block.add_many(("to", "of"), Splits(ranks), sent, received)

    flat = block.add("flat", flatten, x)
    block.paragraph()
    source = block.add("source", source_op, order)
    h = block.add("h", SendRows(sort.rows), block.add("h", gather, flat, source), to, of)
    by_expert = block.add("by_expert", OrderByExpert(sort.rows), received, h)
    ends = block.add("ends", ReceivedEnds(), received)
    h = block.add("h", gate_up, block.add("h", TakeRows(), h, by_expert), ends)
    halves = block.add_many(("gate", "up"), split, h)
    h = block.add("h", down, block.add("h", activation, *halves), ends)
    h = block.add("h", SendRows(sort.rows), block.add("h", PutRows(), h, by_expert), of, to)

    block.paragraph()
    h = block.add("h", weigh, h, block.add("slot_weights", weights_op, weights, order, x))
    out = block.add("out", view, block.add("out", scatter, h, source, flat), x)
    for node in beside:
        out = block.add("out", Add(), out, block.add("shared", node.op, x))
    return block.finish(out, *losses)


def _dealt(block: BlockBuilder, chosen: Value, experts: Dim, redundant: Dim) -> Value:
    """Slots instead of experts, several of which may hold one expert."""
    copies, count = block.add_many(("copies", "num_copies"), ExpertCopies(experts, redundant + 1))
    loads = block.add("loads", NoLoads(experts), count)
    return block.add("slots", DealToCopies(), chosen, copies, count, loads)
