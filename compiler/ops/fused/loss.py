"""The head and its cross-entropy as kernels/linear_cross_entropy.py computes them: logits are never written."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.loss import SCALAR
from dsc.compiler.ops.projection import Linear, TiedHead


@register
class LinearCrossEntropy(Op):
    """Mean cross-entropy of x @ weight.T over the labels that are not -100: [B, S, D], [B, S] -> []."""

    kind = "linear_cross_entropy"
    op_class = OpClass.PRODUCT
    head: Linear

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "labels")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.linear_cross_entropy.linear_cross_entropy",)

    def infer(self, inputs: Types) -> Types:
        self.head.infer(inputs[:1])
        return (SCALAR,)

    def holders(self) -> tuple[Op, ...]:
        return (self.head,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.head.parameters()

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return self.head.flops(inputs[:1], self.head.infer(inputs[:1]))

    def backward_flops(self, inputs: Types, outputs: Types) -> Dim:
        """The two gradients' products, and the logits, recomputed."""
        return self.flops(inputs, outputs) * 3

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """x, each token's log-sum-exp, and a contiguous copy of the labels, which are a slice of the tokens."""
        x, labels = (tensor(t) for t in inputs)
        return (
            Saved("input", 0),
            Saved("own", 0, retyped(x, *x.shape[:-1], dtype=DType.FP32)),
            Saved("own", 1, labels),
        )


@register
class TiedLinearCrossEntropy(Op):
    """The same with the embedding's own weight."""

    kind = "tied_linear_cross_entropy"
    op_class = OpClass.PRODUCT
    head: TiedHead

    operands = LinearCrossEntropy.operands
    requires = LinearCrossEntropy.requires
    infer = LinearCrossEntropy.infer
    flops = LinearCrossEntropy.flops
    backward_flops = LinearCrossEntropy.backward_flops
    saved = LinearCrossEntropy.saved

    def borrowed(self) -> tuple[str, ...]:
        return self.head.borrowed()
