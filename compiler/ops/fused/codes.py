"""Products in FP8 for generation: weights become codes once, when they are prepared, and products read the codes."""

from dsc.compiler.graph.dim import Blocks, Dim, Int
from dsc.compiler.graph.op import Op, OpClass, Parameter, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.fused.fp8 import READ, WRITTEN, along_rows
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.ops.projection import Linear


@register
class WeightCodes(Op):
    """FP8 codes of a layer's weight, [out, in], and a scale for each block of it."""

    kind = "weight_codes"
    linear: Linear | GroupedLinear
    block: Int
    """Rows and columns that share a scale."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_quantize.quantize_blocks",)

    @property
    def shape(self) -> tuple[Dim, ...]:
        (weight,) = self.linear.parameters()
        return weight.type.shape

    def infer(self, inputs: Types) -> Types:
        *experts, rows, columns = self.shape
        blocks = (*experts, Blocks(rows, self.block), Blocks(columns, self.block))
        return (TensorType(self.shape, DType.FP8), TensorType(blocks, DType.FP32))

    def holders(self) -> tuple[Op, ...]:
        return (self.linear,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.linear.parameters()


@register
class ExpertCodes(WeightCodes):
    """The same of the weights of all experts: [E, out, in]."""

    kind = "expert_codes"


@register
class GateUpCodes(WeightCodes):
    """The same where gate and up are stacked, each with blocks of its own: [E, 2 * I, in] -> [2 * E, I, in]."""

    kind = "gate_up_codes"
    width: Dim
    """I."""

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_experts.quantize_halves",)

    @property
    def shape(self) -> tuple[Dim, ...]:
        experts, _, columns = super().shape
        return (experts * 2, self.width, columns)


@register
class Fp8LinearsByCodes(Op):
    """x @ weight.T by the codes of several weights, x quantized once: [..., in] -> [..., out] each."""

    kind = "fp8_linears_by_codes"
    op_class = OpClass.PRODUCT
    weights: int

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", *(f"{name}_{index}" for index in range(self.weights) for name in ("codes", "scale")))

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_linear.fp8_linears_by_codes",)

    def pairs(self, names: list[str]) -> list[tuple[str, str]]:
        """Codes and scale of each weight, of what the operands are called."""
        weights = names[-2 * self.weights :]
        return list(zip(weights[::2], weights[1::2], strict=True))

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        codes = [tensor(type) for type in inputs[-2 * self.weights :: 2]]
        assert all(code.shape[-1].same(x.shape[-1]) for code in codes), inputs
        return tuple(retyped(x, *x.shape[:-1], code.shape[0]) for code in codes)

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        return along_rows(tensor(inputs[0]).numel), Int(0)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        width = tensor(inputs[0]).shape[-1]
        found: Dim = Int(0)
        for output in outputs:
            found += tensor(output).numel * width * 2
        return found


@register
class Fp8LinearByCodes(Fp8LinearsByCodes):
    """The same by one weight."""

    kind = "fp8_linear_by_codes"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_linear.fp8_linear_by_codes",)


@register
class Fp8SwigluLinearByCodes(Fp8LinearsByCodes):
    """swiglu(gate, up) @ weight.T by the weight's codes: [..., F] twice -> [..., out]."""

    kind = "fp8_swiglu_linear_by_codes"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("gate", "up", "codes", "scale")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_swiglu_linear.fp8_swiglu_linear_by_codes",)

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        """SwiGLU's result is quantized where it is made, of gate and up."""
        return tensor(inputs[0]).numel * (2 * READ + WRITTEN), Int(0)


@register
class Fp8RoutedExpertsByCodes(Op):
    """Each token through its experts, weighted and summed, by the experts' codes: [T, D] -> [T, D]."""

    kind = "fp8_routed_experts_by_codes"
    op_class = OpClass.GROUPED_PRODUCT
    rows: Dim
    """T * K."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "weights", "order", "position", "ends", "gate_up", "gate_up_scale", "down", "down_scale")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.fp8_experts.fp8_routed_experts_by_codes",)

    def infer(self, inputs: Types) -> Types:
        x, gate_up = tensor(inputs[0]), tensor(inputs[5])
        assert x.shape[-1].same(gate_up.shape[-1]), inputs
        return (inputs[0],)

    def cast_bytes(self, inputs: Types, outputs: Types) -> tuple[Dim, Dim]:
        """Tokens, not a copy for each expert."""
        return along_rows(tensor(inputs[0]).numel), Int(0)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Three products of D by I for every row."""
        _, inner, width = tensor(inputs[5]).shape
        return self.rows * inner * width * 6


@register
class Fp8RoutedAndSharedExpertsByCodes(Fp8RoutedExpertsByCodes):
    """The same, with the shared experts' result added in the same sum."""

    kind = "fp8_routed_and_shared_experts_by_codes"

    @property
    def operands(self) -> tuple[str, ...]:
        return (*super().operands, "shared")
