"""The choice of experts as kernels/router.py computes it."""

from dataclasses import dataclass

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Lowering, Op, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.router import BiasedSelectionScores


@register
@dataclass(frozen=True)
class Route(Op):
    """Score, limit to groups, choose, weigh: logits [B, S, E] -> ids and weights [B, S, K]."""

    kind = "route"
    top_k: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("logits",)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.router.route",)

    def infer(self, inputs: Types) -> Types:
        logits = tensor(inputs[0])
        shape = (*logits.shape[:-1], self.top_k)
        return (retyped(logits, *shape, dtype=DType.INT64), retyped(logits, *shape))

    def saved(self, inputs: Types, outputs: Types, lowering: Lowering) -> tuple[Saved, ...]:
        return (Saved("input", 0), Saved("output", 0))


@register
@dataclass(frozen=True)
class BiasedRoute(Route):
    """The same with the selection bias, which takes part in the choice only (DeepSeek-V3, equation 16)."""

    kind = "biased_route"
    bias: BiasedSelectionScores

    @property
    def requires(self) -> tuple[str, ...]:
        return (*super().requires, *self.bias.requires)

    def holders(self) -> tuple[Op, ...]:
        return (self.bias,)
