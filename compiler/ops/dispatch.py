"""Experts shared out over ranks: counts, rows there, rows back. Each collective is an op, with the bytes that it sends.

Rows are in the order of their expert, so in that of the rank which has the expert. Received rows come rank by rank,
each in the order of experts; the products want them expert by expert.
"""

from dsc.compiler.graph.dim import Dim, Int, Product
from dsc.compiler.graph.op import Op, OpClass, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, SplitsType, TensorType


def quotient(experts: Dim, places: Dim) -> Dim:
    """As it is written: what is a factor of both is left out."""
    if experts.same(places):
        return Int(1)
    if isinstance(experts, Product) and experts.right == places:
        return experts.left
    if isinstance(experts, Product) and isinstance(places, Product) and experts.right == places.right:
        return quotient(experts.left, places.left)
    return experts if places == Int(1) else experts // places


@register
class CountRows(Op):
    """Slots that chose each expert: [B, S, K] -> [E]."""

    kind = "count_rows"
    num_experts: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], self.num_experts),)


@register
class RecordSent(Op):
    """In training, add what this rank sends to each expert to the router's `expert_load`."""

    kind = "record_sent"
    router: str
    """The attribute that holds the router."""
    once: bool = False
    """The method that holds it runs again in backward, which does not count."""

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train.recompute.running_again",) if self.once else ()

    @property
    def condition(self) -> str:
        """Beside being in training."""
        return " and not running_again()" if self.once else ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("sent",)

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class ExchangeCounts(Op):
    """What each rank has for each of our experts: [E] -> [ranks, experts of a rank]."""

    kind = "exchange_counts"
    op_class = OpClass.EXCHANGE
    ranks: Dim
    group: str = "group"
    """The attribute that holds the ranks."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("sent",)

    def infer(self, inputs: Types) -> Types:
        (experts,) = tensor(inputs[0]).shape
        return (retyped(inputs[0], self.ranks, quotient(experts, self.ranks)),)


@register
class Splits(Op):
    """Rows to each rank and from each rank, as the collectives want them: on the host."""

    kind = "splits"
    waits = True
    ranks: Dim
    only: bool = True
    """The host waits for the device nowhere else."""

    @property
    def comment(self) -> str:
        return "# The only place where the host waits for the device.\n" if self.only else ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("sent", "received")

    def infer(self, inputs: Types) -> Types:
        return (SplitsType(), SplitsType())


@register
class AllToAll(Op):
    """Rows to the ranks that `to` says, started but not waited for; backward sends the gradients back."""

    kind = "all_to_all"
    op_class = OpClass.EXCHANGE
    rows: Dim
    """Received on average."""
    group: str = "group"
    """The attribute that holds the ranks."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "to", "of")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], self.rows, *tensor(inputs[0]).shape[1:]),)


@register
class OrderByExpert(Op):
    """Received rows in the order of experts: [ranks, experts of a rank] counts, [R, D] -> [R]."""

    kind = "order_by_expert"
    rows: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("received", "x")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("order_by_expert",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], self.rows),)


@register
class ReceivedExperts(Op):
    """Which of this rank's experts each received row is for: [ranks, experts of a rank] counts, [R, D] -> [R, 1]."""

    kind = "received_experts"
    like = ("x",)
    rows: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("received", "x")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("received_experts",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], self.rows, Int(1)),)


@register
class WholeRows(Op):
    """What received rows weigh where their tokens weigh them when they are back: [R, D] -> [R, 1] of ones."""

    kind = "whole_rows"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], tensor(inputs[0]).shape[0], Int(1)),)


@register
class ReceivedEnds(Op):
    """Where the rows of each of this rank's experts end: [ranks, experts of a rank] counts -> [experts of a rank]."""

    kind = "received_ends"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("received",)

    def infer(self, inputs: Types) -> Types:
        return (TensorType(tensor(inputs[0]).shape[1:], DType.INT32),)


@register
class TakeRows(Op):
    """Rows in another order: [R, ...], [R'] -> [R', ...]."""

    kind = "take_rows"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "order")

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[1]).shape, *tensor(inputs[0]).shape[1:]),)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 1),)


@register
class PutRows(Op):
    """Rows back to where they were taken from: [R, ...], [R] -> [R, ...]."""

    kind = "put_rows"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "order")

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 1),)
