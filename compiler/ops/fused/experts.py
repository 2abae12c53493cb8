"""Routed experts as kernels/expert_dispatch.py and kernels/experts.py compute them."""

from typing import ClassVar

from dsc.compiler.graph.dim import Dim, total
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.moe import GroupedLinear


@register
class FusedSort(Op):
    """Slots to rows in expert order, rows back to slots, and where each expert's rows end.

    [B, S, K] ids -> order [T * K], position [T, K], ends [E], all int32.
    """

    kind = "fused_sort"
    num_experts: Dim
    tokens: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts",)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.expert_dispatch.sort_by_expert",)

    def infer(self, inputs: Types) -> Types:
        top_k = tensor(inputs[0]).shape[-1]
        shapes = ((self.tokens * top_k,), (self.tokens, top_k), (self.num_experts,))
        return tuple(TensorType(shape, DType.INT32) for shape in shapes)


@register
class RoutedExperts(Op):
    """Each token through its experts, weighted and summed: [B, S, D] -> [B, S, D].

    Tokens are not copied for their experts; SwiGLU is part of the kernel that computes gate and up.
    """

    kind = "routed_experts"
    op_class = OpClass.GROUPED_PRODUCT
    gate_up: GroupedLinear
    down: GroupedLinear
    rows: Dim
    """T * K."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "weights", "order", "position", "ends")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.experts.routed_experts",)

    def infer(self, inputs: Types) -> Types:
        assert tensor(inputs[0]).shape[-1].same(self.gate_up.in_features), inputs[0]
        return (inputs[0],)

    def holders(self) -> tuple[Op, ...]:
        return (self.gate_up, self.down)

    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.gate_up.parameters(), *self.down.parameters())

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return total([self.rows * op.in_features * op.out_features * 2 for op in (self.gate_up, self.down)])

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        preactivation = retyped(inputs[0], self.rows, self.gate_up.out_features)
        return (*(Saved("input", index) for index in range(5)), Saved("own", 0, preactivation))


@register
class RoutedAndSharedExperts(RoutedExperts):
    """The same, with the shared experts' result added in the same sum."""

    kind = "routed_and_shared_experts"
    routed: ClassVar[type[RoutedExperts]] = RoutedExperts
    """What is left without it."""

    @property
    def operands(self) -> tuple[str, ...]:
        return (*super().operands, "shared")
