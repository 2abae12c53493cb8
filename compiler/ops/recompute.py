"""What a training step does not keep, for backward or for what follows: the lines that say so."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Parameter, Saved, Types, record, register
from dsc.compiler.ops.call import CallMethod


@register
class CallAgain(CallMethod):
    """again(self.method, ...): nothing that the method makes is kept; backward runs it once more."""

    kind = "call_again"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train.recompute.again",)


@record
class _Dropping(Op):
    """The line of an op in another, for backward to run again."""

    maker: Op

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"train.recompute.{self.kind}", *self.maker.requires)


@register
class Remade(_Dropping):
    """remade(lambda ...: ..., ...): an op whose result is not kept."""

    kind = "remade"

    @property
    def operands(self) -> tuple[str, ...]:
        return self.maker.operands

    def infer(self, inputs: Types) -> Types:
        return self.maker.infer(inputs)

    def parameters(self) -> tuple[Parameter, ...]:
        return self.maker.parameters()

    def holders(self) -> tuple[Op, ...]:
        return self.maker.holders()

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return self.maker.flops(inputs, outputs)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return self.maker.saved(inputs, outputs)


@register
class Drop(_Dropping):
    """A result that was made beside others is not kept; the op that makes it alone reads what is."""

    kind = "drop"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("result", *self.maker.operands)

    def infer(self, inputs: Types) -> Types:
        assert self.maker.infer(inputs[1:]) == inputs[:1], f"{self.maker.kind} does not make {inputs[0]}"
        return ()


@register
class LetGo(Op):
    """del x: a name that nothing reads any more, and with it the memory, if backward does not want it."""

    kind = "let_go"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("x",)

    def infer(self, inputs: Types) -> Types:
        return ()
