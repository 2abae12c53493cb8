"""Which part of a tensor one rank holds, told from the axes of its shape.

Tensor parallelism divides heads, feed-forward widths and the vocabulary, with sequence parallelism everywhere else
(arXiv 2205.05198): low-rank projections, norms and routers are whole on every tensor rank and see their share of the
tokens. So every tensor of tokens divides by cp x tp, along one dim or the other. Expert parallelism divides the experts
and keeps the rows: balanced routing sends a rank as many as it sends. Expert tensor parallelism divides the experts'
width, and its ranks all read all their rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsc.compiler.graph.dim import Axis
from dsc.compiler.graph.op import Parameter
from dsc.compiler.graph.saved import Step
from dsc.compiler.graph.types import TensorType
from dsc.compiler.planner.layout.layout import Layout

TENSOR = frozenset((Axis.HEADS, Axis.FEED_FORWARD, Axis.SHARED_EXPERTS, Axis.VOCABULARY))
"""What tensor parallelism divides."""


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

    def dense_shard(self, layout: Layout, copies: int = 1) -> int:
        """Numbers of one rank's part where all ranks that hold a number share it, each holding so many copies."""
        ranks = layout.dp * layout.cp * copies
        if layout.tp == 1:
            return share(self.tensor + self.replicated, ranks)
        return share(share(self.tensor, layout.tp), ranks) + share(self.replicated, ranks * layout.tp)

    def experts_on(self, layout: Layout) -> int:
        """Numbers on one rank that edp ranks share."""
        return share(self.expert, layout.copy)


def elements(parameters: Iterable[Parameter]) -> Elements:
    return added(map(_elements_of, parameters))


def added(some: Iterable[Elements]) -> Elements:
    """Of all together, with nothing made on the way: there may be very many."""
    tensor = replicated = expert = 0
    for one in some:
        tensor, replicated, expert = tensor + one.tensor, replicated + one.replicated, expert + one.expert
    return Elements(tensor, replicated, expert)


def coded(steps: Iterable[Step]) -> Elements:
    """Numbers of the weights that steps multiply by in FP8."""
    ops = [(step.node.op, step.sizes) for step in steps if step.node.op.in_fp8]
    return elements(parameter.substitute(sizes) for op, sizes in ops for parameter in op.parameters())


def _elements_of(parameter: Parameter) -> Elements:
    count = parameter.type.numel.value()
    if parameter.is_routed:
        return Elements(expert=count)
    return Elements(tensor=count) if TENSOR & parameter.type.axes else Elements(replicated=count)


@dataclass(frozen=True)
class Extent:
    """Bytes of tensors of one micro-batch, by what divides them."""

    tokens: int = 0
    """Divided by context and tensor parallelism."""
    rows: int = 0
    """Rows of experts, and numbers of each, but in the experts' own width: the same, on each expert tensor rank."""
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

    def times(self, count: int) -> Extent:
        return Extent(self.tokens * count, self.rows * count, self.positions * count, self.whole * count)

    def on(self, layout: Layout) -> int:
        """Bytes on one rank."""
        ranks = layout.cp * layout.tp
        return share(self.tokens + self.rows * layout.etp, ranks) + share(self.positions, layout.cp) + self.whole


def extent(type: TensorType, bytes: int) -> Extent:
    """Bytes of a tensor, sorted by the axes of its shape."""
    axes = type.axes
    if Axis.SEQUENCE not in axes:
        return Extent(whole=bytes)
    if Axis.BATCH not in axes:
        return Extent(positions=bytes)
    rows = has_row_for_each_expert(type) and Axis.EXPERT_WIDTH not in axes
    return Extent(rows=bytes) if rows else Extent(tokens=bytes)


def has_row_for_each_expert(type: TensorType) -> bool:
    """Whether there is a row for each expert that a token chose."""
    return Axis.CHOSEN_EXPERTS in type.shape[0].axes()


def share(count: int, ranks: int) -> int:
    """The largest of equal parts."""
    return -(-count // ranks)
