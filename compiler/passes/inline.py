"""A call replaced by the nodes of the method that it calls."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value


def inline(block: Block, call: Node, callee: Block) -> Block:
    """`block` with the callee's nodes where `call` stood; both are methods of one class, so attributes stay."""
    inner: dict[Value, Value] = dict(zip(callee.inputs, call.inputs, strict=True))
    body = []
    for node in callee.nodes():
        name = f"{call.id}.{node.id}"
        outputs = tuple(replace(value, producer=name) for value in node.outputs)
        body.append(Node(name, node.op, tuple(inner[value] for value in node.inputs), outputs, node.paragraph))
        inner.update(zip(node.outputs, outputs, strict=True))
    results = {made: inner[value] for made, value in zip(call.outputs, callee.outputs, strict=True)}
    return block.rewrite(lambda node: body if node.id == call.id else (node,), results)
