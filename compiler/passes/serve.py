"""The roots of the graph that serves: logits where somebody asks for them, and the guess of multi-token prediction."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.call import CallListed
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.paged import ROWS, SelectRows
from dsc.compiler.ops.projection import Embedding
from dsc.compiler.ops.shape import SkipLast
from dsc.compiler.passes.inference import for_inference

FORWARD, DRAFT, LOSS, BACKBONE = "Model.forward", "Model.draft", "Model.loss", "Model.backbone"
DOC = "Logits [rows, W] at some of the packed tokens [T]{}."
DRAFT_DOC = "Logits [rows, W] of the tokens two ahead of hidden states [T, D], from the tokens [T] one ahead."


def for_serving(graph: Graph) -> Graph:
    """The blocks that the two roots reach. Of multi-token prediction the first depth serves."""
    first = _first_depth(graph)
    blocks = {**graph.blocks, FORWARD: _forward(graph, first)}
    if first is not None:
        blocks[DRAFT] = _draft(graph, first)
    return for_inference(replace(graph, blocks=blocks), tuple(key for key in (FORWARD, DRAFT) if key in blocks))


def _first_depth(graph: Graph) -> Node | None:
    calls = (node for node in graph.blocks[LOSS].nodes() if isinstance(node.op, CallListed))
    return next(calls, None)


def _start(graph: Graph, first: Node) -> Value:
    """The state that multi-token prediction starts from, in training with the last position left out."""
    skip = graph.blocks[LOSS].producer(first.inputs[0])
    assert skip is not None and isinstance(skip.op, SkipLast), skip
    return skip.inputs[0]


def _is_normed(graph: Graph, state: Value) -> bool:
    producer = graph.blocks[LOSS].producer(state)
    return producer is not None and isinstance(producer.op, RmsNorm)


def _forward(graph: Graph, first: Node | None) -> Block:
    """The states that guesses start from are returned for every token; logits are made of the rows asked for."""
    call, norm, *head = graph.blocks[FORWARD].nodes()
    old = graph.blocks[FORWARD].inputs[0]
    block = BlockBuilder("Model", DOC.format(", and the state that a guess starts from" if first else ""))
    tokens = block.input(old.name, old.type)
    rows = block.input("rows", TensorType((ROWS,), DType.INT64))
    x, *_ = block.add_many([value.name for value in call.outputs], call.op, tokens)
    if first is None or not _is_normed(graph, _start(graph, first)):
        chosen = block.add("chosen", SelectRows(), x, rows)
        return block.finish(_head(block, (norm, *head), chosen), *([x] if first else []))
    hidden = block.add("hidden", norm.op, x)
    return block.finish(_head(block, tuple(head), block.add("chosen", SelectRows(), hidden, rows)), hidden)


def _draft(graph: Graph, first: Node) -> Block:
    backbone, loss = graph.blocks[BACKBONE], graph.blocks[LOSS]
    embed = loss.producer(first.inputs[1])
    assert embed is not None and isinstance(embed.op, Embedding), embed
    block = BlockBuilder("Model", DRAFT_DOC, method="draft")
    hidden = block.input("hidden", _start(graph, first).type)
    tokens = block.input("tokens", graph.blocks[FORWARD].inputs[0].type)
    rows = block.input("rows", TensorType((ROWS,), DType.INT64))
    ahead = block.add("ahead", embed.op, tokens)
    ropes = [_rope(block, backbone, name, tokens, ahead) for name in first.op.operands[2:]]
    hidden, *_ = block.add_many([value.name for value in first.outputs], first.op, hidden, ahead, *ropes)
    chosen = block.add("chosen", SelectRows(), hidden, rows)
    return block.finish(_head(block, graph.blocks[FORWARD].nodes()[2:], chosen))


def _rope(block: BlockBuilder, backbone: Block, name: str, tokens: Value, x: Value) -> Value:
    """A rotary table as the layers have it."""
    table, *spread = (node for node in backbone.nodes() if [value.name for value in node.outputs] == [name])
    rope = block.add(name, table.op, tokens, x)
    for node in spread:
        rope = block.add(name, node.op, rope)
    return rope


def _head(block: BlockBuilder, nodes: tuple[Node, ...], value: Value) -> Value:
    """The last ops of the model, each of which reads what the one before made."""
    for node in nodes:
        value = block.add(node.outputs[0].name, node.op, value)
    return value
