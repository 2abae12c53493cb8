"""A training step for one device or many: what runs beside the classes of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes import context, tensor
from dsc.compiler.passes.deepep import share_experts_by_deepep
from dsc.compiler.passes.shard import MOE, Sharing, copy_over, share_experts
from dsc.compiler.passes.stages import Stage, cut, part_names, step_block
from dsc.compiler.passes.two_hops import share_experts_over_nodes


@dataclass(frozen=True)
class TrainingStep:
    graph: Graph
    """The model's blocks, those of stages, and the shares that ranks have of experts, sequences, heads and widths."""
    whole: Stage
    """The step on one device."""
    stages: tuple[Stage, ...]
    """Of the pipeline, or the one that runs a part of every sequence; empty where ranks run the step on one device."""
    sharing: Sharing | None
    """None where nothing is shared."""
    recompute: tuple[str, ...]
    """What backward makes again."""
    turns: Graph | None = None
    """Stages as generators, where a schedule pairs a forward with a backward and the experts have all-to-alls."""


def training_step(plain: Graph, sharing: Sharing | None) -> TrainingStep:
    """From the plain graph; kernels come after."""
    recompute = sharing.recompute if sharing is not None else ()
    sharing = sharing if sharing is not None and sharing.world > 1 else None
    step = step_block(plain)
    (whole,) = cut(step, (part_names(step),))
    stages = _stages(step, sharing) if sharing is not None else ()
    blocks: list[Block] = [stage.block for stage in (whole, *stages)]
    if sharing is not None and sharing.copy > 1:
        blocks.append(_shared(plain.blocks[MOE], sharing))
    if sharing is not None and sharing.tp > 1:
        blocks += tensor.share_tensors(plain, sharing.tp, sharing.cp)
    elif sharing is not None and sharing.cp > 1:
        blocks += context.share_context(plain, sharing.cp)
    graph = replace(plain, blocks={**plain.blocks, **{block.key: block for block in blocks}})
    return TrainingStep(graph, whole, stages, sharing, recompute)


def _shared(moe: Block, sharing: Sharing) -> Block:
    copy = copy_over(sharing.ep, sharing.etp)
    if sharing.deepep:
        return share_experts_by_deepep(moe, copy)
    if sharing.nodes > 1:
        return share_experts_over_nodes(moe, copy, sharing.nodes)
    return share_experts(moe, copy)


def _stages(step: Block, sharing: Sharing) -> tuple[Stage, ...]:
    whole = None
    if sharing.cp > 1:
        step, whole = context.share_step(step, sharing.cp), context.OF_CONTEXT
    if sharing.tp > 1:
        step, whole = tensor.share_step(step, sharing.tp), tensor.OF_TENSOR
    if sharing.pp > 1:
        return cut(step, sharing.stages)
    return () if whole is None else cut(step, (part_names(step),), whole=whole)
