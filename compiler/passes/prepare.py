"""What depends on parameters alone leaves the forward: it is made once, when weights are prepared."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import CallFunction, CallListed, CallListedFunction, CallMethod, CallModule
from dsc.compiler.ops.moe import SplitGateUp
from dsc.compiler.ops.prepared import Multiply, StackedWeight
from dsc.compiler.ops.projection import Linear
from dsc.compiler.ops.shape import Split


def prepare(graph: Graph) -> Graph:
    """Layers that read one x are stacked; then nodes that read no value of a step move to `once`."""
    return graph.map(lambda block: _once(_stacked(block)))


def as_functions_of_weights(graph: Graph) -> Graph:
    """Every block is printed as a function of its prepared weights, and so called."""
    return graph.map(lambda block: block.with_nodes(_as_function(node) for node in block.nodes()))


def _as_function(node: Node) -> Node:
    match node.op:
        case CallModule(signature, name, arguments):
            return replace(node, op=CallFunction(signature, name, arguments))
        case CallListed(signature, name, index):
            return replace(node, op=CallListedFunction(signature, name, index))
        case CallMethod(signature):
            return replace(node, op=CallFunction(signature, ""))
    return node


def _stacked(block: Block) -> Block:
    readers: dict[Value, list[Node]] = {}
    for node in block.nodes():
        if type(node.op) is Linear:
            readers.setdefault(node.inputs[0], []).append(node)
    siblings = {nodes[0].id: nodes for nodes in readers.values() if len(nodes) > 1}
    gone = {node.id for nodes in siblings.values() for node in nodes}
    if not gone:
        return block
    replacements: dict[Value, Value] = {}
    body: list[Node] = []
    for node in block.nodes():
        if node.id in siblings:
            body += _one_product(siblings[node.id], replacements)
        elif node.id not in gone:
            body.append(node)
    return block.with_nodes(body).reinfer(replacements)


def _one_product(nodes: list[Node], replacements: dict[Value, Value]) -> list[Node]:
    """The stacked weight, one product with it, and the parts of the result."""
    linears = tuple(node.op for node in nodes if isinstance(node.op, Linear))
    name = "_".join(one.name.split("_proj")[0] for one in linears) + "_proj"
    stack, first = StackedWeight(linears), nodes[0]
    weight = Value(f"{first.id}.weight", 0, name, stack.infer(())[0])
    (x,) = first.inputs
    whole = Value(f"{first.id}.stacked", 0, name.removesuffix("_proj"), Multiply().infer((x.type, weight.type))[0])
    widths = tuple(one.out_features for one in linears)
    split = SplitGateUp(widths[0]) if len(widths) == 2 and widths[0] == widths[1] else Split(widths)
    outputs = tuple(
        replace(node.outputs[0], producer=first.id, index=index, type=type)
        for index, (node, type) in enumerate(zip(nodes, split.infer((whole.type,)), strict=True))
    )
    replacements.update((node.outputs[0], output) for node, output in zip(nodes, outputs, strict=True))
    return [
        Node(weight.producer, stack, (), (weight,)),
        Node(whole.producer, Multiply(), (x, weight), (whole,), first.paragraph),
        Node(first.id, split, (whole,), outputs),
    ]


def _once(block: Block) -> Block:
    made: set[Value] = set()
    once: list[Node] = []
    for node in block.nodes():
        if node.outputs and set(node.inputs) <= made:
            once.append(node)
            made.update(node.outputs)
    body = [node for node in block.nodes() if node not in once]
    return replace(block, once=tuple(once)).with_nodes(body)
