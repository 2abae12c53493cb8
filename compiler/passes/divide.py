"""The graph of one rank of a group that writes the same texts: some of the heads, widths and tokens of the vocabulary.

Products whose results are divided need nothing else. Those that sum over what is divided have a part of the sum on each
rank, and it is added up; what is chosen among the vocabulary is gathered (Megatron-LM, arXiv 1909.08053, section 3).
Latents have no heads: who attends to them needs all of each, so their cache is whole on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Axis, Blocks, Dim, Symbol
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op, tensor
from dsc.compiler.ops.call import BlockCall, CallModule, Signature
from dsc.compiler.ops.exchange import SendRows
from dsc.compiler.ops.projection import Embedding, Linear, TiedHead
from dsc.compiler.ops.together import AddUp, EmbedPart, GatherLogits, GatherTokens, OwnTokens
from dsc.compiler.passes.pack import TOKENS
from dsc.compiler.passes.resize import resized

DIVIDED = frozenset((Axis.HEADS, Axis.FEED_FORWARD, Axis.VOCABULARY))


def divide_layers(graph: Graph, ranks: int) -> Graph:
    """Every size that is divided is that of one rank, in all blocks; collectives follow where they are needed."""
    sizes = _of_a_rank(graph.constants, ranks)
    blocks: dict[str, Block] = {}
    for key, block in graph.blocks.items():
        smaller = block.rewrite(partial(_smaller, sizes=sizes, done=blocks), {})
        blocks[key] = _joined(smaller, graph.blocks[key])
    return replace(graph, blocks=blocks)


def deal_tokens(graph: Graph) -> Graph:
    """In a mixture of experts each rank of a group sends some of the group's tokens, and gets back what all had."""
    ranks = tensor_ranks(graph.constants)
    return graph.map(lambda block: _dealt(block, ranks) if _sends(block) else block)


def cut_dims(whole: Graph, divided: Graph) -> dict[str, int]:
    """The parameters that are divided, by the last parts of their names, and along which dim."""
    read = divided.parameters()
    found: dict[str, int] = {}
    for name, parameter in whole.parameters().items():
        cut = [dim for dim, size in enumerate(parameter.type.shape) if _is_divided(size)]
        if cut and name in read:
            (found[".".join(name.split(".")[-3:])],) = cut
    return found


def tensor_ranks(constants: Constants) -> Symbol:
    return next(symbol for symbol in constants.symbols() if symbol.name == "TENSOR_RANKS")


def _of_a_rank(constants: Constants, ranks: int) -> Mapping[str, Dim]:
    whole = constants.symbols()
    size = constants.dim("TENSOR_RANKS", ranks, "serving.tp", letter="P")
    everybody = next((symbol for symbol in whole if symbol.name == "SERVING_RANKS"), None)
    if everybody is None:
        everybody = constants.derived("SERVING_RANKS", size)
    constants.derived("SERVING_GROUPS", everybody // size)
    return {
        symbol.name: constants.derived(f"RANK_{symbol.name.removeprefix('NUM_')}", symbol // size, axis=symbol.axis)
        for symbol in whole
        if symbol.axis in DIVIDED
    }


def _smaller(node: Node, sizes: Mapping[str, Dim], done: Mapping[str, Block]) -> Iterator[Node]:
    op = resized(node.op, sizes)
    if isinstance(op, Embedding):
        op = EmbedPart(**vars(op))
    if isinstance(op, BlockCall):
        op = op.retarget(Signature.of(done[op.callee()]))
    yield replace(node, op=op)


def _joined(block: Block, whole: Block) -> Block:
    """Behind each node whose result is divided though its readers want all of it: what makes it whole."""
    replacements: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in block.nodes():
        nodes.append(node)
        if (join := _join(node, whole.node(node.id))) is not None:
            old = node.outputs[0]
            (type,) = join.infer((old.type,))
            new = Value(f"{node.id}.{join.kind}", 0, old.name, type)
            nodes.append(Node(new.producer, join, (old,), (new,)))
            replacements[old] = new
    return block.with_nodes(nodes).reinfer(replacements, leave=tuple(new.producer for new in replacements.values()))


def _join(node: Node, whole: Node) -> Op | None:
    match node.op:
        case EmbedPart():
            return AddUp()
        case Linear(in_features=summed) if _is_divided(summed):
            return AddUp()
        case CallModule(arguments=sizes) if any(_is_divided(size) for _, size in sizes):
            return AddUp()
        case Linear() | TiedHead() if Axis.VOCABULARY in _width(node).axes():
            return GatherLogits(_width(whole))
    return None


def _width(node: Node) -> Dim:
    return tensor(node.outputs[0].type).shape[-1]


def _is_divided(size: Dim) -> bool:
    return bool(size.axes() & DIVIDED)


def _sends(block: Block) -> bool:
    return any(isinstance(node.op, SendRows) for node in block.nodes())


def _dealt(mixture: Block, ranks: Symbol) -> Block:
    own = OwnTokens(ranks)
    x = mixture.inputs[0]
    (type,) = own.infer((x.type,))
    mine = Value("mine", 0, "mine", type)
    part = {TOKENS.name: Blocks(TOKENS, ranks)}
    nodes = [Node("mine", own, (x,), (mine,)), *(replace(n, op=resized(n.op, part)) for n in mixture.nodes())]
    dealt = mixture.with_nodes(nodes).reinfer({x: mine}, leave=("mine",))
    (out,) = dealt.outputs
    all = replace(out, producer="gather_tokens", type=x.type)
    return dealt.with_nodes([*dealt.nodes(), Node(all.producer, GatherTokens(), (out, x), (all,))], (all,))
