"""The router of a mixture of experts."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import B, Dim, S
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.call import CallMethod, Signature
from dsc.compiler.ops.elementwise import Scale
from dsc.compiler.ops.router import (
    BiasedSelectionScores,
    ClosedGroups,
    CountExperts,
    FlattenSlots,
    GatherWeights,
    GroupExperts,
    GroupScoreMax,
    GroupScoreTop2Sum,
    MaskGroups,
    MeanNormalizedScore,
    MeanProbability,
    NormalizeWeights,
    NormalizeWeightsGuarded,
    RelativeLoad,
    RouterLogits,
    RouterLogitsModelDtype,
    Score,
    SelectionScores,
    SequenceBalanceLoss,
    TopExperts,
    UpdateSelectionBias,
    ZeroInEvaluation,
)
from dsc.spec.ffn import MoeFfn
from dsc.spec.router import Router

BALANCE_DOC = "alpha * sum of f P, mean over sequences (DeepSeek-V3, equations 17 to 20); zero in evaluation."


def build_router(context: Context, scope: Scope, moe: MoeFfn, experts: Dim, top_k: Dim) -> tuple[Block, ...]:
    """Ids and weights of the chosen experts, [B, S, K] each: `forward`, the last of the blocks.

    Where the spec has a sequence-wise balance loss, that is a third result, computed by the block before.
    """
    spec = moe.router
    block = BlockBuilder(_class_name(scope), class_doc=_doc(spec))
    x = block.input("x", context.hidden)
    logits_op = RouterLogits if spec.compute_dtype == "float32" else RouterLogitsModelDtype
    logits = block.add("logits", logits_op(context.hidden_size, experts, context.dtype), x)
    scores = block.add("scores", Score(spec.score), logits)

    block.paragraph()
    choice_op = BiasedSelectionScores(experts) if spec.selection_bias else SelectionScores()
    choice = block.add("choice", choice_op, scores)
    if spec.topk_group < spec.n_group:
        choice = _limit_groups(block, scope, moe, choice, experts)
    chosen = block.add("experts", TopExperts(top_k), choice)

    block.paragraph()
    weights = block.add("weights", GatherWeights(), scores, chosen)
    if spec.norm_topk_prob:
        normalize = NormalizeWeightsGuarded if spec.score == "sigmoid" else NormalizeWeights
        weights = block.add("weights", normalize(), weights)
    if spec.routed_scaling_factor != 1.0:
        value = float(spec.routed_scaling_factor)
        factor = scope.number("ROUTED_SCALING_FACTOR", value, "router.routed_scaling_factor")
        weights = block.add("weights", Scale(factor), weights)
    if spec.balance.sequence_aux_loss_alpha is None:
        return (block.finish(chosen, weights),)
    balance = _balance_loss(scope, spec, spec.balance.sequence_aux_loss_alpha, experts, top_k)
    block.paragraph()
    loss = block.add("balance_loss", CallMethod(Signature.of(balance)), scores, chosen)
    return balance, block.finish(chosen, weights, loss)


def _balance_loss(scope: Scope, spec: Router, alpha: float, experts: Dim, top_k: Dim) -> Block:
    """Router.balance_loss, the sequence-wise loss: scores [B, S, E] and chosen experts [B, S, K] -> []."""
    name = scope.number("SEQUENCE_AUX_LOSS_ALPHA", alpha, "router.balance.sequence_aux_loss_alpha")
    block = BlockBuilder(_class_name(scope), BALANCE_DOC, method="balance_loss")
    scores = block.input("scores", TensorType((B, S, experts), DType.FP32))
    chosen = block.input("experts", TensorType((B, S, top_k), DType.INT64))
    block.add_many((), ZeroInEvaluation(), scores)
    p = block.add("p", MeanProbability() if spec.score == "softmax" else MeanNormalizedScore(), scores)
    slots = block.add("chosen", FlattenSlots(), chosen)
    counts = block.add("counts", CountExperts(), p, slots)
    f = block.add("f", RelativeLoad(experts, top_k), counts, chosen)
    return block.finish(block.add("loss", SequenceBalanceLoss(name), f, p))


def build_bias_update(scope: Scope, rate: float, experts: Dim) -> Block:
    """Router.update_selection_bias, called between steps."""
    name = scope.number("BIAS_UPDATE_RATE", rate, "router.balance.bias_update_rate")
    doc = "Lower the bias of experts above the mean load, raise it below, and reset the counts."
    block = BlockBuilder(_class_name(scope), doc, method="update_selection_bias")
    block.add_many((), UpdateSelectionBias(name, experts))
    return block.finish()


def _limit_groups(block: BlockBuilder, scope: Scope, moe: MoeFfn, choice: Value, experts: Dim) -> Value:
    """Only experts of the best groups may be chosen."""
    spec = moe.router
    groups = scope.dim("NUM_GROUPS", spec.n_group, "router.n_group", "G")
    top_groups = scope.dim("TOP_GROUPS", spec.topk_group, "router.topk_group")
    grouped = block.add("groups", GroupExperts(groups, experts // groups), choice)
    score = GroupScoreMax() if spec.group_score == "max" else GroupScoreTop2Sum()
    group_scores = block.add("group_scores", score, grouped)
    closed = block.add("closed", ClosedGroups(top_groups), group_scores)
    return block.add("choice", MaskGroups(experts), grouped, closed)


def _class_name(scope: Scope) -> str:
    return scope.class_name("Router", alone="Router")


def _doc(spec: Router) -> str:
    text = f"Top-k over {spec.score} scores"
    if spec.topk_group < spec.n_group:
        text += ", within the best groups"
    if spec.selection_bias:
        text += "; the bias affects the choice of experts, not their weights"
    return text + "."
