"""Products in FP8: linear layers as in kernels/fp8_linear.py, routed experts as in kernels/fp8_experts.py."""

from dsc.compiler.graph.dim import Blocks, Dim, Int, product, total
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.fused.experts import RoutedAndSharedExperts, RoutedExperts
from dsc.compiler.ops.projection import Linear


@register
class Fp8Linears(Op):
    """x @ weight.T for several weights, x quantized once: [..., in] -> [..., out] each."""

    kind = "fp8_linears"
    op_class = OpClass.PRODUCT
    saves_codes = True
    linears: tuple[Linear, ...]
    block: Int
    """Elements that share a scale."""

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_linear.fp8_linears",)

    def infer(self, inputs: Types) -> Types:
        return tuple(type for linear in self.linears for type in linear.infer(inputs))

    def holders(self) -> tuple[Op, ...]:
        return self.linears

    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(parameter for linear in self.linears for parameter in linear.parameters())

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return total([linear.flops(inputs, (output,)) for linear, output in zip(self.linears, outputs, strict=True)])

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """Not x, but its FP8 form with scales in blocks along the tokens, as the weights' gradients read it."""
        x = tensor(inputs[0])
        blocks = Blocks(product(x.shape[:-1]), self.block)
        return (
            Saved("own", 0, retyped(x, x.shape[-1], blocks * self.block, dtype=DType.FP8)),
            Saved("own", 1, retyped(x, x.shape[-1], blocks, dtype=DType.FP32)),
        )


@register
class Fp8Linear(Fp8Linears):
    """The same for one weight."""

    kind = "fp8_linear"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_linear.fp8_linear",)


@register
class Fp8SwigluLinear(Fp8Linears):
    """swiglu(gate, up) @ weight.T, with SwiGLU fused into the quantization: [..., F] twice -> [..., out]."""

    kind = "fp8_swiglu_linear"
    saves_codes = False
    includes_swiglu = True

    @property
    def operands(self) -> tuple[str, ...]:
        return ("gate", "up")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_swiglu_linear.fp8_swiglu_linear",)

    def infer(self, inputs: Types) -> Types:
        assert tensor(inputs[0]).same(inputs[1]), f"{inputs[0]} against {inputs[1]}"
        return super().infer(inputs[:1])

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0), Saved("input", 1))


@register
class Fp8RoutedExperts(RoutedExperts):
    """Each token through its experts in FP8; what is saved is what experts in bfloat16 save."""

    kind = "fp8_routed_experts"
    block: Int
    """Elements that share a scale."""

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_experts.fp8_routed_experts",)


@register
class Fp8RoutedAndSharedExperts(RoutedAndSharedExperts):
    """The same, with the shared experts' result added in the same sum."""

    kind = "fp8_routed_and_shared_experts"
    routed = Fp8RoutedExperts
    block: Int
    """Elements that share a scale."""

    requires = Fp8RoutedExperts.requires
