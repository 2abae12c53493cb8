"""Multi-head latent attention as kernels/mla_attention.py computes it."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, OpClass, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType


@register
class FusedLatentAttention(Op):
    """q [B, S, H, N + R] before its rotation, k_nope | v [B, S, H, N + V], k_rope [B, S, 1, R] rotated.

    Neither keys of width N + R nor a rotated q are written to memory. The result is [B, S, H, V].
    """

    kind = "mla_attention"
    op_class = OpClass.ATTENTION
    nope: Dim
    value: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "kv", "k_rope", "rope")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.mla_attention.mla_attention",)

    def infer(self, inputs: Types) -> Types:
        q, kv, k_rope = (tensor(t) for t in inputs[:3])
        assert q.shape[-1].same(self.nope + k_rope.shape[-1]), (q, k_rope)
        assert kv.shape[-1].same(self.nope + self.value), kv
        return (retyped(q, *q.shape[:-1], self.value),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products of half a square each: S^2 H (N + R + V)."""
        q, out = tensor(inputs[0]), tensor(outputs[0])
        return q.shape[0] * q.shape[1] * q.shape[1] * q.shape[2] * (q.shape[3] + out.shape[3])

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        q = tensor(inputs[0])
        logsumexp = Saved("own", 0, TensorType((q.shape[0], q.shape[2], q.shape[1]), DType.FP32))
        return (*(Saved("input", index) for index in range(len(inputs))), Saved("output", 0), logsumexp)


@register
class FusedDocumentAttention(FusedLatentAttention):
    """The same within the documents of a row, which begin at starts [B, S].

    Its cost is that of a row of a single document, which is the upper bound: how long documents are, data says.
    """

    kind = "mla_document_attention"

    @property
    def operands(self) -> tuple[str, ...]:
        return (*super().operands, "starts")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.mla_attention.document_attention",)
