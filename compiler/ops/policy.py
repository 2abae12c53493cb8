"""What reinforcement learning asks of the model: log-probabilities of tokens, and the experts of a rollout again."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, tensor
from dsc.compiler.graph.types import DType, ObjectType, TensorType
from dsc.compiler.ops.projection import Linear, TiedHead

REPLAY = ObjectType("Replay")
"""The experts that the engine chose, router by router."""


@register
class LogProbabilities(Op):
    """Of each label, zero where it is -100; logits are made where there is one: [B, S, D], [B, S] -> [B, S]."""

    kind = "log_probabilities"
    op_class = OpClass.PRODUCT
    head: Linear | TiedHead

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "labels")

    @property
    def weight(self) -> str:
        """The attribute that holds the head's weight."""
        return self.head.embedding if isinstance(self.head, TiedHead) else self.head.name

    def infer(self, inputs: Types) -> Types:
        self.head.infer(inputs[:1])
        return (TensorType(tensor(inputs[1]).shape, DType.FP32),)

    def holders(self) -> tuple[Op, ...]:
        return (self.head,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.head.parameters()

    def borrowed(self) -> tuple[str, ...]:
        return self.head.borrowed()

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Of the head at every position, which is what labels everywhere would cost."""
        return self.head.flops(inputs[:1], self.head.infer(inputs[:1]))

    def backward_flops(self, inputs: Types, outputs: Types) -> Dim:
        """The two gradients' products, and the logits, recomputed."""
        return self.flops(inputs, outputs) * 3

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """The states that have labels, the labels, and each one's log-sum-exp."""
        x, labels = (tensor(t) for t in inputs)
        mask = TensorType(labels.shape, DType.BOOL)
        own = (x, labels, TensorType(labels.shape, DType.FP32), mask)
        return tuple(Saved("own", index, type) for index, type in enumerate(own))


@register
class RecordExperts(Op):
    """The experts that a router of the engine chose, added to the batch's: [T, K]."""

    kind = "record_experts"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts", "batch")

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class ReplayExperts(Op):
    """The experts that the engine chose, in place of the router's own choice, which is compared: [B, S, K]."""

    kind = "replay_experts"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts", "replay")

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)
