"""Element-wise work as kernels/swiglu.py and kernels/rope.py do it."""

from dsc.compiler.graph.op import Saved, Types, register
from dsc.compiler.ops.elementwise import Swiglu
from dsc.compiler.ops.rope import Rotate


@register
class FusedSwiglu(Swiglu):
    """silu(gate) * up, written once."""

    kind = "fused_swiglu"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.swiglu.swiglu",)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0), Saved("input", 1))


@register
class FusedRotate(Rotate):
    """Rotate pairs in one pass over x."""

    kind = "fused_rotate"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("kernels.rope.rotate",)
