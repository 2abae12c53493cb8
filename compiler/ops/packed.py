"""Several documents in a row, each as if it were alone: where each begins, attention and labels that keep to it."""

from dataclasses import field

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.attention import CausalAttention


@register
class DocumentStarts(Op):
    """Where in its row the document of each position begins. Numbers [B, S] -> positions [B, S]."""

    kind = "document_starts"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("documents",)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("document_starts",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[0]).shape, dtype=DType.INT32),)


@register
class LabelsInDocument(Op):
    """Labels n positions ahead, -100 where those are of another document: [B, S] -> [B, S - n]."""

    kind = "labels_in_document"
    ahead: int

    @property
    def operands(self) -> tuple[str, ...]:
        return ("labels", "documents")

    def infer(self, inputs: Types) -> Types:
        batch, length = tensor(inputs[0]).shape
        return (retyped(inputs[0], batch, length - self.ahead),)


@register
class VisibleInDocument(Op):
    """Which positions each one sees: those of its document up to itself. Where it begins [B, S] -> [B, S, S]."""

    kind = "visible_in_document"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("starts",)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("visible_in_document",)

    def infer(self, inputs: Types) -> Types:
        batch, length = tensor(inputs[0]).shape
        return (TensorType((batch, length, length), DType.BOOL),)


@register
class DocumentAttention(CausalAttention):
    """softmax(q k^T * scale) v of each position over those that are visible [B, S, S] to it.

    Its cost is that of a row of a single document, which is the upper bound: how long documents are, data says.
    """

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
        return super().flops(inputs[:3], outputs)

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
