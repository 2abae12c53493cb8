"""Routed experts one after the other, for CPUs: the weights of experts that nobody chose are never read."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, OpClass, Parameter, Types, register, retyped, tensor
from dsc.compiler.graph.types import ObjectType
from dsc.compiler.ops.moe import GroupedLinear, ScatterSum, SlotSource

COUNTS = ObjectType("list[int]")


@register
class TokenOfSlot(SlotSource):
    """The token that each slot reads and adds to: [T * K]."""

    kind = "token_of_slot"

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class SelectTokens(Op):
    """A copy of its token for every slot: [T, D] by [T * K] -> [T * K, D]."""

    kind = "select_tokens"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tokens", "source")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[1]).shape, *tensor(inputs[0]).shape[1:]),)


@register
class ExpertWeights(Op):
    """The weights of all experts, in oneDNN's layout while many texts are written: [E, out, in]."""

    kind = "expert_weights"
    grouped: GroupedLinear

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    @property
    def requires(self) -> tuple[str, ...]:
        return ("away", "packed", "expert_weights")

    def infer(self, inputs: Types) -> Types:
        (weight,) = self.grouped.parameters()
        return (weight.type,)

    def holders(self) -> tuple[Op, ...]:
        return (self.grouped,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.grouped.parameters()


@register
class EachExpert(Op):
    """Each expert's rows times its own weight.T, expert after expert: [T * K, in] -> [T * K, out]."""

    kind = "each_expert"
    op_class = OpClass.GROUPED_PRODUCT

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "counts", "weight")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("linear", "each_expert")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], tensor(inputs[0]).shape[0], tensor(inputs[2]).shape[1]),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * tensor(inputs[2]).shape[1] * 2


@register
class ChosenExperts(EachExpert):
    """The same where the expert of every row is known: [T * K, in] by [T * K] sorted ids -> [T * K, out]."""

    kind = "chosen_experts"
    waits = True

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "chosen", "weight")

    @property
    def requires(self) -> tuple[str, ...]:
        return (*super().requires, "chosen_experts")


@register
class SumSlots(ScatterSum):
    """The sum of each token's slots: [T * K, D] -> [T, D]."""

    kind = "sum_slots"


@register
class AddSlots(SumSlots):
    """The same added to what the shared experts make of each token, in place: [T * K, D], [T, D] -> [T, D]."""

    kind = "add_slots"
