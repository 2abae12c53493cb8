"""What reinforcement learning trains: log-probabilities of tokens, from the training graph less what pre-training adds.

No balance loss, no count of experts, no multi-token prediction: nothing that the answers' probabilities need. With
replay, each router takes the experts that the engine chose, weighs them anew and so still learns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.verify import verify
from dsc.compiler.ops.call import BlockCall
from dsc.compiler.ops.paged import BATCH
from dsc.compiler.ops.policy import REPLAY, LogProbabilities, RecordExperts, ReplayExperts
from dsc.compiler.ops.projection import Linear, TiedHead
from dsc.compiler.ops.router import TopExperts
from dsc.compiler.passes.context import TOKENS, share_step
from dsc.compiler.passes.distribute import TrainingStep
from dsc.compiler.passes.handing import as_functions_of_modules, hand_down, readers_of, retarget
from dsc.compiler.passes.inference import for_inference
from dsc.compiler.passes.shard import EXPERT_PARALLEL, MOE, Sharing
from dsc.spec.training import Training


@dataclass(frozen=True)
class Policies:
    """The same policy for one process that holds all weights, and for ranks that share them."""

    alone: Graph
    shared: Graph | None
    """None where ranks run the functions of one process: they share no experts."""


FORWARD, ROOT = "Model.forward", "Model.log_probabilities"
DOC = "Log-probabilities [B, S] of labels [B, S], each the token after tokens[b, s]; 0 where the label is -100."


def shares_weights(sharing: Sharing | None, training: Training) -> bool:
    """Whether ranks that learn from answers share the weights as the plan says: of some layouts there is no code."""
    if sharing is None or sharing.deepep:  # whose buffer has room for a micro-batch, and answers are of any length
        return False
    return sharing.pp == sharing.tp == sharing.etp == 1 and training.documents == "joined"


def policies(training: Graph, stepped: Graph, plain: Graph, step: TrainingStep, shared: bool, replay: bool) -> Policies:
    """`stepped`: the graph of the step with kernels, as `training` is `plain` with kernels."""
    sharing = step.sharing
    apart = sharing is not None and shared and (sharing.ep > 1 or sharing.cp > 1)
    alone = verify(policy(training, plain, replay, shared and not apart))
    if sharing is None or not apart:
        return Policies(alone, None)
    graphs = training, plain
    if sharing.ep > 1:
        graphs = _sharing_experts(training, stepped), _sharing_experts(plain, step.graph)
    graph = policy(*graphs, replay, shared=True)
    return Policies(alone, verify(graph if sharing.cp == 1 else _sharing_sequences(graph, sharing.cp)))


def _sharing_sequences(graph: Graph, ranks: int) -> Graph:
    """The functions of Model are given whole sequences of tokens, and find the probabilities of this rank's part."""
    blocks = dict(graph.blocks)
    for key in [key for key, block in graph.blocks.items() if block.class_name == "Model"]:
        block = blocks[key].with_nodes(retarget(node, blocks) for node in blocks[key].nodes())
        blocks[key] = share_step(block, ranks, (TOKENS,))
    doc = (
        "Log-probabilities [B, S] of this rank's labels, of whole sequences of tokens [B, CP * S]; 0 where one is -100."
    )
    return replace(graph, blocks={**blocks, ROOT: replace(blocks[ROOT], doc=doc)})


def _sharing_experts(graph: Graph, step: Graph) -> Graph:
    """With the experts of a rank in the place of all."""
    mixture, share = graph.blocks[MOE], step.blocks[f"{EXPERT_PARALLEL}.{graph.blocks[MOE].method}"]
    share = replace(share, class_name=mixture.class_name)
    return replace(graph, blocks={**graph.blocks, MOE: share})


def policy(training: Graph, plain: Graph, replay: bool, shared: bool = False) -> Graph:
    """Functions of the model's modules, each where the module itself does more. `plain`: `training` without kernels.

    Where ranks share the weights, a stage has the model's modules, and all methods of Model are functions.
    """
    blocks = {**training.blocks, ROOT: _root(training.blocks[FORWARD], plain.blocks[FORWARD])}
    graph = for_inference(replace(training, blocks=blocks), (ROOT,))
    own = {key: block for key, block in training.blocks.items() if not shared or block.class_name != "Model"}
    modules = replace(training, blocks=own)
    return as_functions_of_modules(_replayed(graph, for_inference(plain)) if replay else graph, modules)


def _root(forward: Block, plain: Block) -> Block:
    """Forward up to the head, whose weight the log-probabilities read instead."""
    *before, head = forward.nodes()
    op = plain.nodes()[-1].op
    assert isinstance(op, Linear | TiedHead), op
    block = BlockBuilder("Model", DOC, method="log_probabilities")
    known = {value: block.input(value.name, value.type) for value in forward.inputs}
    labels = block.input("labels", forward.inputs[0].type)
    for node in before:
        made = block.add_many([v.name for v in node.outputs], node.op, *(known[value] for value in node.inputs))
        known.update(zip(node.outputs, made, strict=True))
    return block.finish(block.add("log_probabilities", LogProbabilities(op), known[head.inputs[0]], labels))


def _replayed(graph: Graph, plain: Graph) -> Graph:
    """Routers as plain ops, for a kernel that chooses cannot be told what to choose."""
    routers = {key: _with_replay(plain.blocks[key]) for key in _routers(plain) if key in graph.blocks}
    return hand_down(replace(graph, blocks={**graph.blocks, **routers}), "replay", REPLAY, readers_of(graph, routers))


def _with_replay(block: Block) -> Block:
    (choose,) = (node for node in block.nodes() if isinstance(node.op, TopExperts))
    (own,) = choose.outputs
    replay = Value(INPUT, len(block.inputs), "replay", REPLAY)
    replayed = replace(own, producer=f"{own.producer}.replayed")
    node = Node(replayed.producer, ReplayExperts(), (own, replay), (replayed,))
    nodes = [new for old in block.nodes() for new in ((old, node) if old is choose else (old,))]
    extended = replace(block, inputs=(*block.inputs, replay)).with_nodes(nodes)
    return extended.reinfer({own: replayed}, leave=(node.id,))


def record_experts(graph: Graph) -> Graph:
    """In the graph that serves: whoever calls a router adds what it chose to the batch."""
    routers = _routers(graph)
    recording = {
        key: _recording(block, routers)
        for key, block in graph.blocks.items()
        if any(isinstance(node.op, BlockCall) and node.op.callee() in routers for node in block.nodes())
    }
    changed = replace(graph, blocks={**graph.blocks, **recording})
    return hand_down(changed, "batch", BATCH, readers_of(graph, recording))


def _recording(block: Block, routers: tuple[str, ...]) -> Block:
    batch = Value(INPUT, len(block.inputs), "batch", BATCH)
    nodes: list[Node] = []
    for node in block.nodes():
        nodes.append(node)
        if isinstance(node.op, BlockCall) and node.op.callee() in routers:
            nodes.append(Node(f"{node.id}.recorded", RecordExperts(), (node.outputs[0], batch), ()))
    return replace(block, inputs=(*block.inputs, batch)).with_nodes(nodes)


def _routers(graph: Graph) -> tuple[str, ...]:
    """The blocks that choose experts."""
    return tuple(
        key for key, block in graph.blocks.items() if any(isinstance(node.op, TopExperts) for node in block.nodes())
    )
