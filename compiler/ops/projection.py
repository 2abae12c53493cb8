"""Products with a weight: projections and the head."""

from typing import Literal

from dsc.compiler.graph.dim import Dim
from dsc.compiler.graph.op import Op, OpClass, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType


@register
class Linear(Op):
    """x @ weight.T, [..., in] -> [..., out]."""

    kind = "linear"
    op_class = OpClass.PRODUCT
    name: str
    in_features: Dim
    out_features: Dim
    dtype: DType
    """Of the weight."""
    role: Literal["attention", "feed_forward", "other"] = "other"
    """What precision.linear calls it; `other` stays in the precision of parameters."""

    @property
    def product(self) -> str | None:
        return None if self.role == "other" else self.role

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert x.shape[-1].same(self.in_features), f"{self.name} wants {self.in_features}, got {x.shape_text()}"
        return (retyped(x, *x.shape[:-1], self.out_features),)

    def attribute(self) -> str:
        return self.name

    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter(f"{self.name}.weight", TensorType((self.out_features, self.in_features), self.dtype)),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * self.out_features * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class BiasedLinear(Op):
    """x @ weight.T + bias, [..., in] -> [..., out], in the precision of parameters: kernels of FP8 add no bias."""

    kind = "biased_linear"
    op_class = OpClass.PRODUCT
    name: str
    in_features: Dim
    out_features: Dim
    dtype: DType
    """Of weight and bias."""

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        assert x.shape[-1].same(self.in_features), f"{self.name} wants {self.in_features}, got {x.shape_text()}"
        return (retyped(x, *x.shape[:-1], self.out_features),)

    def attribute(self) -> str:
        return self.name

    def parameters(self) -> tuple[Parameter, ...]:
        weight = TensorType((self.out_features, self.in_features), self.dtype)
        bias = TensorType((self.out_features,), self.dtype)
        return Parameter(f"{self.name}.weight", weight), Parameter(f"{self.name}.bias", bias, init="zeros")

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two for each weight and token, as of norms, the bias among them."""
        return tensor(inputs[0]).numel * self.out_features * 2 + tensor(outputs[0]).numel * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class TiedHead(Op):
    """Logits from the embedding's own weight, [..., D] -> [..., W]."""

    kind = "tied_head"
    op_class = OpClass.PRODUCT
    embedding: str
    vocab_size: Dim

    def infer(self, inputs: Types) -> Types:
        x = tensor(inputs[0])
        return (retyped(x, *x.shape[:-1], self.vocab_size),)

    def borrowed(self) -> tuple[str, ...]:
        return (f"{self.embedding}.weight",)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        return tensor(inputs[0]).numel * self.vocab_size * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)


@register
class Embedding(Op):
    """Rows of a table by token, [B, S] -> [B, S, D]. A look-up, so no FLOPs."""

    kind = "embedding"
    op_class = OpClass.LOOKUP
    name: str
    vocab_size: Dim
    hidden_size: Dim
    dtype: DType

    @property
    def operands(self) -> tuple[str, ...]:
        return ("tokens",)

    def infer(self, inputs: Types) -> Types:
        return (TensorType((*tensor(inputs[0]).shape, self.hidden_size), self.dtype),)

    def attribute(self) -> str:
        return self.name

    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter(f"{self.name}.weight", TensorType((self.vocab_size, self.hidden_size), self.dtype)),)

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        return (Saved("input", 0),)
