"""Products of few rows, for CPUs: what a step of decoding multiplies is a token of each text."""

from dsc.compiler.graph.op import Op, Parameter, Types, register
from dsc.compiler.graph.types import ObjectType
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.prepared import Multiply, StackedWeight
from dsc.compiler.ops.projection import TiedHead
from dsc.compiler.ops.router import RouterLogits

HELPERS = ("linear",)


@register
class ProductWeight(StackedWeight):
    """The same, in oneDNN's layout while many texts are written: [sum of outs, in]."""

    kind = "product_weight"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("stacked", "away", "packed", "product_weight")


@register
class FewRowMultiply(Multiply):
    """x @ weight.T by such a weight: [T, in] -> [T, out]."""

    kind = "few_row_multiply"

    @property
    def requires(self) -> tuple[str, ...]:
        return HELPERS


@register
class FewRowHead(TiedHead):
    """The same by the embedding's weight: [rows, D] -> [rows, W]."""

    kind = "few_row_head"

    @property
    def requires(self) -> tuple[str, ...]:
        return HELPERS


@register
class FewRowRouter(RouterLogits):
    """The same in float32 or wider: [T, D] -> [T, E]."""

    kind = "few_row_router"

    @property
    def requires(self) -> tuple[str, ...]:
        return (*HELPERS, "upcast")


@register
class PreparedNorm(Op):
    """A norm as few rows are normed: an object that is called."""

    kind = "prepared_norm"
    norm: RmsNorm

    @property
    def operands(self) -> tuple[str, ...]:
        return ()

    @property
    def requires(self) -> tuple[str, ...]:
        return ("few_row_norm",)

    def infer(self, inputs: Types) -> Types:
        return (ObjectType("FewRowNorm"),)

    def holders(self) -> tuple[Op, ...]:
        return (self.norm,)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.norm.parameters()


@register
class FewRowNorm(RmsNorm):
    """RMSNorm by such an object."""

    kind = "few_row_norm"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "norm")

    def attribute(self) -> None:
        return None
