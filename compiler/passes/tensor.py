"""A layout's shares in the graph: heads, widths and the vocabulary over ranks, and sequences between them.

A sublayer's weights with heads or a feed-forward's width among their sizes are shared out, all others are whole on
every rank. What whole weights make of a token is made by the rank whose token it is; what other ranks want of that
goes to them in one collective: of latent attention the latents, of everything else its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dsc.compiler.blocks.ffn import WIDTH
from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Axis, Dim, S, Symbol
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op, tensor
from dsc.compiler.ops.context import LeaveOut, PutBack
from dsc.compiler.ops.loss import CrossEntropy, CrossEntropyAndZLoss
from dsc.compiler.ops.projection import Embedding, Linear, TiedHead
from dsc.compiler.ops.tensor import (
    CrossEntropyAndZLossOfShards,
    CrossEntropyOfShards,
    EmbeddingOfShard,
    GatherSequence,
    GatherSequences,
    SumOwnPart,
)
from dsc.compiler.passes import context
from dsc.compiler.passes.context import (
    LOSS,
    WHOLE_SEQUENCES,
    at_all_positions,
    balances,
    leave_out_beyond,
    routed_mtp_layers,
    share_balance,
)
from dsc.compiler.passes.resize import mentions, resized

BACKBONE = "Model.backbone"
PREFIX = "TensorParallel"
"""Of the classes that stand in for the model's own."""
PREFIXES = (context.PREFIX, PREFIX)
"""Of all classes that stand in for the model's own where ranks share sequences."""
OF_TENSOR = f"{PREFIX}Model"
"""The one stage where there is no pipeline."""
OF_MTP = "OfMtp"
"""Behind the name of a class for multi-token prediction alone."""
CONTEXT = "context"
"""Of a class that attends, where ranks share sequences as contexts too, the attribute that holds these ranks."""
DOC = "This rank's {shares} for whole sequences; what it is given and returns is of its own tokens."


def of_plain(name: str) -> str:
    """Of a share's class, the class of the model that it stands in for."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.removesuffix(OF_MTP)


def tensor_ranks(count: int) -> Symbol:
    return Symbol("TP", size=count)


def share_tensors(graph: Graph, count: int, context_count: int = 1) -> list[Block]:
    """The blocks of which a rank has a share, each as its share's class; the others stay as they are.

    Where ranks share sequences as contexts too (passes/context.py), what is shared here is a context's part of one.
    """
    ranks = tensor_ranks(count)
    sublayers = (block for block in graph.blocks.values() if divided(block, ranks))
    found = [share_sublayer(_in_context(block, context_count), ranks) for block in sublayers]
    found += [share_balance(block, PREFIX) for block in graph.blocks.values() if balances(block)]
    for layer in routed_mtp_layers(graph):
        beside = {block.key: block for path, block in graph.executions(layer.key) if path.startswith("mlp.")}
        found += [with_beyond(share_sublayer(block, ranks)) for block in beside.values() if divided(block, ranks)]
        found.append(leave_out_beyond(layer, PREFIX))
    return found


def _in_context(block: Block, count: int) -> Block:
    if count == 1 or not context.attends(block):
        return block
    shared = context.share_attention(block, context.context_ranks(count), CONTEXT)
    return replace(shared, class_name=block.class_name)


def with_beyond(feed_forward: Block) -> Block:
    """The shared experts of multi-token prediction, given less than a part where a part goes beyond the end.

    Routed experts must not see what is beyond; here all ranks need parts of one length.
    """
    (x,), (out,) = feed_forward.inputs, feed_forward.outputs
    padded, kept = replace(x, producer="put_back"), replace(out, producer="leave_out")
    put, leave = Node("put_back", PutBack(), (x,), (padded,)), Node("leave_out", LeaveOut(), (out,), (kept,))
    inner = feed_forward.reinfer({x: padded}).nodes()
    name = f"{feed_forward.class_name}{OF_MTP}"
    return replace(feed_forward, class_name=name, class_doc=MTP_DOC).with_nodes((put, *inner, leave), (kept,))


MTP_DOC = "The same where some of a rank's tokens may be beyond the end, which routed experts beside it do not see."


def divided(block: Block, ranks: Dim) -> dict[str, Dim]:
    """The sizes of a sublayer's weights that ranks share out, by the symbols' names, as what a rank has of them."""
    weights = [parameter.type.shape for node in block.nodes() for parameter in node.op.parameters()]
    symbols = {symbol for shape in weights for dim in shape for symbol in dim.symbols()}
    return {symbol.name: symbol // ranks for symbol in symbols if symbol.axis is Axis.HEADS or symbol == WIDTH}


def sharing_tensors(graph: Graph) -> Graph:
    """The plain graph as it is where ranks share heads, widths and the vocabulary, for however many.

    It says what generation caches as the plain graph does, for that is what contexts send each other.
    """
    ranks = tensor_ranks(1)

    def shared(block: Block) -> Block:
        if divided(block, ranks):
            return _caching(share_sublayer(block, ranks), block)
        if block.key in (BACKBONE, LOSS):
            return block.with_nodes(new for node in block.nodes() for new in _shared_line(node, ranks)).reinfer({})
        return block

    return graph.map(shared)


def _caching(share: Block, block: Block) -> Block:
    """Under the block's name, with what it caches."""
    made = {(value.producer, value.index): value for node in share.nodes() for value in node.outputs}
    cached = (replace(kept, value=made[kept.value.producer, kept.value.index]) for kept in block.cached)
    return replace(share, class_name=block.class_name, cached=tuple(cached))


def share_sublayer(block: Block, ranks: Dim) -> Block:
    """Attention of some of the heads, or some of a feed-forward's columns, over whole sequences."""
    sizes = divided(block, ranks)
    of_all = _of_all_ranks(block, sizes)
    wanted = {value for node in of_all for value in node.inputs}
    own = (block.inputs[0], *(value for node in block.nodes() if node not in of_all for value in node.outputs))
    crossing = tuple(value for value in own if value in wanted)
    gather, whole = _gathered(crossing, ranks)
    made = {value.producer for value in crossing}
    nodes: list[Node] = []
    for node in block.nodes():
        nodes += _summed(node, sizes, ranks) if node in of_all else (node,)
    last = max((index for index, node in enumerate(nodes) if node.id in made), default=-1)
    nodes.insert(last + 1, gather)
    tables = {value: _of_positions(value, ranks) for value in block.inputs[1:]}
    doc = DOC.format(shares="columns" if block.arguments else "heads")
    shared = replace(block, class_name=f"{PREFIX}{block.class_name}", class_doc=doc, cached=())
    shared = replace(shared, inputs=(block.inputs[0], *tables.values())).with_nodes(nodes)
    own_lines = (node.id for node in block.nodes() if node not in of_all)
    return shared.reinfer({**dict(zip(crossing, whole, strict=True)), **tables}, leave=(gather.id, *own_lines))


def _of_all_ranks(block: Block, sizes: Mapping[str, Dim]) -> list[Node]:
    """The nodes that work on whole sequences: those with shared weights, with tables of positions, and what follows."""
    whole = set(block.inputs[1:])
    found = []
    for node in block.nodes():
        if whole & set(node.inputs) or _is_shared(node.op, sizes):
            whole.update(node.outputs)
            found.append(node)
    return found


def _is_shared(op: Op, sizes: Mapping[str, Dim]) -> bool:
    dims = (dim for parameter in op.parameters() for dim in parameter.type.shape)
    return any(symbol.name in sizes for dim in dims for symbol in dim.symbols())


def _gathered(crossing: tuple[Value, ...], ranks: Dim) -> tuple[Node, tuple[Value, ...]]:
    names = tuple(value.name for value in crossing)
    op = GatherSequence(ranks, names) if len(names) == 1 else GatherSequences(ranks, names)
    types = op.infer(tuple(value.type for value in crossing))
    whole = tuple(
        Value("gather_sequence", index, name, type) for index, (name, type) in enumerate(zip(names, types, strict=True))
    )
    return Node("gather_sequence", op, crossing, whole, paragraph=len(names) > 1), whole


def _summed(node: Node, sizes: Mapping[str, Dim], ranks: Dim) -> Iterator[Node]:
    """The node with a rank's sizes; where its weight is shared out by rows, its result is a part of a sum."""
    shared = replace(node, op=resized(node.op, sizes))
    if not isinstance(node.op, Linear) or not mentions(node.op.in_features, sizes):
        yield shared
        return
    (result,) = node.outputs
    part = replace(result, producer=f"{node.id}.part")
    yield replace(shared, id=part.producer, outputs=(part,))
    yield Node(node.id, SumOwnPart(ranks), (part,), (result,))


def _of_positions(value: Value, ranks: Dim) -> Value:
    """A table of positions as whole sequences have it, [2, TP * S, ...]."""
    return replace(value, type=GatherSequence(ranks).infer((value.type,))[0])


def cut_weights(graph: Graph, count: int) -> dict[str, int]:
    """By the last two parts of its name, the dimension along which ranks share a weight out: 0 columns, 1 rows."""
    ranks = tensor_ranks(count)
    found: dict[str, int] = {}
    for block in graph.blocks.values():
        sizes = divided(block, ranks)
        for node in block.nodes():
            of_vocabulary = isinstance(node.op, Embedding) or is_head(node.op)
            for parameter in node.op.parameters():
                for index, dim in enumerate(parameter.type.shape):
                    if mentions(dim, sizes) or (of_vocabulary and Axis.VOCABULARY in dim.axes()):
                        found[parameter.name] = index
    return found


def share_step(step: Block, count: int) -> Block:
    """A step over this rank's part of every sequence and of the vocabulary; tokens and labels come whole."""
    ranks = tensor_ranks(count)
    step = at_all_positions(step)
    whole = {value: _of_all(value, ranks) for value in step.inputs if value.name in WHOLE_SEQUENCES}
    given = tuple(whole.get(value, value) for value in step.inputs)
    body = [new for node in step.nodes() for new in _shared_line(node, ranks)]
    return replace(step, inputs=given).with_nodes(body).reinfer(whole)


def _of_all(value: Value, ranks: Dim) -> Value:
    """Tokens or labels [B, S], or [B, CP * S], of all ranks that share them."""
    type = tensor(value.type)
    return replace(value, type=replace(type, shape=tuple(dim.substitute({S.name: ranks * S}) for dim in type.shape)))


def _shared_line(node: Node, ranks: Dim) -> Iterator[Node]:
    """The lines that read or make what is of the vocabulary; types follow from the inputs' when all is there."""
    op = node.op
    if isinstance(op, Embedding):
        (value,) = node.outputs
        part = replace(value, producer=f"{node.id}.part")
        shard = EmbeddingOfShard(op.name, op.vocab_size // ranks, op.hidden_size, op.dtype)
        yield replace(node, id=part.producer, op=shard, outputs=(part,))
        yield Node(node.id, SumOwnPart(ranks), (part,), (value,))
    elif is_head(op):
        (own,) = node.inputs
        whole = replace(own, producer=f"{node.id}.whole", index=0, name=f"whole_{own.name}")
        yield Node(whole.producer, GatherSequence(ranks, (own.name,)), (own,), (whole,))
        yield replace(node, op=_share_of_head(op, ranks), inputs=(whole,))
    elif isinstance(op, CrossEntropy):
        of_shards = CrossEntropyOfShards()
        if isinstance(op, CrossEntropyAndZLoss):
            of_shards = CrossEntropyAndZLossOfShards(op.weight)
        yield replace(node, op=of_shards)
    else:
        yield node


def is_head(op: Op) -> bool:
    return isinstance(op, TiedHead) or (isinstance(op, Linear) and Axis.VOCABULARY in op.out_features.axes())


def _share_of_head(op: Op, ranks: Dim) -> Op:
    if isinstance(op, TiedHead):
        return replace(op, vocab_size=op.vocab_size // ranks)
    assert isinstance(op, Linear)
    return replace(op, out_features=op.out_features // ranks)
