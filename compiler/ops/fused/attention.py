"""Attention as kernels compute it: of latents, and of grouped queries that are told which keys they see."""

from dataclasses import field

from dsc.compiler.graph.dim import Beyond, Dim
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
        return _saved(inputs)


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


@register
class FusedGroupedAttention(Op):
    """q [B, S, H, N], k and v [B, S, J, N], rotated -> [B, S, H, N], within documents, which begin at starts [B, S].

    Keys and values are not repeated for the H / J heads that share them. `prefix`: of the constants of the attention's
    kind, where the model has several. Its cost is that of a row of a single document, as of FusedDocumentAttention.
    """

    kind = "gqa_document_attention"
    op_class = OpClass.ATTENTION
    prefix: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v", "starts")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.gqa_attention.document_attention",)

    def infer(self, inputs: Types) -> Types:
        q, k, v = (tensor(t) for t in inputs[:3])
        assert q.shape[-1].same(k.shape[-1]) and k.shape[-1].same(v.shape[-1]), (q, k, v)
        return (q,)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products of half a square each: 2 S^2 H N."""
        q = tensor(inputs[0])
        return q.numel * q.shape[1] * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return _saved(inputs)


@register
class FusedWindowAttention(FusedGroupedAttention):
    """The same to the last `window` tokens, of rows that hold one document each."""

    kind = "gqa_windowed_attention"
    window: Dim = field(kw_only=True)

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.gqa_attention.windowed_attention",)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Less the half square before the window: max(S - W, 0) on a side."""
        q = tensor(inputs[0])
        before = Beyond(q.shape[1], self.window)
        return q.shape[0] * (q.shape[1] * q.shape[1] - before * before) * q.shape[2] * q.shape[3] * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """And the first position that each token sees, one row of them for all."""
        return (*_saved(inputs), Saved("own", 1, TensorType((tensor(inputs[0]).shape[1],), DType.INT32)))


@register
class FusedWindowDocumentAttention(FusedWindowAttention):
    """The same within documents."""

    kind = "gqa_windowed_document_attention"

    @property
    def operands(self) -> tuple[str, ...]:
        return (*super().operands, "starts")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.gqa_attention.windowed_document_attention",)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """And the first position that each token of every row sees."""
        starts = TensorType(tensor(inputs[0]).shape[:2], DType.INT32)
        return (*_saved(inputs[:3]), Saved("own", 1, starts))


def _saved(inputs: Types) -> tuple[Saved, ...]:
    """What attention was given, q first, its result, and each query's sum of exponentials."""
    q = tensor(inputs[0])
    logsumexp = Saved("own", 0, TensorType((q.shape[0], q.shape[2], q.shape[1]), DType.FP32))
    return (*(Saved("input", index) for index in range(len(inputs))), Saved("output", 0), logsumexp)
