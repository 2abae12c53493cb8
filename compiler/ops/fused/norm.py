"""RMSNorm as kernels/rms_norm.py computes it, alone and fused with the residual add before it."""

from dsc.compiler.graph.op import Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.norm import RmsNorm


@register
class FusedRmsNorm(RmsNorm):
    kind = "fused_rms_norm"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("norm_weight", "kernels.rms_norm.rms_norm")

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0), _inverse_rms(inputs))


@register
class AddRmsNorm(RmsNorm):
    """x + y, and its norm: the sum is written once and read once."""

    kind = "add_rms_norm"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "y")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("norm_weight", "kernels.rms_norm.add_rms_norm")

    def infer(self, inputs: Types) -> Types:
        assert tensor(inputs[0]).same(inputs[1]), f"{inputs[0]} + {inputs[1]}"
        return (inputs[0], *super().infer(inputs[:1]))

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("output", 0), _inverse_rms(inputs))


def _inverse_rms(inputs: Types) -> Saved:
    """1 / rms of each row, in float32."""
    x = tensor(inputs[0])
    return Saved("own", 0, retyped(x, *x.shape[:-1], dtype=DType.FP32))
