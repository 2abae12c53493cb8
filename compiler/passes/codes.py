"""Weights of FP8 products become codes once, not in every step: no step of generation changes a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.fused.codes import (
    ExpertCodes,
    Fp8LinearByCodes,
    Fp8LinearsByCodes,
    Fp8RoutedAndSharedExpertsByCodes,
    Fp8RoutedExpertsByCodes,
    Fp8SwigluLinearByCodes,
    GateUpCodes,
    WeightCodes,
)
from dsc.compiler.ops.fused.fp8 import (
    Fp8Linear,
    Fp8Linears,
    Fp8RoutedAndSharedExperts,
    Fp8RoutedExperts,
    Fp8SwigluLinear,
)

BY_CODES: dict[type[Op], type[Fp8LinearsByCodes]] = {
    Fp8Linears: Fp8LinearsByCodes,
    Fp8Linear: Fp8LinearByCodes,
    Fp8SwigluLinear: Fp8SwigluLinearByCodes,
}


def multiply_by_codes(graph: Graph) -> Graph:
    """Products of the graph that serves read codes; the nodes that make them read parameters alone."""
    return graph.map(_rewritten)


def _rewritten(block: Block) -> Block:
    return block.with_nodes(new for node in block.nodes() for new in _by_codes(node))


def _by_codes(node: Node) -> Iterator[Node]:
    """Nodes that make codes, then the product."""
    match node.op:
        case Fp8Linears(linears, size) as op:
            codes = [_codes(node, WeightCodes(linear, size)) for linear in linears]
            product: Op = BY_CODES[type(op)](len(linears))
            inputs = [*node.inputs, *_values(codes)]
        case Fp8RoutedExperts() | Fp8RoutedAndSharedExperts() as op:
            halves = GateUpCodes(op.gate_up, op.block, op.down.in_features)
            codes = [_codes(node, halves), _codes(node, ExpertCodes(op.down, op.block))]
            shares = isinstance(op, Fp8RoutedAndSharedExperts)
            product = (Fp8RoutedAndSharedExpertsByCodes if shares else Fp8RoutedExpertsByCodes)(op.rows)
            inputs = [*node.inputs[:5], *_values(codes), *node.inputs[5:]]
        case _:
            yield node
            return
    yield from codes
    yield replace(node, op=product, inputs=tuple(inputs))


def _codes(node: Node, op: WeightCodes) -> Node:
    name, (codes, scale) = op.linear.name, op.infer(())
    id = f"{node.id}.{name}"
    return Node(id, op, (), (Value(id, 0, name, codes), Value(id, 1, f"{name}_scale", scale)))


def _values(codes: list[Node]) -> list[Value]:
    return [value for node in codes for value in node.outputs]
