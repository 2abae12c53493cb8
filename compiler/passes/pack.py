"""Batch and sequence become one dim: the new tokens of all texts, one behind the other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import B, Dim, S, Symbol, T
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.types import TensorType, ValueType
from dsc.compiler.ops.call import BlockCall, Signature
from dsc.compiler.ops.paged import BATCH, GROUP, AttendGroups, GatherRope, RotaryTableOnce
from dsc.compiler.ops.projection import Embedding
from dsc.compiler.ops.rope import RotaryTable, SpreadPairs
from dsc.compiler.ops.shape import FlattenTokens, ViewAs
from dsc.compiler.passes.resize import resized

TOKENS = Symbol("T", letter="T")
"""New tokens of all texts in a step."""


def pack(graph: Graph, positions: int) -> Graph:
    """[B, S, ...] to [T, ...] in every block but those that attend for one group; `positions`: the longest text."""
    longest = graph.constants.dim("MAX_POSITION_EMBEDDINGS", positions, "max_position_embeddings")
    embedding = _embedding(graph)
    blocks: dict[str, Block] = {}
    for key, block in graph.blocks.items():
        if GROUP in [value.type for value in block.inputs]:
            blocks[key] = block
        else:
            blocks[key] = _packed(_positioned(block, longest, embedding), blocks)
    return replace(graph, blocks=blocks)


def _embedding(graph: Graph) -> str:
    nodes = (node for block in graph.blocks.values() for node in block.nodes())
    return next(node.op.name for node in nodes if isinstance(node.op, Embedding))


def _positioned(block: Block, longest: Dim, embedding: str) -> Block:
    """The rotary tables of all positions, of which each step reads its own."""
    batches = [value for value in block.inputs if value.type == BATCH]
    gathered: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in block.nodes():
        if isinstance(node.op, RotaryTable):
            op = RotaryTableOnce(
                node.op.scaling, node.op.rotary_dim, node.op.prefix, positions=longest, embedding=embedding
            )
            node = replace(node, op=op, inputs=())
        nodes.append(node)
        if isinstance(node.op, SpreadPairs):
            (table,) = node.outputs
            gathered[table] = Value(f"{node.id}.positions", 0, table.name, table.type)
            gather = GatherRope(TOKENS)
            nodes.append(Node(f"{node.id}.positions", gather, (table, *batches), (gathered[table],)))
    return block.with_nodes(nodes).reinfer(gathered, leave=tuple(value.producer for value in gathered.values()))


def _packed(block: Block, done: dict[str, Block]) -> Block:
    inputs = {value: replace(value, type=_one_dim(value.type)) for value in block.inputs}
    replacements: dict[Value, Value] = dict(inputs)
    for node in block.nodes():
        if isinstance(node.op, FlattenTokens | ViewAs):
            replacements[node.outputs[0]] = replacements.get(node.inputs[0], node.inputs[0])
    packed = replace(block, inputs=tuple(inputs.values()), doc=block.doc.replace("[B, S", "[T"))
    return packed.rewrite(partial(_rewritten, done=done), replacements)


def _rewritten(node: Node, done: dict[str, Block]) -> tuple[Node, ...]:
    if isinstance(node.op, FlattenTokens | ViewAs):
        return ()
    op = resized(node.op, {T.name: TOKENS})  # where tokens are counted as batch times sequence
    if isinstance(op, BlockCall) and not isinstance(op, AttendGroups):
        op = op.retarget(Signature.of(done[op.callee()]))
    return (replace(node, op=op),)


def _one_dim(type: ValueType) -> ValueType:
    """[B, S, ...] as [T, ...], and a rotary table [2, S, R] as [2, T, R]."""
    if not isinstance(type, TensorType):
        return type
    if type.shape[:2] == (B, S):
        return replace(type, shape=(TOKENS, *type.shape[2:]))
    return replace(type, shape=tuple(TOKENS if dim == S else dim for dim in type.shape))
