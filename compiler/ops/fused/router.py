"""The router as kernels/router_logits.py and kernels/router.py compute it."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.router import BiasedSelectionScores, RouterLogits


@register
class FusedRouterLogits(Op):
    """x @ weight.T in float32 or wider, from x and weight in any dtype: [B, S, D] -> [B, S, E]."""

    kind = "fused_router_logits"
    op_class = OpClass.PRODUCT
    linear: RouterLogits

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.router_logits.router_logits",)

    def infer(self, inputs: Types) -> Types:
        return self.linear.infer(inputs)

    def holders(self) -> tuple[Op, ...]:
        return (self.linear,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.linear.parameters()

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return self.linear.flops(inputs, outputs)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class Route(Op):
    """Score, limit to groups, choose, weight: logits [B, S, E] -> ids and weights [B, S, K]."""

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

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0), Saved("output", 0))


@register
class BiasedRoute(Route):
    """The same with the selection bias, which takes part in the choice only (DeepSeek-V3, equation 16)."""

    kind = "biased_route"
    bias: BiasedSelectionScores

    def holders(self) -> tuple[Op, ...]:
        return (self.bias,)
