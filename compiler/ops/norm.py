"""RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * weight, over the last dim."""

from dsc.compiler.graph.dim import Dim, Int
from dsc.compiler.graph.op import Op, Parameter, Saved, Types, register, retyped, tensor
from dsc.compiler.graph.types import DType, TensorType


@register
class RmsNorm(Op):
    kind = "rms_norm"
    recompute = "norms"
    name: str
    dim: Dim
    eps: str
    """Name of the constant."""
    dtype: DType
    """Of the weight."""

    def infer(self, inputs: Types) -> Types:
        assert tensor(inputs[0]).shape[-1].same(self.dim), f"{self.name}: {inputs[0]} against {self.dim}"
        return (inputs[0],)

    def attribute(self) -> str | None:
        return self.name

    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter(f"{self.name}.weight", TensorType((self.dim,), self.dtype), init="ones"),)

    def flops(self, inputs: Types, outputs: Types) -> Dim:
        """Two for each weight and token. A norm that all heads share counts once, as its weight does."""
        batch, sequence = tensor(inputs[0]).shape[:2]
        return batch * sequence * self.dim * 2

    def saved(self, inputs: Types, outputs: Types) -> tuple[Saved, ...]:
        """PyTorch's norm on a CPU also keeps the normed x, in float32 like all that it computes."""
        x = tensor(inputs[0])
        inverse_rms = Saved("own", 0, retyped(x, *x.shape[:-1], Int(1), dtype=DType.FP32))
        wide = TensorType(x.shape, DType.FP32)
        source = Saved("input", 0) if x.dtype is DType.FP32 else Saved("own", 1, wide)
        return (source, inverse_rms, Saved("own", 2, wide))
