"""The root of the language: one model."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.attention import Attention
from dsc.spec.base import Count, NonNegativeFloat, PositiveFloat, Section
from dsc.spec.cluster import Machines
from dsc.spec.ffn import DenseFfn, Ffn, MoeFfn
from dsc.spec.mtp import Mtp
from dsc.spec.placement import Placement
from dsc.spec.precision import Precision
from dsc.spec.workload import Workload

NAME_PATTERN = r"^[a-z][a-z0-9]*([._-][a-z0-9]+)*$"


class Norm(Section):
    """RMSNorm before each sublayer and before the head."""

    eps: PositiveFloat


class LayerGroup(Section):
    """`repeat` layers of one kind. Layer kinds differ by the axes named here."""

    repeat: Annotated[int, Field(ge=1, le=10_000)]
    ffn: Literal["dense", "moe"]


class AddResidual(Section):
    """x + multiplier * sublayer(norm(x))."""

    kind: Literal["add"] = "add"
    multiplier: PositiveFloat = 1.0


class ModelSpec(Section):
    """A decoder-only language model."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
    vocab_size: Count
    hidden_size: Count
    max_position_embeddings: Count
    tie_word_embeddings: bool = False
    initializer_range: NonNegativeFloat = 0.02
    """Standard deviation of initial weights."""
    embedding_multiplier: PositiveFloat = 1.0
    """Multiplies the embedding's output (MiniCPM's scale_emb)."""
    logit_multiplier: PositiveFloat = 1.0
    """Multiplies the hidden state before the head (MiniCPM's dim_model_base / hidden_size)."""
    z_loss: PositiveFloat | None = None
    """Adds z_loss * log(sum(exp(logits)))^2 to the cross-entropy of each token (PaLM, arXiv 2204.02311, section 5)."""
    norm: Norm
    residual: AddResidual = AddResidual()
    attention: Attention
    ffn: Ffn
    layers: Annotated[list[LayerGroup], Field(min_length=1, max_length=256)]
    mtp: Mtp | None = None
    precision: Precision = Precision()
    workload: Workload = Workload()
    cluster: Machines | None = None
    placement: Placement | None = None

    @property
    def num_layers(self) -> int:
        return sum(group.repeat for group in self.layers)

    @property
    def package_name(self) -> str:
        """The name of the emitted package: deepseek-v3 -> deepseek_v3."""
        return self.name.replace("-", "_").replace(".", "_")

    def dense(self) -> DenseFfn:
        """The dense feed-forward; checked specs have it wherever a layer names it."""
        assert self.ffn.dense is not None
        return self.ffn.dense

    def moe(self) -> MoeFfn:
        """The mixture of experts; checked specs have it wherever a layer names it."""
        assert self.ffn.moe is not None
        return self.ffn.moe
