"""Sequences shared out over ranks: each has chunk r of 2 * CP from the front and chunk r from the back.

So every rank attends to as many keys as every other. In what a rank runs, S counts the tokens of a sequence that it
has; the whole sequence has CP * S. What generation would cache of a token is what ranks send each other: the latents of
MLA, the keys and values of grouped queries. Each collective is an op, with the bytes that it sends.
"""

from dataclasses import field

from dsc.compiler.graph.dim import Dim, Product, total
from dsc.compiler.graph.op import Op, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import TensorType
from dsc.compiler.ops.attention import CausalAttention

FUNCTIONS = "train.context."


@register
class OwnPart(Op):
    """This rank's two chunks of whole sequences: [B, CP * S, ...] -> [B, S, ...]."""

    kind = "own_part"
    ranks: Dim

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}own_part",)

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, x.shape[0], own_length(x.shape[1], self.ranks), *x.shape[2:]),)


def own_length(whole: Dim, ranks: Dim) -> Dim:
    """S of CP * S, or of TP * S."""
    return whole.right if isinstance(whole, Product) and whole.left == ranks else whole // ranks


@register
class Ahead(Op):
    """[B, S] ids as many positions further ahead; the last ones are filled with the first, which count for nothing."""

    kind = "ahead"
    count: int

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class LabelsAhead(Ahead):
    """The same of labels, filled with -100."""

    kind = "labels_ahead"


@register
class LabelsAheadInDocument(Ahead):
    """The same of labels, with -100 too where those are of another document."""

    kind = "labels_ahead_in_document"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("labels", "documents")


@register
class GatherContext(Op):
    """What every rank has of some rows, in the order of positions, in one collective: [B, S, ...] -> [B, CP * S, ...].

    Backward sums what all ranks have for a rank's own rows: a reduce-scatter.
    """

    kind = "gather_context"
    ranks: Dim
    names: tuple[str, ...]
    group: str = "group"
    """The attribute that holds the ranks."""

    @property
    def operands(self) -> tuple[str, ...]:
        return self.names

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}whole_context",)

    def infer(self, inputs: Types) -> Types:
        rows = [tensor(one) for one in inputs]
        return tuple(retyped(one, one.shape[0], self.ranks * one.shape[1], *one.shape[2:]) for one in rows)

    def received(self, inputs: Types) -> Dim:
        """Bytes that a rank has of all ranks, its own among them."""
        return total([tensor(one).bytes for one in self.infer(inputs)])


@register
class ContextAttention(CausalAttention):
    """Each half of this rank's queries over all keys up to its own: q [B, S, H, N], k and v [B, CP * S, ...].

    Of 2 * CP chunks, rank r has chunk r, with r + 1 chunks of keys, and chunk 2 * CP - 1 - r, with 2 * CP - r.
    """

    kind = "context_attention"
    over: str = field(kw_only=True)
    """The helper of a half: the last of some positions over all up to their own, or over a window."""
    group: str = field(kw_only=True, default="group")
    """The attribute that holds the ranks."""

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{self.over}_{self.variant}", self.kind)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two products of this rank's part of half a square, the same for every rank: S * CP S H (qk + v)."""
        q, k, v = (tensor(t) for t in inputs)
        return q.shape[0] * q.shape[1] * k.shape[1] * q.shape[2] * (q.shape[3] + v.shape[3])


@register
class ContextDocumentAttention(ContextAttention):
    """The same over the keys of each query's document, which begins at starts [B, CP * S]."""

    kind = "context_document_attention"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("q", "k", "v", "starts")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"visible_attention_{self.variant}", self.over, self.kind)

    def infer(self, inputs: Types) -> Types:
        return super().infer(inputs[:3])

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return super().flops(inputs[:3], outputs)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """PyTorch's operator keeps what it adds to the logits instead of a mask: of each half [B, S / 2, its keys]."""
        q, k = tensor(inputs[0]), tensor(inputs[1])
        half = q.shape[1] // 2
        mask = TensorType((q.shape[0], half, k.shape[1] + half), q.dtype)
        return (*super().saved(inputs[:3], outputs), Saved("own", 3, mask))


@register
class SumProbability(Op):
    """Sum over this rank's tokens of a sequence, [B, S, E] -> [B, E]."""

    kind = "sum_probability"

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, x.shape[0], x.shape[2]),)


@register
class SumNormalizedScore(SumProbability):
    """The same for scores that do not sum to one (sigmoid): divided by their sum first."""

    kind = "sum_normalized_score"

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class SumOverContext(Op):
    """The sum over the ranks that share a sequence; no gradient."""

    kind = "sum_over_context"

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class ShareOfMean(Op):
    """A sum over this rank's tokens as its share of the mean over the sequence, each of whose tokens counts K times."""

    kind = "share_of_mean"
    top_k: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("p", "counts")

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class RelativeLoadOfSequence(Op):
    """f of the sequence-wise loss from counts of the whole sequence: f_e = count_e E / (their sum, K S), [B, E]."""

    kind = "relative_load_of_sequence"
    num_experts: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("counts",)

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class LeaveOut(Op):
    """[B, S, D] less the positions that are beyond the end of the sequence, on the rank that has them; contiguous."""

    kind = "leave_out"

    def infer(self, inputs: Types) -> Types:
        return (inputs[0],)


@register
class PutBack(LeaveOut):
    """Zeros for the positions that were left out."""

    kind = "put_back"
