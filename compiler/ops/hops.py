"""Rows that go to the experts in two hops: between nodes once for each node, and there to the ranks of its experts.

What a rank must know of a row beside the row itself are the weights of the experts that it is for: [experts of a node],
-1 where an expert was not chosen. They travel with the row, and their gradient comes back with the row's.
"""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.dispatch import quotient


@register
class WeightByExpert(Op):
    """Routing weights by expert, -1 where it was not chosen, in the type of the tokens: [B, S, K] -> [T, E]."""

    kind = "weight_by_expert"
    like = ("tokens",)
    num_experts: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts", "weights", "tokens")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("weight_by_expert",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[2], tensor(inputs[2]).shape[0], self.num_experts),)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class RowsFor(Op):
    """Rows place by place, with the weights of the experts there: [T, E] -> [M, E / places], their token, [places]."""

    kind = "rows_for"
    waits = True
    places: Dim
    rows: Dim
    """To all places together, on average."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("chosen",)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("rows_for",)

    def infer(self, inputs: Types) -> Types:
        _, experts = tensor(inputs[0]).shape
        weights = retyped(inputs[0], self.rows, quotient(experts, self.places))
        return (weights, TensorType((self.rows,), DType.INT64), TensorType((self.places,), DType.INT64))


@register
class SumRows(Op):
    """Rows added up where they came from: [M, D], [M] -> [T, D]."""

    kind = "sum_rows"
    like = ("tokens",)

    @property
    def operands(self) -> tuple[str, ...]:
        return ("rows", "source", "tokens")

    def infer(self, inputs: Types) -> Types:
        return (inputs[2],)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 1),)
