"""The cache of a layer at inference."""

from dataclasses import dataclass

from dsc.compiler.graph.dim import C
from dsc.compiler.graph.op import Op, Types, register, retyped, tensor
from dsc.compiler.graph.types import CacheType


@register
@dataclass(frozen=True)
class CacheAppend(Op):
    """Append the new tokens' rows and return all: [B, S, ...] -> [B, C, ...]."""

    kind = "cache_append"
    slot: str

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "cache")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("layer_cache",)

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert isinstance(inputs[1], CacheType)
        return (retyped(x, x.shape[0], C, *x.shape[2:]),)

    def memory(self, inputs: Types, outputs: Types) -> tuple[None, ...]:
        return (None,)
