"""The cache of a layer at inference."""

from dsc.compiler.graph.dim import Beyond, C, Dim, S, Symbol
from dsc.compiler.graph.op import Op, Types, register, retyped, tensor
from dsc.compiler.graph.types import CacheType


@register
class CacheAppend(Op):
    """Append the new tokens' rows and return all: [B, S, ...] -> [B, C, ...]."""

    kind = "cache_append"
    in_cache = True
    slot: str

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "cache")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("layer_cache", "append_rows")

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert isinstance(inputs[1], CacheType)
        return (retyped(x, x.shape[0], C, *x.shape[2:]),)


@register
class RingAppend(Op):
    """Keep the rows of the last `window` tokens and read those that the new tokens see: [B, S, ...] -> [B, P, ...]."""

    kind = "ring_append"
    slot: str
    window: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "cache")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("layer_cache", "append_to_ring")

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert isinstance(inputs[1], CacheType)
        seen = Symbol("P", definition=C - Beyond(C, self.window - 1 + S), letter="P")
        return (retyped(x, x.shape[0], seen, *x.shape[2:]),)
