"""Products in FP8: linear layers as in kernels/fp8_linear.py, routed experts as in kernels/fp8_experts.py."""

from dsc.compiler.graph.dim import Blocks, Dim, Int, product, total
from dsc.compiler.graph.op import Op, OpClass, Parameter, Pass, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.fused.experts import RoutedAndSharedExperts, RoutedExperts
from dsc.compiler.ops.projection import Linear

READ, WRITTEN = 2, 1
"""Bytes of an element in bfloat16, and of its code in FP8; scales are a thirtieth of that."""
EVERY_PASS: frozenset[Pass] = frozenset(("forward", "input_gradient", "weight_gradient"))


def along_rows(elements: Dim) -> Dim:
    return elements * (READ + WRITTEN)


def _both_ways(elements: Dim) -> Dim:
    """Along rows and along columns, in one kernel that reads once."""
    return elements * (READ + 2 * WRITTEN)


@register
class Fp8Linears(Op):
    """x @ weight.T for several weights, x quantized once: [..., in] -> [..., out] each."""

    kind = "fp8_linears"
    op_class = OpClass.PRODUCT
    saves_codes = True
    in_fp8 = EVERY_PASS
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

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        return _both_ways(tensor(inputs[0]).numel), _both_ways(total([tensor(one).numel for one in outputs]))

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """Not x, but its codes."""
        return tuple(Saved("own", index, type) for index, type in enumerate(self.codes(inputs)))

    def codes(self, inputs: Types) -> tuple[TensorType, ...]:
        """x in FP8 with scales in blocks along the tokens, as the weights' gradients read it."""
        x = tensor(inputs[0])
        blocks = Blocks(product(x.shape[:-1]), self.block)
        return (
            retyped(x, x.shape[-1], blocks * self.block, dtype=DType.FP8),
            retyped(x, x.shape[-1], blocks, dtype=DType.FP32),
        )

    def encoding_again(self) -> "Fp8LinearsEncodingAgain":
        """The same products of what backward makes again."""
        return Fp8LinearsEncodingAgain(self.linears, self.block)


@register
class Fp8Linear(Fp8Linears):
    """The same for one weight."""

    kind = "fp8_linear"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_linear.fp8_linear",)

    def encoding_again(self) -> "Fp8LinearsEncodingAgain":
        return Fp8LinearEncodingAgain(self.linears, self.block)


@register
class Fp8LinearsEncodingAgain(Fp8Linears):
    """The same for an x that backward makes again: no codes are kept, for backward encodes it again too."""

    kind = "fp8_linears_encoding_again"
    saves_codes = False

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"kernels.fp8_linear_again.{self.kind}",)

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        """Forward along rows alone; backward both ways, for no kernel writes columns alone."""
        x, results = tensor(inputs[0]).numel, total([tensor(one).numel for one in outputs])
        return along_rows(x), _both_ways(x + results)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)

    def passing(self, inputs: Types) -> tuple[TensorType, ...]:
        return self.codes(inputs)


@register
class Fp8LinearEncodingAgain(Fp8LinearsEncodingAgain):
    """The same for one weight."""

    kind = "fp8_linear_encoding_again"


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

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        """SwiGLU's result is quantized where it is made: forward along rows, backward along columns."""
        made = tensor(inputs[0]).numel * (2 * READ + WRITTEN)
        return made, made + _both_ways(tensor(outputs[0]).numel)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0), Saved("input", 1))


def _of_experts(op: RoutedExperts, inputs: Types) -> tuple[Dim, Dim]:
    """Tokens and their gradients, not a copy for each expert; the gradients of gate and up are."""
    tokens, of_gate_up = tensor(inputs[0]).numel, op.rows * op.gate_up.out_features
    return along_rows(tokens), along_rows(tokens + of_gate_up)


@register
class Fp8RoutedExperts(RoutedExperts):
    """Each token through its experts in FP8; what is saved is what experts in bfloat16 save."""

    kind = "fp8_routed_experts"
    in_fp8 = frozenset(("forward", "input_gradient"))
    block: Int
    """Elements that share a scale."""

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        return _of_experts(self, inputs)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_experts.fp8_routed_experts",)


@register
class Fp8RoutedAndSharedExperts(RoutedAndSharedExperts):
    """The same, with the shared experts' result added in the same sum."""

    kind = "fp8_routed_and_shared_experts"
    in_fp8 = Fp8RoutedExperts.in_fp8
    routed = Fp8RoutedExperts
    block: Int
    """Elements that share a scale."""

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        return _of_experts(self, inputs)

    requires = Fp8RoutedExperts.requires
