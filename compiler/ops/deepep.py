"""Rows to the experts of other ranks and back through DeepEP: the functions of the package's train/deepep.py.

It sends a token once to each node of its experts, and there once to each rank; what arrives is laid out expert by
expert, a row for each choice. On the way back a rank first adds up what it has of a token. These ops count the copies
on both sides; the links' time is the planner's.
"""

from dsc.compiler.graph.dim import Dim, Int
from dsc.compiler.graph.op import Op, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, ObjectType, TensorType

SENT = ObjectType("Sent")


@register
class SendToExperts(Op):
    """Tokens [T, D] with the experts that they chose and their weights, [B, S, K] each, on their way."""

    kind = "send_to_experts"
    waits = True

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tokens", "experts", "weights")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train.deepep.dispatch",)

    def infer(self, inputs: Types) -> Types:
        return (SENT,)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """What the handle has: the choices, where each row lies, and for as many tokens as rows at most where it came
        from and went."""
        tokens, top_k = tensor(inputs[0]).shape[0], tensor(inputs[1]).shape[-1]
        chosen = TensorType((tokens, top_k), DType.INT64)
        slots = TensorType((tokens, top_k), DType.INT32)
        received = TensorType((tokens * top_k, top_k + 2), DType.INT32)
        return tuple(Saved("own", index, type) for index, type in enumerate((chosen, slots, received)))


@register
class Arrived(Op):
    """What came for this rank's experts: rows expert by expert, their weights, and where those of each end.

    [T, D] -> [T * K, D], [T * K, 1], [experts of a rank].
    """

    kind = "arrived"
    like = ("tokens",)
    rows: Dim
    """Received on average."""
    num_experts: Dim
    """Of a rank."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("sent", "tokens")

    def infer(self, inputs: Types) -> Types:
        h = retyped(inputs[1], self.rows, *tensor(inputs[1]).shape[1:])
        return (h, retyped(h, self.rows, Int(1)), TensorType((self.num_experts,), DType.INT32))


@register
class BringBack(Op):
    """Results of this rank's experts, added up for each token where it came from: [T * K, D] -> [T, D]."""

    kind = "bring_back"
    like = ("tokens",)

    @property
    def operands(self) -> tuple[str, ...]:
        return ("rows", "sent", "tokens")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train.deepep.combine",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[2],)


@register
class InOrder(Op):
    """For a kernel that is told where rows lie: each one at its place. [R, D] -> [R], [R, 1]."""

    kind = "in_order"
    like = ("x",)

    def infer(self, inputs: Types) -> Types:
        rows = tensor(inputs[0]).shape[0]
        return (TensorType((rows,), DType.INT32), TensorType((rows, Int(1)), DType.INT32))
