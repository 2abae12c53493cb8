"""A step that stops at its all-to-alls, so that another one can run meanwhile: the lines of a generator."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Types, record, register, retyped, tensor
from dsc.compiler.graph.types import ObjectType
from dsc.compiler.ops.moe import GroupedLinear

TAPE, EXCHANGE, ALIVE = ObjectType("Tape"), ObjectType("Exchange"), ObjectType("Tensor")


def hop_argument(group: str) -> str:
    """Which of two wires it is, by the attribute that holds its ranks; where there is one, it is called group."""
    return "" if group == "group" else f', hop="{group}"'


@register
class CountsBeside(Op):
    """What each rank has for each of our experts, not behind rows on their way: [E] -> [ranks, experts of a rank]."""

    kind = "counts_beside"
    ranks: Dim
    group: str
    """The attribute that holds the ranks."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tape", "sent")

    @property
    def hop(self) -> str:
        return hop_argument(self.group)

    def infer(self, inputs: Types) -> Types:
        (experts,) = tensor(inputs[1]).shape
        return (retyped(inputs[1], self.ranks, experts // self.ranks),)


@register
class StartExchange(Op):
    """Tensors of as many rows on their way to the ranks that `to` says."""

    kind = "start_exchange"
    count: int
    """Of tensors."""
    group: str
    """The attribute that holds the ranks."""

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tape", "to", "of", *(f"sent{index}" for index in range(self.count)))

    @property
    def hop(self) -> str:
        return hop_argument(self.group)

    def infer(self, inputs: Types) -> Types:
        return (EXCHANGE,)


@register
class Cut(Op):
    """The other side's turn; then what has arrived, and what is alive as the next segment of autograd reads it."""

    kind = "cut"
    received: Types
    alive: int

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tape", "exchange", *(f"alive{index}" for index in range(self.alive)))

    def infer(self, inputs: Types) -> Types:
        return (*self.received, *inputs[2:])


@register
class EnterLayer(Op):
    """From here on the layer's weights are read, which ranks share; backward reduces their gradients where it ends."""

    kind = "enter_layer"
    operands = ("tape",)

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class LeaveLayer(Op):
    """Up to here: of whole weights each rank keeps its share."""

    kind = "leave_layer"
    operands = ("tape",)

    def infer(self, inputs: Types) -> Types:
        return ()


@register
class GroupedProduct(GroupedLinear):
    """Each expert's rows times its own weight.T; the weight's gradient is put off."""

    kind = "grouped_product"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train.tape.grouped_product", *super().requires)  # the tape builds on the kernel

    def holders(self) -> tuple[Op, ...]:
        return (GroupedLinear(**vars(self)),)


@record
class _Turns(Op):
    """A call of what stops: behind its arguments, and behind its results, stands what is alive across it."""

    function: str
    class_name: str
    """Of the module, where its attribute or its list is declared as something wider; else empty."""
    arguments: int
    results: Types
    alive: int

    @property
    def operands(self) -> tuple[str, ...]:
        names = (f"argument{index}" for index in range(self.arguments))
        return ("tape", *names, *(f"alive{index}" for index in range(self.alive)))

    def infer(self, inputs: Types) -> Types:
        return (*self.results, *inputs[1 + self.arguments :])

    def cast(self, module: str) -> str:
        return f"cast({self.class_name}, {module})" if self.class_name else module

    @property
    def comma(self) -> str:
        """Behind the only name of a tuple."""
        return "," if len(self.results) + self.alive == 1 else ""


@register
class CallTurns(_Turns):
    """yield from function(self.module, ...)."""

    kind = "call_turns"
    path: str


@register
class LoopTurns(_Turns):
    """A run of layers out of self.layers, each of which stops."""

    kind = "loop_turns"
    slice: str


@register
class LoopTurnsSum(_Turns):
    """Layers that also return a loss, which is added up: the first of what is alive is the sum so far."""

    kind = "loop_turns_sum"
    slice: str
