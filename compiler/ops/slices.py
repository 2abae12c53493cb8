"""Ranks that share the width of each expert: a token that chose it goes to all of them, and adds up what it gets.

A gated feed-forward is the sum over slices of its width, so an expert of which ETP ranks have a slice each is ETP
narrow experts that are chosen together: tokens travel as they do without, and no other collective is needed. Slots are
numbered rank by rank, so slice s of expert e is narrow expert (p * ETP + s) * own + e % own, where p = e // own.
"""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Types, register, retyped, tensor


@register
class SlicesOfExperts(Op):
    """A slot for each slice of a chosen expert: experts and weights [B, S, K] -> [B, S, K * ETP] each."""

    kind = "slices_of_experts"
    own: Dim
    """Experts of a rank."""
    slices: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("experts", "weights")

    @property
    def requires(self) -> tuple[str, ...]:
        return (self.kind,)

    def infer(self, inputs: Types) -> Types:
        batch, sequence, top_k = tensor(inputs[0]).shape
        experts, weights = (retyped(one, batch, sequence, top_k * self.slices) for one in inputs)
        return (experts, weights)


@register
class SlicesOfNode(Op):
    """Weights by expert of a node, each once more for every slice: [M, E / NODES] -> [M, E / NODES * ETP]."""

    kind = "slices_of_node"
    own: Dim
    """Experts of a rank."""
    slices: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("chosen",)

    def infer(self, inputs: Types) -> Types:
        rows, experts = tensor(inputs[0]).shape
        return (retyped(inputs[0], rows, experts * self.slices),)
