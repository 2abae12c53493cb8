"""Attention to pages as kernels do it: gqa_decode.py, and mla_decode.py over latents that latent_cache.py writes."""

from dsc.compiler.graph.dim import C, Dim
from dsc.compiler.graph.op import Op, OpClass, Parameter, Types, register, retyped, tensor
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.paged import ReadRows


@register
class WriteLatentRows(Op):
    """The new tokens' rows, kv [T, L + R] normed and rotated, into their slots."""

    kind = "write_latent_rows"
    norm: RmsNorm

    @property
    def operands(self) -> tuple[str, ...]:
        return ("kv", "rope", "batch", "pages")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.latent_cache.write_latent_cache",)

    def infer(self, inputs: Types) -> Types:
        return ()

    def holders(self) -> tuple[Op, ...]:
        return (self.norm,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.norm.parameters()


@register
class WriteLatentRowsAndNorm(WriteLatentRows):
    """The same, and the norm of the queries' latent [T, Q] in one launch with it."""

    kind = "write_latent_rows_and_norm"
    q_norm: RmsNorm

    @property
    def operands(self) -> tuple[str, ...]:
        return ("kv", "q_latent", "rope", "batch", "pages")

    def infer(self, inputs: Types) -> Types:
        return (inputs[1],)

    def holders(self) -> tuple[Op, ...]:
        return (self.norm, self.q_norm)

    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.norm.parameters(), *self.q_norm.parameters())


@register
class AttendLatents(Op):
    """Attention of a group over the latents of its pages: [B, S, H, L], [B, S, H, R] -> [B, S, H, L]."""

    kind = "attend_latents"
    op_class = OpClass.ATTENTION

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q_latent", "q_rope", "group", "pages")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.mla_decode.mla_decode",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products with every cached token, causal or not: 2 S C H (2 L + R)."""
        q, q_rope = tensor(inputs[0]), tensor(inputs[1])
        return (q.numel * 2 + q_rope.numel) * C * 2


@register
class ReadFp8Latents(ReadRows):
    """Latents and rotary keys of rows of FP8 codes, decoded: [B, C, L], [B, C, R]."""

    kind = "read_fp8_latents"
    sizes: tuple[Dim, ...]

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.mla_decode.reference_rows",)

    def infer(self, inputs: Types) -> Types:
        (rows,) = super().infer(inputs)
        return tuple(retyped(rows, *tensor(rows).shape[:2], size) for size in self.sizes)


@register
class AttendPages(Op):
    """Attention of a group over the keys and values of its pages: [B, S, H, N] -> [B, S, H, N]."""

    kind = "attend_pages"
    op_class = OpClass.ATTENTION

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "group", "pages")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.gqa_decode.gqa_decode",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products with every cached token, causal or not: 4 S C H N."""
        return tensor(inputs[0]).numel * C * 4
