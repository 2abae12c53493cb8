"""Routed experts for CPUs: a loop over those that somebody chose instead of one product over all.

On several ranks it is over those of this rank, and over rows that came from all.
"""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.dispatch import ReceivedEnds
from dsc.compiler.ops.each_expert import COUNTS, CountPerExpert, EachExpert, SelectTokens, SumSlots, TokenOfSlot
from dsc.compiler.ops.exchange import CountReceived
from dsc.compiler.ops.moe import EveryExpert, GatherRows, GroupedLinear, GroupEnds, ScatterSum, SlotSource, SortByExpert


def loop_over_experts(graph: Graph) -> Graph:
    return graph.map(_rewritten)


def _rewritten(block: Block) -> Block:
    sort = next((node for node in block.nodes() if isinstance(node.op, SortByExpert)), None)
    ends = next((node for node in block.nodes() if isinstance(node.op, GroupEnds | ReceivedEnds)), None)
    if sort is None or ends is None:
        return block
    counts = Value(ends.id, 0, "counts", COUNTS)
    nodes = [new for node in block.nodes() if (new := _changed(node, sort, counts)) is not None]
    return block.with_nodes(nodes).reinfer({ends.outputs[0]: counts})


def _changed(node: Node, sort: Node, counts: Value) -> Node | None:
    match node.op:
        case EveryExpert():
            return None
        case GroupEnds(num_experts):
            return replace(node, op=CountPerExpert(num_experts), inputs=sort.inputs, outputs=(counts,))
        case ReceivedEnds():
            return replace(node, op=CountReceived(), outputs=(counts,))
        case SlotSource() as op:
            return replace(node, op=TokenOfSlot(**vars(op)))
        case GatherRows():
            return replace(node, op=SelectTokens())
        case GroupedLinear() as op:
            return replace(node, op=EachExpert(**vars(op)))
        case ScatterSum():
            return replace(node, op=SumSlots())
    return node
