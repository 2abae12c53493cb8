"""From logits to the numbers that training minimizes and reports."""

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, Saved, Types, register, tensor
from dsc.compiler.graph.types import DType, PartsType, TensorType

SCALAR = TensorType((), DType.FP32)


@register
class CrossEntropy(Op):
    """Mean over the labels that are not -100, in float32 or wider: [B, S, W], [B, S] -> []."""

    kind = "cross_entropy"

    @property
    def operands(self) -> tuple[str, ...]:
        return ("logits", "labels")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("cross_entropy", "upcast")

    def infer(self, inputs: Types) -> Types:
        logits, labels = tensor(inputs[0]), tensor(inputs[1])
        assert all(a.same(b) for a, b in zip(logits.shape[:2], labels.shape, strict=True)), (logits, labels)
        return (SCALAR,)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """The log-probabilities, and a contiguous copy of the labels, which are a slice of the tokens."""
        logits, labels = (tensor(t) for t in inputs)
        return (Saved("own", 0, TensorType(logits.shape, DType.FP32)), Saved("own", 1, labels))

    def passing(self, inputs: Types) -> tuple[TensorType, ...]:
        """The gradient of the log-probabilities, beside that of the logits."""
        return (TensorType(tensor(inputs[0]).shape, DType.FP32),)


@register
class CrossEntropyAndZLoss(CrossEntropy):
    """The same, with the square of the log-sum-exp of every token (PaLM, arXiv 2204.02311, section 5)."""

    kind = "cross_entropy_and_z_loss"
    weight: str
    """Name of the constant."""

    @property
    def requires(self) -> tuple[str, ...]:
        return ("cross_entropy_and_z_loss", "upcast")

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """The logits in float32; of each token its log-sum-exp, its label as an index, and whether it is ignored."""
        logits, labels = (tensor(t) for t in inputs)
        wide = (
            Saved("own", 0, TensorType(logits.shape, DType.FP32)) if logits.dtype is DType.BF16 else Saved("input", 0)
        )
        lse, none = (TensorType(labels.shape, dtype) for dtype in (DType.FP32, DType.BOOL))
        return (wide, Saved("own", 1, lse), Saved("own", 2, labels), Saved("own", 3, none))

    def passing(self, inputs: Types) -> tuple[TensorType, ...]:
        """The labels' logits' gradient lies among zeros; beside it that of the log-sum-exp is made: a difference, its
        exponential, their product with a gradient. One of the four is the logits' gradient, if that is as wide."""
        logits = tensor(inputs[0])
        wide = TensorType(logits.shape, DType.FP32)
        return (wide, wide, wide, *([logits] if logits.dtype is DType.BF16 else []))


@register
class ZeroLoss(Op):
    """A zero in float32, to which layers add their losses."""

    kind = "zero_loss"

    def infer(self, inputs: Types) -> Types:
        return (SCALAR,)


@register
class WeighMtpLoss(Op):
    """lambda / depth of multi-token prediction's loss (DeepSeek-V3, equation 25)."""

    kind = "weigh_mtp_loss"
    weight: str
    depth: Dim

    def infer(self, inputs: Types) -> Types:
        return (SCALAR,)


@register
class WeighMtpLossOfStep(Op):
    """The same with a lambda that the step is given, in every row: [], [B] -> []."""

    kind = "weigh_mtp_loss_of_step"
    depth: Dim

    @property
    def operands(self) -> tuple[str, ...]:
        return ("loss", "weight")

    def infer(self, inputs: Types) -> Types:
        return (SCALAR,)


@register
class SumLosses(Op):
    """The loss that is trained on: all parts added."""

    kind = "sum_losses"
    names: tuple[str, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        return self.names

    def infer(self, inputs: Types) -> Types:
        return (SCALAR,)


@register
class LossParts(Op):
    """A dict of the named losses."""

    kind = "loss_parts"
    names: tuple[str, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        return self.names

    def items(self, values: list[str]) -> list[str]:
        """The entries of the dict, as they are printed."""
        return [f'"{name}": {value}' for name, value in zip(self.names, values, strict=True)]

    def infer(self, inputs: Types) -> Types:
        return (PartsType(),)
