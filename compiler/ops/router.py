"""The router: scores, the choice of experts, their weights, and what balances their load."""

from typing import Literal

from dsc.compiler.graph.dim import Dim, Int
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType


@register
class RouterLogits(Op):
    """x @ weight.T in float32 or wider: [B, S, D] -> [B, S, E]."""

    kind = "router_logits"
    op_class = OpClass.PRODUCT
    hidden_size: Dim
    num_experts: Dim
    dtype: DType

    @property
    def requires(self) -> tuple[str, ...]:
        return ("upcast", "float32_linear")

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-1], self.num_experts, dtype=DType.FP32),)

    def attribute(self) -> str | None:
        return "weight"

    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("weight", TensorType((self.num_experts, self.hidden_size), self.dtype)),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * self.num_experts * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """Both factors as they were multiplied: a narrower x and weight are kept as widened copies."""
        x = tensor(inputs[0])
        if x.dtype is DType.FP32:
            return (Saved("input", 0),)
        wide = (x.shape, (self.num_experts, self.hidden_size))
        return tuple(Saved("own", index, TensorType(shape, DType.FP32)) for index, shape in enumerate(wide))


@register
class RouterLogitsModelDtype(RouterLogits):
    """The same product in the model's own type, widened afterwards."""

    kind = "router_logits_model_dtype"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("upcast",)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class Score(Op):
    """Softmax or sigmoid over the experts."""

    kind = "score"
    function: Literal["softmax", "sigmoid"]

    @property
    def arguments(self) -> str:
        return "-1" if self.function == "softmax" else ""

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("output", 0),)


@register
class SelectionScores(Op):
    """Scores for the choice of experts, detached: no gradient flows through it."""

    kind = "selection_scores"
    is_view = True

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class BiasedSelectionScores(Op):
    """The same with the selection bias, which takes part in the choice only (DeepSeek-V3, equation 16)."""

    kind = "biased_selection_scores"
    num_experts: Dim

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def attribute(self) -> str:
        return "e_score_correction_bias"


@register
class GroupExperts(Op):
    """[B, S, E] -> [B, S, G, E / G]."""

    kind = "group_experts"
    is_view = True
    groups: Dim
    group_size: Dim

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-1], self.groups, self.group_size),)


@register
class GroupScoreMax(Op):
    """The score of a group is that of its best expert (DeepSeek-V2)."""

    kind = "group_score_max"

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-1]),)


@register
class GroupScoreTop2Sum(GroupScoreMax):
    """The score of a group is the sum of the scores of its two best experts (DeepSeek-V3)."""

    kind = "group_score_top2_sum"


@register
class ClosedGroups(Op):
    """True for every group that is not among the best: [B, S, G]."""

    kind = "closed_groups"
    top_groups: Dim

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class MaskGroups(Op):
    """-inf for experts of other groups: [B, S, G, E / G] -> [B, S, E]. Not zero: biased scores may be negative."""

    kind = "mask_groups"
    num_experts: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("groups", "closed")

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-2], self.num_experts),)


@register
class TopExperts(Op):
    """Ids of the K best, [B, S, E] -> [B, S, K]."""

    kind = "top_experts"
    top_k: Dim

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-1], self.top_k, dtype=DType.INT64),)


@register
class GatherWeights(Op):
    """The chosen experts' own scores, without the bias: [B, S, K]."""

    kind = "gather_weights"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("scores", "experts")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[1]).shape),)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """PyTorch keeps what it gathered from too, only to know its shape."""
        index = Saved("input", 1)
        return (Saved("input", 0), index)


@register
class NormalizeWeights(Op):
    """Divide by the sum over the chosen experts."""

    kind = "normalize_weights"

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        x = tensor(inputs[0])
        return (Saved("input", 0), Saved("own", 0, retyped(x, *x.shape[:-1], Int(1))))


@register
class NormalizeWeightsGuarded(NormalizeWeights):
    """The same where all chosen scores may underflow (sigmoid): the sum has 1e-20 added."""

    kind = "normalize_weights_guarded"


@register
class ZeroInEvaluation(Op):
    """Returns a zero loss unless the module trains; x gives its type and device."""

    kind = "zero_in_evaluation"

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class FlattenSlots(Op):
    """The choices of each sequence in a row: [B, S, K] -> [B, S * K]."""

    kind = "flatten_slots"
    is_view = True

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts",)

    def infer(self, inputs: Types) -> Types:
        batch, sequence, top_k = tensor(inputs[0]).shape
        return (retyped(inputs[0], batch, sequence * top_k),)


@register
class CountExperts(Op):
    """How many tokens of each sequence chose each expert: [B, S * K] -> [B, E].

    They have the type of p, in which whole numbers to 2^24 are exact, so that the order of additions does not matter.
    """

    kind = "count_experts"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("p", "chosen")

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class RelativeLoad(Op):
    """f of the sequence-wise loss, 1 at an even load: f_e = count_e E / (K S), [B, E] (DeepSeek-V3, equation 18)."""

    kind = "relative_load"
    num_experts: Dim
    top_k: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("counts", "experts")

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class MeanProbability(Op):
    """P of the sequence-wise loss: scores that sum to one, mean over the sequence, [B, S, E] -> [B, E]."""

    kind = "mean_probability"

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, x.shape[0], x.shape[2]),)


@register
class MeanNormalizedScore(MeanProbability):
    """The same for scores that do not sum to one (sigmoid): divided by their sum first (equations 19 and 20)."""

    kind = "mean_normalized_score"

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        x = tensor(inputs[0])
        return (Saved("input", 0), Saved("own", 0, retyped(x, *x.shape[:-1], Int(1))))


@register
class SequenceBalanceLoss(Op):
    """alpha * sum over experts of f_e P_e, mean over sequences: [B, E], [B, E] -> [] (DeepSeek-V3, equation 17)."""

    kind = "sequence_balance_loss"
    alpha: str
    """Name of the constant."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("f", "p")

    def infer(self, inputs: Types) -> Types:
        return (TensorType((), DType.FP32),)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class UpdateSelectionBias(Op):
    """b += rate * sign(mean load - load), then the load is reset (DeepSeek-V3, section 2.1.2)."""

    kind = "update_selection_bias"
    rate: str
    """Name of the constant."""
    num_experts: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    def infer(self, inputs: Types) -> Types:
        return ()

    def attribute(self) -> str:
        return "expert_load"


@register
class UpdateEveryRouter(Op):
    """The bias update of each router of the model."""

    kind = "update_every_router"
    classes: tuple[str, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    def infer(self, inputs: Types) -> Types:
        return ()
