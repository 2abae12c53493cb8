"""A value handed down to blocks that read it, and blocks as functions of modules whose classes do something else.

What runs beside the model's own classes stands on both: the policy of reinforcement learning, and rows of several
documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.types import ValueType
from dsc.compiler.ops.call import (
    BlockCall,
    CallFunction,
    CallListed,
    CallListedFunction,
    CallMethod,
    CallModule,
    CycleLoopFunctions,
    CycleLoopFunctionsSum,
    LayerLoop,
    LoopFunctions,
    LoopFunctionsSum,
    RepeatLayers,
    RepeatLayersSum,
    Signature,
)
from dsc.compiler.passes.cache import is_module


def _calls(block: Block) -> list[Node]:
    return [node for node in block.nodes() if isinstance(node.op, BlockCall)]


def readers_of(graph: Graph, first: Mapping[str, Block]) -> set[str]:
    """Some blocks, all that call them, and the layers that share a loop with one of these."""
    readers = set(first)
    for key, block in graph.blocks.items():  # callees before callers
        for node in _calls(block):
            assert isinstance(node.op, Call)
            if readers & set(node.op.callees()):
                readers |= {key, *node.op.callees()}
    return readers


def hand_down(graph: Graph, name: str, type: ValueType, readers: set[str]) -> Graph:
    """An argument of that name for each of the `readers`, given by whoever calls it."""
    blocks = dict(graph.blocks)
    for key in (key for key in graph.blocks if key in readers):
        block = blocks[key]
        given = next((value for value in block.inputs if value.name == name), None)
        if given is None:
            given = Value(INPUT, len(block.inputs), name, type)
            block = replace(block, inputs=(*block.inputs, given))
        blocks[key] = block.with_nodes(_handing(node, given, readers) for node in block.nodes())
    return _retargeted(replace(graph, blocks=blocks))


def _handing(node: Node, given: Value, readers: set[str]) -> Node:
    """The inputs of a call of a reader; calls that hand it on already stay."""
    if not isinstance(node.op, BlockCall) or node.op.callee() not in readers or given.name in node.op.operands:
        return node
    place = len(node.op.signature.names)  # a sum of losses comes behind what the layers take
    return replace(node, inputs=(*node.inputs[:place], given, *node.inputs[place:]))


def _retargeted(graph: Graph) -> Graph:
    """Every call with its callee's signature as it is now."""
    return graph.map(lambda block: block.with_nodes(_handed(node, graph) for node in block.nodes()))


def _handed(node: Node, graph: Graph) -> Node:
    if not isinstance(node.op, BlockCall) or len(node.inputs) == len(node.op.operands):
        return node
    return retarget(node, graph.blocks)


def retarget(node: Node, blocks: Mapping[str, Block]) -> Node:
    """A call with its callee's signature as it is among `blocks`."""
    if not isinstance(node.op, BlockCall) or node.op.callee() not in blocks:
        return node
    return replace(node, op=node.op.retarget(Signature.of(blocks[node.op.callee()])))


def as_functions_of_modules(graph: Graph, modules: Graph) -> Graph:
    """Blocks that their module's class does as well are called there and left out; the others become functions."""
    blocks: dict[str, Block] = {}
    for key, block in graph.blocks.items():
        calls = any(set(node.op.callees()) & blocks.keys() for node in _calls(block) if isinstance(node.op, Call))
        if calls or not is_module(block, modules):
            blocks[key] = block
    for loop in (node.op for block in blocks.values() for node in _calls(block) if isinstance(node.op, LayerLoop)):
        if blocks.keys() & set(loop.callees()):
            blocks |= {key: graph.blocks[key] for key in loop.callees()}
    ordered = {key: block for key, block in graph.blocks.items() if key in blocks}
    functions = {
        key: block.with_nodes(_as_function(node, ordered) for node in block.nodes()) for key, block in ordered.items()
    }
    return replace(graph, blocks={**graph.blocks, **functions})


def functions_of(graph: Graph, root: str) -> tuple[Block, ...]:
    """The blocks that are functions: the root and what such are called; the others are their modules' own."""
    called = {
        key
        for block in graph.blocks.values()
        for node in block.nodes()
        if isinstance(node.op, CallFunction | CallListedFunction | LoopFunctions | LoopFunctionsSum)
        for key in node.op.callees()
    }
    return tuple(block for key, block in graph.blocks.items() if key in called or key == root)


def _as_function(node: Node, functions: Mapping[str, Block]) -> Node:
    if not isinstance(node.op, BlockCall) or not set(node.op.callees()) & functions.keys():
        return node
    match node.op:
        case CallModule(signature, name, arguments):
            return replace(node, op=CallFunction(signature, name, arguments))
        case CallListed(signature, name, index):
            return replace(node, op=CallListedFunction(signature, name, index))
        case CallMethod(signature):
            return replace(node, op=CallFunction(signature, ""))
        case RepeatLayers() as op:
            kind = LoopFunctions if len(op.classes) == 1 else CycleLoopFunctions
            return replace(node, op=kind(**vars(op)))
        case RepeatLayersSum() as op:
            adding = LoopFunctionsSum if len(op.classes) == 1 else CycleLoopFunctionsSum
            return replace(node, op=adding(**vars(op)))
    raise AssertionError(node.op)
