"""Losses of one micro-batch as shares of the loss of the whole batch, so that all that is left to do is to sum.

`counts` [B, depths + 1] says of the whole batch, in every row: how many labels each cross-entropy averages over, the
main one first, and last how many micro-batches there are.
"""

from dsc.compiler.graph.dim import Int
from dsc.compiler.graph.op import Op, Types, register
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.loss import SCALAR, LossParts


@register
class ShareOfLabels(Op):
    """A mean over the labels of a micro-batch, as its share of the mean over those of the batch."""

    kind = "share_of_labels"
    depth: int
    """0 for the next token, 1 and on for those further ahead."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("loss", "labels", "counts")

    def infer(self, inputs: Types) -> Types:
        return (SCALAR,)


@register
class ShareOfMicroBatches(Op):
    """A mean over the sequences of a micro-batch, as its share of the mean over those of the batch."""

    kind = "share_of_micro_batches"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("loss", "counts")

    def infer(self, inputs: Types) -> Types:
        return (SCALAR,)


@register
class StackLosses(LossParts):
    """The loss and its parts as one tensor, which a pipeline can hand on: [1 + parts]."""

    kind = "stack_losses"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("loss", *self.names)

    def infer(self, inputs: Types) -> Types:
        return (TensorType((Int(len(inputs)),), DType.FP32),)
