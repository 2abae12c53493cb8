"""Products of few rows, for CPUs: what a step of decoding multiplies is a token of each text."""

from dsc.compiler.graph.op import register
from dsc.compiler.ops.prepared import Multiply, StackedWeight
from dsc.compiler.ops.projection import TiedHead
from dsc.compiler.ops.router import RouterLogits

HELPERS = ("linear",)


@register
class ProductWeight(StackedWeight):
    """The same, packed for oneDNN if an engine is told to: [sum of outs, in]."""

    kind = "product_weight"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("stacked", "packable", "packed", "product_weight")


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
