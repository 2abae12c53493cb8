"""The cache: each block that caches a value reads it back for all tokens so far."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.types import CachesType, CacheType, ValueType
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.cache import CacheAppend, RingAppend
from dsc.compiler.ops.call import (
    BlockCall,
    CallFunction,
    CallMethod,
    CallModule,
    CycleLayersCached,
    RepeatLayers,
    RepeatLayersCached,
    Signature,
)
from dsc.compiler.ops.rope import RotaryTable, RotaryTableAfter


def with_cache(graph: Graph) -> Graph:
    """Attention against the cache, and the cache handed down to it. Changed blocks become functions of their module."""
    blocks: dict[str, Block] = {}
    for key, block in graph.blocks.items():
        if block.cached:
            block = _append_and_attend(block)
        blocks[key] = _hand_down(block, blocks)
    return replace(graph, blocks=blocks)


def as_functions(graph: Graph, modules: Graph) -> Graph:
    """Calls of blocks that are not what the module's own class does (`modules`) become calls of functions."""
    blocks: dict[str, Block] = {}
    for key, block in graph.blocks.items():
        nodes = tuple(_as_function(node, blocks, modules) for node in block.nodes())
        blocks[key] = block.with_nodes(nodes)
    return replace(graph, blocks=blocks)


def is_module(block: Block, modules: Graph) -> bool:
    """Whether the module's class already does exactly this."""
    known = modules.blocks.get(block.key)
    return known is not None and (known.inputs, known.outputs, known.nodes()) == (
        block.inputs,
        block.outputs,
        block.nodes(),
    )


def _as_function(node: Node, blocks: dict[str, Block], modules: Graph) -> Node:
    op = node.op
    if isinstance(op, CallModule) and not is_module(blocks[op.callee()], modules):
        return replace(node, op=CallFunction(op.signature, op.name))
    if isinstance(op, CallMethod):
        return replace(node, op=CallFunction(op.signature, ""))
    return node


def _append_and_attend(block: Block) -> Block:
    cache = Value(INPUT, len(block.inputs), "cache", CacheType())
    appended: dict[Value, Value] = {}
    nodes: list[Node] = []
    kept = {cached.value: cached for cached in block.cached}
    for node in block.nodes():
        if isinstance(node.op, CausalAttention):
            node = replace(node, op=node.op.cached())
        nodes.append(node)
        for value in node.outputs:
            if value in kept:
                window = kept[value].window
                op = CacheAppend(value.name) if window is None else RingAppend(value.name, window)
                (type,) = op.infer((value.type, cache.type))
                name = f"{node.id}.cached.{value.index}"
                appended[value] = Value(name, 0, value.name, type)
                nodes.append(Node(name, op, (value, cache), (appended[value],)))
    extended = replace(block, inputs=(*block.inputs, cache)).with_nodes(nodes)
    return extended.reinfer(appended, leave=tuple(value.producer for value in appended.values()))


def _hand_down(block: Block, done: dict[str, Block]) -> Block:
    """Calls of blocks that take a cache pass one on; a block with such calls takes it from its caller."""
    given: dict[str, Value] = {}

    def argument(name: str, type: ValueType) -> Value:
        return given.setdefault(name, Value(INPUT, len(block.inputs), name, type))

    nodes = []
    for node in block.nodes():
        if isinstance(node.op, BlockCall):
            signature = Signature.of(done[node.op.callee()])
            wants = signature.inputs[len(node.op.signature.inputs) :]
            op: BlockCall = node.op.retarget(signature)
            inputs = node.inputs
            if wants and isinstance(op, RepeatLayers):
                kind = RepeatLayersCached if len(op.classes) == 1 else CycleLayersCached
                op = kind(signature, op.classes, op.count, op.first, op.slice)
                inputs = (*inputs, argument("caches", CachesType()))
            elif wants:
                name = "caches" if isinstance(wants[0], CachesType) else "cache"
                inputs = (*inputs, argument(name, wants[0]))
            node = replace(node, op=op, inputs=inputs)
        nodes.append(node)
    if "caches" in given:
        nodes = [_after(node, given["caches"]) for node in nodes]
    return replace(block, inputs=(*block.inputs, *given.values())).with_nodes(nodes)


def _after(node: Node, caches: Value) -> Node:
    """Positions continue after the cached tokens."""
    if not isinstance(node.op, RotaryTable):
        return node
    op = RotaryTableAfter(node.op.scaling, node.op.rotary_dim, node.op.prefix)
    return replace(node, op=op, inputs=(*node.inputs, caches))
