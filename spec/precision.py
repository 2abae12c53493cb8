"""What each class of tensors is kept and multiplied in."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, Section

CACHE_GROUP = 128  # numbers of a latent that share a scale in an FP8 cache, as in FlashMLA


class Bf16Linear(Section):
    kind: Literal["bf16"] = "bf16"


class Fp8Products(Section):
    """Which products are computed in FP8, forward and both gradients (DeepSeek-V3, section 3.3.1 and figure 6).

    Everything else stays as it is: embedding, head, norms, attention itself and MTP's eh_proj in `parameters`, the
    router in its own `compute_dtype`, softmax and sums in float32, gradients and optimizer as `optimizer` says. What
    the kernels keep wide against the report: the gradients of the routed experts' weights, which are in `parameters`.
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
    """FP8 E4M3 with one scale per block: checkpoints hold such weights, GPUs with FP8 units multiply them so."""

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
    """What training keeps of each parameter besides the parameter itself."""

    gradients: Literal["fp32", "bf16"] = "fp32"
    """What gradients are accumulated in."""
    master: Literal["fp32", "none"] = "fp32"
    """The copy that the optimizer updates; parameters of fp32 are their own."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Adam's two running means."""


class Precision(Section):
    parameters: Literal["bf16", "fp32"] = "bf16"
    """Parameters and activations that no other line names."""
    linear: Annotated[Bf16Linear | Fp8BlockLinear, Field(discriminator="kind")] = Bf16Linear()
    """What linear layers are multiplied in."""
    kv_cache: Literal["bf16", "fp32", "fp8"] = "bf16"
    """FP8 is for latents: E4M3 codes with a float32 scale for every 128 of them, and the rotary part in bfloat16."""
    optimizer: OptimizerState = OptimizerState()
    """What training keeps of each parameter besides the parameter itself."""

    def fp8_products(self) -> frozenset[str]:
        """Names of the products that are computed in FP8."""
        return self.linear.products.in_fp8() if isinstance(self.linear, Fp8BlockLinear) else frozenset()
