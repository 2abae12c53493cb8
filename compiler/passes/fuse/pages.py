"""Attention to pages as a kernel; of latents norm, rotation and write become another one."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.fused.pages import (
    AttendLatents,
    AttendPages,
    ReadFp8Latents,
    WriteLatentRows,
    WriteLatentRowsAndNorm,
)
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.paged import ReadRows, SharedAttention, VisibleAttention, WriteRows
from dsc.compiler.ops.shape import Concat, Split
from dsc.compiler.passes.fuse.pattern import ancestors, collapse, each_node, made_by


def fuse_latent_pages(graph: Graph) -> Graph:
    """Of packed tokens, before other fusions."""
    return each_node(each_node(graph, SharedAttention, _attend), WriteRows, _write)


def fuse_grouped_pages(graph: Graph) -> Graph:
    """Of packed tokens, before other fusions."""
    return each_node(graph, VisibleAttention, _attend_grouped)


def read_fp8_latents(graph: Graph) -> Graph:
    """What still reads rows itself decodes them."""
    return each_node(graph, ReadRows, _read)


def _attend(block: Block, attention: Node) -> Block:
    q, rows, values, group = attention.inputs
    joined, read, split = made_by(block, q, Concat), made_by(block, rows, ReadRows), made_by(block, values, Split)
    assert joined is not None and read is not None and split is not None
    inputs = (*joined[0].inputs, group, read[0].inputs[0])
    gone = [joined[0], read[0], split[0], attention]
    return collapse(block, gone, replace(attention, op=AttendLatents(), inputs=inputs))


def _attend_grouped(block: Block, attention: Node) -> Block:
    """Keys and values need not be read out of their pages any more."""
    q, _, _, group = attention.inputs
    gone = ancestors(block, attention, [q])
    (pages,) = (node.inputs[0] for node in gone if isinstance(node.op, ReadRows))
    return collapse(block, [*gone, attention], replace(attention, op=AttendPages(), inputs=(q, group, pages)))


def _write(block: Block, write: Node) -> Block:
    kv_latent, _, *where = write.inputs
    norm = made_by(block, kv_latent, RmsNorm)
    assert norm is not None
    split = made_by(block, norm[0].inputs[0], Split)
    assert split is not None
    (kv,) = split[0].inputs
    rope = next(value for value in block.inputs if value.name == "rope")
    gone = {write.id, *(node.id for node in ancestors(block, write, [kv, rope]))}
    query = next((node for node in block.nodes() if isinstance(node.op, RmsNorm) and node.id not in gone), None)
    if query is None:
        fused, at = Node(write.id, WriteLatentRows(norm[1]), (kv, rope, *where), ()), write.id
    else:
        assert isinstance(query.op, RmsNorm)
        op = WriteLatentRowsAndNorm(norm[1], query.op)
        fused, at = replace(query, op=op, inputs=(kv, *query.inputs, rope, *where)), query.id
    return block.with_nodes(fused if node.id == at else node for node in block.nodes() if node.id not in gone - {at})


def _read(block: Block, read: Node) -> Block:
    """The rows' parts are what the split behind the read makes."""
    (split,) = block.consumers(read.outputs[0])
    outputs: tuple[Value, ...] = split.outputs
    assert isinstance(split.op, Split)
    return collapse(block, [read, split], Node(split.id, ReadFp8Latents(split.op.sizes), read.inputs, outputs))
