"""Heads, widths and the vocabulary shared out over ranks, and between them sequences (arXiv 2205.05198).

In what a rank runs, S counts the tokens of a sequence that are its own: norms, residuals, routers and experts see those
alone. Before a product whose columns are shared out, ranks show each other their rows; after one whose rows are, they
add up what each has, and keep their own part. Each collective is an op, with the bytes that it sends.
"""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, OpClass, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.context import GatherContext, own_length
from dsc.compiler.ops.loss import SCALAR
from dsc.compiler.ops.projection import Embedding

FUNCTIONS = "train.tensor."


@register
class GatherSequence(GatherContext):
    """What every rank has of its part, rank by rank, which is the order of positions: [B, S, ...] -> [B, TP * S, ...].

    Backward sums what all ranks have for a rank's own rows: a reduce-scatter.
    """

    kind = "gather_sequence"
    op_class = OpClass.EXCHANGE
    names: tuple[str, ...] = ("x",)

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}whole_sequence",)


@register
class GatherSequences(GatherSequence):
    """The same of several rows in one collective."""

    kind = "gather_sequences"

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}whole_sequences",)


@register
class SumOwnPart(Op):
    """Of the sum over ranks, this rank's part of the sequence: [B, TP * S, ...] -> [B, S, ...].

    A reduce-scatter; backward gathers, of as many bytes.
    """

    kind = "sum_own_part"
    op_class = OpClass.EXCHANGE
    ranks: Dim

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}own_sum",)

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, x.shape[0], own_length(x.shape[1], self.ranks), *x.shape[2:]),)

    def received(self, inputs: Types) -> Dim:
        """Bytes that a rank has of all ranks' parts, its own among them."""
        return tensor(inputs[0]).bytes


@register
class EmbeddingOfShard(Embedding):
    """Rows of this rank's part of the vocabulary, zeros for other tokens: [B, TP * S] -> [B, TP * S, D]."""

    kind = "embedding_of_shard"

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}embedding_of_shard",)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """Where in the shard each token is, and which tokens are not."""
        tokens = tensor(inputs[0])
        return (Saved("own", 0, tokens), Saved("own", 1, TensorType(tokens.shape, DType.BOOL)))


@register
class CrossEntropyOfShards(Op):
    """This rank's share of the mean over labels that are not -100: [B, TP * S, W / TP], [B, TP * S] -> [].

    Each rank sums exponentials over its columns; the sums of a token go to the rank whose token it is, so that no rank
    ever has the logits of the whole vocabulary.
    """

    kind = "cross_entropy_of_shards"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("logits", "labels")

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}cross_entropy_of_shards", "upcast")

    def infer(self, inputs: Types) -> Types:
        return (SCALAR,)

    def received(self, inputs: Types) -> Dim:
        """Of every token its largest logit, its sum of exponentials and its label's logit, in float32."""
        return tensor(inputs[1]).numel * (3 * DType.FP32.bytes)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """The exponentials, the label's column, and whether this rank has it."""
        logits, labels = (tensor(t) for t in inputs)
        return (
            Saved("own", 0, TensorType(logits.shape, DType.FP32)),
            Saved("own", 1, labels),
            Saved("own", 2, TensorType(labels.shape, DType.BOOL)),
        )

    def passing(self, inputs: Types) -> tuple[TensorType, ...]:
        """Zeros with the gradients of the labels' logits, beside those of all."""
        return (TensorType(tensor(inputs[0]).shape, DType.FP32),)


@register
class CrossEntropyAndZLossOfShards(CrossEntropyOfShards):
    """The same, with the square of the log-sum-exp of every token (PaLM, arXiv 2204.02311, section 5)."""

    kind = "cross_entropy_and_z_loss_of_shards"
    weight: str
    """Name of the constant."""

    @property
    def requires(self) -> tuple[str, ...]:
        return (f"{FUNCTIONS}cross_entropy_of_shards", "upcast")
