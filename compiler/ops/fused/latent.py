"""Absorbed latent attention over pages: kernels/latent_cache.py, kernels/mla_decode.py, the products around them."""

from dsc.compiler.graph.dim import C, Dim
from dsc.compiler.graph.op import Op, OpClass, Parameter, Types, register, retyped, tensor
from dsc.compiler.graph.types import CacheType
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import Linear


@register
class WriteLatent(Op):
    """The new tokens' rows, kv [B, S, L + R] normed and rotated, into the layer's pages."""

    kind = "write_latent"
    norm: RmsNorm

    @property
    def operands(self) -> tuple[str, ...]:
        return ("kv", "rope", "cache")

    @property
    def requires(self) -> tuple[str, ...]:
        kernel = "kernels.latent_cache"
        return (f"{kernel}.write_latent_cache", f"{kernel}.empty_cache", f"{kernel}.PAGE_SIZE", "paged_cache")

    def infer(self, inputs: Types) -> Types:
        assert isinstance(inputs[-1], CacheType), inputs
        return ()

    def holders(self) -> tuple[Op, ...]:
        return (self.norm,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.norm.parameters()


@register
class WriteLatentAndNorm(WriteLatent):
    """The same, and the norm of the queries' latent [B, S, Q] in one launch with it."""

    kind = "write_latent_and_norm"
    q_norm: RmsNorm

    @property
    def operands(self) -> tuple[str, ...]:
        return ("kv", "q_latent", "rope", "cache")

    def infer(self, inputs: Types) -> Types:
        super().infer(inputs)
        return (inputs[1],)

    def holders(self) -> tuple[Op, ...]:
        return (self.norm, self.q_norm)

    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.norm.parameters(), *self.q_norm.parameters())


@register
class UpProjections(Op):
    """kv_b_proj's weight by head: W_UK [H, N, L], which maps a latent to k_nope, and W_UV [H, V, L], to v."""

    kind = "up_projections"
    is_view = True
    linear: Linear
    heads: Dim
    nope: Dim
    value: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    def infer(self, inputs: Types) -> Types:
        (weight,) = self.linear.parameters()
        latent = self.linear.in_features
        return tuple(retyped(weight.type, self.heads, width, latent) for width in (self.nope, self.value))

    def holders(self) -> tuple[Op, ...]:
        return (self.linear,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.linear.parameters()

    def memory(self, inputs: Types, outputs: Types) -> tuple[None, ...]:
        return (None, None)


@register
class AbsorbUp(Op):
    """Queries mapped to the latent's dims: q_nope W_UK, [B, S, H, N] by [H, N, L] -> [B, S, H, L]."""

    kind = "absorb_up"
    op_class = OpClass.PRODUCT

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q_nope", "w_uk")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("by_head",)

    def infer(self, inputs: Types) -> Types:
        q, weight = (tensor(t) for t in inputs)
        assert q.shape[-1].same(weight.shape[1]), inputs
        return (retyped(q, *q.shape[:-1], weight.shape[-1]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * tensor(inputs[1]).shape[-1] * 2


@register
class AbsorbValue(AbsorbUp):
    """Values of the attended latents: W_UV latent, [B, S, H, L] by [H, V, L] -> [B, S, H, V]."""

    kind = "absorb_value"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("out_latent", "w_uv")

    def infer(self, inputs: Types) -> Types:
        out, weight = (tensor(t) for t in inputs)
        assert out.shape[-1].same(weight.shape[-1]), inputs
        return (retyped(out, *out.shape[:-1], weight.shape[1]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * tensor(inputs[1]).shape[1] * 2


@register
class LatentDecode(Op):
    """Attention of the new tokens over the latents of their pages: [B, S, H, L], [B, S, H, R] -> [B, S, H, L]."""

    kind = "latent_decode"
    op_class = OpClass.ATTENTION

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q_latent", "q_rope", "cache")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.mla_decode.mla_decode",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products with every cached token, causal or not: 2 S C H (2 L + R)."""
        q, q_rope = tensor(inputs[0]), tensor(inputs[1])
        return (q.numel * 2 + q_rope.numel) * C * 2
