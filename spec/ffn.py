"""Feed-forward kinds: a dense SwiGLU and a mixture of SwiGLU experts."""

from dsc.spec.base import Count, NonNegativeCount, PositiveFloat, Section
from dsc.spec.router import Router


class DenseFfn(Section):
    """down(silu(gate(x)) * up(x))."""

    intermediate_size: Count
    """Width between the two products."""


class MoeFfn(Section):
    """Fine-grained routed experts beside shared ones (DeepSeekMoE, arXiv 2401.06066)."""

    n_routed_experts: Count
    """Experts that tokens choose among."""
    num_experts_per_tok: Count
    """Experts that each token chooses (top-k)."""
    moe_intermediate_size: Count
    """Width of each expert between its two products."""
    n_shared_experts: NonNegativeCount = 0
    """Shared experts form one SwiGLU of width n_shared_experts * moe_intermediate_size."""
    router: Router
    """How tokens choose experts."""


class Ffn(Section):
    """The feed-forward kinds that the layer schedule may name."""

    dense: DenseFfn | None = None
    """SwiGLU: down(silu(gate(x)) * up(x)). Needed if a layer names it."""
    moe: MoeFfn | None = None
    """Routed experts beside shared ones (DeepSeekMoE, arXiv 2401.06066). Needed if a layer names it."""
    swiglu_limit: PositiveFloat | None = None
    """Every SwiGLU, experts' or not, is silu(min(gate, limit)) * clamp(up, -limit, limit) (DeepSeek-V4)."""
