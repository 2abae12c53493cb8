"""The router: how tokens choose experts. Every rule on which implementations disagree is a field of its own."""

from typing import Literal

from dsc.spec.base import Count, LossWeight, Multiplier, Section


class Balance(Section):
    """Load balancing in training: a bias update, an auxiliary loss, both (DeepSeek-V3) or, left out, neither."""

    bias_update_rate: LossWeight | None = None
    """gamma of b += gamma * sign(mean load - load) after each step (DeepSeek-V3, section 2.1.2)."""
    sequence_aux_loss_alpha: LossWeight | None = None
    """alpha of the sequence-wise auxiliary loss (DeepSeek-V3, equation 17)."""


class Router(Section):
    score: Literal["softmax", "sigmoid"]
    """Over all experts, before the choice."""
    selection_bias: bool = False
    """A bias per expert that affects which experts are chosen, never their weights (e_score_correction_bias)."""
    n_group: Count = 1
    """Equal groups that the experts form."""
    topk_group: Count = 1
    """Experts are chosen from the best topk_group of n_group groups."""
    group_score: Literal["max", "top2_sum"] | None = None
    """The score of a group: its best expert's (DeepSeek-V2) or its two best's sum (V3); for topk_group < n_group."""
    norm_topk_prob: bool
    """Divide the chosen weights by their sum."""
    routed_scaling_factor: Multiplier = 1.0
    """Multiplies the weights, after normalization."""
    compute_dtype: Literal["float32", "model"] = "float32"
    """What the gate's product is computed in; scores are always float32 or wider."""
    balance: Balance = Balance()
    """How load is spread over the experts in training."""
