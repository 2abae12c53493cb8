"""Rotary position embedding (arXiv 2104.09864): the table of one call, and the rotation by it."""

from typing import Literal

from dsc.compiler.graph.dim import Dim, Int
from dsc.compiler.graph.op import Op, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType


@register
class RotaryTable(Op):
    """cos and sin by position and rotated pair: [2, S, R / 2], float32 or wider."""

    kind = "rotary_table"
    like = ("tokens", "x")
    scaling: Literal["none", "yarn", "llama3"]
    rotary_dim: Dim
    prefix: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tokens", "x")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"rotary_table_{self.scaling}",)

    def infer(self, inputs: Types) -> Types:
        return (TensorType((Int(2), tensor(inputs[0]).shape[1], self.rotary_dim // 2), DType.FP32),)


@register
class RotaryTableAfter(RotaryTable):
    """The same for tokens that follow those in the caches."""

    kind = "rotary_table_after"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tokens", "x", "caches")


@register
class SpreadPairs(Op):
    """cos and sin for both components of each pair, sin with the sign it enters with: [2, S, R / 2] -> [2, S, R]."""

    kind = "spread_pairs"
    layout: Literal["interleaved", "half"]
    rotary_dim: Dim
    prefix: str = ""

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"spread_pairs_{self.layout}",)

    def infer(self, inputs: Types) -> Types:
        return (retyped(inputs[0], *tensor(inputs[0]).shape[:-1], self.rotary_dim),)


@register
class Rotate(Op):
    """Rotate the pairs of [B, S, heads, R] by their position's angles."""

    kind = "rotate"
    layout: Literal["interleaved", "half"]
    rotary_dim: Dim
    prefix: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "rope")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"rotate_{self.layout}",)

    def infer(self, inputs: Types) -> Types:
        x, rope = tensor(inputs[0]), tensor(inputs[1])
        assert x.shape[-1].same(self.rotary_dim) and rope.shape[-1].same(self.rotary_dim), (
            f"{x.shape_text()} by {rope.shape_text()}"
        )
        return (x,)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 1),)
