"""What every builder starts from: the spec, the table of constants, and the sizes that all blocks share."""

from collections.abc import Mapping
from dataclasses import dataclass

from dsc.compiler.blocks.rope import Table, rope_tables
from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.constants import Constants
from dsc.compiler.graph.dim import B, Dim, S
from dsc.compiler.graph.types import DType, TensorType
from dsc.spec.model import ModelSpec

TOKENS = "tokens"


@dataclass(frozen=True)
class Context:
    spec: ModelSpec
    constants: Constants
    dtype: DType
    """Of parameters and activations."""
    cache_dtype: DType
    vocab_size: Dim
    hidden_size: Dim
    ropes: Mapping[str, Table]
    """The rotary table of each attention."""

    @property
    def hidden(self) -> TensorType:
        """What a sublayer reads and writes: [B, S, D]."""
        return TensorType((B, S, self.hidden_size), self.dtype)

    @property
    def stream(self) -> TensorType:
        """What goes from layer to layer: [B, S, D]."""
        return self.hidden

    @property
    def tokens(self) -> TensorType:
        """Token ids: [B, S]."""
        return TensorType((B, S), DType.INT64)

    @property
    def offered(self) -> dict[str, TensorType]:
        """What a layer may want besides the stream, by the name of its input: rotary tables, token ids."""
        return {table.name: table.type for table in self.ropes.values()} | {TOKENS: self.tokens}

    def ffn_scope(self, name: str) -> Scope:
        return ffn_scope(self.constants, self.spec, name)

    def attention_scope(self, name: str) -> Scope:
        return attention_scope(self.constants, self.spec, name)


def attention_scope(constants: Constants, spec: ModelSpec, name: str) -> Scope:
    return Scope(constants, name, ".".join(spec.attention_key(name)), siblings=len(spec.attentions) > 1)


def ffn_scope(constants: Constants, spec: ModelSpec, name: str) -> Scope:
    family = [other for other, section in spec.ffns.items() if section.kind == spec.ffns[name].kind]
    return Scope(constants, name, f"ffn.{name}", siblings=len(family) > 1)


def tables(constants: Constants, spec: ModelSpec) -> dict[str, Table]:
    scopes = {name: (attention_scope(constants, spec, name), section) for name, section in spec.attentions.items()}
    return rope_tables(scopes)
