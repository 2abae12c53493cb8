"""Attention against pages: what is kept of new tokens is written, and what needs the texts so far reads it back.

The part of an attention block that stands on kept values becomes a block of its own, run for each group of texts with
equally many new tokens. Where keys and values of heads are made from a latent there is a second one, which attends to
the latents themselves: DeepSeek-V2, section 2.1.
"""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Dim, Symbol, product, total
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.types import TensorType, ValueType
from dsc.compiler.ops.attention import CausalAttention, WindowedAttention
from dsc.compiler.ops.call import BlockCall, CycleFunctions, RepeatFunctions, RepeatLayers, Signature
from dsc.compiler.ops.fused.latent import AbsorbUp, AbsorbValue, UpProjections
from dsc.compiler.ops.paged import (
    BATCH,
    CACHES,
    GROUP,
    AttendGroups,
    AttendGroupsEitherWay,
    ReadRows,
    SharedAttention,
    VisibleAttention,
    VisibleInWindow,
    WriteRows,
)
from dsc.compiler.ops.projection import Linear
from dsc.compiler.ops.rope import RotaryTable
from dsc.compiler.ops.shape import Concat, Split, Unflatten

PAGES, PAGE = Symbol("pages"), Symbol("page")
EXPANDED = "Attention of a group over keys and values made from the latents of its pages."
ABSORBED = "Attention of a group over the latents of its pages themselves (DeepSeek-V2, section 2.1)."
GROUPED = "Attention of a group over the keys and values of its pages."


def with_pages(graph: Graph) -> Graph:
    """Every block that keeps something, and pages handed down to it from the roots."""
    blocks: dict[str, Block] = {}
    for key, block in graph.blocks.items():
        if block.cached:
            *forms, block = _paged(block)
            blocks |= {form.key: form for form in forms}
        blocks[key] = _hand_down(block, blocks)
    return replace(graph, blocks=blocks)


def row_width(block: Block) -> Dim:
    """Numbers that a token leaves in the cache of one layer."""
    return total([_width(kept.value) for kept in block.cached])


def _width(value: Value) -> Dim:
    return product(tensor(value.type).shape[2:])


def _paged(block: Block) -> tuple[Block, ...]:
    """The blocks that attend, then the one that calls them."""
    kept = [kept.value for kept in block.cached]
    attention = next(node for node in block.nodes() if isinstance(node.op, CausalAttention))
    inside = _standing_on(block, kept, attention)
    query = block.producer(attention.inputs[0])
    if len(inside) > 1 and query is not None and isinstance(query.op, Concat):  # both forms put q together themselves
        inside = (query, *inside)
    made = {value for node in inside for value in node.outputs}
    queries = tuple(dict.fromkeys(v for n in inside for v in n.inputs if v not in made and v not in kept))
    pages = TensorType((PAGES, PAGE, row_width(block)), tensor(kept[0].type).dtype)

    forms = [_attending(block, inside, queries, pages)]
    op: AttendGroups = AttendGroups(Signature.of(forms[0]))
    if any(isinstance(node.op, Linear) for node in inside):
        forms.append(_absorbed(block, inside, queries, pages))
        op = AttendGroupsEitherWay(Signature.of(forms[1]), Signature.of(forms[0]), _prefix(attention))
    return (*forms, _outside(block, inside, attention, op, queries, pages))


def _standing_on(block: Block, kept: list[Value], attention: Node) -> tuple[Node, ...]:
    """The nodes that need kept values of all tokens, attention the last of them."""
    needed, nodes = set(kept), []
    for node in block.nodes():
        if needed & set(node.inputs):
            nodes.append(node)
            needed.update(node.outputs)
        if node is attention:
            return tuple(nodes)
    raise AssertionError(block.key)


def _outside(
    block: Block,
    inside: tuple[Node, ...],
    attention: Node,
    op: AttendGroups,
    queries: tuple[Value, ...],
    pages: TensorType,
) -> Block:
    kept = tuple(one.value for one in block.cached)
    batch = Value(INPUT, len(block.inputs), "batch", BATCH)
    cache = Value(INPUT, len(block.inputs) + 1, "pages", pages)
    write = Node("write_rows", WriteRows(tuple(f"x{i}" for i in range(len(kept)))), (*kept, batch, cache), (), False)
    gone = {node.id for node in inside}
    nodes: list[Node] = []
    for node in block.nodes():
        if node is attention:
            nodes += [write, replace(node, op=op, inputs=(*queries, batch, cache), paragraph=True)]
        elif node.id not in gone:
            nodes.append(node)
    doc = block.class_doc.replace(" in its expanded form", "")
    return replace(block, class_doc=doc, inputs=(*block.inputs, batch, cache), cached=()).with_nodes(nodes)


def _attending(block: Block, inside: tuple[Node, ...], queries: tuple[Value, ...], pages: TensorType) -> Block:
    """The nodes themselves, behind the rows that they stand on."""
    expands = any(isinstance(node.op, Linear) for node in inside)
    doc, method = (EXPANDED, "expanded") if expands else (GROUPED, "attend")
    form, known, group = _opened(block, doc, method, queries, pages)
    kept = [kept.value for kept in block.cached]
    for value, read in zip(kept, _rows(form, kept, known[queries[0]], group), strict=True):
        known[value] = read
    for node in inside:
        inputs = [known[value] for value in node.inputs]
        if isinstance(node.op, CausalAttention):
            return form.finish(form.add("out", _visible(node.op), *inputs, group[0]))
        known.update(zip(node.outputs, form.add_many([v.name for v in node.outputs], node.op, *inputs), strict=True))
    raise AssertionError(block.key)


def _visible(attention: CausalAttention) -> VisibleAttention:
    if isinstance(attention, WindowedAttention):
        return VisibleInWindow(attention.variant, attention.prefix, window=attention.window)
    return VisibleAttention(attention.variant, attention.prefix)


def _prefix(attention: Node) -> str:
    assert isinstance(attention.op, CausalAttention)
    return attention.op.prefix


def _absorbed(block: Block, inside: tuple[Node, ...], queries: tuple[Value, ...], pages: TensorType) -> Block:
    form, known, group = _opened(block, ABSORBED, "absorbed", queries, pages)
    (linear,) = (node.op for node in inside if isinstance(node.op, Linear))
    prefix = _prefix(inside[-1])
    heads, _ = next(node.op for node in inside if isinstance(node.op, Unflatten)).sizes
    nope, value = next(node.op for node in inside if isinstance(node.op, Split)).sizes
    q_nope, q_rope = (known[query] for query in queries)
    latent = _width(block.cached[0].value)

    w_uk, w_uv = form.add_many(("w_uk", "w_uv"), UpProjections(linear, heads, nope, value))
    q_latent = form.add("q_latent", AbsorbUp(), q_nope, w_uk)
    q = form.add("q", Concat(), q_latent, q_rope)
    rows = form.add("rows", ReadRows(), group[1], group[0], q)
    kv_latent, _ = form.add_many(("kv_latent", "k_rope"), Split((latent, _width(block.cached[1].value))), rows)
    out_latent = form.add("out_latent", SharedAttention(prefix), q, rows, kv_latent, group[0])
    return form.finish(form.add("out", AbsorbValue(), out_latent, w_uv))


def _opened(
    block: Block, doc: str, method: str, queries: tuple[Value, ...], pages: TensorType
) -> tuple[BlockBuilder, dict[Value, Value], tuple[Value, Value]]:
    """A block of the same class that is given queries, a group and its layer's pages."""
    form = BlockBuilder(block.class_name, doc, method=method)
    known = {query: form.input(query.name, query.type) for query in queries}
    return form, known, (form.input("group", GROUP), form.input("pages", pages))


def _rows(form: BlockBuilder, kept: list[Value], x: Value, group: tuple[Value, Value]) -> list[Value]:
    """What was kept of each token: [B, C, ...] each."""
    rows = form.add("rows", ReadRows(), group[1], group[0], x)
    parts = form.add_many([value.name for value in kept], Split(tuple(_width(value) for value in kept)), rows)
    shapes = [tensor(value.type).shape[2:] for value in kept]
    return [
        form.add(part.name, Unflatten(shape), part) if len(shape) > 1 else part
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _hand_down(block: Block, done: dict[str, Block]) -> Block:
    """Calls of blocks that take a batch and pages pass them on; a block with such calls takes them from its caller."""
    given: dict[str, Value] = {}

    def argument(name: str, type: ValueType) -> Value:
        return given.setdefault(name, Value(INPUT, len(block.inputs) + len(given), name, type))

    nodes = []
    if any(isinstance(node.op, RotaryTable) for node in block.nodes()):
        argument("batch", BATCH)  # of which each token's position is read
    for node in block.nodes():
        if isinstance(node.op, BlockCall) and not isinstance(node.op, AttendGroups):
            signature = Signature.of(done[node.op.callee()])
            wants = zip(signature.names, signature.inputs, strict=True)
            op: BlockCall = node.op.retarget(signature)
            more = []
            for name, type in list(wants)[len(node.op.signature.inputs) :]:
                if name == "pages" and isinstance(op, RepeatLayers):
                    kind = RepeatFunctions if len(op.classes) == 1 else CycleFunctions
                    op = kind(signature, op.classes, op.count, op.first, op.slice)
                    name, type = "caches", CACHES
                more.append(argument(name, type))
            node = replace(node, op=op, inputs=(*node.inputs, *more))
        nodes.append(node)
    return replace(block, inputs=(*block.inputs, *given.values())).with_nodes(nodes)
