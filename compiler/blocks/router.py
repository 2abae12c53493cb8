"""The router of a mixture of experts."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Dim
from dsc.compiler.ops.elementwise import Scale
from dsc.compiler.ops.router import (
    BiasedSelectionScores,
    ClosedGroups,
    CountExperts,
    GatherWeights,
    GroupExperts,
    GroupScoreMax,
    GroupScoreTop2Sum,
    MaskGroups,
    MeanProbability,
    MeanShareOfScores,
    NormaliseWeights,
    NormaliseWeightsGuarded,
    RecordLoad,
    RouterLogits,
    RouterLogitsModelDtype,
    Score,
    SelectionScores,
    SequenceBalanceLoss,
    TopExperts,
    UpdateSelectionBias,
)
from dsc.spec.ffn import MoeFfn
from dsc.spec.router import Router


def build_router(context: Context, scope: Scope, moe: MoeFfn, experts: Dim, top_k: Dim) -> Block:
    """Ids and weights of the chosen experts, [B, S, K] each; with a sequence-wise loss, that loss too."""
    spec = moe.router
    base = "ExactBuffers" if spec.selection_bias else "nn.Module"
    block = BlockBuilder(scope.class_name("Router", alone="Router"), class_doc=_doc(spec), base=base)
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
        normalise = NormaliseWeightsGuarded if spec.score == "sigmoid" else NormaliseWeights
        weights = block.add("weights", normalise(), weights)
    if spec.routed_scaling_factor != 1.0:
        value = float(spec.routed_scaling_factor)
        factor = scope.number("ROUTED_SCALING_FACTOR", value, "router.routed_scaling_factor")
        weights = block.add("weights", Scale(factor), weights)
    return block.finish(chosen, weights, *_balance(block, scope, spec, scores, chosen, experts, top_k))


def build_bias_update(scope: Scope, rate: float) -> Block:
    """Router.update_selection_bias, called between steps."""
    name = scope.number("BIAS_UPDATE_RATE", rate, "router.balance.bias_update_rate")
    doc = "Lower the bias of experts above the mean load, raise it below; the count starts again."
    block = BlockBuilder(scope.class_name("Router", alone="Router"), doc, method="update_selection_bias")
    block.add_many((), UpdateSelectionBias(name))
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


def _balance(
    block: BlockBuilder, scope: Scope, spec: Router, scores: Value, chosen: Value, experts: Dim, top_k: Dim
) -> tuple[Value, ...]:
    """What training needs to keep the load even; nothing where the spec asks for nothing."""
    balance = spec.balance
    if balance.bias_update_rate is None and balance.sequence_aux_loss_alpha is None:
        return ()
    block.paragraph()
    counts = block.add("counts", CountExperts(experts), chosen)
    if balance.bias_update_rate is not None:
        block.add_many((), RecordLoad(experts), counts)
    if balance.sequence_aux_loss_alpha is None:
        return ()
    key = "router.balance.sequence_aux_loss_alpha"
    alpha = scope.number("SEQUENCE_AUX_LOSS_ALPHA", balance.sequence_aux_loss_alpha, key)
    share = block.add("share", MeanProbability() if spec.score == "softmax" else MeanShareOfScores(), scores)
    return (block.add("balance_loss", SequenceBalanceLoss(alpha, experts, top_k), counts, share, chosen),)


def _doc(spec: Router) -> str:
    text = f"Top-k over {spec.score} scores"
    if spec.topk_group < spec.n_group:
        text += ", within the best groups"
    if spec.selection_bias:
        text += "; the bias chooses experts but never weighs them"
    return text + "."
