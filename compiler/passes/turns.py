"""A stage as a generator that stops at its all-to-alls, so that two micro-batches can take turns on one rank.

Autograd is cut there too: what is alive across a cut, made before it and read after it, goes through it, so that
backward runs in the same pieces. Only what a gradient flows through counts; indices and sizes are plain locals. A
caller's values that are alive across a call go through the callee's cuts, as `*alive`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import Op, Types
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.call import CallListed, CallModule, LayerLoop, RepeatLayersSum, function_name
from dsc.compiler.ops.dispatch import AllToAll, ExchangeCounts
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.ops.projection import Linear
from dsc.compiler.ops.turns import (
    ALIVE,
    EXCHANGE,
    TAPE,
    CallTurns,
    CountsBeside,
    Cut,
    EnterLayer,
    GroupedProduct,
    LeaveLayer,
    LoopTurns,
    LoopTurnsSum,
    StartExchange,
)
from dsc.compiler.passes.recompute import METHODS, layer_blocks
from dsc.compiler.passes.shard import EXPERT_PARALLEL, MOE, Sharing
from dsc.compiler.passes.stages import BATCH, Stage
from dsc.compiler.passes.tensor import PREFIXES

METHOD = "turns"
PAIRING = "DualPipeV"
"""The schedule of torch.distributed.pipelining whose actions are pairs of a forward and a backward."""
FLOATS = (DType.BF16, DType.FP32)
TAPE_VALUE, ALIVE_VALUE = Value(INPUT, 0, "tape", TAPE), Value(INPUT, 1, "*alive", ALIVE)


def pairs(sharing: Sharing | None) -> bool:
    """Whether a forward runs beside a backward, and has all-to-alls to hide there."""
    return sharing is not None and sharing.schedule == PAIRING and sharing.copy > 1


def one_by_one(sharing: Sharing | None, stages: Iterable[Stage]) -> tuple[str, ...]:
    """A note where pairs run one half after the other, for what cannot be cut yet."""
    if sharing is None or not pairs(sharing):
        return ()
    uncut = why_one_by_one(sharing.recompute, any(cycles(stage.block) for stage in stages))
    return () if uncut is None else (f"train: {PAIRING} without overlap, for there is no code yet that cuts {uncut}",)


def why_one_by_one(recompute: Collection[str], cycles: bool) -> str | None:
    """What cannot be cut; None where pairs take turns. The planner credits overlap where this does.

    A layer that runs again sends its rows again, in the middle of backward; what less is made again lies between cuts.
    """
    return "layers that run again" if "full" in recompute else "layers in a cycle" if cycles else None


def cycles(block: Block) -> bool:
    """Whether it runs layers of several kinds in turns."""
    return any(isinstance(node.op, LayerLoop) and len(node.op.callees()) > 1 for node in block.nodes())


def puts_off(op: Op) -> bool:
    """Whether the gradient of its weight is put off where pairs take turns: nothing else of backward waits for it."""
    return type(op) is Linear or type(op) is GroupedLinear


def put_off_again(graph: Graph) -> Graph:
    """The experts' method that runs once more in backward, if there is one, with the products of the generators."""
    block = graph.blocks.get(f"{EXPERT_PARALLEL}.{METHODS['experts']}")
    if block is None:
        return graph
    return replace(graph, blocks={**graph.blocks, block.key: block.with_nodes(map(_put_off, block.nodes()))})


def _put_off(node: Node) -> Node:
    return replace(node, op=GroupedProduct(**vars(node.op))) if type(node.op) is GroupedLinear else node


def in_turns(graph: Graph, stages: Iterable[Stage], zero: int = 1) -> Graph:
    """The graph with generators beside the blocks that stop, callees first; a stage without an all-to-all has none.

    Beyond ZeRO 1 every layer has one, for it says where its weights are read.
    """
    stages = tuple(stages)
    listed = (node.op for stage in stages for node in stage.block.nodes() if isinstance(node.op, CallListed))
    layers = layer_blocks(graph) if zero > 1 else frozenset()
    of_shares = {f"{prefix}{key}" for prefix in PREFIXES for key in layers}
    writer = _Writer(graph, frozenset(key for op in listed for key in op.callees()), layers | of_shares, zero)
    for stage in stages:
        block = graph.blocks[stage.block.key]
        if writer.stops(block.key):
            writer.write(block, {value for value in block.inputs if value.name not in BATCH}, ())
    return replace(graph, blocks={**graph.blocks, **writer.written})


@dataclass
class _Writer:
    graph: Graph
    predictors: frozenset[str]
    """The blocks of multi-token prediction."""
    layers: frozenset[str]
    """The blocks of layers that share weights or gradients."""
    zero: int
    written: dict[str, Block] = field(default_factory=dict)

    def block(self, key: str) -> Block:
        """What runs where a key is called: the experts' share in the place of all experts."""
        return self.graph.blocks[f"{EXPERT_PARALLEL}.forward" if key == MOE else key]

    def of_mtp(self, caller: Block, key: str) -> Block:
        """The same: where ranks share sequences, the layer of multi-token prediction is one of its own."""
        shares = [one for prefix in PREFIXES if (one := self.graph.blocks.get(f"{prefix}{key}")) is not None]
        return shares[0] if shares and caller.key in self.predictors else self.block(key)

    def stops(self, key: str) -> bool:
        if key in self.layers:
            return True
        nodes = self.block(key).nodes()
        inner = (one for node in nodes if isinstance(node.op, Call) for one in node.op.callees())
        return any(isinstance(node.op, AllToAll) for node in nodes) or any(map(self.stops, inner))

    def write(self, block: Block, flows: set[Value], alive: tuple[Value, ...]) -> str:
        """The block's generator and those that it calls; its function's name. `flows`: inputs that have gradients."""
        name = function_name(block.class_name, METHOD)
        key = f"{block.class_name}.{METHOD}"
        if key not in self.written:
            body = self._body(block, _with_gradients(block, flows), alive)
            inputs = (TAPE_VALUE, *block.inputs, *alive)
            outputs = (*block.outputs, *alive)
            turned = replace(block, method=METHOD, doc="", inputs=inputs, outputs=outputs, cached=(), body=())
            self.written[key] = _rebound(turned, body)
        return name

    def _body(self, block: Block, flows: set[Value], alive: tuple[Value, ...]) -> list[Node]:
        nodes = _gathered(block.nodes())
        body: list[Node] = []
        for position, node in enumerate(nodes):
            later = _read(nodes[position + 1 :]) | set(block.outputs)
            made = {*block.inputs, *(value for one in nodes[:position] for value in one.outputs)}
            kept = (*(value for value in _ordered(made & later & flows, block, nodes)), *alive)
            body.append(self._turned(block, node, flows, kept))
        return self._in_layer(body) if block.key in self.layers else body

    def _in_layer(self, body: list[Node]) -> list[Node]:
        """With where its weights begin to be read; and where that ends, if they go there."""
        begin = Node("enter", EnterLayer(), (TAPE_VALUE,), ())
        end = [Node("leave", LeaveLayer(), (TAPE_VALUE,), ())] if self.zero == 3 else []
        return [begin, *body, *end]

    def _turned(self, block: Block, node: Node, flows: set[Value], kept: tuple[Value, ...]) -> Node:
        op = node.op
        if isinstance(op, Cut):
            given = (*node.inputs, *kept)
            return _through(replace(node, op=replace(op, alive=len(kept)), inputs=(TAPE_VALUE, *given)), kept)
        if isinstance(op, StartExchange):
            return replace(node, inputs=(TAPE_VALUE, *node.inputs))
        if isinstance(op, ExchangeCounts):
            return replace(node, op=CountsBeside(op.ranks, op.group), inputs=(TAPE_VALUE, *node.inputs))
        if isinstance(op, Call) and any(map(self.stops, op.callees())):
            return self._call(block, node, flows, kept)
        return _put_off(node)

    def _call(self, caller: Block, node: Node, flows: set[Value], kept: tuple[Value, ...]) -> Node:
        op = node.op
        assert isinstance(op, CallModule | CallListed | LayerLoop), op
        (key,) = op.callees()
        callee = self.of_mtp(caller, key)
        total = node.inputs[-1:] if isinstance(op, RepeatLayersSum) else ()
        given = node.inputs[: len(node.inputs) - len(total)]
        inner = {formal for formal, actual in zip(callee.inputs, given, strict=True) if actual in flows}
        name = self.write(callee, inner, (ALIVE_VALUE,))
        results: Types = tuple(value.type for value in node.outputs)
        kept = (*total, *(value for value in kept if value not in total))
        inputs = (TAPE_VALUE, *given, *kept)
        if isinstance(op, RepeatLayersSum):
            summed = replace(node, outputs=node.outputs[:1], inputs=inputs)
            added = LoopTurnsSum(name, callee.class_name, len(given), results[:1], len(kept), op.slice)
            return _through(replace(summed, op=added), kept, {total[0]: node.outputs[1].name})
        if isinstance(op, LayerLoop):
            loop = LoopTurns(name, callee.class_name, len(given), results, len(kept), op.slice)
            return _through(replace(node, op=loop, inputs=inputs), kept)
        path = f"{op.name}[{op.index}]" if isinstance(op, CallListed) else op.name
        wider = isinstance(op, CallListed) or callee is not self.graph.blocks[key]
        call = CallTurns(name, callee.class_name if wider else "", len(given), results, len(kept), path)
        return _through(replace(node, op=call, inputs=inputs), kept)


def _gathered(nodes: Sequence[Node]) -> list[Node]:
    """All-to-alls side by side as one that is started where the last of them stands, and a cut before what reads it."""
    body: list[Node] = []
    pending: list[Node] = []
    for node in nodes:
        arriving = {value for one in pending for value in one.outputs}
        if arriving & set(node.inputs):
            body = _started(body, pending)
            pending = []
        body.append(node)
        if isinstance(node.op, AllToAll):
            pending.append(node)
    assert not pending, "rows that nobody waits for"
    return body


def _started(body: list[Node], group: list[Node]) -> list[Node]:
    sent, (to, of) = tuple(node.inputs[0] for node in group), group[0].inputs[1:]
    assert all(node.inputs[1:] == (to, of) for node in group)
    last = group[-1]
    assert isinstance(last.op, AllToAll)
    exchange = Value(f"{last.id}.start", 0, "exchange", EXCHANGE)
    start = Node(exchange.producer, StartExchange(len(sent), last.op.group), (to, of, *sent), (exchange,))
    received = tuple(value for node in group for value in node.outputs)
    cut = Node(f"{last.id}.cut", Cut(tuple(value.type for value in received), 0), (exchange,), received)
    started = [start if node is last else node for node in body if node is last or node not in group]
    return [*started, cut]


def _through(node: Node, kept: tuple[Value, ...], names: dict[Value, str] | None = None) -> Node:
    """The node with what is alive among its results, in the order in which it was given."""
    names = names or {}
    first = len(node.outputs)
    passed = tuple(
        Value(node.id, first + index, names.get(value, value.name), value.type) for index, value in enumerate(kept)
    )
    return replace(node, outputs=(*node.outputs, *passed))


def _rebound(block: Block, body: Iterable[Node]) -> Block:
    """Every value read as the last line has it that passed it on, by its name."""
    bound = {value.name: value for value in (TAPE_VALUE, *block.inputs)}
    nodes = []
    for node in body:
        outputs = tuple(replace(value, producer=node.id, index=index) for index, value in enumerate(node.outputs))
        nodes.append(replace(node, inputs=tuple(bound[value.name] for value in node.inputs), outputs=outputs))
        bound.update((value.name, value) for value in outputs)
    return replace(block, body=tuple(nodes), outputs=tuple(bound[value.name] for value in block.outputs))


def _read(nodes: Iterable[Node]) -> set[Value]:
    """What some nodes read the elements of, not the shape alone."""
    return {
        value
        for node in nodes
        for name, value in zip(_names(node), node.inputs, strict=True)
        if name not in node.op.like
    }


def _names(node: Node) -> tuple[str, ...]:
    return (
        node.op.operands[: len(node.inputs)]
        if not isinstance(node.op, Cut | StartExchange)
        else ("",) * len(node.inputs)
    )


def _with_gradients(block: Block, inputs: set[Value]) -> set[Value]:
    """The values of a block that a gradient may flow through."""
    found = set(inputs)
    for node in block.nodes():
        if isinstance(node.op, Call) or node.op.parameters() or _read((node,)) & found:
            found.update(value for value in node.outputs if _is_float(value))
    return found


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype in FLOATS


def _ordered(values: set[Value], block: Block, nodes: Iterable[Node]) -> list[Value]:
    """In the order in which they come to be."""
    made = (*block.inputs, *(value for node in nodes for value in node.outputs))
    return [value for value in made if value in values]
