"""The layers of a model: a block for each kind in the schedule, and the runs of layers that one loop passes through."""

from collections.abc import Iterable
from dataclasses import dataclass

from dsc.compiler.blocks.attention_gqa import build_gqa
from dsc.compiler.blocks.attention_mla import build_mla
from dsc.compiler.blocks.attention_window import build_window
from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.ffn import WIDTH, build_feed_forward
from dsc.compiler.blocks.layer import build_layer
from dsc.compiler.blocks.moe import build_moe, moe_sizes
from dsc.compiler.blocks.router import build_bias_update, build_router
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import Axis, Dim
from dsc.spec.attention import GqaAttention, MlaAttention, WindowAttention
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import Layer, LayerCycle, ModelSpec


@dataclass(frozen=True)
class Run:
    """A cycle of layer kinds, repeated `count` times."""

    kinds: tuple[Layer, ...]
    count: Dim


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward that layers hold, with the sizes that its constructor takes."""

    block: Block
    sizes: tuple[tuple[str, Dim], ...]
    doc: str


def runs(spec: ModelSpec, constants: Constants) -> tuple[Run, ...]:
    """The schedule, each group with the constant of its repeat count; equal names are numbered from the second on."""
    found: list[Run] = []
    seen: dict[str, int] = {}
    for index, group in enumerate(spec.layers):
        kinds = tuple(spec.layer(kind) for kind in group.kinds)
        if isinstance(group, LayerCycle):
            name = "NUM_CYCLES"
        else:
            name = "NUM_LAYERS" if len(spec.layers) == 1 else f"NUM_{'_'.join(_words(spec, kinds[0])).upper()}_LAYERS"
        seen[name] = seen.get(name, 0) + 1
        name += f"_{seen[name]}" if seen[name] > 1 else ""
        found.append(Run(kinds, constants.dim(name, group.repeat, f"layers[{index}].repeat")))
    return tuple(found)


def build_layers(context: Context, schedule: tuple[Run, ...]) -> tuple[dict[Layer, Block], list[Block]]:
    """The block of each kind of layer, and all blocks that they are made of, leaves first."""
    spec = context.spec
    attentions = {name: build_attention(context, name) for name in spec.attentions}
    feed_forwards, blocks = _feed_forwards(context)
    layers: dict[Layer, Block] = {}
    used = {kind for run in schedule for kind in run.kinds}
    for kind in (Layer(attention, ffn) for ffn in spec.ffns for attention in spec.attentions):
        if kind in used:
            layers[kind] = _build(context, kind, _companions(kind, schedule), attentions, feed_forwards)
    return layers, [*attentions.values(), *blocks, *layers.values()]


def build_attention(context: Context, name: str) -> Block:
    scope = context.attention_scope(name)
    match context.spec.attentions[name]:
        case MlaAttention() as spec:
            return build_mla(context, scope, spec)
        case GqaAttention() as spec:
            return build_gqa(context, scope, spec)
        case WindowAttention() as spec:
            return build_window(context, scope, spec)


def _feed_forwards(context: Context) -> tuple[dict[str, FeedForward], list[Block]]:
    """Each feed-forward by name, and all blocks that they are made of, leaves first."""
    found: dict[str, FeedForward] = {}
    swiglu = build_feed_forward(context)
    blocks: list[Block] = []
    for name, spec in context.spec.ffns.items():
        scope = context.ffn_scope(name)
        if isinstance(spec, MoeFfn):
            experts, top_k, _ = moe_sizes(scope, spec)
            *before, router = build_router(context, scope, spec, experts, top_k)
            rate = spec.router.balance.bias_update_rate
            update = [build_bias_update(scope, rate, experts)] if rate is not None else []
            moe = build_moe(context, scope, spec, router, swiglu if spec.n_shared_experts else None)
            blocks += [*before, router, *update, moe]
            found[name] = FeedForward(moe, (), "a mixture of experts")
        else:
            width = scope.dim("INTERMEDIATE_SIZE", spec.intermediate_size, "intermediate_size", axis=Axis.FEED_FORWARD)
            found[name] = FeedForward(swiglu, ((WIDTH.name, width),), "a dense feed-forward")
    uses_swiglu = any(not isinstance(spec, MoeFfn) or spec.n_shared_experts for spec in context.spec.ffns.values())
    return found, [swiglu] * uses_swiglu + blocks


def _build(
    context: Context,
    kind: Layer,
    companions: Iterable[Layer],
    attentions: dict[str, Block],
    feed_forwards: dict[str, FeedForward],
) -> Block:
    """One kind of layer, with the inputs and results that all kinds have with which it shares a loop."""
    parts = [block for other in companions for block in (attentions[other.attention], feed_forwards[other.ffn].block)]
    wanted = {value.name for part in parts for value in part.inputs[1:]}
    feed_forward = feed_forwards[kind.ffn]
    several = f"{kind.attention} attention and " if len(attentions) > 1 else ""
    return build_layer(
        context,
        "".join(word.capitalize() for word in _words(context.spec, kind)) + "Layer",
        f"A layer with {several}{feed_forward.doc}.",
        attentions[kind.attention],
        feed_forward.block,
        feed_forward.sizes,
        wanted={name: type for name, type in context.offered.items() if name in wanted},
        loss=any(len(feed_forwards[other.ffn].block.outputs) > 1 for other in companions),
    )


def _companions(kind: Layer, schedule: tuple[Run, ...]) -> set[Layer]:
    """The kinds that share a loop with this one, directly or through others, and itself."""
    found = {kind}
    for _ in schedule:
        for run in schedule:
            found |= set(run.kinds) if found & set(run.kinds) else set()
    return found


def _words(spec: ModelSpec, kind: Layer) -> list[str]:
    """What a kind of layer is called: the attention only where there are several."""
    return [kind.attention, kind.ffn] if len(spec.attentions) > 1 else [kind.ffn]
