"""The types in which each class of tensors is stored and multiplied."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, Section

CACHE_GROUP = 128  # numbers of a latent that share a scale in an FP8 cache, as in FlashMLA


class Bf16Linear(Section):
    kind: Literal["bf16"] = "bf16"


class Fp8Products(Section):
    """Which products are computed in FP8, forward and both gradients (DeepSeek-V3, section 3.3.1 and figure 6).

    Everything else stays as it is: embedding, head, norms, attention itself and MTP's eh_proj in `parameters`, the
    router in its own `compute_dtype`, softmax and sums in float32, gradients and optimizer as `optimizer` says. Unlike
    in the report, the gradients of the routed experts' weights are computed in `parameters`.
    """

    attention: Literal["fp8", "bf16"] = "fp8"
    """Projections into and out of attention."""
    feed_forward: Literal["fp8", "bf16"] = "fp8"
    """Dense layers and shared experts."""
    experts: Literal["fp8", "bf16"] = "fp8"
    """Routed experts."""

    def in_fp8(self) -> frozenset[str]:
        return frozenset(product for product, kind in self if kind == "fp8")


class Fp8BlockLinear(Section):
    """FP8 E4M3 with one scale per block, as checkpoints store weights and GPUs with FP8 units multiply them."""

    kind: Literal["fp8_block"]
    products: Fp8Products = Fp8Products()
    """Which products are computed in FP8."""
    weight_block: list[Count] = Field(default=[128, 128], min_length=2, max_length=2)
    """Outputs and inputs of a weight that share a scale."""
    activation_block: list[Count] = Field(default=[1, 128], min_length=2, max_length=2)
    """Tokens and inputs of an activation that share a scale."""
    scale: Literal["float32", "ue8m0"] = "float32"
    """What a scale is kept as; ue8m0 is a power of two."""


class OptimizerState(Section):
    """The types of what training stores for each parameter besides the parameter itself."""

    gradients: Literal["fp32", "bf16"] = "fp32"
    """What gradients are accumulated in."""
    master: Literal["fp32", "none"] = "fp32"
    """The copy that the optimizer updates; fp32 parameters need none."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Adam's two moments."""


class Precision(Section):
    parameters: Literal["bf16", "fp32"] = "bf16"
    """Parameters and activations that no other key names."""
    linear: Annotated[Bf16Linear | Fp8BlockLinear, Field(discriminator="kind")] = Bf16Linear()
    """What linear layers are multiplied in."""
    kv_cache: Literal["bf16", "fp32", "fp8"] = "bf16"
    """FP8 is for latents: E4M3 with a float32 scale for every 128 numbers, and the rotary part in bfloat16."""
    optimizer: OptimizerState = OptimizerState()
    """What training keeps of each parameter besides the parameter itself."""

    def fp8_products(self) -> frozenset[str]:
        """Names of the products that are computed in FP8."""
        return self.linear.products.in_fp8() if isinstance(self.linear, Fp8BlockLinear) else frozenset()
