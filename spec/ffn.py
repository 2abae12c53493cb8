"""Feed-forward kinds: a dense SwiGLU and a mixture of SwiGLU experts."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from dsc.spec.base import Count, KindName, Multiplier, NonNegativeCount, Section
from dsc.spec.router import Router


class DenseFfn(Section):
    """down(silu(gate(x)) * up(x))."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Count
    """Width between the two products."""


class MoeFfn(Section):
    """Fine-grained routed experts beside shared ones (DeepSeekMoE, arXiv 2401.06066)."""

    kind: Literal["moe"] = "moe"
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


FeedForward = Annotated[DenseFfn | MoeFfn, Field(discriminator="kind")]


class Ffn(Section):
    """The feed-forwards that the layer schedule may name: these two, and any others by a name, with their `kind`."""

    model_config = ConfigDict(extra="allow")

    dense: DenseFfn | None = None
    """SwiGLU: down(silu(gate(x)) * up(x)). Needed if a layer names it."""
    moe: MoeFfn | None = None
    """Routed experts beside shared ones (DeepSeekMoE, arXiv 2401.06066). Needed if a layer names it."""
    swiglu_limit: Multiplier | None = None
    """Every SwiGLU, experts' or not, is silu(min(gate, limit)) * clamp(up, -limit, limit) (DeepSeek-V4)."""
    __pydantic_extra__: dict[KindName, FeedForward]

    @model_validator(mode="after")
    def _by_name(self) -> Self:
        """The others in an order that does not depend on how the file has it."""
        others = sorted(self.__pydantic_extra__.items())
        self.__pydantic_extra__.clear()
        self.__pydantic_extra__.update(others)
        return self

    def named(self) -> dict[str, DenseFfn | MoeFfn]:
        """Each feed-forward that is described, by the name that layers give."""
        found: dict[str, DenseFfn | MoeFfn | None] = {"dense": self.dense, "moe": self.moe, **self.__pydantic_extra__}
        return {name: section for name, section in found.items() if section is not None}
