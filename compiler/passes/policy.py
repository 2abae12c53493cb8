"""What reinforcement learning trains: log-probabilities of tokens, from the training graph less what pre-training adds.

No balance loss, no count of experts, no multi-token prediction: nothing that the answers' probabilities need. With
replay, each router takes the experts that the engine chose, weighs them anew and so still learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.types import ValueType
from dsc.compiler.ops.call import CallFunction, CallMethod, CallModule, LayerLoop, RepeatLayers, Signature, _Call
from dsc.compiler.ops.paged import BATCH
from dsc.compiler.ops.policy import (
    REPLAY,
    CycleLoopFunctions,
    LogProbabilities,
    LoopFunctions,
    RecordExperts,
    ReplayExperts,
)
from dsc.compiler.ops.projection import Linear, TiedHead
from dsc.compiler.ops.router import TopExperts
from dsc.compiler.passes.cache import is_module
from dsc.compiler.passes.inference import for_inference

FORWARD, ROOT = "Model.forward", "Model.log_probabilities"
DOC = "Log-probabilities [B, S] of labels [B, S], each the token after tokens[b, s]; 0 where the label is -100."


def policy(training: Graph, plain: Graph, replay: bool) -> Graph:
    """Functions of the model's modules, each where the module itself does more. `plain`: `training` without kernels."""
    blocks = {**training.blocks, ROOT: _root(training.blocks[FORWARD], plain.blocks[FORWARD])}
    graph = for_inference(replace(training, blocks=blocks), (ROOT,))
    return _as_functions(_replayed(graph, for_inference(plain)) if replay else graph, training)


def _root(forward: Block, plain: Block) -> Block:
    """Forward up to the head, whose weight the log-probabilities read instead."""
    *before, head = forward.nodes()
    op = plain.nodes()[-1].op
    assert isinstance(op, Linear | TiedHead), op
    block = BlockBuilder("Model", DOC, method="log_probabilities")
    known = {value: block.input(value.name, value.type) for value in forward.inputs}
    labels = block.input("labels", forward.inputs[0].type)
    for node in before:
        made = block.add_many([v.name for v in node.outputs], node.op, *(known[value] for value in node.inputs))
        known.update(zip(node.outputs, made, strict=True))
    return block.finish(block.add("log_probabilities", LogProbabilities(op), known[head.inputs[0]], labels))


def _replayed(graph: Graph, plain: Graph) -> Graph:
    """Routers as plain ops, for a kernel that chooses cannot be told what to choose."""
    routers = {key: _with_replay(plain.blocks[key]) for key in _routers(plain) if key in graph.blocks}
    return hand_down(replace(graph, blocks={**graph.blocks, **routers}), "replay", REPLAY, _readers(graph, routers))


def _with_replay(block: Block) -> Block:
    (choose,) = (node for node in block.nodes() if isinstance(node.op, TopExperts))
    (own,) = choose.outputs
    replay = Value(INPUT, len(block.inputs), "replay", REPLAY)
    replayed = replace(own, producer=f"{own.producer}.replayed")
    node = Node(replayed.producer, ReplayExperts(), (own, replay), (replayed,))
    nodes = [new for old in block.nodes() for new in ((old, node) if old is choose else (old,))]
    extended = replace(block, inputs=(*block.inputs, replay)).with_nodes(nodes)
    return extended.reinfer({own: replayed}, leave=(node.id,))


def record_experts(graph: Graph) -> Graph:
    """In the graph that serves: whoever calls a router adds what it chose to the batch."""
    routers = _routers(graph)
    recording = {
        key: _recording(block, routers)
        for key, block in graph.blocks.items()
        if any(isinstance(node.op, _Call) and node.op.callee() in routers for node in block.nodes())
    }
    changed = replace(graph, blocks={**graph.blocks, **recording})
    return hand_down(changed, "batch", BATCH, _readers(graph, recording))


def _recording(block: Block, routers: tuple[str, ...]) -> Block:
    batch = Value(INPUT, len(block.inputs), "batch", BATCH)
    nodes: list[Node] = []
    for node in block.nodes():
        nodes.append(node)
        if isinstance(node.op, _Call) and node.op.callee() in routers:
            nodes.append(Node(f"{node.id}.recorded", RecordExperts(), (node.outputs[0], batch), ()))
    return replace(block, inputs=(*block.inputs, batch)).with_nodes(nodes)


def _routers(graph: Graph) -> tuple[str, ...]:
    """The blocks that choose experts."""
    return tuple(
        key for key, block in graph.blocks.items() if any(isinstance(node.op, TopExperts) for node in block.nodes())
    )


def _calls(block: Block) -> list[Node]:
    return [node for node in block.nodes() if isinstance(node.op, _Call)]


def _readers(graph: Graph, first: Mapping[str, Block]) -> set[str]:
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
    if not isinstance(node.op, _Call) or node.op.callee() not in readers or given.name in node.op.operands:
        return node
    return replace(node, inputs=(*node.inputs, given))


def _retargeted(graph: Graph) -> Graph:
    """Every call with its callee's signature as it is now."""
    return graph.map(lambda block: block.with_nodes(_retarget(node, graph) for node in block.nodes()))


def _retarget(node: Node, graph: Graph) -> Node:
    if not isinstance(node.op, _Call) or len(node.inputs) == len(node.op.operands):
        return node
    return replace(node, op=node.op.retarget(Signature.of(graph.blocks[node.op.callee()])))


def _as_functions(graph: Graph, modules: Graph) -> Graph:
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


def functions_of(graph: Graph) -> tuple[Block, ...]:
    """The blocks that are functions: the root and what such are called; the others are their modules' own."""
    called = {
        key
        for block in graph.blocks.values()
        for node in block.nodes()
        if isinstance(node.op, CallFunction | LoopFunctions)
        for key in node.op.callees()
    }
    return tuple(block for key, block in graph.blocks.items() if key in called or key == ROOT)


def _as_function(node: Node, functions: Mapping[str, Block]) -> Node:
    if not isinstance(node.op, _Call) or not set(node.op.callees()) & functions.keys():
        return node
    match node.op:
        case CallModule(signature, name, arguments):
            return replace(node, op=CallFunction(signature, name, arguments))
        case CallMethod(signature):
            return replace(node, op=CallFunction(signature, ""))
        case RepeatLayers() as op:
            kind = LoopFunctions if len(op.classes) == 1 else CycleLoopFunctions
            return replace(node, op=kind(**vars(op)))
    raise AssertionError(node.op)
