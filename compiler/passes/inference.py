"""What generation needs of a model: the next-token logits, without losses, counts and everything that leads to them."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import BlockCall, Signature
from dsc.compiler.ops.shape import LastPosition

ROOT = "Model.forward"


def for_inference(graph: Graph, roots: tuple[str, ...] = (ROOT,)) -> Graph:
    """The blocks that the roots reach, each returning only what is read; effects of training are dropped."""
    kept = {root: set(range(len(graph.blocks[root].outputs))) for root in roots}
    for key in reversed(list(graph.blocks)):  # callers before callees
        if key in kept:
            _live(graph.blocks[key], kept[key], kept)
    blocks: dict[str, Block] = {}
    for key, block in graph.blocks.items():
        if key in kept:
            blocks[key] = _prune(block, kept, blocks)
    return replace(graph, blocks=blocks)


def last_position(graph: Graph) -> Graph:
    """Generation reads the logits of the last position only: the head need not run on the others."""
    block = graph.blocks[ROOT]
    first, *rest = block.nodes()
    (x,) = first.outputs
    (last_type,) = LastPosition().infer((x.type,))
    last = Value("last", 0, x.name, last_type)
    nodes = (first, Node("last", LastPosition(), (x,), (last,)), *rest)
    doc = "Logits [B, 1, W] of the token after tokens [B, S]."
    changed = replace(block, doc=doc).with_nodes(nodes).reinfer({x: last}, leave=("last",))
    return replace(graph, blocks={**graph.blocks, ROOT: changed})


def _live(block: Block, results: set[int], kept: dict[str, set[int]]) -> tuple[Node, ...]:
    """The nodes that lead to some results, in order; notes which results of other blocks they read."""
    wanted = {block.outputs[index] for index in results}
    live = []
    for node in reversed(block.nodes()):
        used = tuple(index for index, value in enumerate(node.outputs) if value in wanted)
        if not used:
            continue
        inputs = node.inputs
        if isinstance(node.op, BlockCall):
            for callee in node.op.callees():
                kept.setdefault(callee, set()).update(used)
            inputs = node.op.narrow(used, node.inputs)[1]
        wanted.update(inputs)
        live.append(node)
    return tuple(reversed(live))


def _prune(block: Block, kept: dict[str, set[int]], done: dict[str, Block]) -> Block:
    """The block with its live nodes only; its calls return what is kept of their callees, which are done already."""
    nodes = []
    for node in _live(block, kept[block.key], kept):
        if isinstance(node.op, BlockCall):
            results = tuple(sorted(kept[node.op.callee()]))
            op, inputs = node.op.narrow(results, node.inputs)
            op = op.retarget(Signature.of(done[op.callee()]))
            outputs = tuple(replace(node.outputs[index], index=place) for place, index in enumerate(results))
            node = replace(node, op=op, inputs=inputs, outputs=outputs)
        nodes.append(node)
    outputs = tuple(block.outputs[index] for index in sorted(kept[block.key]))
    return block.with_nodes(nodes, outputs)
