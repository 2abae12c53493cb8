"""A layout's shares in the graph: experts over ranks, with the collectives that bring tokens to them as ops."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Dim
from dsc.compiler.ops.call import CallModule
from dsc.compiler.ops.dispatch import (
    AllToAll,
    CountRows,
    ExchangeCounts,
    OrderByExpert,
    PutRows,
    ReceivedEnds,
    Splits,
    TakeRows,
)
from dsc.compiler.ops.elementwise import Add, Swiglu
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
from dsc.compiler.ops.shape import FlattenTokens, ViewAs
from dsc.compiler.passes.fuse.pattern import find

EXPERT_PARALLEL = "ExpertParallel"
DOC = "This rank's share of the experts: tokens are sent to the ranks whose experts they chose, and come back."


def share_experts(moe: Block, constants: Constants, ranks: int) -> Block:
    """The plain mixture of experts as one whose experts are shared out over ranks, its ops otherwise the same."""
    ep = constants.dim("EP", ranks, "placement.ep")
    gate, *shared = (node for node in moe.nodes() if isinstance(node.op, CallModule))
    sort, source_op, weights_op, flatten, gather, split, weigh, scatter, view = (
        find(moe, kind)[1]
        for kind in (SortByExpert, SlotSource, SlotWeights, FlattenTokens, GatherRows, SplitGateUp, WeighSlots)
        + (ScatterSum, ViewAs)
    )
    every = find(moe, EveryExpert)[1].num_experts
    gate_up, down = (_share(node.op, ep) for node in moe.nodes() if isinstance(node.op, GroupedLinear))
    activation = next(node.op for node in moe.nodes() if isinstance(node.op, Swiglu))

    block = BlockBuilder(EXPERT_PARALLEL, class_doc=DOC, base=moe.class_name)
    x = block.input("x", moe.inputs[0].type)
    chosen, weights, *losses = block.add_many([value.name for value in gate.outputs], gate.op, x)
    _, order = block.add_many(("_", "order"), sort, chosen)
    sent = block.add("sent", CountRows(every), chosen)
    received = block.add("received", ExchangeCounts(ep), sent)
    to, of = block.add_many(("to", "of"), Splits(ep), sent, received)

    block.paragraph()
    tokens = block.add("tokens", flatten, x)
    source = block.add("source", source_op, order)
    h = block.add("h", gather, tokens, source)
    h = block.add("h", AllToAll(sort.rows), h, to, of)
    slot_weights = block.add("slot_weights", weights_op, weights, order, x)
    slot_weights = block.add("slot_weights", AllToAll(sort.rows), slot_weights, to, of)
    shared_out = [block.add("shared", node.op, x) for node in shared]  # while tokens are on their way

    block.paragraph()
    by_expert = block.add("by_expert", OrderByExpert(sort.rows), received)
    ends = block.add("ends", ReceivedEnds(), received)
    h = block.add("h", gate_up, block.add("h", TakeRows(), h, by_expert), ends)
    gate_half, up = block.add_many(("gate", "up"), split, h)
    h = block.add("h", activation, gate_half, up)
    h = block.add("h", weigh, h, block.add("slot_weights", TakeRows(), slot_weights, by_expert))
    h = block.add("h", down, h, ends)
    h = block.add("h", PutRows(), h, by_expert)
    h = block.add("h", AllToAll(sort.rows), h, of, to)

    block.paragraph()
    out = block.add("out", scatter, h, source, tokens)
    out = block.add("out", view, out, x)
    for value in shared_out:
        out = block.add("out", Add(), out, value)
    return block.finish(out, *losses)


def _share(op: GroupedLinear, ranks: Dim) -> GroupedLinear:
    return replace(op, num_experts=op.num_experts // ranks)
