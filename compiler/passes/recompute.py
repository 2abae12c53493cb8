"""What backward makes again instead of keeping: lines that drop a result, and methods that run once more.

`norms` and `swiglu` drop the results of element-wise ops, which are made again from what those ops save; products in
FP8 that read them keep no codes either, but encode them again. The other choices make a method of the lines between two
places of a block; of what it makes nothing is kept, only what it reads:
    mla_up_proj  from the latents to q, k and v (DeepSeek-V3, section 3.2.3)
    experts      from the dispatched tokens to the experts' results
    full         a layer, whole
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import OpClass
from dsc.compiler.graph.saved import Step, Storage, trace
from dsc.compiler.ops.call import LayerLoop, Signature
from dsc.compiler.ops.context import GatherContext
from dsc.compiler.ops.dispatch import RecordSent
from dsc.compiler.ops.elementwise import Add
from dsc.compiler.ops.fused.experts import RoutedAndSharedExperts
from dsc.compiler.ops.fused.fp8 import Fp8Linears
from dsc.compiler.ops.fused.norm import AddRmsNorm, FusedRmsNorm
from dsc.compiler.ops.moe import RecordLoad
from dsc.compiler.ops.recompute import CallAgain, Drop, Remade
from dsc.compiler.passes.fuse.pattern import used_outside
from dsc.compiler.passes.shard import EXPERT_PARALLEL, MOE
from dsc.compiler.passes.tensor import PREFIXES, of_plain

METHODS = {"mla_up_proj": "up_projections", "experts": "multiply", "full": "run"}
"""What the methods are called that run once more."""


def make_again(graph: Graph, choices: Collection[str]) -> Graph:
    """Every block that a pipeline runs; kernels are there already, and what is dropped follows from what they save."""
    if not choices:
        return graph
    blocks: dict[str, Block] = {}
    dropped = _Dropped(graph, choices)
    for block in graph.blocks.values():
        changed = (block,) if block.class_name == graph.root else _changed(dropped, block, choices)
        blocks.update((each.key, each) for each in changed)
    return replace(graph, blocks=blocks)


def drops(choices: Collection[str]) -> bool:
    """Whether tensors are dropped inside layers; else layers are run again whole, or nothing is."""
    return bool(choices) and "full" not in choices


def layer_blocks(graph: Graph) -> frozenset[str]:
    """The blocks that layers run, MTP's among them."""
    ops = (node.op for block in graph.blocks.values() for node in block.nodes())
    return frozenset(callee for op in ops if isinstance(op, LayerLoop) for callee, _ in op.runs())


@dataclass(frozen=True)
class _Dropped:
    """What element-wise ops drop, through views and calls."""

    graph: Graph
    choices: Collection[str]

    def drops(self, block: Block, value: Value) -> bool:
        node = block.producer(value)
        if node is None:
            return value in block.inputs and self._drops_argument(block, block.inputs.index(value))
        if node.op.recompute in self.choices:
            saved = node.op.saved(node.input_types, node.output_types)
            return all((one.source, one.index) != ("output", value.index) for one in saved)
        of = node.op.memory(node.input_types, node.output_types)[value.index]
        return isinstance(of, int) and self.drops(block, node.inputs[of])

    def _drops_argument(self, block: Block, index: int) -> bool:
        """Whether all who call the block drop what they give it."""
        calls = self._calls.get(_stands_in_for(block), ())
        return bool(calls) and all(self.drops(caller, node.inputs[index]) for caller, node in calls)

    @cached_property
    def _calls(self) -> dict[str, list[tuple[Block, Node]]]:
        found: dict[str, list[tuple[Block, Node]]] = {}
        for block in self.graph.blocks.values():
            for node in block.nodes():
                for key in node.op.callees() if isinstance(node.op, Call) else ():
                    found.setdefault(key, []).append((block, node))
        return found


def _stands_in_for(block: Block) -> str:
    """The key by which others call what runs as a rank's share: the plain block's."""
    return MOE if block.class_name == EXPERT_PARALLEL else f"{of_plain(block.class_name)}.{block.method}"


def _changed(dropped: _Dropped, block: Block, choices: Collection[str]) -> Iterator[Block]:
    """The methods that the block has come to call, and itself; what generation caches is not its business any more."""
    graph = dropped.graph
    encoded = {node.id for node in block.nodes() if _keeps_codes(node) and dropped.drops(block, node.inputs[0])}
    block = replace(block, cached=())
    if "full" in choices:
        block = block.with_nodes(_counting_once(node) for node in block.nodes())
        whole = of_plain(block.key) in layer_blocks(graph)
        yield from _outlined(block, list(block.nodes()), METHODS["full"]) if whole else (block,)
        return
    if "experts" in choices:
        block = block.with_nodes(line for node in block.nodes() for line in _without_shared(node))
        graph = replace(graph, blocks={**graph.blocks, block.key: block})
    steps = tuple(step for step in trace(graph, block.key) if not step.path)
    for choice in METHODS.keys() & choices:
        again = {id(steps[index].node) for index in region(steps, frozenset((choice,)))}
        if inside := [node for node in block.nodes() if id(node) in again]:
            method, block = _outlined(block, inside, _method_name(block, choice))
            yield method
    yield block.with_nodes(
        line
        for node in block.nodes()
        for line in ((_encoding_again(node),) if node.id in encoded else _dropping(node, choices))
    )


def _method_name(block: Block, choice: str) -> str:
    """A share of sequences inherits from its class, whose method reads what is of one rank alone."""
    return f"{METHODS[choice]}_of_sequence" if block.class_name.startswith(PREFIXES) else METHODS[choice]


def _counting_once(node: Node) -> Node:
    """Tokens are counted when forward runs, not when it runs again."""
    return replace(node, op=replace(node.op, once=True)) if isinstance(node.op, RecordLoad | RecordSent) else node


def _without_shared(node: Node) -> Iterator[Node]:
    """The shared experts' result is added behind routed experts, which run again without it."""
    if not isinstance(node.op, RoutedAndSharedExperts):
        yield node
        return
    *routed, shared = node.inputs
    (result,) = node.outputs
    inner = replace(result, producer=f"{node.id}.routed")
    yield Node(inner.producer, node.op.routed(**vars(node.op)), tuple(routed), (inner,), node.paragraph)
    yield Node(node.id, Add(), (inner, shared), (result,))


def _outlined(block: Block, inside: list[Node], name: str) -> tuple[Block, Block]:
    """Some nodes as a method of their own, and the block with a call in the place of the last of them."""
    made = [value for node in inside for value in node.outputs]
    given = tuple(dict.fromkeys(value for node in inside for value in node.inputs if value not in made))
    left = tuple(value for value in made if used_outside(block, value, inside))
    inputs = tuple(replace(value, producer=INPUT, index=index) for index, value in enumerate(given))
    first, *rest = inside
    method = replace(block, method=name, doc="", class_doc="", inputs=inputs, arguments=(), outputs=left).with_nodes(
        (replace(first, paragraph=False), *rest)
    )
    method = method.reinfer(dict(zip(given, inputs, strict=True)))
    last = inside[-1].id
    results = tuple(replace(value, producer=last, index=index) for index, value in enumerate(left))
    call = Node(last, CallAgain(Signature.of(method)), given, results, first.paragraph)
    ids = {node.id for node in inside} - {last}
    body = [call if node.id == last else node for node in block.nodes() if node.id not in ids]
    return method, block.with_nodes(body).reinfer(dict(zip(left, results, strict=True)))


def _keeps_codes(node: Node) -> bool:
    return isinstance(node.op, Fp8Linears) and node.op.saves_codes


def _encoding_again(node: Node) -> Node:
    assert isinstance(node.op, Fp8Linears)
    return replace(node, op=node.op.encoding_again())


def _dropping(node: Node, choices: Collection[str]) -> Iterator[Node]:
    """The node so that its result is dropped, if that is one of the choices."""
    if node.op.recompute not in choices:
        yield node
    elif isinstance(node.op, AddRmsNorm):  # the sum is kept
        total, normed = node.outputs
        yield node
        yield Node(f"{node.id}.drop", Drop(FusedRmsNorm(**vars(node.op))), (normed, total), ())
    else:
        yield replace(node, op=Remade(node.op))


def region(steps: tuple[Step, ...], choices: frozenset[str], layer: str | None = "") -> frozenset[int]:
    """Positions of the steps that run a second time. `layer`: the path of the layer among them, None where none is."""
    found: set[int] = set()
    if "full" in choices:
        inside = (index for index, step in enumerate(steps) if layer is not None and step.path.startswith(layer))
        return frozenset(inside)
    if "experts" in choices:
        routed = [index for index, step in enumerate(steps) if is_routed(step)]
        if routed:
            found |= _between(steps, routed[0], routed[-1])
    if "mla_up_proj" in choices:
        for index, step in enumerate(steps):
            if step.node.op.op_class is OpClass.ATTENTION:
                found |= _up_projections(steps, index)
    return frozenset(found)


def is_routed(step: Step) -> bool:
    return any(parameter.is_routed for parameter in step.node.op.parameters())


def made_in(step: Step) -> set[Storage]:
    """Memory that comes to be in a step: results that are no views, and what the op keeps to itself."""
    given = set(step.inputs)
    return {one for one in (*step.outputs, *step.saved) if one is not None and one not in given}


def _between(steps: tuple[Step, ...], first: int, last: int) -> set[int]:
    """A step, what follows from it, and a later one that it leads to."""
    reached, made = {first}, made_in(steps[first])
    for index in range(first + 1, last + 1):
        if made & set(steps[index].inputs):
            reached.add(index)
            made |= made_in(steps[index])
    needed: set[int] = set()
    wanted = set(steps[last].inputs) | made_in(steps[last])
    for index in sorted(reached, reverse=True):
        if wanted & {one for one in steps[index].outputs if one is not None}:
            needed.add(index)
            wanted |= set(steps[index].inputs)
    return needed


def _up_projections(steps: tuple[Step, ...], attention: int) -> set[int]:
    """What leads to q, k and v of an attention from its latents: back as far as a norm, or what a norm reads.

    Where ranks share sequences, as far as what they sent each other: it is small, and is not sent again.
    """
    module = steps[attention].path
    normed = {one for step in steps if step.path == module and step.node.op.recompute == "norms" for one in step.inputs}
    wanted = set(steps[attention].inputs)
    found: set[int] = set()
    for index in range(attention - 1, -1, -1):
        step = steps[index]
        latent = step.node.op.recompute == "norms" or normed & set(step.outputs) or _gathers(step)
        if step.path == module and not latent and wanted & set(step.outputs):
            found.add(index)
            wanted |= set(step.inputs)
    return found


def _gathers(step: Step) -> bool:
    return isinstance(step.node.op, GatherContext)
