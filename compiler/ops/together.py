"""What ranks of a group do together where they serve: each has a part of a sum, of the vocabulary or of the tokens."""

from dsc.compiler.graph.dim import Blocks, Dim
from dsc.compiler.graph.op import Op, OpClass, Types, register, retyped, tensor
from dsc.compiler.graph.types import ValueType
from dsc.compiler.ops.projection import Embedding


@register
class AddUp(Op):
    """The sum of what all ranks of the group have, in place of it and with the same bits on each."""

    kind = "add_up"
    op_class = OpClass.EXCHANGE

    @property
    def requires(self) -> tuple[str, ...]:
        return ("add_up",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)

    def memory(self, inputs: Types, outputs: Types) -> tuple[int | ValueType | None, ...]:
        return (0,)


@register
class EmbedPart(Embedding):
    """Rows of a table by token where this rank has the token, zeros where another has it: [T] -> [T, D]."""

    kind = "embed_part"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("embed_part",)


@register
class GatherLogits(Op):
    """The logits of all ranks side by side, with the same bits on each: [rows, W / ranks] -> [rows, W]."""

    kind = "gather_logits"
    op_class = OpClass.EXCHANGE
    vocab_size: Dim

    @property
    def requires(self) -> tuple[str, ...]:
        return ("gather_logits",)

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-1], self.vocab_size),)


@register
class OwnTokens(Op):
    """This rank's part of tokens that the group has in common: [T, D] -> [T / ranks, D], rounded up."""

    kind = "own_tokens"
    is_view = True
    ranks: Dim

    @property
    def requires(self) -> tuple[str, ...]:
        return ("own_tokens",)

    def infer(self, inputs: Types) -> Types:
        tokens, *rest = tensor(inputs[0]).shape
        return (retyped(inputs[0], Blocks(tokens, self.ranks), *rest),)


@register
class GatherTokens(Op):
    """The parts of all ranks one behind the other, as many tokens as x has: [T / ranks, D] -> [T, D]."""

    kind = "gather_tokens"
    op_class = OpClass.EXCHANGE
    like = ("x",)

    @property
    def operands(self) -> tuple[str, ...]:
        return ("part", "x")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("gather_tokens",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[1],)
