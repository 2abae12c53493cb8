"""Several documents in a row, each as if it were alone: who sees whom, and attention that keeps to it."""

from dataclasses import field

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.attention import CausalAttention


@register
class VisibleInDocument(Op):
    """Which positions each one sees: those of its document up to itself. Numbers [B, S] -> [B, S, S]."""

    kind = "visible_in_document"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("documents",)

    def infer(self, inputs: Types) -> Types:
        batch, length = tensor(inputs[0]).shape
        return (TensorType((batch, length, length), DType.BOOL),)


@register
class SkipLastSeen(Op):
    """The same without the last n positions, neither as who sees nor as who is seen: [B, S, S] -> [B, S - n, S - n]."""

    kind = "skip_last_seen"
    is_view = True
    count: int

    @property
    def operands(self) -> tuple[str, ...]:
        return ("visible",)

    def infer(self, inputs: Types) -> Types:
        visible = tensor(inputs[0])
        batch, new, seen = visible.shape
        return (retyped(visible, batch, new - self.count, seen - self.count),)


@register
class DocumentAttention(CausalAttention):
    """softmax(q k^T * scale) v of each position over those that are visible [B, S, S] to it."""

    kind = "document_attention"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v", "visible")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"visible_attention_{self.variant}",)

    def infer(self, inputs: Types) -> Types:
        return super().infer(inputs[:3])

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products with every position, visible or not: 2 S S H (qk + v)."""
        return super().flops(inputs[:3], outputs) * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """PyTorch's operator turns the mask into numbers that it adds to the logits, and keeps those too."""
        q = tensor(inputs[0])
        mask = TensorType((q.shape[0], q.shape[1], q.shape[1]), q.dtype)
        return (*super().saved(inputs[:3], outputs), Saved("own", 3, mask))


@register
class DocumentAttentionInWindow(DocumentAttention):
    """The same where a position sees the last `window` of these only, itself included."""

    kind = "document_attention_in_window"
    window: Dim = field(kw_only=True)
