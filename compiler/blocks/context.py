"""What every builder starts from: the spec, the table of constants, and the sizes that all blocks share."""

from dataclasses import dataclass

from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import B, Dim, S
from dsc.compiler.graph.types import DType, TensorType
from dsc.spec.model import ModelSpec


@dataclass(frozen=True)
class Context:
    spec: ModelSpec
    constants: Constants
    dtype: DType
    """Of parameters and activations."""
    cache_dtype: DType
    vocab_size: Dim
    hidden_size: Dim
    rope: TensorType
    """The rotary table of a call: [2, S, R]."""

    @property
    def hidden(self) -> TensorType:
        """A hidden state: [B, S, D]."""
        return TensorType((B, S, self.hidden_size), self.dtype)

    @property
    def tokens(self) -> TensorType:
        """Token ids: [B, S]."""
        return TensorType((B, S), DType.INT64)
