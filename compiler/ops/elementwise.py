"""Arithmetic on single elements."""

from dsc.compiler.graph.op import Op, Saved, Types, register, tensor


@register
class Add(Op):
    kind = "add"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x", "y")

    def infer(self, inputs: Types) -> Types:
        assert tensor(inputs[0]).same(inputs[1]), f"{inputs[0]} + {inputs[1]}"
        return (inputs[0],)


@register
class Scale(Op):
    """Times a constant of the model."""

    kind = "scale"
    factor: str
    """Name of the constant."""

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class Swiglu(Op):
    """silu(gate) * up (arXiv 2002.05202)."""

    kind = "swiglu"
    recompute = "swiglu"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("gate", "up")

    def infer(self, inputs: Types) -> Types:
        assert tensor(inputs[0]).same(inputs[1]), f"{inputs[0]} against {inputs[1]}"
        return (inputs[0],)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        both = (Saved("input", 0), Saved("input", 1))
        return (*both, Saved("own", 0, tensor(inputs[0])))


@register
class ClampedSwiglu(Swiglu):
    """silu(min(gate, limit)) * clamp(up, -limit, limit), the limit a constant of the model."""

    kind = "clamped_swiglu"
    limit: str
    """Name of the constant."""

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """gate and up before and after clamping, and silu's result."""
        both = (Saved("input", 0), Saved("input", 1))
        return (*both, *(Saved("own", index, tensor(inputs[0])) for index in range(3)))
