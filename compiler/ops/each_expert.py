"""Routed experts one after the other, for CPUs: the weights of experts that nobody chose are never read."""

from dsc.compiler.graph.op import Op, Saved, Types, register, retyped, tensor
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
class EachExpert(GroupedLinear):
    """Each expert's rows times its own weight.T, expert after expert: [T * K, in] -> [T * K, out]."""

    kind = "each_expert"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "counts")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("linear", "each_expert")

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class ChosenExperts(EachExpert):
    """The same where the expert of every row is known: [T * K, in] by [T * K] sorted ids -> [T * K, out]."""

    kind = "chosen_experts"
    waits = True

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "chosen")

    @property
    def requires(self) -> tuple[str, ...]:
        return (*super().requires, "chosen_experts")


@register
class SumSlots(ScatterSum):
    """The sum of each token's slots: [T * K, D] -> [T, D]."""

    kind = "sum_slots"
