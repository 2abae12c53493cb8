"""Products of few rows, for CPUs: what a step of decoding multiplies is a token of each text."""

from dsc.compiler.graph.op import register
from dsc.compiler.ops.prepared import Multiply
from dsc.compiler.ops.projection import Linear, TiedHead

HELPERS = ("linear",)


@register
class FewRowLinear(Linear):
    """x @ weight.T by a layer's own weight: [T, in] -> [T, out]."""

    kind = "few_row_linear"

    @property
    def requires(self) -> tuple[str, ...]:
        return HELPERS


@register
class FewRowMultiply(Multiply):
    """The same by a weight that was prepared."""

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
