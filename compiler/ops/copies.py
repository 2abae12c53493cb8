"""Experts of which there are copies on several ranks: where they are, and which of them a token goes to."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Types, register
from dsc.compiler.graph.types import DType, TensorType


@register
class ExpertCopies(Op):
    """The slots of each expert's copies [E, most], and how many copies there are [E]: made where weights are read."""

    kind = "expert_copies"
    num_experts: Dim
    most: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    def infer(self, inputs: Types) -> Types:
        return TensorType((self.num_experts, self.most), DType.INT64), TensorType((self.num_experts,), DType.INT64)


@register
class NoLoads(Op):
    """Where the tokens of each expert are counted from now on: [E]."""

    kind = "no_loads"
    num_experts: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("num_copies",)

    def infer(self, inputs: Types) -> Types:
        return (TensorType((self.num_experts,), DType.INT64),)


@register
class DealToCopies(Op):
    """The slot of a copy of each chosen expert, which are counted: [T, K] experts -> [T, K] slots."""

    kind = "deal_to_copies"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts", "copies", "num_copies", "loads")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("deal_to_copies",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)
