"""A layout's shares in the graph: sequences over ranks, with the collectives that show a rank what others have."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Dim, Product, Symbol
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.types import TensorType
from dsc.compiler.ops.attention import CausalAttention, WindowedAttention
from dsc.compiler.ops.call import CallFunction, CallListed, CallModule
from dsc.compiler.ops.context import (
    Ahead,
    ContextAttention,
    ContextDocumentAttention,
    GatherContext,
    LabelsAhead,
    LabelsAheadInDocument,
    LeaveOut,
    OwnPart,
    PutBack,
    RelativeLoadOfSequence,
    ShareOfMean,
    SumNormalizedScore,
    SumOverContext,
    SumProbability,
)
from dsc.compiler.ops.moe import EveryExpert
from dsc.compiler.ops.packed import (
    DocumentAttention,
    DocumentAttentionInWindow,
    DocumentStarts,
    LabelsInDocument,
    VisibleInDocument,
)
from dsc.compiler.ops.rope import RotaryTable
from dsc.compiler.ops.router import (
    CountExperts,
    MeanNormalizedScore,
    MeanProbability,
    RelativeLoad,
    SequenceBalanceLoss,
)
from dsc.compiler.ops.shape import SkipFirst, SkipLast
from dsc.compiler.passes.fuse.pattern import find

PREFIX = "ContextParallel"
"""Of the classes that stand in for the model's own."""
OF_CONTEXT = f"{PREFIX}Model"
"""The one stage where there is no pipeline."""
TOKENS, LABELS, DOCUMENTS = "tokens", "labels", "documents"
LOSS = "Model.loss"
WHOLE_SEQUENCES = (TOKENS, LABELS, DOCUMENTS)
"""What a step is given of all ranks' parts."""
STARTS = "starts"
"""Where documents begin, which blocks that attend are handed (passes/packed.py): of whole sequences too."""


def context_ranks(count: int) -> Symbol:
    return Symbol("CP", size=count)


def share_context(graph: Graph, count: int) -> list[Block]:
    """The blocks whose tokens read those of other ranks, each as its class's share; the others stay as they are."""
    ranks = context_ranks(count)
    found = [share_attention(block, ranks) for block in graph.blocks.values() if attends(block)]
    found += [share_balance(block) for block in graph.blocks.values() if balances(block)]
    return found + [leave_out_beyond(block) for block in routed_mtp_layers(graph)]


def attends(block: Block) -> bool:
    return any(isinstance(node.op, CausalAttention) for node in block.nodes())


def balances(block: Block) -> bool:
    return any(isinstance(node.op, SequenceBalanceLoss) for node in block.nodes())


def rows_sent(block: Block) -> tuple[Value, ...]:
    """What attention must know of other ranks' tokens: just what generation would cache of them."""
    return tuple(kept.value for kept in block.cached)


def share_attention(block: Block, ranks: Dim, group: str = "group") -> Block:
    """Attention of this rank's queries to the keys of all ranks. `group`: the attribute that holds them."""
    rows = rows_sent(block)
    names = tuple(value.name for value in rows)
    op = GatherContext(ranks, names, group)
    types = op.infer(tuple(value.type for value in rows))
    gathered = tuple(
        Value("gather_context", index, name, type) for index, (name, type) in enumerate(zip(names, types, strict=True))
    )
    gather = Node("gather_context", op, rows, gathered, paragraph=True)
    nodes = [new for node in block.nodes() for new in _over_context(block, node, group)]
    last = max(index for index, node in enumerate(nodes) if set(node.outputs) & set(rows))
    nodes.insert(last + 1, gather)
    starts = {value: widened(value, ranks) for value in block.inputs if value.name == STARTS}
    given = tuple(starts.get(value, value) for value in block.inputs)
    name = f"{PREFIX}{block.class_name}"
    shared = replace(block, inputs=given, class_name=name, class_doc=ATTENTION_DOC, cached=())
    whole = {**starts, **dict(zip(rows, gathered, strict=True))}
    return shared.with_nodes(nodes).reinfer(whole, leave=(gather.id,))


ATTENTION_DOC = "The queries of this rank's part of a sequence over the keys of all parts."


def _over_context(block: Block, node: Node, group: str) -> Iterator[Node]:
    """Attention as that of two halves, each of which makes its own mask."""
    op = node.op
    if isinstance(op, VisibleInDocument):
        return
    if isinstance(op, DocumentAttention):
        windowed = isinstance(op, DocumentAttentionInWindow)
        over = "windowed_document_prefix_attention" if windowed else "document_prefix_attention"
        *rows, visible = node.inputs
        mask = block.producer(visible)
        assert mask is not None
        within = ContextDocumentAttention(op.variant, op.prefix, over=over, group=group)
        yield replace(node, op=within, inputs=(*rows, *mask.inputs), paragraph=mask.paragraph)
    elif isinstance(op, CausalAttention):
        over = "windowed_attention" if isinstance(op, WindowedAttention) else "prefix_attention"
        yield replace(node, op=ContextAttention(op.variant, op.prefix, over=over, group=group))
    else:
        yield node


def share_balance(block: Block, prefix: str = PREFIX) -> Block:
    """The balance loss of a whole sequence: counts are summed over its ranks; of the scores each has its share."""
    mean, kind = find(block, MeanProbability)
    counted = find(block, CountExperts)[0]
    load, relative = find(block, RelativeLoad)
    (p,), (counts,) = mean.outputs, counted.outputs
    whole = replace(counts, producer=f"{counted.id}.whole")
    share = replace(p, producer=f"{mean.id}.share")
    summed = SumNormalizedScore() if isinstance(kind, MeanNormalizedScore) else SumProbability()

    def rewrite(node: Node) -> Iterator[Node]:
        if node is mean:
            yield replace(node, op=summed)
        elif node is load:
            yield Node(whole.producer, SumOverContext(), (counts,), (whole,))
            yield Node(share.producer, ShareOfMean(relative.top_k), (p, whole), (share,))
            yield replace(node, op=RelativeLoadOfSequence(relative.num_experts), inputs=(whole,))
        elif isinstance(node.op, SequenceBalanceLoss):
            yield replace(node, inputs=tuple(share if value == p else value for value in node.inputs))
        else:
            yield node

    shared = replace(block, class_name=f"{prefix}{block.class_name}", class_doc=BALANCE_DOC)
    return shared.with_nodes(new for node in block.nodes() for new in rewrite(node))


BALANCE_DOC = "A router whose balance loss is this rank's share of that of the whole sequence."


def routed_mtp_layers(graph: Graph) -> Iterator[Block]:
    """The layer of multi-token prediction, if it routes."""
    ops = [node.op for block in graph.methods(graph.root) for node in block.nodes()]
    modules = dict.fromkeys(key for op in ops if isinstance(op, CallListed) for key in op.callees())
    layers = dict.fromkeys(key for module in modules for node in graph.blocks[module].nodes() for key in _called(node))
    yield from (graph.blocks[key] for key in layers if _routed_call(graph, graph.blocks[key]) is not None)


def _called(node: Node) -> tuple[str, ...]:
    return node.op.callees() if isinstance(node.op, Call) else ()


def _routed_call(graph: Graph, layer: Block) -> Node | None:
    """The node of a layer that calls a mixture of experts."""
    for node in layer.nodes():
        inside = [inner.op for key in _called(node) for inner in graph.blocks[key].nodes()]
        if any(isinstance(op, EveryExpert) for op in inside):
            return node
    return None


def leave_out_beyond(layer: Block, prefix: str = PREFIX) -> Block:
    """Multi-token prediction's layer: its last positions predict what no label tells, and must not choose experts."""
    call = next(node for node in layer.nodes() if isinstance(node.op, CallModule) and node.op.name == "mlp")
    (h, *besides), (result, *losses) = call.inputs, call.outputs
    kept = replace(h, producer=f"{call.id}.kept")
    inner = replace(result, producer=f"{call.id}.inner")

    def rewrite(node: Node) -> Iterator[Node]:
        if node is not call:
            yield node
            return
        yield Node(kept.producer, LeaveOut(), (h,), (kept,))
        moved = tuple(replace(value, producer=inner.producer) for value in losses)
        yield replace(call, id=inner.producer, inputs=(kept, *besides), outputs=(inner, *moved))
        yield Node(call.id, PutBack(), (inner,), (result,))

    replacements = {value: replace(value, producer=inner.producer) for value in losses}
    block = replace(layer, class_name=f"{prefix}{layer.class_name}", class_doc=MTP_DOC)
    return block.with_nodes(new for node in layer.nodes() for new in rewrite(node)).reinfer(replacements)


MTP_DOC = "A layer of multi-token prediction: positions beyond the end of the sequence choose no experts."


def predict_at_all_positions(graph: Graph) -> Graph:
    return replace(graph, blocks={**graph.blocks, LOSS: at_all_positions(graph.blocks[LOSS])})


def at_all_positions(block: Block) -> Block:
    """Multi-token prediction at all positions of a sequence, so that they divide: the last ones have no labels.

    Tokens and labels further ahead are cut from the whole, so that no rank asks another for its first ones.
    """
    found: dict[Value, tuple[Value, int]] = {value: (value, 0) for value in block.inputs}
    same: dict[Value, Value] = {}
    nodes = []
    for node in block.nodes():
        if isinstance(node.op, LabelsInDocument):
            nodes.append(replace(node, op=LabelsAheadInDocument(node.op.ahead)))
        elif isinstance(node.op, SkipLast):
            same[node.outputs[0]] = same.get(node.inputs[0], node.inputs[0])
        elif isinstance(node.op, SkipFirst):
            source, before = found[node.inputs[0]]
            ahead = before + node.op.count
            found[node.outputs[0]] = source, ahead
            op = LabelsAhead(ahead) if source.name == LABELS else Ahead(ahead)
            nodes.append(replace(node, op=op, inputs=(source,)))
        else:
            nodes.append(node)
    return block.with_nodes(nodes).reinfer(same)


def share_step(step: Block, count: int, whole_inputs: Collection[str] = WHOLE_SEQUENCES) -> Block:
    """A step over this rank's part of every sequence; some inputs come whole."""
    ranks = context_ranks(count)
    step = at_all_positions(step)
    whole = {value: widened(value, ranks) for value in step.inputs if value.name in whole_inputs}
    own: dict[Value, Value] = {}
    body = [_own(value, wide, f"own_{value.name}", ranks, own) for value, wide in whole.items()]
    for node in step.nodes():
        cut = isinstance(node.op, Ahead | RotaryTable)
        of_module = isinstance(node.op, CallFunction) and not node.op.path()
        reads_whole = cut or of_module or isinstance(node.op, DocumentStarts)
        inputs = tuple(whole[v] if reads_whole and v in whole else own.get(v, v) for v in node.inputs)
        if not cut:
            body.append(replace(node, inputs=inputs))
            continue
        (value,) = node.outputs
        (type,) = node.op.infer(tuple(one.type for one in inputs))
        wide = replace(value, type=type)
        body += [replace(node, inputs=inputs, outputs=(wide,)), _own(value, wide, value.name, ranks, own)]
    outputs = tuple(own.get(value, value) for value in step.outputs)
    read = {value for node in body for value in node.inputs}
    body = [node for node in body if not isinstance(node.op, OwnPart) or read.intersection(node.outputs)]
    given = tuple(whole.get(value, value) for value in step.inputs)
    return replace(step, inputs=given).with_nodes(body, outputs).reinfer({})


def widened(value: Value, ranks: Dim) -> Value:
    batch, sequence = tensor(value.type).shape
    return replace(value, type=TensorType((batch, Product(ranks, sequence)), tensor(value.type).dtype))


def _own(value: Value, whole: Value, name: str, ranks: Dim, own: dict[Value, Value]) -> Node:
    """This rank's part of what is whole, which is to stand for `value`."""
    op = OwnPart(ranks)
    part = Value(f"{value.producer}{name}.own", 0, name, op.infer((whole.type,))[0])
    own[value] = part
    return Node(part.producer, op, (whole,), (part,))
