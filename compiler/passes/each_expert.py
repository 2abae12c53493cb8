"""Routed experts for CPUs: a loop over those that somebody chose instead of one product over all.

On several ranks it is over those of this rank, and over rows that came from all.
"""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import BlockCall
from dsc.compiler.ops.dispatch import ReceivedEnds
from dsc.compiler.ops.each_expert import (
    COUNTS,
    AddSlots,
    ChosenExperts,
    EachExpert,
    ExpertWeights,
    SelectTokens,
    SumSlots,
    TokenOfSlot,
)
from dsc.compiler.ops.elementwise import Add
from dsc.compiler.ops.exchange import CountReceived
from dsc.compiler.ops.moe import EveryExpert, GatherRows, GroupedLinear, GroupEnds, ScatterSum, SlotSource, SortByExpert


def loop_over_experts(graph: Graph) -> Graph:
    return graph.map(_rewritten)


def add_to_shared(graph: Graph) -> Graph:
    """Slots are added to what the shared experts made, in place of zeros that are added to it afterwards."""
    return graph.map(_added)


def _added(block: Block) -> Block:
    for node in (node for node in block.nodes() if isinstance(node.op, SumSlots)):
        readers = block.consumers(node.outputs[0])
        if len(readers) == 1 and type(readers[0].op) is Add:
            (shared,) = (value for value in readers[0].inputs if value != node.outputs[0])
            maker = block.producer(shared)
            if maker is not None and isinstance(maker.op, BlockCall) and block.consumers(shared) == readers:
                added = replace(readers[0], op=AddSlots(), inputs=(*node.inputs[:2], shared))
                nodes = (added if other is readers[0] else other for other in block.nodes() if other is not node)
                return block.with_nodes(nodes)
    return block


def _rewritten(block: Block) -> Block:
    sort = next((node for node in block.nodes() if isinstance(node.op, SortByExpert)), None)
    ends = next((node for node in block.nodes() if isinstance(node.op, GroupEnds | ReceivedEnds)), None)
    if sort is None or ends is None:
        return block
    received = isinstance(ends.op, ReceivedEnds)
    told = Value(ends.id, 0, "counts", COUNTS) if received else sort.outputs[0]
    form = EachExpert if received else ChosenExperts
    nodes = [new for node in block.nodes() for new in _changed(node, form, told)]
    return block.with_nodes(nodes).reinfer({ends.outputs[0]: told})


def _changed(node: Node, form: type[EachExpert], told: Value) -> tuple[Node, ...]:
    match node.op:
        case EveryExpert() | GroupEnds():
            return ()
        case ReceivedEnds():
            return (replace(node, op=CountReceived(), outputs=(told,)),)
        case SlotSource() as op:
            return (replace(node, op=TokenOfSlot(**vars(op))),)
        case GatherRows():
            return (replace(node, op=SelectTokens()),)
        case GroupedLinear() as op:
            making = ExpertWeights(op)
            weight = Value(f"{op.name}.weight", 0, op.name, making.infer(())[0])
            made = Node(weight.producer, making, (), (weight,))
            return made, replace(node, op=form(), inputs=(*node.inputs, weight))
        case ScatterSum():
            return (replace(node, op=SumSlots()),)
    return (node,)
