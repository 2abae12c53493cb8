"""Checks of our own work, run after building and after every pass: a failure is a bug of the compiler."""

from __future__ import annotations

from collections.abc import Collection

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import OPS


class VerifyError(AssertionError):
    """The graph is not what a graph must be; says where and why."""


def verify(graph: Graph, before: Graph | None = None) -> Graph:
    """Returns the graph, so that passes and checks chain.

    Blocks that a pass has left as they were in `before`, which was verified, are checked for what they call alone.
    """
    for key, block in graph.blocks.items():
        if before is None or before.blocks.get(key) is not block:
            _check_block(block)
        for node in block.nodes():
            if isinstance(node.op, Call):
                _check_call(graph, f"{block.key}: {node.id}", node.op, node.op.bindings(node.input_types))
    return graph


def _check_block(block: Block) -> None:
    bound: dict[str, Value] = {value.name: value for value in block.inputs}
    for node in block.nodes():
        _check_node(block, node, bound)
        bound.update((value.name, value) for value in node.outputs)
    for value in block.outputs:
        _check_bound(block, "its result", value, bound)
    made = {value for node in block.nodes() for value in node.outputs}
    for value in (kept.value for kept in block.cached):
        if value not in made:
            raise VerifyError(f"{block.key}: caches {value.name} of {value.producer}, which makes no such value")


def _check_node(block: Block, node: Node, bound: dict[str, Value]) -> None:
    where = f"{block.key}: {node.id}"
    if OPS.get(node.op.kind) is not type(node.op):
        raise VerifyError(f"{where}: {node.op.kind} is not a registered op kind")
    if len(node.inputs) != len(node.op.operands):
        raise VerifyError(f"{where}: {node.op.kind} reads {node.op.operands}, got {len(node.inputs)} values")
    for value in node.inputs:
        _check_bound(block, node.id, value, bound)
    inferred = node.op.infer(node.input_types)
    if len(inferred) != len(node.outputs) or not all(
        a.same(b) for a, b in zip(inferred, node.output_types, strict=True)
    ):
        raise VerifyError(f"{where}: its outputs are {node.output_types}, its op infers {inferred}")


def _check_bound(block: Block, reader: str, value: Value, bound: dict[str, Value]) -> None:
    """A name may be bound again only when nothing reads its earlier value any more."""
    if value in block.prepared:
        return
    holds = bound.get(value.name)
    if holds is None or (holds.producer, holds.index) != (value.producer, value.index):
        producer = "an input" if value.producer == INPUT else value.producer
        raise VerifyError(f"{block.key}: {reader} reads {value.name} of {producer}, which holds {holds} by then")
    if not holds.type.same(value.type):
        raise VerifyError(f"{block.key}: {reader} reads {value.name} as {value.type}, it is {holds.type}")


def _check_call(graph: Graph, where: str, op: Call, bound: Collection[str]) -> None:
    """`bound` are the names of the sizes that the callee is given."""
    for key in op.callees():
        callee = graph.blocks.get(key)
        if callee is None:
            raise VerifyError(f"{where}: calls {key}, which is no block")
        if _form(callee) != _form(graph.blocks[op.callees()[0]]):
            raise VerifyError(f"{where}: calls {key} and {op.callees()[0]}, whose signatures differ")
        if missing := [symbol.name for symbol in callee.arguments if symbol.name not in bound]:
            raise VerifyError(f"{where}: {callee.key} wants {missing}")


def _form(block: Block) -> tuple[list[str], int]:
    """What all blocks of one call must have in common."""
    return [value.name for value in block.inputs], len(block.outputs)
