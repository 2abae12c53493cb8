"""Weights as inference reads them, made once of the model's parameters."""

from dsc.compiler.graph.dim import Dim, total
from dsc.compiler.graph.op import Op, OpClass, Parameter, Types, register, retyped, tensor
from dsc.compiler.graph.types import TensorType
from dsc.compiler.ops.projection import Linear


@register
class StackedWeight(Op):
    """The weights of layers that read the same x, stacked: [sum of outs, in]."""

    kind = "stacked_weight"
    linears: tuple[Linear, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    @property
    def requires(self) -> tuple[str, ...]:
        return ("stacked",)

    def infer(self, inputs: Types) -> Types:
        first = self.linears[0]
        return (TensorType((total([linear.out_features for linear in self.linears]), first.in_features), first.dtype),)

    def holders(self) -> tuple[Op, ...]:
        return self.linears

    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(parameter for linear in self.linears for parameter in linear.parameters())


@register
class Multiply(Op):
    """x @ weight.T by a weight that was prepared: [..., in] -> [..., out]."""

    kind = "multiply"
    op_class = OpClass.PRODUCT

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "weight")

    def infer(self, inputs: Types) -> Types:
        x, weight = (tensor(t) for t in inputs)
        assert x.shape[-1].same(weight.shape[-1]), inputs
        return (retyped(x, *x.shape[:-1], weight.shape[0]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * tensor(inputs[1]).shape[0] * 2
