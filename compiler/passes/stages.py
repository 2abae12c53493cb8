"""A training step cut into pipeline stages: which ops of Model.loss each runs, and what crosses from one to the next.

What crosses a boundary is what is alive there: the hidden state and the balance loss between layers, after multi-token
prediction the two hidden states that the head reads. What depends on the batch alone, such as the rotary table, is no
traffic: every stage that wants it makes it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.dim import B, Int
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.batch import ShareOfLabels, ShareOfMicroBatches, StackLosses
from dsc.compiler.ops.call import CallMethod, LayerLoop
from dsc.compiler.ops.loss import CrossEntropy, LossParts
from dsc.compiler.passes.inline import inline

EMBEDDING, HEAD = "embedding", "head"
LOSS = "Model.loss"
WHOLE = "WholeModel"
"""The one stage where there is no pipeline."""
MTP_WEIGHT = "mtp_weight"
BATCH = ("tokens", "labels", "documents", MTP_WEIGHT, "counts")
"""What every stage is given of the batch, by name; documents where attention keeps to them, MTP's weight where it is
another in another step."""

StageParts = tuple[tuple[str, ...], ...]
"""For each stage the names of its parts, such as embedding, layers.0, mtp.0, head."""


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: the kind of stage it is, and which of the model's layers it holds."""

    block: Block
    first: int
    """Of its layers, by number in the model."""
    end: int

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The classes of its layers."""
        ops = (node.op for node in self.block.nodes())
        return tuple(dict.fromkeys(name for op in ops if isinstance(op, LayerLoop) for name in op.classes))


def step_block(graph: Graph) -> Block:
    """Model.loss as one method, every loss a share of the batch's: what a pipeline of one stage runs."""
    block = graph.blocks[LOSS]
    for node in block.nodes():
        if isinstance(node.op, CallMethod):
            block = inline(block, node, graph.blocks[node.op.callee()])
    return _stacked(_shared(block))


def _shared(block: Block) -> Block:
    """Each mean over a micro-batch followed by the share that it is of the mean over the batch."""
    depths = 1 + sum(isinstance(node.op, CrossEntropy) for node in block.nodes())
    counts = Value(INPUT, len(block.inputs), "counts", TensorType((B, Int(depths)), DType.FP32))
    means = _means(block)
    shares: dict[Value, Value] = {}
    nodes: list[Node] = []
    depth = 0
    for node in block.nodes():
        nodes.append(node)
        for value in node.outputs:
            if isinstance(node.op, CrossEntropy):
                nodes.append(_share(ShareOfLabels(depth), (value, node.inputs[1], counts)))
                depth += 1
            elif value in means:
                nodes.append(_share(ShareOfMicroBatches(), (value, counts)))
            else:
                continue
            shares[value] = nodes[-1].outputs[0]
    shared = replace(block, inputs=(*block.inputs, counts)).with_nodes(nodes)
    return shared.reinfer(shares, leave=tuple(share.producer for share in shares.values()))


def _share(op: ShareOfLabels | ShareOfMicroBatches, inputs: tuple[Value, ...]) -> Node:
    loss = inputs[0]
    name = f"{loss.producer}.share"
    (type,) = op.infer(tuple(value.type for value in inputs))
    return Node(name, op, inputs, (Value(name, 0, loss.name, type),))


def _means(block: Block) -> set[Value]:
    """The finished sum of the layers' balance losses: a part of the loss that no cross-entropy leads to."""
    (summary,) = (node for node in block.nodes() if isinstance(node.op, LossParts))
    assert isinstance(summary.op, LossParts)
    return {value for name, value in zip(summary.op.names, summary.inputs, strict=True) if name == "balance"}


def _stacked(block: Block) -> Block:
    """The loss and its parts in one tensor, for want of a dict that a pipeline could send."""
    loss, parts = block.outputs
    nodes = []
    for node in block.nodes():
        if parts in node.outputs:
            assert isinstance(node.op, LossParts)
            op = StackLosses(node.op.names)
            (type,) = op.infer((loss.type, *node.input_types))
            parts = Value(node.id, 0, "losses", type)
            node = Node(node.id, op, (loss, *node.inputs), (parts,), node.paragraph)
        nodes.append(node)
    return block.with_nodes(nodes, (parts,))


def cut(step: Block, stages: StageParts, whole: str = WHOLE) -> tuple[Stage, ...]:
    """The step's nodes shared out over stages. Stages that hold alike are of one class, named after what they hold;
    `whole` is one that holds everything."""
    free = _free(step)
    pieces = tuple(_pieces(step, stages, free))
    made_in = {value: piece.stage for piece in pieces for value in piece.node.outputs}
    last_reader: dict[Value, int] = {}
    for piece in pieces:
        last_reader.update((value, max(piece.stage, last_reader.get(value, 0))) for value in piece.node.inputs)
    alive = [
        tuple(value for value, made in made_in.items() if made <= index < last_reader.get(value, -1))
        for index in range(len(stages) - 1)
    ]
    alive = [tuple(sorted(values, key=_rank, reverse=True)) for values in alive]  # hidden states before sums of losses
    received, sent = [(), *alive], [*alive, step.outputs]
    return tuple(
        _stage(step, [piece for piece in pieces if piece.stage == index], free, received[index], sent[index], whole)
        for index in range(len(stages))
    )


def _rank(value: Value) -> int:
    return len(tensor(value.type).shape)


@dataclass(frozen=True)
class _Piece:
    """A node of the step, or the part of its layers that one stage runs."""

    stage: int
    position: int
    """Of the node in the step."""
    kind: str
    """Of what it belongs to: Embedding, Head, Mtp, or a kind of layer."""
    node: Node


def _pieces(step: Block, stages: StageParts, free: Mapping[Value, Node]) -> Iterator[_Piece]:
    """Every node that is bound to a stage; a run of layers is divided where stages end."""
    stage_of = {part: index for index, parts in enumerate(stages) for part in parts}
    parts = _parts(step)
    said_last: dict[Value, Value] = {}
    for position, node in enumerate(step.nodes()):
        if any(value in free for value in node.outputs):
            continue
        node = replace(node, inputs=tuple(said_last.get(value, value) for value in node.inputs))
        if not isinstance(node.op, LayerLoop):
            part = parts[node.id]
            yield _Piece(stage_of[part], position, part.split(".")[0].capitalize(), node)
            continue
        results = node.outputs
        paths = [path for _, path in node.op.runs()]
        for stage, run in groupby(enumerate(paths), key=lambda numbered: stage_of[numbered[1]]):
            offsets = [offset for offset, _ in run]
            name = f"{node.id}.{offsets[0]}"
            outputs = tuple(replace(value, producer=name) for value in results)
            op = node.op.run(offsets[0], len(offsets))
            kind = "".join(dict.fromkeys(one.removesuffix("Layer") for one in op.classes))
            yield _Piece(stage, position, kind, replace(node, id=name, op=op, outputs=outputs))
            node = replace(node, inputs=node.op.carried_on(node.inputs, outputs))
        said_last.update(zip(results, outputs, strict=True))


def _parts(step: Block) -> Mapping[str, str]:
    """The part that each node belongs to, its first one where it runs several layers.

    What comes before the layers is the embedding's; after them, it is of the part that first reads what it makes, so
    that the final norm goes where it is wanted first; what no part reads, the losses, is the head's.
    """
    names = part_names(step)
    first_layers = next(node.id for node in step.nodes() if isinstance(node.op, Call))
    parts: dict[str, str] = {}
    readers: dict[Value, str] = {}
    after = True
    for node in reversed(step.nodes()):
        if isinstance(node.op, Call):
            parts[node.id] = node.op.runs()[0][1]
            after = after and node.id != first_layers
        else:
            read_by = [readers.get(value, HEAD) for value in node.outputs]
            parts[node.id] = min(read_by, key=names.index, default=HEAD) if after else EMBEDDING
        for value in node.inputs:
            readers[value] = min(parts[node.id], readers.get(value, HEAD), key=names.index)
    return parts


def part_names(step: Block) -> tuple[str, ...]:
    """Every part in the order in which they run: embedding, the modules that the step calls, head."""
    modules = [path for node in step.nodes() if isinstance(node.op, Call) for _, path in node.op.runs()]
    return (EMBEDDING, *modules, HEAD)


def _free(step: Block) -> dict[Value, Node]:
    """What follows from the batch alone, by value: neither parameters nor hidden states are in it, but for a shape."""
    known = set(step.inputs)
    free: dict[Value, Node] = {}
    for node in step.nodes():
        read = {value for name, value in zip(node.op.operands, node.inputs, strict=True) if name not in node.op.like}
        if not isinstance(node.op, Call) and not node.op.parameters() and read <= known:
            known.update(node.outputs)
            free.update((value, node) for value in node.outputs)
    return free


def _stage(
    step: Block,
    pieces: Sequence[_Piece],
    free: Mapping[Value, Node],
    received: Sequence[Value],
    sent: Sequence[Value],
    whole: str,
) -> Stage:
    """A class of its own: what the stage is sent and what every stage knows of the batch, to what it sends on."""
    given = (*received, *step.inputs)
    inputs = tuple(Value(INPUT, index, value.name, value.type) for index, value in enumerate(given))
    now = dict(zip(given, inputs, strict=True))
    positions = {node.id: position for position, node in enumerate(step.nodes())}
    wanted = [(positions[node.id], node) for node in _wanted([piece.node for piece in pieces], free)]
    body: list[Node] = []
    for _, node in sorted([*wanted, *((piece.position, piece.node) for piece in pieces)], key=lambda one: one[0]):
        stream = inputs[0] if received else body[0].outputs[0] if body else None
        body.append(replace(node, inputs=tuple(_here(value, now, stream) for value in node.inputs)))
        now.update((value, value) for value in node.outputs)
    kinds = dict.fromkeys(piece.kind for piece in pieces)
    title = ", ".join(_TITLES.get(kind, f"{kind.lower()} layers") for kind in kinds)
    block = replace(
        step,
        class_name=whole if kinds.keys() >= {"Embedding", "Head"} else f"{''.join(kinds)}Stage",
        method="forward",
        doc="",
        class_doc=f"A stage: {title}.",
        inputs=inputs,
    ).with_nodes(_sliced(body), tuple(now[value] for value in sent))
    layers = [node.op for node in body if isinstance(node.op, LayerLoop)]
    return Stage(block, layers[0].first, layers[-1].end) if layers else Stage(block, 0, 0)


_TITLES = {"Embedding": "the embedding", "Mtp": "multi-token prediction", "Head": "the head and the losses"}


def _sliced(body: Sequence[Node]) -> list[Node]:
    """Runs of layers by the bounds that differ from stage to stage: those of the first begin where the stage's do."""
    runs = [node for node in body if isinstance(node.op, LayerLoop)]
    sliced = []
    for node in body:
        if isinstance(node.op, LayerLoop):
            begin, _, end = node.op.slice.strip("[]").partition(":")
            begin, end = "self.first" if node is runs[0] else begin, "self.end" if node is runs[-1] else end
            node = replace(node, op=replace(node.op, slice=f"[{begin} : {end}]"))
        sliced.append(node)
    return sliced


def _wanted(nodes: Iterable[Node], free: Mapping[Value, Node]) -> dict[Node, None]:
    """The free nodes that some nodes stand on."""
    found: dict[Node, None] = {}
    frontier = [value for node in nodes for value in node.inputs if value in free]
    while frontier:
        node = free[frontier.pop()]
        if node not in found:
            found[node] = None
            frontier += [value for value in node.inputs if value in free]
    return found


def _here(value: Value, now: Mapping[Value, Value], stream: Value | None) -> Value:
    """The value as the stage has it; one that was read for its shape only may be another's."""
    if value in now:
        return now[value]
    assert stream is not None, f"a stage begins with what reads {value.name}"
    return stream
