"""A mixture of experts: route, gather by expert, multiply group by group, sum by token, add the shared experts."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.ffn import WIDTH, swiglu
from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Axis, Dim, T
from dsc.compiler.ops.call import CallModule, Signature
from dsc.compiler.ops.elementwise import Add
from dsc.compiler.ops.moe import (
    EveryExpert,
    GatherRows,
    GroupedLinear,
    GroupEnds,
    RecordLoad,
    ScatterSum,
    SlotSource,
    SlotWeights,
    SortByExpert,
    SplitGateUp,
    WeighSlots,
)
from dsc.compiler.ops.shape import FlattenTokens, ViewAs
from dsc.spec.ffn import MoeFfn


def moe_sizes(scope: Scope, spec: MoeFfn) -> tuple[Dim, Dim, Dim]:
    """Experts, experts per token, width of an expert."""
    return (
        scope.dim("NUM_EXPERTS", spec.n_routed_experts, "n_routed_experts", "E", Axis.EXPERTS),
        scope.dim("TOP_K", spec.num_experts_per_tok, "num_experts_per_tok", "K", Axis.CHOSEN_EXPERTS),
        scope.dim("EXPERT_SIZE", spec.moe_intermediate_size, "moe_intermediate_size", "I", Axis.EXPERT_WIDTH),
    )


def build_moe(context: Context, scope: Scope, spec: MoeFfn, router: Block, feed_forward: Block | None) -> Block:
    """[B, S, D] -> [B, S, D]; with a sequence-wise balance loss, that loss too."""
    hidden, dtype = context.hidden_size, context.dtype
    experts, top_k, width = moe_sizes(scope, spec)
    block = BlockBuilder(
        scope.class_name("MixtureOfExperts", alone="MixtureOfExperts"),
        class_doc="Routed experts, each token through its top k (DeepSeekMoE, arXiv 2401.06066).",
    )
    x = block.input("x", context.hidden)

    names = [value.name for value in router.outputs]
    chosen, weights, *losses = block.add_many(names, CallModule(Signature.of(router), "gate"), x)
    sorted_experts, order = block.add_many(("sorted_experts", "order"), SortByExpert(T * top_k), chosen)
    every_expert = block.add("every_expert", EveryExpert(experts), x)
    ends = block.add("ends", GroupEnds(experts), sorted_experts, every_expert)
    if spec.router.balance.bias_update_rate is not None:
        block.add_many((), RecordLoad("gate"), ends)
    source = block.add("source", SlotSource(top_k, hidden), order)
    slot_weights = block.add("slot_weights", SlotWeights(), weights, order, x)

    block.paragraph()
    flat = block.add("flat", FlattenTokens(T), x)
    h = block.add("h", GatherRows(), flat, source)
    op = GroupedLinear("gate_up_proj", ("gate_proj", "up_proj"), experts, hidden, 2 * width, top_k, dtype)
    h = block.add("h", op, h, ends)
    gate, up = block.add_many(("gate", "up"), SplitGateUp(width), h)
    h = block.add("h", swiglu(context), gate, up)
    h = block.add("h", WeighSlots(), h, slot_weights)
    h = block.add("h", GroupedLinear("down_proj", ("down_proj",), experts, width, hidden, top_k, dtype), h, ends)

    block.paragraph()
    out = block.add("out", ScatterSum(), h, source, flat)
    out = block.add("out", ViewAs(), out, x)
    if feed_forward is not None:
        shared = scope.dim("NUM_SHARED_EXPERTS", spec.n_shared_experts, "n_shared_experts")
        shared_size = scope.derived("SHARED_SIZE", shared * width, Axis.SHARED_EXPERTS)
        call = CallModule(Signature.of(feed_forward), "shared_experts", ((WIDTH.name, shared_size),))
        out = block.add("out", Add(), out, block.add("shared", call, x))
    return block.finish(out, *losses)
