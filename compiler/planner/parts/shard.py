"""Which part of a tensor one rank holds, told from the sizes in its shape.

Tensor parallelism divides heads, feed-forward widths and the vocabulary, with sequence parallelism everywhere else
(arXiv 2205.05198): low-rank projections, norms and routers are whole on every tensor rank and see their share of the
tokens. So every tensor of tokens divides by cp x tp, along one dim or the other. Expert parallelism divides the experts
and keeps the rows: balanced routing sends a rank as many as it sends. Expert tensor parallelism divides the experts'
width, and its ranks all read all their rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsc.compiler.graph.dim import Dim, Product, Quotient, Sum, Symbol
from dsc.compiler.graph.op import Parameter
from dsc.compiler.graph.types import TensorType
from dsc.compiler.planner.layout.layout import Layout

# Names of sizes (compiler/blocks) that tensor parallelism divides, and those of routed experts.
TENSOR = frozenset(("NUM_HEADS", "NUM_KV_HEADS", "INTERMEDIATE_SIZE", "SHARED_SIZE", "VOCAB_SIZE"))
EXPERT_WIDTH = "EXPERT_SIZE"
CHOSEN = "TOP_K"
VOCABULARY = "VOCAB_SIZE"


@dataclass(frozen=True)
class Elements:
    """How many numbers of parameters there are, by what divides them."""

    tensor: int = 0
    """Divided by tensor parallelism."""
    replicated: int = 0
    """Whole on every tensor rank."""
    expert: int = 0
    """Routed experts: divided by expert and expert tensor parallelism."""

    def __add__(self, other: Elements) -> Elements:
        return Elements(self.tensor + other.tensor, self.replicated + other.replicated, self.expert + other.expert)

    def total(self) -> int:
        return self.tensor + self.replicated + self.expert

    def dense_on(self, layout: Layout) -> int:
        """Numbers on one rank that all of dp x cp share."""
        return share(self.tensor, layout.tp) + self.replicated

    def experts_on(self, layout: Layout) -> int:
        """Numbers on one rank that edp ranks share."""
        return share(self.expert, layout.ep * layout.etp)


def elements(parameters: Iterable[Parameter]) -> Elements:
    return sum((_elements_of(parameter) for parameter in parameters), Elements())


def _elements_of(parameter: Parameter) -> Elements:
    count = parameter.type.numel.value()
    if is_routed(parameter):
        return Elements(expert=count)
    return Elements(tensor=count) if TENSOR & sizes_in(parameter.type) else Elements(replicated=count)


def is_routed(parameter: Parameter) -> bool:
    """Whether a token touches only some of it, as of routed experts."""
    return parameter.active[1].value() > 1


@dataclass(frozen=True)
class Extent:
    """Bytes of tensors of one micro-batch, by what divides them."""

    tokens: int = 0
    """Divided by context and tensor parallelism."""
    rows: int = 0
    """Rows of experts in their full width: the same, and on each expert tensor rank."""
    positions: int = 0
    """Of positions without a batch, such as the rotary table: divided by context parallelism."""
    whole: int = 0
    """On every rank."""

    def __add__(self, other: Extent) -> Extent:
        return Extent(
            self.tokens + other.tokens,
            self.rows + other.rows,
            self.positions + other.positions,
            self.whole + other.whole,
        )

    def on(self, layout: Layout) -> int:
        """Bytes on one rank."""
        ranks = layout.cp * layout.tp
        return share(self.tokens + self.rows * layout.etp, ranks) + share(self.positions, layout.cp) + self.whole


def extent(type: TensorType, bytes: int) -> Extent:
    """Bytes of a tensor, sorted by the sizes in its shape."""
    sizes = sizes_in(type)
    if "S" not in sizes:
        return Extent(whole=bytes)
    if "B" not in sizes:
        return Extent(positions=bytes)
    rows = len(type.shape) == 2 and CHOSEN in sizes_in_dim(type.shape[0])
    return Extent(rows=bytes) if rows and EXPERT_WIDTH not in sizes else Extent(tokens=bytes)


def share(count: int, ranks: int) -> int:
    """The largest of equal parts."""
    return -(-count // ranks)


def sizes_in(type: TensorType) -> frozenset[str]:
    """Names of the sizes that a shape is written with, defined ones with what defines them."""
    return frozenset(name for dim in type.shape for name in sizes_in_dim(dim))


def sizes_in_dim(dim: Dim) -> frozenset[str]:
    match dim:
        case Symbol(name=name, definition=definition):
            return frozenset((name,)) | (sizes_in_dim(definition) if definition is not None else frozenset())
        case Sum(left, right) | Product(left, right):
            return sizes_in_dim(left) | sizes_in_dim(right)
        case Quotient(numerator, _):
            return sizes_in_dim(numerator)
        case _:
            return frozenset()
