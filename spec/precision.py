"""What each class of tensors is kept and multiplied in."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, Section


class Bf16Linear(Section):
    kind: Literal["bf16"] = "bf16"


class Fp8BlockLinear(Section):
    """FP8 E4M3 with one scale per block (DeepSeek-V3, section 3.3): projections and experts.

    Norms, router, embedding, head and MTP's eh_proj stay in the precision of `parameters`.
    """

    kind: Literal["fp8_block"]
    weight_block: list[Count] = Field(default=[128, 128], min_length=2, max_length=2)
    activation_block: list[Count] = Field(default=[1, 128], min_length=2, max_length=2)
    scale: Literal["float32", "ue8m0"] = "float32"


class Precision(Section):
    parameters: Literal["bf16", "fp32"] = "bf16"
    """Parameters and activations that no other line names."""
    linear: Annotated[Bf16Linear | Fp8BlockLinear, Field(discriminator="kind")] = Bf16Linear()
    kv_cache: Literal["bf16", "fp32"] = "bf16"
